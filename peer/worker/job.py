"""The peer's end of one jail's process: what it is given, its time, its end, and what it left. Torch-free.

Its results are read when they are sealed, or it is dead, so that nothing changes between a check and a use; nothing in
them is believed.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgpack

from compute.jail import structure
from peer.buffers import Buffer, BufferPool
from peer.worker import answers, memory
from peer.worker.dedicated import Dedicated
from peer.worker.framing import close_all
from peer.worker.line import WorkerKey
from peer.worker.sandbox import Settings
from peer.worker.zygote_process import ending, signal_name
from protocol import limits
from protocol.errors import BadRequest, GridError, InternalError, JailFailed, TooLarge
from protocol.sizes import check_limit
from protocol.tensors import TensorHeader

_LENGTH: Final = struct.Struct("<I")
_SMALL: Final = limits.INLINE_PAYLOAD


@dataclass(frozen=True, slots=True)
class Made:
    """What a jail gave: `structure` is a plain value (compute/jail/structure.py) about these tensors, packed. The
    buffers are the receiver's to release."""

    structure: bytes
    headers: tuple[TensorHeader, ...]
    buffers: tuple[Buffer, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a jail ended, and what it had printed by then."""

    result: Made | GridError
    printed: bytes


class Job(Dedicated):
    """One jail's process. `assign` it to somebody, `provide` and `blank` what it is to have, then `start` it and await
    `outcome`."""

    def __init__(self, channel: socket.socket, settings: Settings, gone: Callable[[Job], None]) -> None:
        super().__init__(
            WorkerKey("", frozenset()),
            "a jail",
            channel,
            settings,
            gone,
            heard=lambda message, descriptors: self._broke(descriptors),
            ended=lambda error: None,
        )
        self._over: asyncio.Future[None] = self._loop.create_future()  # it has said all that it will
        self._status: int | None = None
        self._why: GridError | None = None  # we ended it
        self._is_closed = False
        self._told = memory.new_file("grid-jail-told")
        memory.fix_size(self._told, limits.JAIL_PRINTED)
        self._made = memory.new_file("grid-jail-made")
        self._end = -1

    def assign(self, key: WorkerKey, name: str) -> None:
        """Whose it is from now on, and what people call it."""
        self.key, self.name = key, name

    # --- what it is given ---------------------------------------------------------------------------------

    def blank(self, object_id: bytes, header: TensorHeader) -> None:
        """Zeros in the place of a tensor of its inputs."""
        self._channel.send(["blank", object_id, header.dtype, list(header.shape)])

    def start(self, work: bytes, inputs: Sequence[bytes], *, numbers: bool) -> None:
        """The last that it is given. TooLarge for more than a message holds."""
        self._end, theirs = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._channel.send(["job", work, list(inputs), numbers], [self._told, self._made, theirs])
        finally:
            os.close(theirs)
        self._loop.add_reader(self._end, self._ended)

    # --- its end ------------------------------------------------------------------------------------------

    @property
    def is_wanted(self) -> bool:
        return self._why is None and not self.is_over

    @property
    def is_over(self) -> bool:
        """Whether it has nothing more to say."""
        return self._over.done()

    def _work(self) -> int:
        return 1  # there is but one thing that it is there for

    def _too_long(self) -> TooLarge:
        return TooLarge(
            f"{self.name} was ended: a jail may take {self._settings.seconds:g} s here. Do less in one, or have "
            "the peer's owner raise --jail-seconds",
            limit="JAIL_SECONDS",
            allowed=self._settings.seconds,
        )

    def lose(self, how: str, status: int | None = None) -> None:
        self.end(JailFailed(f"{self.name}: its process {how}"))

    def end(self, why: GridError) -> None:
        if self._why is None and not self.is_over:
            self._why = why
            self._channel.close()
            self._gone(self)

    def exited(self, status: int) -> None:
        self._status = status
        self._channel.close()
        self._finish()

    def _ended(self) -> None:
        """The pipe can be read, in which nothing comes but its end. Where the result is sealed it is all there."""
        try:
            said = os.read(self._end, 1)
        except BlockingIOError:
            return
        self._loop.remove_reader(self._end)
        if said:
            self._broke([])
        elif self._why is None and memory.is_sealed(self._made):
            self._finish()
            self._gone(self)  # it may be slow to go

    def _finish(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    async def outcome(self, buffers: BufferPool) -> Outcome:
        """Waits for its end, and reads what it left. Cancelling ends it."""
        await asyncio.shield(self._over)
        printed = os.pread(self._told, limits.JAIL_PRINTED, 0).rstrip(b"\0")
        if self._why is not None:
            return Outcome(self._why, printed)
        if not memory.is_sealed(self._made):
            return Outcome(self._ended_by(self._status or 0), printed)
        if os.fstat(self._made).st_size > limits.JAIL_HEADER + _SMALL:
            return Outcome(await asyncio.to_thread(result_of, self._made, buffers), printed)
        return Outcome(result_of(self._made, buffers), printed)

    def close(self) -> None:
        """Lets go of its files; after its outcome, or instead of it. Safe to call twice."""
        if self._is_closed:
            return
        self._is_closed = True
        self.end(JailFailed(f"{self.name} was given up"))
        if self._end >= 0:
            self._loop.remove_reader(self._end)
            os.close(self._end)
        os.close(self._told)
        os.close(self._made)

    def _broke(self, descriptors: list[int]) -> None:
        close_all(descriptors)
        self.end(JailFailed(f"{self.name} was ended: it spoke, which jails do not"))

    def _ended_by(self, status: int) -> GridError:
        """Why there is no result, where nobody here ended it."""
        name = signal_name(status) if status < 0 else ""
        if name == "SIGXCPU" or (name == "SIGKILL" and self._watch.spent >= self._settings.seconds):
            seconds = self._settings.seconds
            return TooLarge(
                f"{self.name} was ended by the system: it took more processor time than a jail of {seconds:g} s has",
                limit="JAIL_SECONDS",
                allowed=seconds,
            )
        if name == "SIGXFSZ":
            return TooLarge(f"{self.name} was ended: it wrote more than a jail may", limit="JAIL_OUTPUT")
        why = {"SIGSYS": ": it asked the system for something that no jail may"}.get(name, "")
        return JailFailed(f"{self.name}: its process {ending(status)}{why}", **({"signal": name} if name else {}))


# --- what it left -----------------------------------------------------------------------------------------


def result_of(fd: int, buffers: BufferPool) -> Made | GridError:
    """What is in the file of results of a jail, or why there is nothing."""
    try:
        return _made(fd, buffers)
    except GridError as error:
        return InternalError(f"what a jail left makes no sense: {error.message}")
    except Exception as error:  # whatever it says
        return InternalError(f"what a jail left makes no sense: {type(error).__name__}")


def _made(fd: int, buffers: BufferPool) -> Made | GridError:
    (length,) = _LENGTH.unpack(os.pread(fd, _LENGTH.size, 0))
    if length > limits.JAIL_HEADER - _LENGTH.size:
        raise ValueError("its header is too long")
    told = msgpack.unpackb(os.pread(fd, length, _LENGTH.size), raw=False)
    if "fault" in told:
        return answers.fault(told["fault"])
    packed, listed = told["structure"], told["tensors"]
    if type(packed) is not bytes or len(packed) > limits.JAIL_STRUCTURE or len(listed) > limits.JAIL_RESULTS:
        raise ValueError("more than a jail may give")
    structure.check(msgpack.unpackb(packed, raw=False), len(listed))
    headers = [TensorHeader(dtype, tuple(shape)) for dtype, shape, _ in listed]
    _check_size(fd, [(header.nbytes, at) for header, (_, _, at) in zip(headers, listed, strict=True)])
    return Made(packed, tuple(headers), _copied(fd, headers, [at for _, _, at in listed], buffers))


def _check_size(fd: int, places: Sequence[tuple[int, int]]) -> None:
    """ValueError unless all is there, in memory that the jail has paid for."""
    status = os.fstat(fd)
    total = sum(nbytes for nbytes, _ in places)
    if total > limits.JAIL_OUTPUT or total > status.st_blocks * 512 + mmap.PAGESIZE:
        raise ValueError("more than it wrote")
    for nbytes, at in places:
        if type(at) is not int or at < 0 or (nbytes and at + nbytes > status.st_size):
            raise ValueError("beyond its end")


def _copied(fd: int, headers: Sequence[TensorHeader], places: Sequence[int], buffers: BufferPool) -> tuple[Buffer, ...]:
    made: list[Buffer] = []
    with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as pages, memoryview(pages) as view:
        try:
            for header, at in zip(headers, places, strict=True):
                made.append(buffers.take(header.nbytes))
                with view[at : at + header.nbytes] as elements:
                    made[-1].append(elements)
        except BaseException:
            for buffer in made:
                buffer.release()
            raise
    return tuple(made)


def check_inputs(ids: Sequence[bytes], work: bytes) -> None:
    """TooLarge for more than a jail takes."""
    check_limit("JAIL_INPUTS", len(ids), "{size} tensors go into a jail; at most {allowed}")
    sentence = "a jail's source and plain arguments have {size} bytes, at most {allowed}: send what is large as tensors"
    check_limit("JAIL_REQUEST", len(work), sentence)
    if not work:
        raise BadRequest("a jail came without its source")
