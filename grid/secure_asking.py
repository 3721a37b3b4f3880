"""One secure run, asked for: what all who take part are told, and what each is told alone."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgpack
import torch

from compute.dtypes import DTYPE_OF, NAME_OF
from compute.values import tensor_bytes
from grid.handle import Handle
from grid.ids import fresh_id
from grid.pointer import Pointer
from grid.secure_forecast import fixed_inputs
from grid.secure_inputs import Masked, Own, Shared
from grid.secure_results import Answer, SecureCost, Stayed, There, cost, values
from grid.secure_standing import KeptShares, SecureSession, Stored
from grid.secure_waiting import Answering
from mpc.lowering import Lowered
from mpc.moments import SQUARES
from peer.agreement import HEARSAY, KEPT, Agreement, program_hash
from protocol import limits
from protocol.errors import BadRequest, Cancelled, GridError, LinkError, PartyFailed, PeerLost
from protocol.sizes import check_limit

if TYPE_CHECKING:
    from grid.client import Grid
    from grid.remote import RemotePeer


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run gave: its outputs in the order of PROGRAM.md (KeptShares, tensors, pointers, numbers), and what it
    cost."""

    outputs: list[Any]
    cost: SecureCost


@dataclass(frozen=True, slots=True)
class SecretInput:
    """One secret input, as the agreement has it: `local`: the tensor, where the asker has it."""

    holder: str
    id: bytes
    dtype: torch.dtype
    shape: tuple[int, ...]
    bits: int
    keep: bytes
    is_fixed: bool
    local: torch.Tensor | None

    @property
    def kept_as(self) -> bytes:
        """Its id among kept shares, when the run is over."""
        return self.id if self.holder == KEPT else self.keep

    def to_wire(self) -> list[Any]:
        return [self.holder, self.id, NAME_OF[self.dtype], list(self.shape), self.bits, self.keep, self.is_fixed]


