"""To stay awake for the moment in which what is waited for is due.

To wake a process that sleeps takes longer than an awaited operation is worked on, and whatever ran meanwhile has taken
its caches. So who expects something within moments looks again and again, and gives the processor each time to whoever
wants it (sched_yield). Where somebody did, there is a rest, longer each time: on a busy machine to stay awake costs
more than to be woken. Where nothing comes in time, it is tried less and less often.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from protocol import limits

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

_MISSES: Final = 2  # in a row; from then on only each one of so many occasions is used
_OCCASIONS: Final = 16
_HITS: Final = 64  # in a row, after which a rest is half as long again


class _Tries:
    """Decides whether it is worth while to stay awake.

    Args:
        clock: seconds.
        give_way: gives the processor to whoever wants it; None where that cannot be done, or there is but one.
    """

    __slots__ = ("_clock", "_give_way", "_hits", "_misses", "_occasions", "_rest", "_rests_until")

    def __init__(self, clock: Callable[[], float], give_way: Callable[[], None] | None) -> None:
        self._clock = clock
        self._give_way = give_way
        self._misses = 0
        self._occasions = 0
        self._hits = 0
        self._rest = limits.AWAKE_REST
        self._rests_until = 0.0

    def _is_time_for_one(self, now: float) -> bool:
        """Whether this occasion is to be used."""
        if now < self._rests_until:
            return False
        if self._misses < _MISSES:
            return True
        self._occasions += 1
        return self._occasions % _OCCASIONS == 0

    def _hit(self) -> None:
        self._misses = 0
        self._hits += 1
        if self._hits == _HITS:
            self._hits = 0
            self._rest = max(self._rest / 2, limits.AWAKE_REST)

    def _is_lost(self, now: float) -> bool:
        """Give way. Whether somebody else had the processor for longer than it takes to be woken: then we rest."""
        assert self._give_way is not None
        self._give_way()
        back = self._clock()
        if back - now < limits.AWAKE_LOST:
            return False
        self._hits = 0
        self._rests_until = back + self._rest
        self._rest = min(2 * self._rest, limits.AWAKE_MOST_REST)
        return True


class Awake(_Tries):
    """One loop's. `expect`: something is due; `met`: it came, and nothing else is due. What comes before `expect` is
    said again has come as well. `call_soon` is the loop's; for the others see _Tries."""

    __slots__ = ("_call_soon", "_is_turning", "_until")

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], Any],
        clock: Callable[[], float] = time.perf_counter,
        give_way: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(clock, give_way)
        self._call_soon = call_soon
        self._is_turning = False
        self._until = 0.0  # when what is due has not come; 0 where nothing is

    def expect(self, seconds: float) -> None:
        """Something will come, likely within so many seconds: until then the loop does not sleep."""
        if self._give_way is None:
            return
        now = self._clock()
        if self._until:
            self._hit()
        elif not self._is_turning:
            if not self._is_time_for_one(now):
                return
            self._is_turning = True
            self._call_soon(self._turn)
        self._until = now + seconds

    def met(self) -> None:
        """It came."""
        if self._until:
            self._until = 0.0
            self._hit()

    def _turn(self) -> None:
        """Once in each turn of the loop, for as long as something is due."""
        now = self._clock()
        if now < self._until:
            if not self._is_lost(now):
                self._call_soon(self._turn)
                return
        elif self._until:
            self._misses += 1
        self._until = 0.0
        self._is_turning = False


class Lookout(_Tries):
    """That of a process which does one thing at a time."""

    __slots__ = ()

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, give_way: Callable[[], None] | None = None
    ) -> None:
        super().__init__(clock, give_way)

    def wait(self, look: Callable[[], Sequence[T]], seconds: float) -> Sequence[T]:
        """What `look` finds within so many seconds: perhaps nothing, and then it is to be waited for asleep."""
        began = now = self._clock()
        if self._give_way is None or not self._is_time_for_one(now):
            return ()
        while now - began < seconds:
            found = look()
            if found:
                self._hit()
                return found
            if self._is_lost(now):
                return ()
            now = self._clock()
        self._misses += 1
        return ()


def giving_way() -> Callable[[], None] | None:
    give_way: Callable[[], None] | None = getattr(os, "sched_yield", None)
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return give_way if count > 1 else None


class _Thread(threading.local):
    made: tuple[asyncio.AbstractEventLoop, Awake] | None = None


_thread: Final = _Thread()


def awake() -> Awake:
    """That of the loop that is running."""
    import asyncio  # not above: a worker has no use for it

    loop = asyncio.get_running_loop()
    made = _thread.made
    if made is None or made[0] is not loop:
        made = _thread.made = loop, Awake(loop.call_soon, give_way=giving_way())
    return made[1]
