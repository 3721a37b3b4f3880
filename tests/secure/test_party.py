"""What a party's process makes of messages that are not due: it says who sent them, and computes no further."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from compute.capture import capture
from mpc.arithmetic import FixedMask
from mpc.dealer import Supply
from mpc.rounds import Opened, Opening, Protocol
from peer.worker.channel import BlockingChannel
from peer.worker.party import CORRECTIONS, MASK, ROUND, SHARE, Blame, Corrections, Mail, Part, _Rounds, shares
from protocol import limits
from protocol.errors import BadRequest

PROGRAM = capture(lambda x: x + 1, {"x": torch.ones(2)}).program.to_bytes()


class Process:
    """The process of alice, party 0 of two; `heard` says what the peer passes on to it."""

    def __init__(self, **changes: Any) -> None:
        ours, theirs = socket.socketpair()
        self._channel = BlockingChannel(ours, send_limit=limits.WORKER_MESSAGE, receive_limit=limits.WORKER_REPLY)
        self.mail = Mail(BlockingChannel(theirs, send_limit=1 << 20, receive_limit=limits.WORKER_MESSAGE))
        told = {
            "index": 0,
            "names": ["alice", "bob", "carol", "dave"],
            "parties": 2,
            "dealer": 2,
            "inputs": [[3, bytes(16), "float32", [2]]],
            "public": [],
            "shares": [],
            "seed": b"",
            "program": PROGRAM,
            "patience": 0.05,
        }
        self._channel.send(["part", {**told, **changes}])
        self.part: Part = self.mail.job()

    def heard(self, sender: int, kind: int, number: int, data: bytes, total: int | None = None) -> None:
        self._channel.send(["heard", sender, kind, number, len(data) if total is None else total, data])

    def close(self) -> None:
        self._channel.close()
        self.mail._channel.close()


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
    assert _Rounds(process.part, process.mail).drive(_opens(2)).tolist() == [7, 9]


@pytest.mark.parametrize(
    "say, why",
    [
        (lambda p: p.heard(1, ROUND, 0, bytes(8)), "8 bytes where 16"),
        (lambda p: p.heard(1, ROUND, 0, bytes(24)), "24 bytes where 16"),
        (lambda p: p.heard(1, ROUND, 2, bytes(16)), "round 2 where 0"),
        (lambda p: p.heard(1, ROUND, 0, bytes(16), total=8), "more than the 8 bytes"),
        (lambda p: p.heard(1, ROUND, 0, b"", total=limits.SECURE_MESSAGE + 1), "announced"),
        (lambda p: p.heard(1, ROUND, 0, bytes(8), total=16), "has not sent round 0"),
        (lambda p: None, "has not sent round 0"),
    ],
)
def test_what_is_not_due_is_blamed_on_its_sender(process: Process, say: Callable[[Process], None], why: str) -> None:
    rounds = _Rounds(process.part, process.mail)
    say(process)
    with pytest.raises(Blame, match=why) as blamed:
        rounds.drive(_opens(2))
    assert blamed.value.index == 1


def test_a_round_that_comes_again_is_refused(process: Process) -> None:
    process.heard(1, ROUND, 0, bytes(16))
    process.heard(1, ROUND, 0, bytes(16))
    with pytest.raises(Blame, match="more than the 16 bytes"):
        _Rounds(process.part, process.mail).drive(_opens(2))


def test_a_share_has_the_size_of_its_input(process: Process) -> None:
    process.heard(3, SHARE, 0, bytes(24))
    with pytest.raises(Blame, match="24 bytes where 16") as blamed:
        shares(process.part, process.mail, {})
    assert blamed.value.index == 3


def test_a_seed_has_its_size(second: Process) -> None:
    process = second
    process.heard(3, MASK, 0, bytes(15))
    with pytest.raises(Blame, match="15 bytes where 16"):
        shares(process.part, process.mail, {})


def test_corrections_are_read_in_order_however_they_are_cut(second: Process) -> None:
    process = second
    for number, piece in enumerate((b"abc", b"defgh", b"ij")):
        process.heard(2, CORRECTIONS, number, piece)
    corrections = Corrections(process.part, process.mail, 10)
    assert [bytes(corrections.read(size)) for size in (2, 6, 2)] == [b"ab", b"cdefgh", b"ij"]
    with pytest.raises(Blame, match="dealt less") as blamed:
        corrections.read(1)
    assert blamed.value.index == process.part.dealer


def test_each_correlation_is_taken_once() -> None:
    supply = Supply(bytes(16))
    supply(0, FixedMask((2,)))
    with pytest.raises(BadRequest, match="used once"):
        supply(0, FixedMask((2,)))