class Asking:
    """One run: what everybody is told, and what each is told alone."""

    def __init__(
        self,
        grid: Grid,
        session: SecureSession,
        lowered: Lowered,
        key: bytes,
        inputs: Sequence[Any],
        keep: Sequence[bool],
        to: RemotePeer | None,
        patience: float | None,
        name: str,
        ahead: int,
        checked: bool,
    ) -> None:
        self._grid, self._session, self._lowered, self._to = grid, session, lowered, to
        self._keep, self._ahead, self._key = keep, ahead, key
        self._patience = limits.SECURE_PATIENCE if patience is None else patience
        self._answering = Answering(self._patience, ())
        self._program = lowered.program.to_bytes()
        self._public = b"".join(bytes(tensor_bytes(each)) for each in lowered.public)
        self._hash = program_hash(self._program, self._public)
        self._inputs = entries(session, lowered, inputs, may_keep=not checked)
        self._is_private = any(map(_may_be_private, inputs))
        parties = session.team.parties
        self._batch, self._item = (fresh_id(), 0) if ahead else (b"", 0) if checked else self._from_stock()
        holders = [each._handle.home for each in inputs if isinstance(each, Pointer)]
        by_id = {each.id: each for each in (*parties, *holders, *([to] if to is not None else []))}
        if session.team.provider is not None:
            by_id[session.team.provider.id] = session.team.provider
        self._outputs = [(fresh_id(), is_kept) for is_kept in keep] if any(keep) or to is not None else []
        self._agreement = msgpack.packb(
            {
                "run": fresh_id(),
                "session": session.id,
                "asker": grid.id,
                "parties": [each.id for each in parties],
                "provider": session.team.provider.id if session.team.provider is not None else "",
                "inputs": [each.to_wire() for each in self._inputs],
                "public": [[NAME_OF[each.dtype], list(each.shape)] for each in lowered.public],
                "program": self._hash,
                "reveal": grid.id if to is None else to.id,
                "receives": to is not None,
                "outputs": [list(each) for each in self._outputs] if not ahead else [],
                "batch": self._batch,
                "item": self._item,
                "ahead": ahead,
                "precision": lowered.precision,
                "checked": checked,
                "patience": self._patience,
                "name": (name or "plan")[: limits.MAX_OBJECT_NAME],
            }
        )
        self.everybody = self._who(by_id)
        own = [Own(at, each.local, each.bits) for at, each in enumerate(self._inputs) if each.local is not None]
        self._masked = Masked(own, len(parties), len(self._inputs)) if checked else None
        self._own = self._masked or Shared(own, len(parties))

    @property
    def _provider_id(self) -> str:
        provider = self._session.team.provider
        return provider.id if provider is not None else ""

    def _who(self, by_id: dict[str, RemotePeer]) -> list[RemotePeer]:
        """In the order of Agreement.everybody."""
        ids = [each.id for each in self._session.team.parties]
        ids.append(self._provider_id if self._ahead or not self._batch else "")
        ids += [each.holder for each in self._inputs if each.holder != KEPT]
        ids.append(self._to.id if self._to is not None else "")
        return [by_id[id] for id in dict.fromkeys(ids) if id]

    def _from_stock(self) -> tuple[bytes, int]:
        """What was dealt ahead for such a run; it is used up by this, whatever comes of it."""
        stock = self._session.stock.get(self._stock_key)
        return stock.popleft() if stock else (b"", 0)

    @property
    def _stock_key(self) -> bytes:
        return stock_key(self._key, self._inputs, self._keep)

    # --- asking -------------------------------------------------------------------------------------------

    async def run(self) -> Ran:
        session, count = self._session, len(self._session.team.parties)
        # What somebody refuses would end the session, and all that it keeps.
        if session.keeps:
            self._check()
        if session.peers and self._may_be_refused:
            self._answering.begin()
            try:
                await _all_or_none({peer: self._would(peer) for peer in self.everybody})
            except PartyFailed as error:  # it is over there
                session.end(error)
                raise
            finally:
                self._answering.close()
        # Also what is dealt ahead is with all parties as soon as one of them has it all.
        self._answering = Answering(self._patience, [each.id for each in session.team.parties])
        try:
            # Who deals hears of it first: the parties wait for that.
            order = sorted(self.everybody, key=lambda peer: peer.id != self._provider_id)
            came = await _all_or_none({peer: self._ask(peer) for peer in order})
            answers = [came[peer] for peer in self.everybody]
            made = self._made(answers[:count])
            ran = Ran(made, cost(answers, count))
        except BaseException as error:
            _name_peers(error, self.everybody)
            session.end(error if isinstance(error, GridError) else Cancelled("a run of the session was given up"))
            raise
        finally:
            self._answering.close()
        session.used = time.monotonic()
        session.fixed.update(each.kept_as for each in self._inputs if each.is_fixed)
        session.seen.update(each.kept_as for each in self._inputs if each.kept_as)
        for each in self._inputs:
            if each.keep:
                nbytes = torch.Size(each.shape).numel() * torch.int64.itemsize
                session.stored[each.holder, each.id, each.bits] = Stored(each.keep, nbytes)
        if self._ahead:
            session.stock.setdefault(self._stock_key, deque()).extend((self._batch, at) for at in range(self._ahead))
        return ran

    def _check(self) -> None:
        """What every peer would refuse. BadRequest, TooLarge."""
        Agreement.of(self._agreement)
        told = [self._own.told(rank, peer.id == self._provider_id)[0] for rank, peer in enumerate(self.everybody)]
        most = len(self._agreement) + len(self._program) + len(self._public) + max(map(len, told))
        sentence = "a secure run that is asked for in {size} bytes: send what is large to a peer first"
        check_limit("SECURE_REQUEST", most, sentence)

    @property
    def _may_be_refused(self) -> bool:
        """Whether a peer may say no to this very run, and something would be lost with the session."""
        at_holders = any(each.holder not in ("", KEPT) for each in self._inputs)
        reveals = not self._ahead and not (self._keep and all(self._keep))
        return (self._is_private and (at_holders or reveals)) or (at_holders and self._session.keeps)

    async def _would(self, peer: RemotePeer) -> Answer:
        """Asks one peer whether it would take part, before anybody does. Raises why it would not."""
        opens = peer.id not in self._session.peers
        args = {"sizes": [len(self._agreement), 0, 0, 0], "would": True, "opens": opens}
        link = await _link(peer)
        answer = await self._answering.of(peer, link.post("secure", args, self._agreement, now=True))
        return answer.result, b""

    async def _ask(self, peer: RemotePeer) -> Answer:
        """Has one peer take part; what it answers when the run is over."""
        session, rank = self._session, self.everybody.index(peer)
        parties = len(session.team.parties)
        shares, seed = self._own.told(rank, peer.id == self._provider_id)
        program, public = b"", b""
        if (rank < parties or peer.id == self._provider_id) and not session.knows(peer, self._hash):
            program, public = self._program, self._public
        args: dict[str, Any] = {
            "sizes": [len(self._agreement), len(program), len(public), len(shares)],
            "opens": peer.id not in session.peers,
        }
        session.peers[peer.id] = peer
        if seed is not None:
            args["seed"] = seed
        payload = b"".join((self._agreement, program, public, shares))
        link = await _link(peer)
        try:
            answer = await self._answering.of(peer, link.post("secure", args, payload, now=True))
            return answer.result, bytes(await answer.read(limits.SECURE_MESSAGE))
        except PeerLost:  # what it did in the run does not matter: the run is over
            raise PartyFailed(
                f"{peer.name} is gone in the middle of the run: it cannot be reached any more", peer=peer.name
            ) from None

    def _made(self, answers: Sequence[Answer]) -> list[Any]:
        """The outputs."""
        if self._ahead:
            return []
        found = values(answers, len(self._keep), is_elsewhere=self._to is not None, masked=self._masked)
        ids = self._outputs or [(b"", False)] * len(found)
        return [self._output(id, value) for (id, _), value in zip(ids, found, strict=True)]

    def _output(self, id: bytes, value: Any) -> Any:
        if isinstance(value, Stayed):
            header = value.header
            return KeptShares(
                self._session, id, DTYPE_OF[header.dtype], header.shape, value.bits, is_private=self._is_private
            )
        if isinstance(value, There):
            assert self._to is not None
            handle = Handle(self._to, id, owns=True, record={"labels": [self._to.id]})
            return Pointer.of(handle, DTYPE_OF[value.header.dtype], value.header.shape)
        return value


