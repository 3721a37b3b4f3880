"""The loop that tests run in: its time stands still while this process does not run.

A machine that is busy with other things stops a process for moments, and with the loop's own clock each limit that a
test has made short would seem to be over then, though neither end had a turn. Here one step of the loop, or one wait
for events, counts for as long as it took, but for a moment at most; so a time that is over is one in which both ends
could have done something, and did not.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from typing import Any

MOMENT = 0.01  # seconds


class _Selector(selectors.DefaultSelector):
    """Waits in moments, and adds up what they took."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self._left = time.monotonic()

    def select(self, timeout: float | None = None) -> list[Any]:
        self._count(MOMENT)  # the step of the loop since the last wait
        while True:
            moment = MOMENT if timeout is None else min(max(timeout, 0), MOMENT)
            events = super().select(moment)
            self._count(moment)
            if timeout is not None:
                timeout -= moment
            if events or (timeout is not None and timeout <= 0):
                return events

    def _count(self, most: float) -> None:
        left, self._left = self._left, time.monotonic()
        self.now += min(self._left - left, most)


class PatientLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._moments = _Selector()
        super().__init__(self._moments)

    def time(self) -> float:
        return self._moments.now


def run(main: Any) -> Any:
    """`asyncio.run` in such a loop."""
    with asyncio.Runner(loop_factory=PatientLoop) as runner:
        return runner.run(main)
