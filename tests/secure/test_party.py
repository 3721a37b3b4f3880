"""What a party's process makes of messages that are not due: it says who sent them, and computes no further."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch

from compute.capture import capture
from mpc.arithmetic import FixedMask, Triple
from mpc.bilinear import MatrixProduct, Multiply
from mpc.dealer import Drawn, Supply
from mpc.lowering import lower
from mpc.rounds import Opened, Opening, Protocol
from mpc.script import Loop, Script
from peer.worker.channel import BlockingChannel
from peer.worker.secure.dealing import Corrections, Dealing, Receiving
from peer.worker.secure.kept import Kept, Stocked
from peer.worker.secure.mail import Gone, Mail
from peer.worker.secure.part import (
    BUSY,
    CORRECTIONS,
    CREDIT,
    MASK,
    READY,
    RESULT,
    ROUND,
    SEED,
    SHARE,
    Blame,
    Part,
)
from peer.worker.secure.process import Process as Secure
from peer.worker.secure.rounds import Rounds
from peer.worker.secure.sharing import shares
from peer.worker.secure.wire import Broken, Wire
from protocol import limits
from protocol.errors import BadRequest, NotFound, TooLarge

NAMES = ["alice", "bob", "carol", "dave"]
TAG = bytes(32)


def _connected() -> tuple[Wire, Wire]:
    """Both ends of a line; the first one dialled."""
    ours, theirs = socket.socketpair()
    return Wire(ours.detach(), is_dialler=True), Wire(theirs.detach(), is_dialler=False)


class Process:
    """The process of alice, party 0 of two; `heard` says what comes from the others."""

    def __init__(self, **changes: Any) -> None:
        ours, theirs = socket.socketpair()
        self._channel = BlockingChannel(ours, send_limit=limits.WORKER_MESSAGE, receive_limit=limits.WORKER_REPLY)
        self._ended = BlockingChannel(theirs, send_limit=1 << 20, receive_limit=limits.WORKER_MESSAGE)
        self.mail = Mail(self._ended)
        told = {
            "tag": TAG,
            "index": 0,
            "ids": NAMES,
            "names": NAMES,
            "parties": 2,
            "dealer": 2,
            "receiver": None,
            "inputs": [
                {
                    "holder": 3,
                    "id": bytes(16),
                    "dtype": "float32",
                    "shape": [2],
                    "bits": 16,
                    "keep": b"",
                    "is_fixed": False,
                }
            ],
            "public": [],
            "program": "",
            "code": None,
            "shares": [],
            "seed": b"",
            "outputs": [],
            "batch": b"",
            "item": 0,
            "ahead": 0,
            "patience": 0.05,
            "precision": 16,
            **changes,
        }
        self.others: dict[int, Wire] = {}
        for index, name in enumerate(NAMES):
            if index != told["index"]:
                theirs_wire, ours_wire = _connected()
                self.others[index] = theirs_wire
                self.mail.add(name, ours_wire)
        self._channel.send(["part", told])
        self.part = Part.of(self.mail.job())
        self.mail.begin(self.part)

    def heard(self, sender: int, kind: int, number: int, data: bytes, tag: bytes = TAG) -> None:
        self.others[sender].send(tag, kind, number, [data])

    def close(self) -> None:
        self._channel.close()
        self._ended.close()
        for wire in (*self.others.values(), *self.mail._wires.values()):
            wire.close()


@pytest.fixture
def process() -> Iterator[Process]:
    made = Process()
    yield made
    made.close()


@pytest.fixture
def second() -> Iterator[Process]:
    """The same of bob, the last party."""
    made = Process(index=1)
    yield made
    made.close()


def _opens(values: int) -> Protocol[Any]:
    opened: Opened = yield Opening(sums=[torch.zeros(values, dtype=torch.int64)])
    return opened.sums[0]


def test_rounds_that_are_due_are_opened(process: Process) -> None:
    process.heard(1, ROUND, 0, (7).to_bytes(8, "little") + (9).to_bytes(8, "little"))
    assert Rounds(process.part, process.mail).drive(_opens(2)).tolist() == [7, 9]


@pytest.mark.parametrize(
    "say, why",
    [
        (lambda p: p.heard(1, ROUND, 0, bytes(8)), "8 bytes where 16"),
        (lambda p: p.heard(1, ROUND, 0, bytes(24)), "24 bytes where 16"),
        (lambda p: p.heard(1, ROUND, 2, bytes(16)), "round 2 where 0"),
        (lambda p: p.heard(1, ROUND, 0, bytes(16), tag=b"another run's tag, of 32 bytes.."), "told of another run"),
        (lambda p: p.others[1]._socket.sendall(b"\x81\x05hello"), "no message of a run"),
        (lambda p: p.others[1]._socket.sendall(b"\x82\x05hello"), "no message of a run"),
        (lambda p: p.others[1]._socket.sendall(b"\x82\x85abcdhello"), "without a head"),
        (lambda p: p.others[1].close(), "is gone"),
        (lambda p: None, "has not sent round 0"),
    ],
)
def test_what_is_not_due_is_blamed_on_its_sender(process: Process, say: Callable[[Process], None], why: str) -> None:
    rounds = Rounds(process.part, process.mail)
    say(process)
    with pytest.raises(Blame, match=why) as blamed:
        rounds.drive(_opens(2))
    assert blamed.value.index == 1


def test_a_message_of_absurd_size_is_refused_before_it_is_kept(process: Process) -> None:
    head = b"\x82\xff" + (1 << 40).to_bytes(8, "big") + bytes(4)
    process.others[1]._socket.sendall(head + TAG + bytes([ROUND]) + bytes(7))
    with pytest.raises(Blame, match="announced"):
        Rounds(process.part, process.mail).drive(_opens(2))


def test_a_round_that_comes_again_is_refused(process: Process) -> None:
    process.heard(1, ROUND, 1, bytes(16))
    process.heard(1, ROUND, 1, bytes(16))
    with pytest.raises(Blame, match="twice"):
        Rounds(process.part, process.mail).drive(_opens(2))


def test_what_is_left_of_another_run_is_no_message_of_this_one(process: Process) -> None:
    process.heard(1, CREDIT, 0, bytes(8), tag=b"another run's tag, of 32 bytes..")
    process.heard(1, ROUND, 0, bytes(16))
    assert Rounds(process.part, process.mail).drive(_opens(2)).tolist() == [0, 0]
    assert not process.mail.has(1, CREDIT, 0)


def _hear(process: Process, sender: int) -> None:
    """What this one has sent."""
    process.mail._attend(NAMES[sender], process.mail._wires[NAMES[sender]], select.POLLIN)


@pytest.mark.parametrize(
    "index, sender, kind, number, size",
    [
        (0, 1, 200, 0, 8),  # no kind
        (0, 1, READY, 1, 0),
        (0, 1, READY, 0, 8),
        (0, 1, SEED, 0, 56),  # of another sender than is due
        (0, 2, SEED, 2, 56),
        (0, 2, SEED, 0, 16),
        (0, 2, CORRECTIONS, 0, 8),  # not to this party
        (1, 2, CORRECTIONS, 1, 8),
        (1, 2, CORRECTIONS, 0, 0),
        (1, 2, CORRECTIONS, 0, limits.SECURE_PIECE + 1),
        (0, 2, ROUND, 0, 8),
        (2, 1, ROUND, 0, 8),  # to the dealer
        (2, 1, CREDIT, 0, 8),  # before anything was dealt
        (2, 0, CREDIT, 0, 8),
        (0, 1, MASK, 0, 16),
        (0, 3, MASK, 1, 16),
        (0, 3, SHARE, 1, 16),
        (0, 1, SHARE, 0, 16),
        (0, 1, RESULT, 0, 8),
        (0, 1, BUSY, 0, 9),
    ],
)
def test_what_is_not_due_is_refused_by_its_head(index: int, sender: int, kind: int, number: int, size: int) -> None:
    process = Process(index=index)
    process.heard(sender, kind, number, bytes(size))
    with pytest.raises(Blame) as blamed:
        _hear(process, sender)
    assert blamed.value.index == sender and not process.mail._came
    process.close()


def test_what_is_due_of_all_kinds_is_kept(process: Process, second: Process) -> None:
    for sender, kind, number, size in [(2, SEED, 0, 56), (2, SEED, 1, 56), (1, READY, 0, 0), (3, SHARE, 0, 16)]:
        process.heard(sender, kind, number, bytes(size))
        _hear(process, sender)
        assert process.mail.has(sender, kind, number)
    for sender, kind, size in [(2, CORRECTIONS, limits.SECURE_PIECE), (3, MASK, 16), (0, ROUND, 8)]:
        second.heard(sender, kind, 0, bytes(size))
        while not second.mail.has(sender, kind, 0):
            second.others[sender].flush()
            _hear(second, sender)


def test_no_more_corrections_come_than_were_credited(second: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECURE_AHEAD", 16)
    monkeypatch.setattr(limits, "SECURE_PIECE", 8)
    for number in range(3):
        second.heard(2, CORRECTIONS, number, bytes(8))
    _hear(second, 2)
    second.heard(2, CORRECTIONS, 3, bytes(8))
    with pytest.raises(Blame, match="8 bytes where 0 are due"):
        _hear(second, 2)


def test_corrections_are_credited_while_many_are_read_at_once(second: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dealer may wait for it."""
    monkeypatch.setattr(limits, "SECURE_AHEAD", 16)
    second.heard(2, CORRECTIONS, 0, bytes(8))
    corrections = Corrections(second.part, second.mail)
    corrections.begin(64)
    with pytest.raises(Blame):
        corrections.read(64)
    assert second.mail.due.credited == 8