def stock_key(program: bytes, inputs: Sequence[SecretInput], keep: Sequence[bool] = ()) -> bytes:
    """Equal for runs that take the same from the dealer. It begins with the program's key."""
    fixed = [each.kept_as if each.is_fixed else b"" for each in inputs]
    stays = list(keep) if any(keep) else []
    return program + hashlib.sha256(msgpack.packb([fixed, stays])).digest()


def entries(
    session: SecureSession, lowered: Lowered, inputs: Sequence[Any], *, may_keep: bool = True
) -> list[SecretInput]:
    """The inputs as all are told of them. What is stored stays with the parties, as far as there is room."""
    made = []
    room = limits.SECURE_KEPT // 2 - session.stored_bytes
    for at, each in enumerate(inputs):
        if isinstance(each, KeptShares):
            if each.dtype.is_floating_point and lowered.bits(at, each.dtype) >= each.bits + SQUARES:
                raise BadRequest(
                    "squares of gradients that an optimiser keeps (Adam, RMSprop) were shared as other reals are, and "
                    "are too small for that: make the optimiser for the secret parameters, or await nothing before its "
                    "first step"
                )
            made.append(SecretInput(KEPT, each.id, each.dtype, tuple(each.shape), each.bits, b"", False, None))
            continue
        bits, shape = lowered.bits(at, each.dtype), tuple(each.shape)
        if not isinstance(each, Pointer):
            made.append(SecretInput("", fresh_id(), each.dtype, shape, bits, b"", False, each))
            continue
        handle, keep = each._handle, b""
        if handle.is_published and may_keep:
            stored = session.stored.get((handle.home.id, handle.id, bits))
            if stored is not None:
                made.append(SecretInput(KEPT, stored.id, each.dtype, shape, bits, b"", False, None))
                continue
            nbytes = each.numel() * torch.int64.itemsize
            if nbytes <= room:
                room, keep = room - nbytes, fresh_id()
        made.append(SecretInput(handle.home.id, handle.id, each.dtype, shape, bits, keep, False, None))
    return _fixed(session, lowered, made)


