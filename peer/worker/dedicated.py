"""The peer's end of a process that is there for one thing: a jail, or a place in a secure session. Torch-free."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from peer.worker.channel import LoopChannel
from peer.worker.giving import Given
from peer.worker.line import WorkerKey
from peer.worker.sandbox import Settings
from peer.worker.watch import Watch
from protocol import limits
from protocol.errors import GridError, TooLarge


class Dedicated(Given):
    """One process. Made by a WorkerPool, which tells it its pid when it is there, looks at its time, and tells it how
    it ended.

    Args:
        gone: is told once that the process is to be dead.
        heard, ended: as LoopChannel.

    Attributes:
        key: whose it is.
        name: what people call it.
    """

    def __init__(
        self,
        key: WorkerKey,
        name: str,
        channel: socket.socket,
        settings: Settings,
        gone: Callable[[Any], None],
        heard: Callable[[Any, list[int]], None],
        ended: Callable[[Exception | None], None],
    ) -> None:
        self.key, self.name = key, name
        self.pid: int | None = None
        self._settings = settings
        self._gone = gone
        self._watch = Watch(settings.seconds)
        self._loop = asyncio.get_running_loop()
        self._channel = LoopChannel(
            channel, heard, ended, send_limit=limits.WORKER_MESSAGE, receive_limit=limits.WORKER_REPLY
        )

    @property
    def is_busy(self) -> bool:
        """Whether it is at work, as far as is known here."""
        return self._work() is not None

    @property
    def is_wanted(self) -> bool:
        """Whether the process is to go on."""
        raise NotImplementedError

    def end(self, why: GridError) -> None:
        """Ends the process now; what it was at comes to `why`. The first reason stays."""
        raise NotImplementedError

    def lose(self, how: str, status: int | None = None) -> None:
        """Ends it, for a reason that is said behind "the process". For the pool."""
        raise NotImplementedError

    def exited(self, status: int) -> None:
        """The pool's word that the process is dead, or that there never was one (-9)."""
        raise NotImplementedError

    def _work(self) -> Hashable:
        """What it is at, whose time counts: equal for as long as it is the same thing; None: nothing."""
        raise NotImplementedError

    def _too_long(self) -> TooLarge:
        """That it was at one thing for longer than its settings allow."""
        raise NotImplementedError

    def in_stretches(self, elapsed: float) -> float:
        """As that of a worker: of the last `elapsed` seconds."""
        return elapsed if self.is_busy else 0.0

    def look(self, elapsed: float, waits: Callable[[int], Mapping[int, float]]) -> bool:
        """Ends it if it has been at one thing for too long; True if so. For the pool, in each beat of its watch."""
        if self.pid is None or not self.is_wanted or not self._watch.look(self._work(), elapsed, waits(self.pid)):
            return False
        self.end(self._too_long())
        return True
