"""Whether a worker has been at one thing for too long. Decides; somebody else looks at the clock and kills.

Time counts only while the worker has something to do and a processor to do it on, and only as far as somebody looked:
if the peer itself, or the whole machine, stood still, that gap counts as two beats at most. What is over its time is
looked at once more before it is condemned, so that an answer which came while the peer stood still is heard first.

A worker that has many operations to do says how far it is when one of them ends, but not more often than once in
limits.PROGRESS: so much may have gone by before the one began that it is at now, and is given to it on top.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Final

from protocol import limits

NO_WAITS: Final[Mapping[int, float]] = {}


def beat(seconds: float) -> float:
    """How long to wait between two looks, where one thing may take so many seconds."""
    return min(limits.BEAT, seconds / limits.BEATS)


class Watch:
    """One worker's time. `look` once in each beat."""

    __slots__ = ("_at", "_beat", "_is_over", "_most", "_waits", "spent")

    def __init__(self, seconds: float) -> None:
        self.spent = 0.0
        self._most = seconds + limits.PROGRESS
        self._beat = beat(seconds)
        self._at: Hashable = None
        self._is_over = False
        self._waits = NO_WAITS

    def look(self, at: Hashable, elapsed: float, waits: Mapping[int, float] = NO_WAITS) -> bool:
        """Whether it is to be killed.

        Args:
            at: what it does now, equal for as long as it is the same thing; None: nothing.
            elapsed: since the last look.
            waits: for how long each of its threads has waited for a processor, since it was made.
        """
        before, self._waits = self._waits, waits
        if at is None or at != self._at:
            self._at, self.spent, self._is_over = at, 0.0, False
            return False
        # Threads wait for each other: the one that had to wait the longest has held up all.
        waited = max((waited - before.get(thread, 0.0) for thread, waited in waits.items()), default=0.0)
        self.spent += min(max(0.0, elapsed - max(0.0, waited)), 2 * self._beat)
        was_over, self._is_over = self._is_over, self.spent > self._most
        return was_over and self._is_over