def _fixed(session: SecureSession, lowered: Lowered, made: list[SecretInput]) -> list[SecretInput]:
    """Of those that the parties keep, the factors of products are fixed: stored ones at once, others when a second run
    needs them (a batch, and the weights of a training step, are used in one run only)."""
    may = [bool(each.keep) or (each.holder == KEPT and each.id in session.seen) for each in made]
    if not any(may):
        return made
    are = fixed_inputs(lowered, tuple((each.dtype, each.shape, each.bits) for each in made), tuple(may))
    return [replace(each, is_fixed=is_one) for each, is_one in zip(made, are, strict=True)]


def _may_be_private(given: Any) -> bool:
    """Whether somebody's rules may forbid to reveal what is computed from it."""
    if isinstance(given, KeptShares):
        return given.is_private
    return isinstance(given, Pointer) and (given._handle.record is None or bool(given._handle.labels))


async def _link(peer: RemotePeer) -> Any:
    """The line to it, on which all that was asked before is."""
    outbox = peer.outbox
    return await outbox.flush() if outbox.has_work else outbox.link


async def _all_or_none(asked: Mapping[RemotePeer, Coroutine[Any, Any, Answer]]) -> dict[RemotePeer, Answer]:
    """All answers, by peer; where one fails all others are given up, and the error that names a culprit is raised."""
    tasks = {peer: asyncio.ensure_future(each) for peer, each in asked.items()}
    try:
        await asyncio.wait(list(tasks.values()), return_when=asyncio.FIRST_EXCEPTION)
        failed = await _first_hand(tasks)
        if failed:
            raise _first(failed)
        return {peer: task.result() for peer, task in tasks.items()}
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


async def _first_hand(tasks: Mapping[RemotePeer, asyncio.Future[Answer]]) -> list[BaseException]:
    """What some failed with by now. Where all of these only repeat what another peer has said, that one, and whom it
    has named, have a moment to say it themselves: their word is on the way, as they told the others at the same time.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + limits.SECURE_LAST_WORDS
    while True:
        errors = [error for task in tasks.values() if task.done() and (error := task.exception()) is not None]
        told = [error for error in errors if isinstance(error, GridError)]
        tellers = {error.peer for error in told} | {error.fields.get(HEARSAY) for error in told}
        pending = [task for peer, task in tasks.items() if peer.name in tellers and not task.done()]
        left = until - loop.time()
        if not errors or not pending or left <= 0 or not all(map(_is_hearsay, errors)):
            return errors
        await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)


def _name_peers(error: BaseException, peers: Sequence[RemotePeer]) -> None:
    """By their names, where somebody who has never met them could only say the beginnings of their ids."""
    if not isinstance(error, GridError):
        return
    for peer in peers:
        short = peer.id[:12]
        error.message = error.message.replace(short, peer.name)
        if error.peer == short:
            error.peer = peer.name


def _is_hearsay(error: BaseException) -> bool:
    """Whether somebody only tells what it heard: of a third, or that the session is over because of another."""
    if not isinstance(error, GridError):
        return False
    return HEARSAY in error.fields or (error.fields.get("session") == "over" and error.peer is not None)


def _first(errors: Sequence[BaseException]) -> BaseException:
    """Of what several peers failed with at the same time: what says most, and who says it first-hand."""

    def rank(error: BaseException) -> tuple[bool, int]:
        if isinstance(error, PartyFailed):
            return _is_hearsay(error), 1
        kind = 2 if isinstance(error, Cancelled | LinkError) else 0 if isinstance(error, GridError) else 3
        return _is_hearsay(error), kind

    return min(errors, key=rank)