def test_the_last_party_has_not_used_more_than_it_was_sent() -> None:
    dealer = Process(index=2)
    dealing = Dealing(dealer.part, dealer.mail, Kept())
    dealing._sent = dealer.mail.due.dealt = limits.SECURE_AHEAD + 1
    dealer.heard(1, CREDIT, 0, (1 << 63).to_bytes(8, "little"))
    with pytest.raises(Blame, match="used more than it was sent") as blamed:
        dealing._wait()
    assert blamed.value.index == 1
    dealer.close()


def test_a_head_takes_no_memory(process: Process) -> None:
    """However large the message is that it announces: its place grows with what comes."""
    announced = 500 << 20
    process.mail.expect(announced)
    head = b"\x82\xff" + (32 + 8 + announced).to_bytes(8, "big") + bytes(4)
    process.others[1]._socket.sendall(head + TAG + bytes([ROUND]) + bytes(7) + bytes(100))
    wire = process.mail._wires["bob"]
    _hear(process, 1)
    assert wire._data is not None and len(wire._data) <= 1 << 20


@pytest.mark.parametrize("size, why", [(16, ""), (24, "24 bytes where 16")])
def test_a_large_round_that_is_not_asked_for_waits_at_who_sends_it(
    process: Process, monkeypatch: pytest.MonkeyPatch, size: int, why: str
) -> None:
    monkeypatch.setattr(limits, "SECURE_UNASKED", 8)
    wire = process.mail._wires["bob"]
    data = (7).to_bytes(8, "little") + bytes(size - 8)
    process.heard(1, BUSY, 0, b"")
    process.heard(1, ROUND, 0, data)
    process.heard(1, ROUND, 1, data)
    assert process.mail._turn(10)
    assert wire.is_paused and not process.mail._came
    assert not process.mail._turn(0)  # and we do not look again and again
    rounds = Rounds(process.part, process.mail)
    if why:
        with pytest.raises(Blame, match=why):
            rounds.drive(_opens(2))
        return
    assert rounds.drive(_opens(2)).tolist() == rounds.drive(_opens(2)).tolist() == [7, 0]
    process.heard(1, ROUND, 2, data)
    assert process.mail._turn(10) and wire.is_paused
    process.others[1].close()
    with pytest.raises(Blame, match="is gone") as blamed:
        process.mail._turn(10)
    assert blamed.value.index == 1


