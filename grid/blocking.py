"""Waiting without `await`: for code in a thread in which no event loop runs, such as a step in `asyncio.to_thread`.

In the loop's own thread nobody can wait, or the answer would never be read: there it is an error that says so.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

from protocol.errors import BadRequest

if TYPE_CHECKING:
    from grid.remote import RemotePeer

T = TypeVar("T")

IN_A_THREAD: Final = "or run the code in a thread, where it waits by itself (await asyncio.to_thread(function))"
"""How the sentence of a NeedsAwait ends."""


def can_block() -> bool:
    """Whether this thread may wait: no event loop runs in it."""
    return asyncio._get_running_loop() is None


def block(home: RemotePeer, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What the coroutine gives that `make` makes, run in the loop that `home` was connected in.

    Raises:
        BadRequest: that loop does not run any more.
    """
    check_loop(home)
    if not home.loop.is_running():
        raise over(home.loop, home.name)
    return asyncio.run_coroutine_threadsafe(make(), home.loop).result()


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
_OVER: Final = (
    "this belongs to a connection to {home} that ended with its event loop (asyncio.run ends one each time): do all "
    "of it in one asyncio.run, or connect again and search for what is published; temporaries are gone"
)
