"""Whether the other end of a line is still there: asked with a ping now and then, judged by progress.

An end that is gone, or hangs, is given up at most PING_INTERVAL + PING_TIMEOUT after it was last heard. A line that is
merely slow is not: a ping may wait for a long time behind what was sent before it. Anything that is heard counts as
an answer (the pings of an end that only receives among them), and the time for it runs from when the other end's
system last took anything, the ping being the last of it: what is sent after the ping says nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from websockets.protocol import State

from peer.transport import Socket, progress
from protocol import limits

_LOOKS: Final = 20  # at a ping that is not answered yet, within PING_TIMEOUT


class Liveness:
    """Watches one open connection until `stop`. `heard` is to be called with every read; `on_dead`, once, says why."""

    def __init__(self, socket: Socket, on_dead: Callable[[str], None]) -> None:
        self._socket = socket
        self._on_dead = on_dead
        self._loop = loop = asyncio.get_running_loop()
        self._heard_at = loop.time()
        self._pinged_at = self._heard_at
        self._taken = 0  # what the other end had taken when it was last looked at (transport.progress)
        self._ping_end = 0  # that it will have when it has the last ping
        self._moved_at = 0.0  # and when it was last seen to have more than before
        self._timer = loop.call_later(limits.PING_INTERVAL, self._look)

    def heard(self) -> None:
        """Something came."""
        self._heard_at = self._loop.time()

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        if self._heard_at < self._pinged_at:
            if self._is_dead(now):
                self._on_dead(f"nothing was heard for {now - self._heard_at:.0f} s, and a ping was not answered")
                return
        elif now < self._pinged_at + limits.PING_INTERVAL:
            self._timer = self._loop.call_at(self._pinged_at + limits.PING_INTERVAL, self._look)
            return
        else:
            self._ping(now)
        self._timer = self._loop.call_later(limits.PING_TIMEOUT / _LOOKS, self._look)

    def _ping(self, now: float) -> None:
        if self._socket.protocol.state is State.OPEN:
            self._socket.protocol.send_ping(b"")
            self._socket.send_data()
        self._pinged_at = self._moved_at = now
        self._taken, self._ping_end = progress(self._socket)

    def _is_dead(self, now: float) -> bool:
        taken, _ = progress(self._socket)
        if taken > self._taken:
            if self._taken < self._ping_end:
                self._moved_at = now
        self._taken = taken
        return now - self._moved_at >= limits.PING_TIMEOUT
