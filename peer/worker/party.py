"""The process of one peer's part in a secure run: shares what it has, deals, or computes on shares.

    peer to process                                      process to peer
    ["provide", id, ...] + fd    as to a jail            ["tell", [index], kind, number, total, piece]
    ["part", what]               see Part                ["done", told] + fd of the output shares, or their bytes
    ["heard", index, kind, number, total, piece]         ["failed", fault, index of who is to blame or nil]
    ["begin"]                    all others are there

Indices are of those who take part: parties first, then the dealer, then holders of inputs that are neither. Messages
between them, whose `number` is 0 where nothing is said of it:

    SEED          dealer to party: its seed, and bytes of corrections that the last party will get (u64)
    CORRECTIONS   dealer to the last party: a piece of them; number counts the pieces
    CREDIT        the last party to the dealer: so many bytes of them were used (u64); number counts
    READY         the last party to the others: the dealing is done, or far enough
    MASK          holder to party: the seed of its shares of all that the holder has
    SHARE         holder to a party that draws none: its share of input `number`
    ROUND         party to party: its shares of what is opened in round `number`
    BUSY          party to party: waiting for somebody else

What is not due, or has another size than is due, ends the run: the error names who sent it.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import torch

from compute.cost import ALLOWED
from compute.dtypes import DTYPE_OF, NAME_OF
from compute.program import Program
from compute.values import tensor_bytes
from mpc.dealer import Dealer, Supply
from mpc.fresh import freshly
from mpc.interpreter import run
from mpc.masks import SEED as SEED_BYTES
from mpc.masks import Masks, fresh_seed
from mpc.party import Party
from mpc.ring import PRECISION, encode
from mpc.rounds import Opened, Opening, Protocol, message, opened
from mpc.script import script_of
from mpc.secret import Secret
from peer.worker import export, giving, memory
from peer.worker.channel import BlockingChannel
from peer.worker.faults import as_error
from peer.worker.objects import Objects
from peer.worker.sandbox import Settings
from protocol import limits
from protocol.errors import BadRequest, GridError, InternalError, PartyFailed

SEED, CORRECTIONS, CREDIT, READY, MASK, SHARE, ROUND, BUSY = range(8)

_U64: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Part:
    """What this process is to do.

    Attributes:
        index: of this peer among those who take part.
        names: of all of them, for errors.
        parties: how many are parties: the first ones.
        dealer: the index of who deals.
        inputs: of each secret input who has it (its index; None: the asker), its id where it is here, dtype, shape.
        public: ids of the public values, which follow the secret inputs.
        shares: ids of this party's shares of what the asker has, by input; where there are none it draws them from
            `seed`.
        patience: seconds to wait for another.
    """

    index: int
    names: tuple[str, ...]
    parties: int
    dealer: int
    inputs: tuple[tuple[int | None, bytes, str, tuple[int, ...]], ...]
    public: tuple[bytes, ...]
    shares: Mapping[int, bytes]
    seed: bytes
    program: Program
    patience: float

    @property
    def is_party(self) -> bool:
        return self.index < self.parties

    @property
    def is_last(self) -> bool:
        return self.index == self.parties - 1

    @property
    def others(self) -> list[int]:
        """The other parties."""
        return [rank for rank in range(self.parties) if rank != self.index]

    @classmethod
    def of(cls, what: Mapping[str, Any]) -> Part:
        return cls(
            what["index"],
            tuple(what["names"]),
            what["parties"],
            what["dealer"],
            tuple((holder, id, dtype, tuple(shape)) for holder, id, dtype, shape in what["inputs"]),
            tuple(what["public"]),
            {number: id for number, id in what["shares"]},
            what["seed"],
            Program.from_bytes(what["program"]),
            what["patience"],
        )

    def words_of(self, dtype: str) -> int:
        """Fractional bits of an input of this dtype."""
        return PRECISION if DTYPE_OF[dtype].is_floating_point else 0


class Blame(Exception):
    """Somebody else broke the rules, or is not heard: index, and what of it."""

    def __init__(self, index: int, why: str) -> None:
        super().__init__(why)
        self.index = index
        self.why = why


class Mail:
    """What came from the others, and what goes to them."""

    def __init__(self, channel: BlockingChannel) -> None:
        self._channel = channel
        self._poll = select.poll()
        self._poll.register(channel.fileno(), select.POLLIN)
        self._came: dict[tuple[int, int, int], bytearray] = {}  # by sender, kind, number: whole, or in part
        self._left: dict[tuple[int, int, int], int] = {}  # bytes to come
        self._heard: dict[int, float] = {}
        self._said = time.monotonic()  # that we are busy
        self.part: Part | None = None
        self.objects = Objects()
        self.has_begun = False
        self.sent = 0  # bytes of rounds, to each other party counted
        self.allowed: Callable[[int, int, int, int], None] = lambda *_: None

    # --- coming in ----------------------------------------------------------------------------------------

    def job(self) -> Part:
        """Waits for what there is to do."""
        while self.part is None:
            self._receive(None)
        return self.part

    def wait_begin(self) -> None:
        while not self.has_begun:
            self._receive(None)

    def take(self, sender: int, kind: int, number: int, size: int | None = None) -> bytearray:
        """The whole message; of `size` bytes, where that is known. Waits."""
        return self.take_all([(sender, kind, number)], size)[0]

    def take_all(self, keys: Sequence[tuple[int, int, int]], size: int | None = None) -> list[bytearray]:
        """Several, whichever comes first. Blame: what came has another size, or one does not come."""
        began = time.monotonic()
        while missing := [key for key in keys if key not in self._came or self._left[key]]:
            self._wait(missing, began)
        found = []
        for key in keys:
            del self._left[key]
            found.append(self._came.pop(key))
            if size is not None and len(found[-1]) != size:
                raise Blame(key[0], f"sent {len(found[-1])} bytes where {size} are due")
        return found

    def has(self, sender: int, kind: int, number: int) -> bool:
        key = (sender, kind, number)
        return key in self._came and not self._left[key]

    def _wait(self, missing: Sequence[tuple[int, int, int]], began: float) -> None:
        assert self.part is not None
        patience = self.part.patience
        if self._receive(patience / 4):
            return
        now = time.monotonic()
        for sender, kind, number in missing:
            if now - max(began, self._heard.get(sender, 0.0)) >= patience:
                what = f"round {number}" if kind == ROUND else "what is due"
                raise Blame(sender, f"has not sent {what} for {patience:g} s")
        self.busy()

    def _receive(self, timeout: float | None) -> bool:
        """Takes what comes; False if nothing did in that time."""
        if timeout is not None and not self._poll.poll(timeout * 1000):
            return False
        messages = self._channel.receive()
        if messages is None:
            os._exit(0)  # the peer is gone, or has no more use for us
        for each, descriptors in messages:
            self._on(each, descriptors)
        return True

    def _on(self, each: Any, descriptors: list[int]) -> None:
        match each:
            case ["heard", int(sender), int(kind), int(number), int(total), bytes(piece)]:
                self._on_piece(sender, kind, number, total, piece)
            case ["provide", *fields]:
                giving.take(self.objects, fields, descriptors)
            case ["part", dict(what)]:
                self.part = Part.of(what)
            case ["begin"]:
                self.has_begun = True
            case _:
                raise InternalError("a process of a secure run was told what is no part of one")
        for fd in descriptors:
            os.close(fd)

    def value(self, id: bytes) -> torch.Tensor:
        """A tensor that was provided, its blocks checked."""
        tensor = self.objects.get(id)
        for each in self.objects.guarded([tensor]):
            each.check()
        return tensor

    def _on_piece(self, sender: int, kind: int, number: int, total: int, piece: bytes) -> None:
        self._heard[sender] = time.monotonic()
        if kind == BUSY:
            return
        key = (sender, kind, number)
        if key not in self._came:
            if total > limits.SECURE_MESSAGE:
                raise Blame(sender, f"announced a message of {total} bytes")
            self.allowed(sender, kind, number, total)
            self._came[key], self._left[key] = bytearray(), total
        if len(piece) > self._left[key]:
            raise Blame(sender, f"sent more than the {total} bytes that it had said")
        self._came[key] += piece
        self._left[key] -= len(piece)

    # --- going out ----------------------------------------------------------------------------------------

    def tell(self, to: Sequence[int], kind: int, number: int, data: bytes | memoryview) -> None:
        """One message to each of these."""
        if not to:
            return
        if kind == ROUND:
            self.sent += len(data) * len(to)
        view, targets = memoryview(data), list(to)
        for start in range(0, max(len(view), 1), limits.SECURE_PIECE):
            piece = bytes(view[start : start + limits.SECURE_PIECE])
            self._channel.send(["tell", targets, kind, number, len(view), piece])

    def busy(self) -> None:
        """Says now and then that we are there, to those who may wait for us."""
        assert self.part is not None
        now, part = time.monotonic(), self.part
        if now - self._said >= part.patience / 4:
            self._said = now
            others = [*part.others, part.dealer] if part.is_party else list(range(part.parties))
            self.tell([each for each in others if each != part.index], BUSY, 0, b"")

    def send(self, told: Any, descriptors: Sequence[int] = ()) -> None:
        self._channel.send(told, descriptors)


# --- the three things that there are to do ----------------------------------------------------------------


def share_inputs(part: Part, mail: Mail) -> dict[int, torch.Tensor]:
    """Gives the others their shares of what is here; the words that are this peer's own share, by input.

    All parties but one draw theirs from a seed. That one is this peer where it is a party, else the first.
    """
    own = [at for at, (holder, _, _, _) in enumerate(part.inputs) if holder == part.index]
    if not own:
        return {}
    full = part.index if part.is_party else 0
    seeds = {rank: fresh_seed() for rank in range(part.parties) if rank != full}
    for rank, seed in seeds.items():
        mail.tell([rank], MASK, 0, seed)
    kept = {}
    for at in own:
        _, id, dtype, shape = part.inputs[at]
        words = encode(mail.value(id), part.words_of(dtype))
        for seed in seeds.values():
            words = words - Masks(seed, at).draw(shape, torch.int64)
        if full == part.index:
            kept[at] = words
        else:
            mail.tell([full], SHARE, at, tensor_bytes(words))
    return kept


def shares(part: Part, mail: Mail, kept: Mapping[int, torch.Tensor]) -> list[Secret]:
    """This party's share of every secret input."""
    seeds: dict[int, bytes] = {}
    found = []
    for at, (holder, _, dtype, shape) in enumerate(part.inputs):
        if at in kept:
            words = kept[at]
        elif holder is None:
            given = part.shares.get(at)
            words = mail.value(given) if given is not None else Masks(part.seed, at).draw(shape, torch.int64)
        elif holder >= part.parties and part.index == 0:
            words = _words(mail.take(holder, SHARE, at, _nbytes(shape)), shape)
        else:
            if holder not in seeds:
                seeds[holder] = bytes(mail.take(holder, MASK, 0, SEED_BYTES))
            words = Masks(seeds[holder], at).draw(shape, torch.int64)
        found.append(Secret(words, part.words_of(dtype), DTYPE_OF[dtype]))
    return found