class _Clock:
    """In place of the module time."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("chatterer, why", [(2, "has not sent round 0 for 0.05 s"), (1, "however busy")])
def test_who_chatters_does_not_suspend_patience(monkeypatch: pytest.MonkeyPatch, chatterer: int, why: str) -> None:
    """Neither with another who is silent, nor for ever where it is the one that is due; we say that we are there."""
    clock, turns = _Clock(), 0
    for module in ("mail", "wire"):
        monkeypatch.setattr(f"peer.worker.secure.{module}.time", clock)
    process = Process()
    usual = Mail._turn

    def turn(mail: Mail, timeout: float | None, is_awake: bool) -> bool:
        nonlocal turns
        turns += 1
        assert turns < 5_000, "it waits for ever"
        clock.now += 0.01 if chatterer == 2 else 1.0
        process.heard(chatterer, BUSY, 0, b"")
        return usual(mail, timeout, is_awake)

    told: list[int] = []
    monkeypatch.setattr(Mail, "_turn", turn)
    monkeypatch.setattr(process.mail, "tell", lambda to, kind, number: told.append(kind))
    with pytest.raises(Blame, match=why) as blamed:
        process.mail.take_all([(1, ROUND, 0)])
    assert blamed.value.index == 1 and BUSY in told
    process.close()


def test_a_share_has_the_size_of_its_input(process: Process) -> None:
    process.heard(3, SHARE, 0, bytes(24))
    with pytest.raises(Blame, match="24 bytes where 16") as blamed:
        shares(process.part, process.mail, {}, Kept())
    assert blamed.value.index == 3


def test_a_seed_has_its_size(second: Process) -> None:
    second.heard(3, MASK, 0, bytes(15))
    with pytest.raises(Blame, match="15 bytes where 16"):
        shares(second.part, second.mail, {}, Kept())


def test_corrections_are_read_in_order_however_they_are_cut(second: Process) -> None:
    for number, piece in enumerate((b"abc", b"defgh", b"ij")):
        second.heard(2, CORRECTIONS, number, piece)
    corrections = Corrections(second.part, second.mail)
    corrections.begin(10)
    assert [bytes(corrections.read(size)) for size in (2, 6, 2)] == [b"ab", b"cdefgh", b"ij"]
    with pytest.raises(Blame, match="dealt less") as blamed:
        corrections.read(1)
    assert blamed.value.index == second.part.dealer


def _dealt(script: Script) -> bytes:
    return bytes(16) + script.dealt.to_bytes(8, "little") + script.digest


@pytest.mark.parametrize("index", [0, 1])
def test_a_party_begins_with_its_seed_while_the_rest_is_dealt(index: int) -> None:
    party, script = Process(index=index), Script((FixedMask((3,)), PRODUCT), 0, 0, 0)
    party.heard(2, SEED, 0, _dealt(script))
    receiving = Receiving(party.part, party.mail)
    assert [tuple(words.shape) for words in receiving.supply(script)(0, FixedMask((3,))).free] == [(3,)]
    assert receiving.waited == 0
    party.close()


def test_what_the_last_party_waits_for_the_dealer_is_known(second: Process) -> None:
    script = Script((PRODUCT,), 0, 0, 0)
    second.heard(2, SEED, 0, _dealt(script))
    second.heard(2, CORRECTIONS, 0, bytes(range(8)))
    receiving = Receiving(second.part, second.mail)
    dealt = receiving.supply(script)(0, PRODUCT)
    assert dealt.derived[0].tolist() == [int.from_bytes(bytes(range(8)), "little")]
    assert receiving.waited > 0
    receiving.end()


# --- who is out of step -----------------------------------------------------------------------------------

PRODUCT = Triple(Multiply(), (1,), (1,))
OTHERS = {
    "another correlation": Script((FixedMask((1,)),), 1, 8, 8),
    "one more": Script((PRODUCT, PRODUCT), 1, 8, 8),
    "of another shape": Script((Triple(Multiply(), (2,), (1,)),), 1, 8, 8),
    "of another kind": Script((Triple(MatrixProduct(), (1, 1), (1, 1)),), 1, 8, 8),
    "more rounds": Script((PRODUCT,), 2, 8, 8),
    "a loop": Script((Loop((PRODUCT,), 0, 1, 1),), 1, 8, 8),
}


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
@pytest.mark.parametrize("index", [0, 1])
def test_who_deals_for_something_else_is_named(index: int, other: Script, at_once: bool) -> None:
    party, script = Process(index=index), Script((PRODUCT,), 1, 8, 8)
    party.heard(2, SEED, 0, _dealt(script))
    party.heard(2, SEED, 1, _dealt(other))
    receiving = Receiving(party.part, party.mail)
    with pytest.raises(Blame, match=f"another program than {NAMES[index]} runs") as blamed:
        if at_once:
            receiving.begin([script, script])
        else:
            receiving.supply(script)
            receiving.supply(script)
    assert blamed.value.index == party.part.dealer
    party.close()


@pytest.mark.parametrize("is_checked", [False, True])
def test_nothing_is_shared_with_who_deals_for_something_else(is_checked: bool) -> None:
    code = lower(capture(lambda x: x * x, {"x": torch.zeros(2)}).program, [torch.zeros(2)], [True]).program.to_bytes()
    own = {"holder": 0, "id": bytes(16), "dtype": "float32", "shape": [2], "bits": 16, "keep": b"", "is_fixed": False}
    party = Process(code=code, inputs=[own], is_checked=is_checked)
    party.heard(2, SEED, 0, _dealt(OTHERS["one more"]))
    with pytest.raises(Blame, match="another program than alice runs"):
        Secure(party.mail)._run(party.part)
    party.others[1]._socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        party.others[1]._socket.recv(1)
    party.close()


def test_all_that_was_dealt_is_taken(second: Process) -> None:
    script = Script((PRODUCT, PRODUCT), 1, 8, 8)
    second.heard(2, SEED, 0, _dealt(script))
    second.heard(2, CORRECTIONS, 0, bytes(16))
    receiving = Receiving(second.part, second.mail)
    receiving.supply(script)(0, PRODUCT)
    with pytest.raises(Blame, match="dealt more"):
        receiving.end()


def test_who_goes_between_runs_is_noticed_and_what_comes_early_waits(process: Process) -> None:
    process.mail.end()
    process.heard(1, ROUND, 0, bytes(16))
    process._channel.send(["drop", [bytes(16)]])
    assert process.mail.job() == {"drop": [bytes(16)]}
    process.others[3].close()
    with pytest.raises(Gone, match="dave"):
        process.mail.job()


# --- what is used once ------------------------------------------------------------------------------------


def test_each_correlation_is_taken_once() -> None:
    supply = Supply(bytes(16))
    supply(0, FixedMask((2,)))
    with pytest.raises(BadRequest, match="used once"):
        supply(0, FixedMask((2,)))


def test_what_was_dealt_ahead_is_used_once_and_for_what_it_was_dealt() -> None:
    kept = Kept()
    kept.put(b"batch", ("program",), 0, Stocked(bytes(16), None))
    with pytest.raises(BadRequest, match="another program"):
        kept.used(b"batch", ("other",), 0)
    assert kept.used(b"batch", ("program",), 0).seed == bytes(16)
    with pytest.raises(BadRequest, match="used once"):
        kept.used(b"batch", ("program",), 0)
    with pytest.raises(NotFound):
        kept.used(b"other", ("program",), 0)


class _Counted(bytearray):
    """Counts how often somebody asks how long it is."""

    asked = 0

    def __len__(self) -> int:
        _Counted.asked += 1
        return super().__len__()


def test_what_was_dealt_ahead_is_counted_as_it_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECURE_STOCK", 200 * (16 + 8))
    kept = Kept()
    for item in range(200):
        kept.put(b"batch", (), item, Stocked(bytes(16), _Counted(8)))
    assert _Counted.asked <= 4 * 200
    kept.used(b"batch", (), 7)
    kept.put(b"other", (), 0, Stocked(bytes(16), bytearray(8)))
    with pytest.raises(TooLarge):
        kept.put(b"other", (), 1, Stocked(bytes(16), bytearray(8)))
    kept.drop([b"batch", b"other"])
    for item in range(200):
        kept.put(b"other", (), item, Stocked(bytes(16), bytearray(8)))


def test_nobody_deals_for_more_runs_than_there_may_be(process: Process) -> None:
    with pytest.raises(BadRequest, match="dealt for at once"):
        Part.of({**asdict(process.part), "ahead": limits.SECURE_AHEAD_RUNS + 1})


# --- lines ------------------------------------------------------------------------------------------------


def _all(wire: Wire, count: int) -> list[tuple[bytes, int, int, bytes]]:
    """The next so many messages."""
    came: list[tuple[bytes, int, int, bytes]] = []
    poll = select.poll()
    poll.register(wire.fileno(), select.POLLIN)
    while len(came) < count:
        assert poll.poll(10_000)
        wire.receive(lambda *_: True, lambda tag, kind, number, data: came.append((tag, kind, number, bytes(data))))
    return came


@pytest.mark.parametrize("size", [0, 1, 85, 86, 65_495, 65_496, 40_000, 1_000_003])
@pytest.mark.parametrize("is_dialler", [True, False])
def test_messages_of_any_size_come_whole(size: int, is_dialler: bool) -> None:
    ours, theirs = _connected() if is_dialler else _connected()[::-1]
    data = bytes(range(256)) * (size // 256 + 1)
    sent = [(bytes([at]) * 32, at, 1 << 31, data[at : at + size]) for at in range(3)]

    def send() -> None:
        for tag, kind, number, piece in sent:
            ours.send(tag, kind, number, [piece[:7], piece[7:]])
        poll = select.poll()
        poll.register(ours.fileno(), select.POLLOUT)
        while ours.is_sending:
            poll.poll(1_000)
            ours.flush()

    sending = threading.Thread(target=send)
    sending.start()
    try:
        assert _all(theirs, 3) == sent
    finally:
        sending.join()
        ours.close()
        theirs.close()


def test_a_line_that_ends_says_so() -> None:
    ours, theirs = _connected()
    ours.close()
    with pytest.raises(Broken):
        theirs.receive(lambda *_: True, lambda *_: None)
    theirs.close()


def test_masks_are_drawn_ahead_as_far_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, items = Kept(), [Stocked(bytes(16), None, Drawn({}), 100) for _ in range(3)]
    monkeypatch.setattr(limits, "SECURE_DRAWN", 300)
    for item, stocked in enumerate(items):
        kept.put(b"batch", (), item, stocked)
        assert kept.room == 200 - 100 * item
    kept.put(b"batch", (), 0, Stocked(bytes(16), None))  # one in the place of another
    assert kept.room == 100
    kept.used(b"batch", (), 1)
    assert kept.room == 200
    kept.drop([b"batch"])
    assert kept.room == 300
