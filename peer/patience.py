"""How long a broken transfer is tried again: decides, and the caller waits. And how long one is that begins."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from peer.connection import Connection
from protocol import limits
from protocol.errors import GridError, LinkError, PeerLost, TimedOut


class Patience:
    """How often and how long a broken transfer is tried again. Decides; the caller waits.

    `moved` says how far the transfer has come for good; `judged` and `refused` what follows from a failure.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._since: float | None = None  # when the line broke, if no block came since
        self._wait = limits.RECONNECT_FIRST
        self._tries = 0
        self._done = 0

    def moved(self, done: int) -> None:
        """So many bytes are there now. More than before: all patience is there again."""
        if done > self._done:
            self._done = done
            self._since = None
            self._wait = limits.RECONNECT_FIRST
            self._tries = 0

    def judged(self, error: GridError, connection: Connection | None, nbytes: int) -> float:
        """The seconds to wait after this failure on that connection; raises it where that is the end."""
        if not isinstance(error, LinkError) or error.fields.get("closed") is True:  # this end is
            raise error
        is_open = connection is not None and not connection.is_closed
        if isinstance(error, TimedOut):
            if connection is not None:
                connection.give_up(error.message)
        elif is_open:  # the other end broke it off, on a line that is good
            return self.refused(error)
        return self._lost(error, nbytes)

    def refused(self, error: GridError) -> float:
        """The same after a block that was bad."""
        self._tries += 1
        if self._tries >= limits.BLOCK_TRIES:
            raise error
        return self._next_wait()

    def _lost(self, error: LinkError, nbytes: int) -> float:
        now = self._clock()
        if self._since is None:
            self._since = now
        if now - self._since > limits.RESUME_TIMEOUT:
            raise self._final(error, nbytes)
        return self._next_wait()

    def _next_wait(self) -> float:
        wait, self._wait = self._wait, min(2 * self._wait, limits.RECONNECT_MOST)
        return wait

    def _final(self, error: LinkError, nbytes: int) -> LinkError:
        done = self._done
        kind = TimedOut if isinstance(error, TimedOut) else PeerLost
        return kind(
            f"the transfer stands at {done} of {nbytes} bytes, and could not go on for {limits.RESUME_TIMEOUT:g} s: "
            f"{error.message}",
            peer=self._name,
            done=done,
            nbytes=nbytes,
        )


async def first_line(connect: Callable[[], Awaitable[Connection]], patience: Callable[[], float]) -> Connection:
    """A connection for a transfer that begins: tried for so many seconds, of which `patience` is asked at each failure.

    Raises:
        GridError: of the last try.
    """
    began, wait = time.monotonic(), limits.RECONNECT_FIRST
    while True:
        try:
            return await connect()
        except LinkError as error:
            left = began + patience() - time.monotonic()
            if left <= 0 or error.fields.get("closed") is True:
                raise
            await asyncio.sleep(min(wait, left))
            wait = min(2 * wait, limits.RECONNECT_MOST)
