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
from peer.worker.dedicated import Dedicated
from peer.worker.framing import close_all
from peer.worker.line import WorkerKey
from peer.worker.sandbox import Settings
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


class Seat(Dedicated):
    """One process. It does one run at a time (`run`); `over` is done when the process has ended, with the reason."""

    def __init__(
        self,
        channel: socket.socket,
        settings: Settings,
        gone: Callable[[Seat], None],
        key: WorkerKey,
        name: str,
        buffers: BufferPool,
    ) -> None:
        super().__init__(key, name, channel, settings, gone, self._heard, self._ended)
        self._buffers = buffers
        self.over: asyncio.Future[Failed] = self._loop.create_future()
        self._running: asyncio.Future[Done] | None = None
        self._runs = 0
        self._is_gone = False

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
            self._end_with(Failed(error))
        return future

    # --- its end ------------------------------------------------------------------------------------------

    @property
    def is_wanted(self) -> bool:
        return not self.over.done()

    def _work(self) -> int | None:
        return self._runs if self._running is not None and not self._running.done() else None

    def _too_long(self) -> TooLarge:
        seconds = self._settings.seconds
        return TooLarge(
            f"{self.name} was ended: a secure run may take {seconds:g} s here. Run it on smaller parts, "
            "or have the peer's owner raise --worker-seconds",
            limit="OPERATION_SECONDS",
            allowed=seconds,
        )

    def lose(self, how: str, status: int | None = None) -> None:
        self.end(PartyFailed(f"the process of {self.name} {how}"))

    def end(self, why: GridError) -> None:
        self._end_with(Failed(why))

    def close(self) -> None:
        """Ends the process. Safe to call twice."""
        self.end(PartyFailed(f"{self.name} was ended"))

    def exited(self, status: int) -> None:
        self.end(PartyFailed(f"the process of {self.name} {ending(status)}"))

    def _end_with(self, failed: Failed) -> None:
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
            limits.WORKER_EXIT, lambda: self.end(PartyFailed(f"the process of {self.name} closed its channel"))
        )

    def _heard(self, message: Any, descriptors: list[int]) -> None:
        try:
            self._handle(message, descriptors)
        except GridError as error:
            self.end(error)
        except OSError as error:
            self.end(
                InternalError(f"the peer has no file descriptor left for what {self.name} gave ({error.strerror})")
            )
        except (ValueError, TypeError, KeyError):
            self.end(InternalError(f"the process of {self.name} said what makes no sense"))
        finally:
            close_all(descriptors)

    def _handle(self, message: Any, descriptors: list[int]) -> None:
        match message:
            case ["done", dict(told), bytes(shares)] if self.is_busy:
                self._set_done(Done(told, shares))
            case ["done", dict(told), None] if descriptors and self.is_busy:
                self._set_done(Done(told, self._buffers.adopt(os.dup(descriptors[0]), int(told["nbytes"]))))
            case ["failed" | "lost" as kind, fault, str() | None as who]:
                self._end_with(Failed(answers.fault(fault), who, is_lost=kind == "lost", is_own_word=True))
            case _:
                raise ValueError("no such message")

    def _set_done(self, done: Done) -> None:
        assert self._running is not None
        self._running.set_result(done)
