"""Whose turn it is on processors that there are too few of. Decides; somebody else tells the system.

A worker that computes without a pause would keep one that has a moment's work waiting for its slice, 3 to 4 ms where
the answer takes a quarter of one. So while more than one principal computes, whoever has no pauses stands back; a
principal that is alone here stands back for nobody, and two that both have none share as before.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Generic, NamedTuple, TypeVar

from protocol import limits

Process = TypeVar("Process", bound=Hashable)


class Times(NamedTuple):
    """What became of one worker's time since it was last looked at, in seconds.

    Attributes:
        principal: whose it is.
        ran: of the processors, by all of its threads.
        in_stretches: of the clock, while it had something to do for longer than limits.TURN_STRETCH at a time.
    """

    principal: str
    ran: float
    in_stretches: float


class Stretch:
    """How much of its time one worker spends on stretches that are long. Times are of one clock, in seconds. Its start,
    however long it takes, is not its principal's work."""

    __slots__ = ("_counted", "_seconds", "began", "is_up")

    def __init__(self) -> None:
        self.is_up = False  # whether it has started
        self.began = 0.0  # since when it has had something to do; to be set
        self._counted = 0.0  # until when a stretch that goes on has been told of
        self._seconds = 0.0

    def starts(self, now: float) -> None:
        """It is up, and comes to what it may have been given to do."""
        self.is_up, self.began = True, now

    def ends(self, now: float) -> None:
        """It has done all."""
        self._count(now)
        self.began = math.inf

    def _count(self, now: float) -> None:
        if self.is_up and now - self.began > limits.TURN_STRETCH:
            self._seconds += now - max(self.began, self._counted)

    def taken(self, now: float, is_busy: bool) -> float:
        """Since it was last asked."""
        if is_busy:
            self._count(now)
            self._counted = now
        taken, self._seconds = self._seconds, 0.0
        return taken


class Turns(Generic[Process]):
    """Of the workers of one pool. `look` again and again, `ended` for each that is gone."""

    def __init__(self) -> None:
        self._computed: dict[str, float] = {}  # when a principal's workers last did
        self._suspected: set[Process] = set()  # who had none when it was looked at last; once may be chance
        self._restless: dict[Process, float] = {}  # when a worker was last seen to have no pauses
        self._back: set[Process] = set()
        self._light = -math.inf  # when a worker last computed that has pauses

    def look(self, times: Mapping[Process, Times], elapsed: float, now: float) -> dict[Process, bool]:
        """Whose standing changes: True, it stands back from now on; False, it does no more.

        Args:
            times: of all workers that there are.
            elapsed: seconds since the last look, which `times` are of.
            now: of a clock that only goes forward, in seconds.
        """
        suspected: set[Process] = set()
        for worker, (principal, ran, in_stretches) in times.items():
            if ran > 0:
                self._computed[principal] = now
            if in_stretches > elapsed * limits.TURN_SHARE and ran > elapsed * limits.TURN_LEAST:
                suspected.add(worker)
                if worker in self._suspected or worker in self._restless:
                    self._restless[worker] = now
            elif ran > 0:
                self._light = now
        self._suspected = suspected
        self._computed = {name: at for name, at in self._computed.items() if now - at < limits.TURN_OTHERS}
        self._restless = {each: at for each, at in self._restless.items() if now - at < limits.TURN_REST}
        before = self._back
        self._back = {
            worker
            for worker, (principal, _, _) in times.items()
            if worker in self._restless and self._computed.keys() - {principal}
        }
        return dict.fromkeys(before - self._back, False) | dict.fromkeys(self._back - before, True)

    def alone(self, now: float) -> Process | None:
        """Who stands back, if that is one worker, and somebody with pauses has computed a moment ago."""
        if len(self._back) != 1 or now - self._light > limits.TURN_REST:
            return None
        (worker,) = self._back
        return worker

    def ended(self, worker: Process) -> None:
        self._suspected.discard(worker)
        self._restless.pop(worker, None)
        self._back.discard(worker)
