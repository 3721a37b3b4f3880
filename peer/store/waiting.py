"""Waiting for work in threads: to its end, and one at a time for each key."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def undisturbed(
    work: Awaitable[T], *, hurry: Callable[[], None] | None = None, drop: Callable[[T], object] | None = None
) -> T:
    """The result of `work`, which runs to its end even if the caller is cancelled.

    A cancelled caller gets its CancelledError when the work has ended, so that nobody finds a step half done.
    The work must therefore wait for nothing but this machine's disk. At a cancellation `hurry` is called, which
    may make the work end early; then `drop` is called with the result that nobody wants, if there is one.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if hurry is not None:
            hurry()
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        # Looking at the exception says that it was seen: the caller's error is the cancellation.
        if not task.cancelled() and task.exception() is None and drop is not None:
            drop(task.result())
        raise


class KeyLocks:
    """One lock for each key in use; a key nobody holds or waits for takes no memory."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(key, asyncio.Lock())
        self._users[key] = self._users.get(key, 0) + 1
        try:
            async with lock:
                yield
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key], self._locks[key]
