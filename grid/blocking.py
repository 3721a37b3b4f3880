"""Waiting without `await`: for code in a thread in which no event loop runs, such as a step in `asyncio.to_thread`.

In the loop's own thread nobody can wait, or the answer would never be read: there it is an error that says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

from protocol.errors import BadRequest

if TYPE_CHECKING:
    from grid.remote import RemotePeer

T = TypeVar("T")

STUCK: Final = 2.0
"""Every so many seconds somebody who waits for a value looks whether the loop, which would bring it, waits for him."""
_LIBRARY: Final = os.path.dirname(threading.__file__)

IN_A_THREAD: Final = "or run the code in a thread, where it waits by itself (await asyncio.to_thread(function))"
"""How the sentence of a NeedsAwait ends."""


def can_block() -> bool:
    """Whether this thread may wait: no event loop runs in it."""
    return asyncio._get_running_loop() is None


def block(home: RemotePeer, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What the coroutine gives that `make` makes, run in the loop that `home` was connected in.

    Raises:
        BadRequest: that loop does not run, or not any more; or its thread waits for another, this one as a rule.
    """
    check_loop(home)
    if not home.loop.is_running():
        raise BadRequest(_STANDING.format(home=home.name))
    asked = asyncio.run_coroutine_threadsafe(make(), home.loop)
    turned, where = None, None
    while True:
        with contextlib.suppress(TimeoutError):
            return asked.result(STUCK)
        if asked.done():
            return asked.result()  # or its own TimeoutError
        if turned is not None and not turned.is_set() and where == _waits_at(home.grid.thread):
            if where is not None or not home.loop.is_running():
                asked.cancel()
                raise BadRequest((_STANDING if where is None else _STUCK).format(home=home.name, where=where))
        turned, where = threading.Event(), _waits_at(home.grid.thread)
        home.loop.call_soon_threadsafe(turned.set)


def _waits_at(thread: int) -> str | None:
    """Where a thread waits for another one: the line that says so; None where it does not."""
    frame = sys._current_frames().get(thread)
    if frame is None or frame.f_code.co_filename != threading.__file__:
        return None
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARY):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def check_loop(home: RemotePeer) -> None:
    """BadRequest where the loop is over in which `home` was connected: nothing can be asked of it from there."""
    if home.loop.is_closed():
        raise over(home.loop, home.name)


def check_own_loop(home: RemotePeer) -> None:
    """For what is awaited: BadRequest in another loop than that in which `home` was connected."""
    check_running(home.loop, home.name)


def check_running(loop: asyncio.AbstractEventLoop, name: str) -> None:
    """The same, of a connection to what is called so."""
    if loop.is_closed():
        raise over(loop, name)
    if asyncio._get_running_loop() is not loop:
        raise BadRequest(
            f"this belongs to a connection to {name} that was made in another event loop: await it there, or "
            "connect in this one (async with grid.connect() as g) and search for the object, or send it, again"
        )


def over(loop: asyncio.AbstractEventLoop, home: str) -> BadRequest:
    """Why nothing can be asked any more through what is connected to `home` in this loop, which is over."""
    return BadRequest((_ELSEWHERE if isinstance(loop, _Inherited) else _OVER).format(home=home))


# --- processes that were forked -----------------------------------------------------------------------------


class _Inherited(asyncio.AbstractEventLoop):
    """In a forked process, in the place of a loop that runs in the one it came from: nobody here turns it."""

    def is_closed(self) -> bool:
        return True


def noted(home: RemotePeer) -> None:
    """A process that is forked from now on cannot use this connection, and is told so."""
    _connected.add(home)


def _leave() -> None:
    for home in list(_connected):
        home.loop = home.outbox.loop = _Inherited()  # type: ignore[abstract]  # it is asked for one thing alone
    _connected.clear()


_connected: weakref.WeakSet[RemotePeer] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave)

_ELSEWHERE: Final = (
    "this belongs to a connection to {home} that another process made, from which this one was forked (a DataLoader "
    "with num_workers, multiprocessing): use pointers in the process that connected (num_workers=0), or connect again "
    "here, and search for what is published"
)
_STUCK: Final = (
    "the value is at {home}, and the event loop that would bring it here stands still: its thread waits for another "
    "one at {where}. Do not wait for a thread there (join(), result(), map() of an executor): await it (await "
    "asyncio.to_thread(function))"
)
_STANDING: Final = (
    "this belongs to a connection to {home} whose event loop does not run now, so nothing can be waited for: await it "
    "in that loop (loop.run_until_complete(pointer.get())), or run this code in a thread while the loop runs"
)
_OVER: Final = (
    "this belongs to a connection to {home} that ended with its event loop (asyncio.run ends one each time): do all "
    "of it in one asyncio.run, or connect again and search for what is published; temporaries are gone"
)
