"""A worker on its peer's core while the peer waits awake for it, where the asker has the other one.

Who waits awake gives way to whoever wants the core, so the two do not hinder each other. Left to the scheduler they may
be any two of the three, and the worker's core may be halted: an awaited operation takes 250 us this way, and 250 to 550
that (docs/decisions/0005). As soon as the peer waits no longer the worker may go where it wants.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Set
from typing import Final


def _cores() -> Set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else frozenset()


def _core_finder() -> Callable[[], int] | None:
    """What tells the core that this thread runs on: of the C library (Linux)."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    found: Callable[[], int] | None = getattr(ctypes.PyDLL(None), "sched_getcpu", None)
    return found


_LOOKS: Final = 8  # draws to a look: 2 us
_ALL: Final = _cores()
_core: Final = _core_finder()


class Near:
    """Where the main thread of one worker may run; those beside it, which share large operations, go where they like.

    Args:
        everywhere: the cores that it may be on.
    """

    __slots__ = ("_at", "_draws", "_everywhere", "_is_possible")

    def __init__(self, everywhere: Set[int] = _ALL) -> None:
        self._everywhere = everywhere
        self._is_possible = _core is not None and len(everywhere) > 1
        self._at: int | None = None  # the core that it is kept on
        self._draws = 0

    def draw(self, pid: int | None, asker_core: Callable[[], int]) -> None:
        """To the core that this runs on. Now and then that is looked at: where the asker runs on it, too, we leave."""
        if pid is None or not self._is_possible:
            return
        assert _core is not None
        here = _core()
        self._draws += 1
        if self._draws % _LOOKS == 0 and asker_core() == here:
            self._put(0, self._everywhere - {here})  # a thread moves at once, and back only if it is moved
            self._put(0, self._everywhere)
            here = _core()
        if here != self._at:
            self._put(pid, {here})
            self._at = here

    def free(self, pid: int | None) -> None:
        """To wherever it likes."""
        if self._at is not None and pid is not None:
            self._at = None
            self._put(pid, self._everywhere)

    def _put(self, pid: int, cores: Set[int]) -> None:
        try:
            os.sched_setaffinity(pid, cores)
        except OSError:  # it is dead, or not ours to move, or the cores were taken from us
            self._is_possible = False
