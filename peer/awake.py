"""To stay awake for the moment in which what is waited for is due.

To wake a process that sleeps takes longer than an awaited operation is worked on, and whatever ran meanwhile has taken
its caches. So who expects something within moments looks again and again, and gives the processor each time to whoever
wants it (sched_yield). Where somebody did, there is a rest, longer each time: on a busy machine to stay awake costs
more than to be woken. How long the last thing of a kind took, awake or asleep, says whether to stay awake for the next
one of it is worth while (as a hypervisor decides whether to poll before it halts a processor: Linux,
Documentation/virt/kvm/halt-polling.rst).
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

    from peer.apart import Apart

T = TypeVar("T")

_ASLEEP: Final = 3.0  # what takes so many times as long where all sleep that have a part in it comes in time awake
_HITS: Final = 64  # in a row, after which a rest is half as long again


class Rests:
    """Gives way, and decides when that is too dear to stay awake.

    Args:
        clock: seconds.
        give_way: gives the processor to whoever wants it; None where that cannot be done, or there is but one.
    """

    __slots__ = ("_give_way", "_hits", "_rest", "clock", "until")

    def __init__(self, clock: Callable[[], float], give_way: Callable[[], None] | None) -> None:
        self.clock = clock
        self._give_way = give_way
        self._hits = 0
        self._rest = limits.AWAKE_REST
        self.until = 0.0 if give_way is not None else float("inf")  # it rests

    def hit(self) -> None:
        """Something came while this was awake."""
        self._hits += 1
        if self._hits == _HITS:
            self._hits = 0
            self._rest = max(self._rest / 2, limits.AWAKE_REST)

    def is_lost(self, now: float) -> bool:
        """Give way. Whether somebody else had the processor for longer than it takes to be woken: then we rest."""
        assert self._give_way is not None
        self._give_way()
        back = self.clock()
        if back - now < limits.AWAKE_LOST:
            return False
        self._hits = 0
        self.until = back + self._rest
        self._rest = min(2 * self._rest, limits.AWAKE_MOST_REST)
        return True


class Awake:
    """One loop's: it turns for as long as something is due. `call_soon` is the loop's; for the others see Rests.

    Attributes:
        due: the last that something was expected of, until it came.
        apart: keeps off the core of who asks, where there are fewer than there are who would stay awake: who asks, who
            is asked, and the worker.
    """

    __slots__ = ("_call_soon", "_is_turning", "_until", "apart", "due", "rests")

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], Any],
        clock: Callable[[], float] = time.perf_counter,
        give_way: Callable[[], None] | None = None,
    ) -> None:
        self.rests = Rests(clock, give_way)
        self.apart: Apart | None = None
        self._call_soon = call_soon
        self.due: Due | None = None
        self._is_turning = False
        self._until = 0.0

    def stay(self, due: Due, now: float, seconds: float) -> bool:
        """Until it came, and for so long at most, the loop does not sleep. False where it does."""
        if not self._is_turning:
            if now < self.rests.until:
                return False
            self._is_turning = True
            self._call_soon(self._turn)
        self.due = due
        self._until = now + seconds
        return True

    def _turn(self) -> None:
        """Once in each turn of the loop, for as long as something is due."""
        if self.due is not None:
            now = self.rests.clock()
            if now < self._until and not self.rests.is_lost(now):
                self._call_soon(self._turn)
                return
        self.due = None
        self._is_turning = False


class Due:
    """A kind of thing that is waited for on a loop. `expect`: one is due; `met`: it came. What comes before `expect` is
    said again has come as well.

    Args:
        seconds: how long one may be waited for awake.
    """

    __slots__ = ("_awake", "_clock", "_seconds", "_since", "_will_come")

    def __init__(self, awake: Awake, seconds: float) -> None:
        self._awake = awake
        self._clock = awake.rests.clock
        self._seconds = seconds
        self._since = 0.0  # when one was expected that has not come; 0: none is
        self._will_come = True  # while we are awake, as the last one did or would have

    def expect(self) -> bool:
        """Whether it is waited for awake."""
        if self._since:
            self.met()
        self._since = now = self._clock()
        return self._will_come and self._awake.stay(self, now, self._seconds)

    def met(self) -> None:
        if self._since:
            self._will_come = self._clock() - self._since < _ASLEEP * self._seconds
            self._since = 0.0
            if self._awake.due is self:
                self._awake.due = None
                self._awake.rests.hit()


class Lookout:
    """That of a process which does one thing at a time. For `seconds` see Due, for the others Rests."""

    __slots__ = ("_rests", "_seconds", "_will_come")

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float] = time.perf_counter,
        give_way: Callable[[], None] | None = None,
    ) -> None:
        self._rests = Rests(clock, give_way)
        self._seconds = seconds
        self._will_come = True

    def wait(self, look: Callable[[], Sequence[T]], sleep: Callable[[], Sequence[T] | None]) -> Sequence[T] | None:
        """What `look` finds in time, else what `sleep` waits for."""
        began = self._rests.clock()
        found = self._awake(look, began) if self._will_come and began >= self._rests.until else ()
        if found:
            return found
        late = sleep()
        self._will_come = self._rests.clock() - began < _ASLEEP * self._seconds
        return late

    def _awake(self, look: Callable[[], Sequence[T]], began: float) -> Sequence[T]:
        now = began
        while now - began < self._seconds:
            found = look()
            if found:
                self._rests.hit()
                return found
            if self._rests.is_lost(now):
                break
            now = self._rests.clock()
        return ()


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def giving_way() -> Callable[[], None] | None:
    give_way: Callable[[], None] | None = getattr(os, "sched_yield", None)
    return give_way if cores() > 1 else None


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