def _words(data: bytes | bytearray, shape: tuple[int, ...]) -> torch.Tensor:
    if not len(data):
        return torch.empty(shape, dtype=torch.int64)
    return torch.frombuffer(data if isinstance(data, bytearray) else bytearray(data), dtype=torch.int64).reshape(shape)


def _nbytes(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel() * torch.int64.itemsize


def deal(part: Part, mail: Mail) -> dict[str, Any]:
    """Deals what the program takes: a seed to each party, the corrections to the last."""
    began = time.perf_counter()
    meta = [
        Secret(torch.empty(shape, dtype=torch.int64, device="meta"), part.words_of(dtype), DTYPE_OF[dtype])
        for _, _, dtype, shape in part.inputs
    ]
    public = [mail.value(id) for id in part.public]
    script = script_of(lambda party: _slowly(mail, _part_of(party, part.program, [*meta, *public])), part.parties)
    dealer, last = Dealer(script, part.parties), part.parties - 1
    for rank, seed in enumerate(dealer.seeds):
        mail.tell([rank], SEED, 0, seed + _U64.pack(script.dealt))
    sent = used = pieces = credits = 0
    for correction in dealer.corrections():
        mail.busy()
        for start in range(0, len(correction), limits.SECURE_PIECE):
            piece = correction[start : start + limits.SECURE_PIECE]
            while sent - used > limits.SECURE_AHEAD or mail.has(last, CREDIT, credits):
                used += _U64.unpack(mail.take(last, CREDIT, credits, _U64.size))[0]
                credits += 1
            mail.tell([last], CORRECTIONS, pieces, piece)
            sent, pieces = sent + len(piece), pieces + 1
    return {"offline": time.perf_counter() - began, "dealt": script.dealt + part.parties * SEED_BYTES}


def _part_of(party: Party, program: Program, inputs: Sequence[Any]) -> Protocol[Any]:
    """What each party runs: the program, and its outputs under new shares, because these leave the parties."""
    return freshly(party, run(party, program, inputs))


def _slowly(mail: Mail, protocol: Protocol[Any]) -> Protocol[Any]:
    """The same protocol; the others hear in between that we are there."""
    answer: Any = None
    while True:
        try:
            asked = protocol.send(answer)
        except StopIteration as done:
            return done.value
        mail.busy()
        answer = yield asked


class Corrections:
    """What the dealer sends to the last party, in order."""

    def __init__(self, part: Part, mail: Mail, total: int) -> None:
        self._part = part
        self._mail = mail
        self.left = total
        self._piece = memoryview(b"")
        self._ready: list[bytearray] = []
        self._pieces = self._credits = self._used = 0

    def wait(self, nbytes: int) -> None:
        """Until so many of them are here, or all."""
        wanted = min(nbytes, self.left)
        while sum(map(len, self._ready)) < wanted:
            self._ready.append(self._mail.take(self._part.dealer, CORRECTIONS, self._pieces))
            self._pieces += 1

    def read(self, nbytes: int) -> memoryview:
        """The next ones."""
        if nbytes > self.left:
            raise Blame(self._part.dealer, "has dealt less than the program takes")
        got = bytearray()
        while len(got) < nbytes:
            if not len(self._piece):
                self.wait(1)
                self._piece = memoryview(self._ready.pop(0))
            took = self._piece[: nbytes - len(got)]
            got += took
            self._piece = self._piece[len(took) :]
        self.left -= nbytes
        self._credit(nbytes)
        return memoryview(got)

    def _credit(self, nbytes: int) -> None:
        self._used += nbytes
        if self._used >= limits.SECURE_AHEAD // 8:
            self._mail.tell([self._part.dealer], CREDIT, self._credits, _U64.pack(self._used))
            self._used, self._credits = 0, self._credits + 1


@dataclass(frozen=True, slots=True)
class Ran:
    """What a party computed."""

    outputs: Any
    seconds: float
    rounds: int


def compute(part: Part, mail: Mail, kept: Mapping[int, torch.Tensor], supply: Supply) -> Ran:
    """Runs the program on shares with the other parties."""
    began = time.perf_counter()
    public = [mail.value(id) for id in part.public]
    inputs = [*shares(part, mail, kept), *public]
    protocol = _part_of(Party(part.index, part.parties, supply), part.program, inputs)
    rounds = _Rounds(part, mail)
    outputs = rounds.drive(protocol)
    return Ran(outputs, time.perf_counter() - began, rounds.number)


class _Rounds:
    def __init__(self, part: Part, mail: Mail) -> None:
        self._part = part
        self._mail = mail
        self.number = 0
        mail.allowed = self._check

    def _check(self, sender: int, kind: int, number: int, total: int) -> None:
        """Before anything of a message is kept: nobody is more than a round ahead."""
        if kind == ROUND and not self.number <= number <= self.number + 1:
            raise Blame(sender, f"sent round {number} where {self.number} is due")

    def drive(self, protocol: Protocol[Any]) -> Any:
        answer: Opened | None = None
        while True:
            try:
                asked = next(protocol) if answer is None else protocol.send(answer)
            except StopIteration as done:
                return done.value
            answer = self._round(asked)

    def _round(self, asked: Opening) -> Opened:
        others = self._part.others
        if asked.nbytes > limits.SECURE_MESSAGE:
            raise BadRequest(f"a round of {asked.nbytes} bytes: run the plan on smaller parts of the data")
        self._mail.tell(others, ROUND, self.number, b"".join(message(asked)))
        came = self._mail.take_all([(rank, ROUND, self.number) for rank in others], asked.nbytes)
        self.number += 1
        return opened(asked, [memoryview(each) for each in came])


# --- results ----------------------------------------------------------------------------------------------


def leaves(template: Any, value: Any) -> Iterator[Any]:
    """The values that come out of a program, in the order of PROGRAM.md, Outputs."""
    if isinstance(template, list):
        for inner, item in zip(template, value, strict=True):
            yield from leaves(inner, item)
    elif isinstance(template, Mapping):
        if "node" in template or "constant" in template:
            yield value
        elif "tuple" in template:
            yield from leaves(template["tuple"], list(value))
        elif "map" in template:
            for key, inner in sorted(template["map"].items()):
                yield from leaves(inner, value[key])


def _described(part: Part, outputs: Any) -> tuple[list[Any], list[torch.Tensor]]:
    """Of each value that comes out: [fractional bits or None, dtype, shape], and this party's part of it."""
    listed, tensors = [], []
    for value in leaves(part.program.outputs, outputs):
        if isinstance(value, Secret):
            listed.append([value.bits, NAME_OF[value.dtype], list(value.share.shape)])
            tensors.append(value.share)
        elif isinstance(value, torch.Tensor):
            listed.append([None, NAME_OF[value.dtype], list(value.shape)])
            tensors.append(value)
        else:
            listed.append(["plain", value, []])
    return listed, tensors


def _tell_result(mail: Mail, told: dict[str, Any], tensors: Sequence[torch.Tensor]) -> None:
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if total <= limits.INLINE_PAYLOAD:
        mail.send(["done", {**told, "nbytes": total}, b"".join(map(tensor_bytes, tensors))])
        return
    export.check_size(total)
    fd, at = memory.new_file("grid-shares"), 0
    for tensor in tensors:
        at = export.write(fd, at, tensor)
    memory.seal(fd)
    mail.send(["done", {**told, "nbytes": total}, None], [fd])
    os.close(fd)


# --- the process ------------------------------------------------------------------------------------------


def serve(sock: socket.socket, settings: Settings) -> NoReturn:
    """The process's whole life, behind its walls."""
    mail = Mail(BlockingChannel(sock, send_limit=limits.WORKER_REPLY, receive_limit=limits.WORKER_MESSAGE))
    torch.set_num_threads(settings.threads)
    ALLOWED.limit(settings.memory, settings.seconds, float(settings.threads))
    try:
        with torch.no_grad():
            _serve(mail)
    except Blame as blame:
        assert mail.part is not None
        name = mail.part.names[blame.index]
        error: GridError = PartyFailed(f"{name} {blame.why}", peer=name)
        mail.send(["failed", error.to_fault(), blame.index])
    except (BrokenPipeError, ConnectionResetError):
        pass
    except BaseException as problem:
        mail.send(["failed", as_error(problem, None).to_fault(), None])
    mail_ended(sock)


def mail_ended(sock: socket.socket) -> NoReturn:
    """Our end is the peer's to make: what was sent is read by then."""
    while sock.recv(1 << 16):
        pass
    os._exit(0)


def _serve(mail: Mail) -> None:
    part = mail.job()
    mail.wait_begin()
    told: dict[str, Any] = {"offline": 0.0, "online": 0.0, "rounds": 0, "sent": 0, "dealt": 0, "outputs": []}
    if part.index == part.dealer:
        told |= deal(part, mail)
    began = time.perf_counter()
    supply = _dealt(part, mail) if part.is_party else None
    if supply is not None:
        told["offline"] = time.perf_counter() - began
    kept = share_inputs(part, mail)
    tensors: list[torch.Tensor] = []
    if supply is not None:
        ran = compute(part, mail, kept, supply)
        listed, tensors = _described(part, ran.outputs)
        told |= {"online": ran.seconds, "rounds": ran.rounds, "sent": mail.sent, "outputs": listed}
    _tell_result(mail, told, tensors)


def _dealt(part: Part, mail: Mail) -> Supply:
    """Waits for the dealer; from here on all that is slow is online."""
    seed = bytes(mail.take(part.dealer, SEED, 0, SEED_BYTES + _U64.size))
    total = _U64.unpack(seed[SEED_BYTES:])[0]
    if not part.is_last:
        mail.take(part.parties - 1, READY, 0, 0)
        return Supply(seed[:SEED_BYTES])
    corrections = Corrections(part, mail, total)
    corrections.wait(limits.SECURE_AHEAD // 2)
    mail.tell(part.others, READY, 0, b"")
    return Supply(seed[:SEED_BYTES], corrections.read)


def warm() -> None:
    """In the zygote: what such processes run, run once, so that nothing has to be imported behind the walls."""
    masks = Masks(bytes(SEED_BYTES), 0).draw((4,), torch.int64)
    tensor_bytes(masks)
