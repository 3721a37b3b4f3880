"""The peer's end of one process of a secure run: what it is given, what it says to the others, its end. Torch-free.

What the process is told and says is in party.py. It is not trusted: what makes no sense ends it.
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
from peer.worker.giving import provided
from peer.worker.guards import BlockHashes
from peer.worker.remote import WorkerKey
from peer.worker.sandbox import Settings
from peer.worker.watch import Watch
from peer.worker.zygote_process import ending
from protocol import limits
from protocol.errors import GridError, InternalError, PartyFailed, TooLarge
from protocol.tensors import TensorHeader


@dataclass(frozen=True, slots=True)
class Done:
    """What it came to: cost and a description of the outputs, and this party's shares of them. A buffer is the
    receiver's to release."""

    told: Mapping[str, Any]
    shares: bytes | Buffer


Tell = Callable[[Sequence[int], int, int, int, bytes], None]
"""Is given what it says to others: their indices, kind, number, bytes of the whole message, a piece."""


class Part:
    """One process. Made by a WorkerPool, which tells it when it is there and how it ended.

    `provide` what it is to have, `start` it, `begin` when all others are there; `over` is done with what it came to.
    The error of another who is to blame has `fields["index"]`.
    """

    is_busy = True

    def __init__(
        self,
        channel: socket.socket,
        settings: Settings,
        gone: Callable[[Part], None],
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
        self.over: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self.over.add_done_callback(lambda over: over.cancelled() or over.exception())
        self.tell: Tell = lambda *_: None
        self.is_own_word = False  # whether what it came to is in the process's own words
        self._is_gone = False
        self._channel = LoopChannel(
            channel, self._heard, self._ended, send_limit=limits.WORKER_MESSAGE, receive_limit=limits.WORKER_REPLY
        )

    # --- what it is given ---------------------------------------------------------------------------------

    def provide(
        self,
        object_id: bytes,
        header: TensorHeader,
        data: int | bytes,
        offset: int = 0,
        read_only: bool = True,
        *,
        hashes: BlockHashes | None = None,
        origin: Any = None,
    ) -> None:
        """A tensor, as a worker gets it (remote.Worker.provide); it can never be written."""
        self._channel.send(*provided(object_id, header, data, offset, hashes, read_only=True))

    def start(self, what: Mapping[str, Any]) -> None:
        """What it is to do (party.Part)."""
        self._channel.send(["part", dict(what)])

    def begin(self) -> None:
        """All others are there."""
        self._channel.send(["begin"], now=True)

    def hear(self, index: int, kind: int, number: int, total: int, piece: bytes) -> None:
        """A piece of a message from another."""
        self._channel.send(["heard", index, kind, number, total, piece], now=True)
        if self._channel.unsent_bytes > limits.SECURE_BACKLOG:
            self.fail(PartyFailed(f"somebody sends more than {self.name} can take", index=index))

    # --- its end ------------------------------------------------------------------------------------------

    @property
    def is_lost(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.over.done()

    @property
    def is_wanted(self) -> bool:
        """Whether the process is to go on."""
        return not (self.is_lost or self.is_over)

    @property
    def is_over(self) -> bool:
        """Whether it has nothing more to say."""
        return self.over.done()

    def look(self, elapsed: float, waits: Callable[[int], Mapping[int, float]]) -> bool:
        """Ends it if it has taken too long; True if so. For the pool, once in each beat of its watch."""
        if self.pid is None or self.is_over or not self._watch.look(1, elapsed, waits(self.pid)):
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
        """Ends the process now; what it comes to is `why`, unless it came to something before."""
        if not self.over.done():
            self.over.set_exception(why)
        self.close()

    def close(self) -> None:
        """Ends the process, after `over` or instead of it. Safe to call twice."""
        if not self.over.done():
            self.over.cancel()
        if not self._is_gone:
            self._is_gone = True
            self._channel.close()
            self._gone(self)

    def exited(self, status: int) -> None:
        """The pool's word that the process is dead, or that there never was one (-9)."""
        self.fail(PartyFailed(f"the process of {self.name} {ending(status)}"))

    def _ended(self, error: Exception | None) -> None:
        """Its channel is closed: the pool will say how it died. It has the time that a process takes to die."""
        asyncio.get_running_loop().call_later(
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
            case ["tell", list(to), int(kind), int(number), int(total), bytes(piece)]:
                self.tell(to, kind, number, total, piece)
            case ["done", dict(told), bytes(shares)]:
                self._set_done(Done(told, shares))
            case ["done", dict(told), None] if descriptors:
                self._set_done(Done(told, self._buffers.adopt(os.dup(descriptors[0]), int(told["nbytes"]))))
            case ["failed", fault, index]:
                error = answers.fault(fault)
                self.is_own_word = not self.over.done()
                if isinstance(index, int):
                    error.fields["index"] = index
                self.fail(error)
            case _:
                raise ValueError("no such message")

    def _set_done(self, done: Done) -> None:
        if not self.over.done():
            self.over.set_result(done)
        elif isinstance(done.shares, Buffer):
            done.shares.release()
