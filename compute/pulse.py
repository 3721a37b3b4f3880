"""A running program looks up now and then: at the clock, and at who watches it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from compute.cost import ALLOWED
from protocol import limits
from protocol.errors import TooLarge

Observe = Callable[[int, str, int, int | None], object]
"""Told the number of the program's node that runs, its operation, and of a loop the iterations done and in all (None:
unknown). What it raises ends the run."""

clock = time.perf_counter


class Pulse:
    """Of one run.

    Attributes:
        due: when, by `clock`, it is time to look.
    """

    __slots__ = ("_at", "_done", "_observe", "_operation", "_started", "_total", "due")

    def __init__(self, observe: Observe | None) -> None:
        self._observe = observe
        self._at, self._operation = 0, ""
        self._done, self._total = 0, None
        self._started = time.thread_time()
        self.due = clock() + limits.LOOK

    def enter(self, step: Any) -> None:
        """This step of the program itself is next."""
        self._at, self._operation, self._done, self._total = step.at, step.operation, 0, None

    def iterates(self, done: int, total: int | None) -> None:
        """Before each iteration of a loop of the program itself."""
        self._done, self._total = done, total  # type: ignore[assignment]  # the slot began as None
        self.tick(done, total)

    def tick(self, done: int = 0, total: int | None = None) -> None:
        """Before each iteration of a loop in a body."""
        if clock() > self.due:
            self.look()

    def look(self) -> None:
        """TooLarge where the program has taken longer than it may; else who watches is told."""
        spent = time.thread_time() - self._started  # of a processor: what the machine does besides does not count
        allowed = ALLOWED.seconds / ALLOWED.speed
        if spent > allowed:
            raise TooLarge(
                f"the program has run for {spent:.3g} s; at most {allowed:g} s for one. Let it do less at once (fewer "
                "iterations), or have the peer's owner raise --worker-seconds",
                limit="worker_seconds",
                size=int(spent) + 1,
                allowed=int(allowed),
            )
        if self._observe is not None:
            self._observe(self._at, self._operation, self._done, self._total)
        self.due = clock() + limits.LOOK
