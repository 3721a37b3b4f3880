"""Which cores a peer's loop and its workers are on, on a machine that has no core for each who takes part.

Who waits for one thing waits awake (peer/awake.py), and its core is busy. Left to the scheduler, asker, peer and worker
may sleep and wake each other on one core for as long as they go on, and what takes 250 us takes 750. Who queues one
operation after the other is ahead of the worker, on which all hangs: there it is the worker that needs a core for
itself. And a worker that computes without a pause has one for itself, while others want a moment's work: woken on its
core they would wait for it, whatever its weight, with the other core idle (docs/decisions/0005).
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterable, Set
from typing import Any, Final

from peer.awake import cores

_TAKE_PART: Final = 3  # who asks, who is asked, and its worker
_LOOKS: Final = 16  # requests to a look, which takes 2 us or, by near.py, 11
_BOUND: Final = 0.1  # seconds: moved and let go at once, we are soon back beside the asker


def _core_finder() -> Callable[[], int] | None:
    """What tells the core that this thread runs on: of the C library (Linux)."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    found: Callable[[], int] | None = getattr(ctypes.PyDLL(None), "sched_getcpu", None)
    return found


_core: Final = _core_finder()
_ALL: Final[Set[int]] = os.sched_getaffinity(0) if _core is not None else frozenset()
_LAST: Final[Set[int]] = {max(_ALL)} if len(_ALL) > 1 else frozenset()  # for who computes without a pause


def is_crowded() -> bool:
    """Whether asker, peer and worker have fewer cores than one each."""
    return cores() < _TAKE_PART


class _Thread(threading.local):
    is_divided = False  # what cores it is on is not for Apart to say


_thread: Final = _Thread()


class Cores:
    """Those of one peer's loop, which is to call this, and of its workers: all of them for all, or one for who computes
    and the rest for the rest. `bind` has the threads of a process on these cores only, and says whether it could."""

    __slots__ = ("_bind", "_bound")

    def __init__(self, bind: Callable[[int, Set[int]], object]) -> None:
        self._bind = bind
        self._bound: dict[int, Set[int]] = {}  # while they are divided

    def divide(self, computing: int | None, others: Iterable[int] = ()) -> None:
        """Give one process a core for itself, and the loop and the other processes the rest; None: nobody. To be said
        again as processes come and go. Nothing is divided where that one cannot be bound: it might be on ours."""
        wanted: dict[int, Set[int]] = {}
        was_divided = bool(self._bound)
        if computing is not None and _LAST:
            if self._bound.get(computing) == _LAST or self._bind(computing, _LAST):
                self._bound[computing] = _LAST
                wanted = dict.fromkeys(others, _ALL - _LAST) | {computing: _LAST}
        if bool(wanted) is not was_divided:
            _thread.is_divided = bool(wanted)
            _keep_on(_ALL - _LAST if wanted else _ALL)
        for pid in wanted.keys() | self._bound.keys():
            cores = wanted.get(pid, _ALL)
            if self._bound.get(pid, _ALL) != cores:
                self._bind(pid, cores)
        self._bound = wanted


def _keep_on(cores: Set[int]) -> bool:
    """This thread, which moves at once; whether it may."""
    try:
        os.sched_setaffinity(0, cores)
    except OSError:  # they are another group's now
        return False
    return True


class Apart:
    """Binds the peer's loop to cores. `asker_core` tells which one the asker is on, `call_later` is the loop's."""

    __slots__ = ("_asker_core", "_bound", "_call_later", "_is_possible", "_requests")

    def __init__(self, asker_core: Callable[[], int], call_later: Callable[[float, Callable[[], None]], Any]) -> None:
        self._asker_core = asker_core
        self._call_later = call_later
        self._bound: Set[int] | None = None
        self._is_possible = len(_ALL) > 1
        self._requests = 0

    def look(self, *, is_waiting: bool) -> None:
        """Once in each request of which the worker gets something to do; most of the time nothing is done.

        Args:
            is_waiting: whether the asker waits for it, awake: then its core is not for us. Else it queues more
                meanwhile, and the worker is to have a core for itself: then we are to be on the asker's.
        """
        self._requests += 1
        if self._requests % _LOOKS or not self._is_possible or _core is None or _thread.is_divided:
            return
        theirs = self._asker_core()
        wanted = _ALL - {theirs} if is_waiting else _ALL & {theirs}
        if not wanted or wanted == self._bound or (self._bound is None and _core() in wanted):
            return
        self._is_possible = _keep_on(wanted)
        if self._bound is None:
            self._call_later(_BOUND, self._free)
        self._bound = wanted

    def _free(self) -> None:
        self._bound = None
        if not _thread.is_divided:
            self._is_possible = _keep_on(_ALL)
