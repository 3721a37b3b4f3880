"""The other end of reading.py: strangers' files read by a process that can do nothing else. No torch here.

For whoever reads files into the grid, on this machine. Nothing here waits for a loop: `read` is gone through, and gives
None while the reader is at work.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from peer.worker import memory
from peer.worker.channel import BlockingChannel
from peer.worker.confinement import missing
from peer.worker.framing import close_all
from peer.worker.zygote_process import _PASSED_ON, _THREADS
from protocol import limits
from protocol.errors import BadFile, GridError, SetupError

MODULE: Final = "peer.worker.reading"
_MOMENT: Final = 0.02  # seconds for which nothing else of this thread goes on
_ELSEWHERE: Final = "save its tensors with safetensors.torch.save_file, which needs no such care"


@dataclass(frozen=True, slots=True)
class Found:
    """What a reader found: "model" or "tensors", its head, and what follows that; see compute/importing/reading.py."""

    what: str
    head: memoryview
    rest: memoryview


class Reader:
    """A process that forks readers of some kinds. It ends with `close`, or with the thread that made it.

    Raises:
        SetupError: files cannot be read in confinement on this machine.
    """

    def __init__(self, kinds: Sequence[str]) -> None:
        if sys.platform != "linux":
            raise SetupError(f"such files are opened behind walls that only Linux has; {_ELSEWHERE}")
        self._deadline = time.monotonic() + limits.READER_SECONDS
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = _start(theirs.fileno(), kinds)
            except OSError as error:
                ours.close()
                raise SetupError(f"no process could be started to read it: {error.strerror}") from None
        self._control = _Line(ours)
        self._is_ready = False

    def read(self, kind: str, path: Path) -> Iterator[Found | None]:
        """What is in the file; None while the reader is at work.

        Raises:
            BadFile, TooLarge, and others of the grid's: it is not what it should be. OSError: it cannot be opened.
        """
        self._deadline = time.monotonic() + limits.READER_SECONDS
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield from self._until_ready()
            ours, theirs = socket.socketpair()
            line = _Line(ours)
            try:
                with theirs:
                    line.channel.send(["read", kind], [file])
                    self._control.channel.send(["spawn"], [theirs.fileno()])
                for answer in line.answers(self._deadline):
                    yield None if answer is None else _found(*answer)
            finally:
                line.close()
        except (BrokenPipeError, ConnectionResetError):
            raise _ended() from None
        finally:
            os.close(file)

    def close(self) -> None:
        self._control.close()
        self._process.kill()
        self._process.wait()

    def _until_ready(self) -> Iterator[None]:
        while not self._is_ready:
            for answer in self._control.answers(self._deadline):
                if answer is None:
                    yield None
                    continue
                match answer[0]:
                    case ["confined", dict(refused)] if (lacking := missing(refused)) is not None:
                        reason = lacking.partition("so that")[2].partition(": ")[2]
                        raise SetupError(f"such files are opened in confinement only, and here {reason}; {_ELSEWHERE}")
                    case ["ready"]:
                        self._is_ready = True


class _Line:
    """A channel with one answer at a time, not waited for."""

    def __init__(self, ours: socket.socket) -> None:
        self.channel = BlockingChannel(ours, send_limit=limits.WORKER_REPLY, receive_limit=limits.WORKER_REPLY)
        self._heard: list[Any] = []

    def answers(self, deadline: float) -> Iterator[tuple[Any, list[int]] | None]:
        """None until there is an answer, which is the last."""
        while not self._heard:
            if not select.select([self.channel.fileno()], [], [], _MOMENT)[0]:
                if time.monotonic() > deadline:
                    raise Ended(f"reading it took more than {limits.READER_SECONDS:.0f} seconds")
                yield None
                continue
            messages = self.channel.receive()
            if messages is None:
                raise _ended()
            self._heard += messages
        yield self._heard.pop(0)

    def close(self) -> None:
        for _, descriptors in self._heard:
            close_all(descriptors)
        self.channel.close()


def _found(message: Any, descriptors: list[int]) -> Found:
    try:
        match message:
            case ["found", "model" | "tensors" as what, int(head), int(total)] if (
                len(descriptors) == 1 and 0 <= head <= total <= limits.MAX_MEMORY_TENSOR
            ):
                memory.check_sealed(descriptors[0], total)
                view = memoryview(_mapped(descriptors[0], total) if total else b"")
                return Found(what, view[:head], view[head:])
            case ["failed", dict(fault)]:
                raise GridError.from_fault(fault)
            case _:
                raise _ended()
    finally:
        close_all(descriptors)


def _mapped(fd: int, nbytes: int) -> mmap.mmap:
    """Unmapped when the last part of it is gone."""
    return mmap.mmap(fd, nbytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)


class Ended(Exception):
    """The reader is gone: it is told as BadFile."""


def _ended() -> Ended:
    return Ended(
        "the confined process that read it ended without an answer: it did what no reader does, or took more memory or "
        "time than one gets"
    )


def _start(control: int, kinds: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment.update(dict.fromkeys(_THREADS, "1"))
    environment["PYTHONPATH"] = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", MODULE, str(control), str(os.getpid()), *kinds],
        pass_fds=(control,),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


_TOGETHER: Final = (("pt", "pt2"), ("onnx",))  # what starts in one second, and what takes three
_kept: dict[Sequence[str], Reader] = {}
_users = 0


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """One process serves all files of a kind that are read inside."""
    global _users
    _users += 1
    try:
        yield
    finally:
        _users -= 1
        while not _users and _kept:
            _kept.popitem()[1].close()


def read(kind: str, path: Path) -> Iterator[Found | None]:
    """As Reader.read, by a process of its own, or that of `kept`."""
    kinds = next(kinds for kinds in _TOGETHER if kind in kinds)
    with kept():
        if kinds not in _kept:
            _kept[kinds] = Reader(kinds)
        try:
            yield from _kept[kinds].read(kind, path)
        except SetupError:
            _kept.pop(kinds).close()
            raise
        except Ended as end:
            _kept.pop(kinds).close()
            raise BadFile(str(end)) from None
