"""How long a broken transfer is tried again, told what happened and what time it is."""

from __future__ import annotations

from typing import Any, cast

import pytest

from peer.connection import Connection
from peer.patience import Patience
from protocol import limits
from protocol.errors import GridError, HandshakeFailed, LinkError, PeerLost, ProtocolError, Unreachable

NBYTES = 10 * limits.BLOCK


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Line:
    """A connection that is over, and why."""

    is_closed = True

    def __init__(self, reason: LinkError | None = None) -> None:
        self.reason = reason


def judged(patience: Patience, error: GridError, reason: LinkError | None = None) -> float:
    return patience.judged(error, cast(Any, Line(reason)) if reason is not None else None, NBYTES)


LOST = PeerLost("the connection to alice is closed: a frame of 3 bytes")
NONSENSE = ProtocolError("a frame of 3 bytes")


def test_a_broken_line_is_dialled_until_the_time_is_over() -> None:
    clock = Clock()
    patience = Patience("alice", clock)
    for _ in range(100):
        assert 0 < judged(patience, LOST) <= limits.RECONNECT_MOST
    clock.now = limits.RESUME_TIMEOUT + 1
    with pytest.raises(PeerLost, match=f"stands at 0 of {NBYTES} bytes") as lost:
        judged(patience, LOST)
    assert lost.value.fields == {"done": 0, "nbytes": NBYTES}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (LOST, NONSENSE),
        (NONSENSE, None),
        (HandshakeFailed("the other end speaks versions [2], this one 1: upgrade one", versions=[2]), None),
    ],
    ids=["over a line", "while dialling", "another version"],
)
def test_what_is_not_understood_is_final_after_a_few_times_and_says_why(
    error: LinkError, reason: LinkError | None
) -> None:
    patience = Patience("alice", Clock())
    patience.moved(limits.BLOCK)
    for _ in range(limits.BLOCK_TRIES - 1):
        assert judged(patience, error, reason) < limits.RECONNECT_MOST
    why = reason or error
    with pytest.raises(type(why)) as final:
        judged(patience, error, reason)
    assert "alice and this end did not understand each other" in final.value.message
    assert why.message in final.value.message and "same version" in final.value.message
    assert (final.value.fields["done"], final.value.fields["nbytes"]) == (limits.BLOCK, NBYTES)


def test_a_bad_network_that_damages_a_frame_now_and_then_ends_nothing() -> None:
    patience = Patience("alice", Clock())
    for block in range(100):
        for _ in range(limits.BLOCK_TRIES - 1):
            judged(patience, LOST, NONSENSE)
        patience.moved((block + 1) * limits.BLOCK)


def test_a_stranger_at_the_address_is_no_reason_to_give_up_at_once() -> None:
    """The peer may have been started again, and be somewhere else."""
    patience = Patience("alice", Clock())
    for _ in range(100):
        judged(patience, HandshakeFailed("wrong peer: expected a, met b"))
        judged(patience, Unreachable("nobody there"))


def test_a_line_of_ours_that_was_closed_is_final() -> None:
    with pytest.raises(Unreachable):
        judged(Patience("alice", Clock()), Unreachable("this end is closed", closed=True))


def test_a_line_is_what_a_patience_is_told_of() -> None:
    assert {"is_closed", "reason"} <= set(dir(Connection))
