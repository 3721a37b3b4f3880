"""How long a broken transfer is tried again: decides, and the caller waits. And how long one is that begins."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from peer.connection import Connection
from protocol import limits
from protocol.errors import GridError, HandshakeFailed, LinkError, PeerLost, ProtocolError, TimedOut


@dataclass(frozen=True, slots=True)
class Wait:
    """A transfer stands still: for which peer, since when (time.monotonic), after how many seconds it is given up."""

    name: str
    since: float
    patience: float


Waiting = Callable[[Wait | None], None]
"""Called when a transfer begins to wait for a peer that is away, and with None when the peer is there again."""


class Patience:
    """How often and how long a broken transfer is tried again. Decides; the caller waits.

    `moved` says how far the transfer has come for good; `judged` and `refused` what follows from a failure: a line that
    breaks is dialled for RESUME_TIMEOUT without a new block; what comes damaged, or breaks the rules of SPEC.md, is
    asked for BLOCK_TRIES times, for a bad network does that to single bytes, and is then the other end's.
    `waiting` hears when the line is down, until `resumed` says that the transfer goes on.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic, waiting: Waiting | None = None) -> None:
        self._name = name
        self._clock = clock
        self._waiting = waiting
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
        elif (why := misunderstanding(error, connection)) is not None:
            return self.refused(self._misunderstood(why, nbytes))
        return self._lost(error, nbytes)

    def refused(self, error: GridError) -> float:
        """The same after a block that was bad: one may be the line's doing, BLOCK_TRIES in a row are not."""
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
        if self._waiting is not None:
            self._waiting(Wait(self._name, self._since, limits.RESUME_TIMEOUT))
        return self._next_wait()

    def resumed(self) -> None:
        """The peer is there again, and has answered where to go on."""
        if self._waiting is not None and self._since is not None:
            self._waiting(None)

    def _misunderstood(self, why: LinkError, nbytes: int) -> LinkError:
        return type(why)(
            f"{self._name} and this end did not understand each other, {limits.BLOCK_TRIES} times in a row and at "
            f"{self._done} of {nbytes} bytes: {why.message}. See that both run the same version of peergrid",
            peer=self._name,
            done=self._done,
            nbytes=nbytes,
        )

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


def misunderstanding(error: LinkError, connection: Connection | None = None) -> LinkError | None:
    """What one end said that the other did not understand, if that is why this failed: the connection ended for it,
    or was not made. None where it is the line, or a stranger at the address: a peer that was started again may be
    somewhere else, and come back."""
    why = error if connection is None or connection.reason is None else connection.reason
    is_refused = isinstance(why, HandshakeFailed) and "versions" in why.fields
    return why if is_refused or isinstance(why, ProtocolError) else None


async def first_line(
    connect: Callable[[], Awaitable[Connection]],
    patience: Callable[[], float],
    name: str = "",
    waiting: Waiting | None = None,
) -> Connection:
    """A connection for a transfer that begins: tried for so many seconds, of which `patience` is asked at each failure.
    `name` is the peer's, for `waiting`.

    Raises:
        GridError: of the last try.
    """
    began, wait = time.monotonic(), limits.RECONNECT_FIRST
    tell: Waiting = waiting if waiting is not None else lambda _: None
    has_waited = False
    while True:
        try:
            connection = await connect()
        except LinkError as error:
            seconds = patience()
            left = began + seconds - time.monotonic()
            if left <= 0 or error.fields.get("closed") is True:
                raise
            tell(Wait(name, began, seconds))
            has_waited = True
            await asyncio.sleep(min(wait, left))
            wait = min(2 * wait, limits.RECONNECT_MOST)
        else:
            if has_waited:
                tell(None)
            return connection
