"""What a party's process makes of messages that are not due: it says who sent them, and computes no further."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from mpc.arithmetic import FixedMask
from mpc.dealer import Supply
from mpc.rounds import Opened, Opening, Protocol
from peer.worker.channel import BlockingChannel
from peer.worker.secure.dealing import Corrections
from peer.worker.secure.kept import Kept, Stocked
from peer.worker.secure.mail import Gone, Mail
from peer.worker.secure.part import CORRECTIONS, CREDIT, MASK, ROUND, SHARE, Blame, Part
from peer.worker.secure.rounds import Rounds
from peer.worker.secure.sharing import shares
from peer.worker.secure.wire import Broken, Wire
from protocol import limits
from protocol.errors import BadRequest, NotFound

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


# --- lines ------------------------------------------------------------------------------------------------


def _all(wire: Wire, count: int) -> list[tuple[bytes, int, int, bytes]]:
    """The next so many messages."""
    came: list[tuple[bytes, int, int, bytes]] = []
    poll = select.poll()
    poll.register(wire.fileno(), select.POLLIN)
    while len(came) < count:
        assert poll.poll(10_000)
        wire.receive(lambda *_: None, lambda tag, kind, number, data: came.append((tag, kind, number, bytes(data))))
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
        theirs.receive(lambda *_: None, lambda *_: None)
    theirs.close()
