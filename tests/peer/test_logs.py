"""Strangers cannot fill a peer's log."""

from __future__ import annotations

import logging

from peer.logs import Sparing
from protocol import limits


def _record(line: int, text: str) -> logging.LogRecord:
    return logging.LogRecord("peergrid.peer", logging.INFO, "peer.py", line, "came to nothing: %s", (text,), None)


def test_what_comes_again_and_again_is_said_a_few_times_and_then_counted() -> None:
    now = 0.0
    sparing = Sparing(lambda: now)
    passed = sum(sparing.filter(_record(1, str(number))) for number in range(10_000))
    assert passed == limits.LOG_LINES
    assert sparing.filter(_record(2, "another place")), "what others say is not lost among it"
    now = limits.LOG_SECONDS
    last = _record(1, "again")
    assert sparing.filter(last)
    assert (
        last.getMessage() == f"came to nothing: again (and {10_000 - limits.LOG_LINES} more like it before, left out)"
    )
    after = _record(1, "once more")
    assert sparing.filter(after) and after.getMessage() == "came to nothing: once more"
