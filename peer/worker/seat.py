"""The peer's end of one process of a secure session: what it is given, its runs, its end. Torch-free.

What the process is told and says is in the package secure. It is not trusted: what makes no sense ends it.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peer.buffers import Buffer, BufferPool
from peer.worker import answers
from peer.worker.channel import LoopChannel, close_all
from peer.worker.giving import Given
from peer.worker.remote import WorkerKey
from peer.worker.sandbox import Settings
from peer.worker.watch import Watch
from peer.worker.zygote_process import ending
from protocol import limits
from protocol.errors import GridError, InternalError, PartyFailed, TooLarge


@dataclass(frozen=True, slots=True)
class Done:
    """What a run came to: cost and a description of what came out, and the bytes of that: this party's shares, or
    values. A buffer is the receiver's to release."""

    told: Mapping[str, Any]
    shares: bytes | Buffer


class Failed(Exception):
    """How a process ended. `who`: the id of another who is to blame; `is_lost`: that one's line ended, nobody knows
    why; `is_own_word`: it is in the words of the process."""

    def __init__(
        self, error: GridError, who: str | None = None, *, is_lost: bool = False, is_own_word: bool = False
    ) -> None:
        super().__init__(error.message)
        self.error, self.who, self.is_lost, self.is_own_word = error, who, is_lost, is_own_word


class Seat(Given):
    """One process. Made by a WorkerPool, which tells it when it is there and how it ended.

    It does one run at a time (`run`); `over` is done when the process is at its end, with the reason.
    """

    def __init__(
        self,
        channel: socket.socket,
        settings: Settings,
        gone: Callable[[Seat], None],
        key: WorkerKey,
        name: str,
        buffers: BufferPool,
    ) -> None:
        self.key, self.name = key, name
        self.pid: int | None = None
        self._settings = settings
        self._gone = gone
        self._buffers = buffers
        self._watch = Watch(settings.seconds)
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[Failed] = self._loop.create_future()
        self._running: asyncio.Future[Done] | None = None
        self._runs = 0
        self._is_gone = False
        self._channel = LoopChannel(
            channel, self._heard, self._ended, send_limit=limits.WORKER_MESSAGE, receive_limit=limits.WORKER_REPLY
        )

    # --- what it is given ---------------------------------------------------------------------------------

    def line(self, id: str, fd: int, *, is_dialler: bool) -> None:
        """The line to another of the session, whose handshake is over. The descriptor stays the caller's."""
        self._channel.send(["line", id, is_dialler], [fd])

    def drop(self, ids: Sequence[bytes]) -> None:
        """Kept shares, or what was dealt ahead, that nobody needs any more."""
        self._channel.send(["drop", list(ids)])

    def run(self, what: Mapping[str, Any]) -> asyncio.Future[Done]:
        """One run (secure.part.Part): what it comes to, or Failed, which ends the process."""
        assert not self.is_busy
        self._running = future = self._loop.create_future()
        future.add_done_callback(lambda over: over.cancelled() or over.exception())
        if self.over.done():
            future.set_exception(self.over.result())
            return future
        self._runs += 1
        try:
            self._channel.send(["part", dict(what)], now=True)
        except GridError as error:
            self._end(Failed(error))
        return future

    # --- its end ------------------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether a run is under way."""
        return self._running is not None and not self._running.done()

    @property
    def is_wanted(self) -> bool:
        """Whether it is to go on."""
        return not self.over.done()

    @property
    def is_lost(self) -> bool:
        """Whether it is at its end."""
        return self.over.done()

    def look(self, elapsed: float, waits: Callable[[int], Mapping[int, float]]) -> bool:
        """Ends it if a run has taken too long; True if so. For the pool, once in each beat of its watch."""
        if self.pid is None or self.over.done():
            return False
        if not self._watch.look(self._runs if self.is_busy else None, elapsed, waits(self.pid)):
            return False
        seconds = self._settings.seconds
        self.fail(
            TooLarge(
                f"{self.name} was ended: a secure run may take {seconds:g} s here. Run it on smaller parts, "
                "or have the peer's owner raise --worker-seconds",
                limit="OPERATION_SECONDS",
                allowed=seconds,
            )
        )
        return True

    def lose(self, how: str, status: int | None = None) -> None:
        """Ends it, for a reason that is said behind "the process". For the pool."""
        self.fail(PartyFailed(f"the process of {self.name} {how}"))

    def fail(self, why: GridError) -> None:
        """Ends the process now; the run that is under way comes to `why`."""
        self._end(Failed(why))

    def close(self) -> None:
        """Ends the process. Safe to call twice."""
        self.fail(PartyFailed(f"{self.name} was ended"))

    def exited(self, status: int) -> None:
        """The pool's word that the process is dead, or that there never was one (-9)."""
        self.fail(PartyFailed(f"the process of {self.name} {ending(status)}"))

    def _end(self, failed: Failed) -> None:
        if not self.over.done():
            self.over.set_result(failed)
        if self._running is not None and not self._running.done():
            self._running.set_exception(failed)
        if not self._is_gone:
            self._is_gone = True
            self._channel.close()
            self._gone(self)

    def _ended(self, error: Exception | None) -> None:
        """Its channel is closed: the pool will say how it died. It has the time that a process takes to die."""
        self._loop.call_later(
            limits.WORKER_EXIT, lambda: self.fail(PartyFailed(f"the process of {self.name} closed its channel"))
        )

    def _heard(self, message: Any, descriptors: list[int]) -> None:
        try:
            self._handle(message, descriptors)
        except GridError as error:
            self.fail(error)
        except (ValueError, TypeError, KeyError):
            self.fail(InternalError(f"the process of {self.name} said what makes no sense"))
        finally:
            close_all(descriptors)

    def _handle(self, message: Any, descriptors: list[int]) -> None:
        match message:
            case ["done", dict(told), bytes(shares)] if self.is_busy:
                self._set_done(Done(told, shares))
            case ["done", dict(told), None] if descriptors and self.is_busy:
                self._set_done(Done(told, self._buffers.adopt(os.dup(descriptors[0]), int(told["nbytes"]))))
            case ["failed" | "lost" as kind, fault, str() | None as who]:
                self._end(Failed(answers.fault(fault), who, is_lost=kind == "lost", is_own_word=True))
            case _:
                raise ValueError("no such message")

    def _set_done(self, done: Done) -> None:
        assert self._running is not None
        self._running.set_result(done)
