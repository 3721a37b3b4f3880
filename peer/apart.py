"""A peer's loop on another core than its asker's, on a machine that has no core for each who takes part.

Who asks waits awake (peer/awake.py) and keeps its core busy. Left to the scheduler, asker, peer and worker may sleep
and wake each other on one core for as long as they go on, and what takes 250 us takes 750 (docs/decisions/0005).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Set
from typing import Any, Final

from peer.awake import cores

_TAKE_PART: Final = 3  # who asks, who is asked, and its worker
_LOOKS: Final = 8  # requests to a look: 2 us
_BOUND: Final = 0.1  # seconds: moved and let go at once, we are soon back beside the asker


def _core_finder() -> Callable[[], int] | None:
    """What tells the core that this thread runs on: of the C library (Linux)."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    found: Callable[[], int] | None = getattr(ctypes.PyDLL(None), "sched_getcpu", None)
    return found


_core: Final = _core_finder()
_ALL: Final[Set[int]] = os.sched_getaffinity(0) if _core is not None else frozenset()


def is_crowded() -> bool:
    """Whether asker, peer and worker have fewer cores than one each."""
    return cores() < _TAKE_PART


class Apart:
    """Stays off the asker's core. `asker_core` tells which one that is, `call_later` is the loop's."""

    __slots__ = ("_asker_core", "_call_later", "_is_bound", "_is_possible", "_requests")

    def __init__(self, asker_core: Callable[[], int], call_later: Callable[[float, Callable[[], None]], Any]) -> None:
        self._asker_core = asker_core
        self._call_later = call_later
        self._is_bound = False
        self._is_possible = len(_ALL) > 1
        self._requests = 0

    def look(self) -> None:
        """Once in each request; most of the time nothing is done."""
        self._requests += 1
        if self._requests % _LOOKS or self._is_bound or not self._is_possible or _core is None:
            return
        here = _core()
        if self._asker_core() == here:
            self._may_be_on(_ALL - {here})
            self._is_bound = True
            self._call_later(_BOUND, self._free)

    def _free(self) -> None:
        self._is_bound = False
        self._may_be_on(_ALL)

    def _may_be_on(self, cores: Set[int]) -> None:
        try:
            os.sched_setaffinity(0, cores)  # of this thread, which moves at once
        except OSError:  # they are another group's now
            self._is_possible = False
