"""How a session's socket is let go: every step of an orderly end in its time, whatever the other end does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Final

from websockets.exceptions import ConnectionClosed

from peer.transport import Socket

PATIENCE: Final = 1.0  # seconds that each step of an orderly end may take


async def within_patience(step: Awaitable[None]) -> None:
    """Do this if it can be done in time. An end that does not read could otherwise hold us up for long."""
    with contextlib.suppress(ConnectionClosed, OSError, TimeoutError):
        async with asyncio.timeout(PATIENCE):
            await step


async def hang_up(socket: Socket, code: int) -> None:
    """Close, and throw away what still comes: the other end's goodbye is behind it."""
    closing = asyncio.ensure_future(socket.close(code))
    try:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await socket.recv()
        await closing
    finally:
        closing.cancel()


async def stop(*tasks: asyncio.Task[None]) -> None:
    """Cancel these, but not the task that asks for it, and wait for them to end."""
    others = [task for task in tasks if task is not asyncio.current_task() and not task.done()]
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=PATIENCE)
