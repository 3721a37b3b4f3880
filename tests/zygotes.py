"""Zygotes at hand: one process of the tests has imported torch, and what a peer takes for its zygote is forked from it.

Each peer imports torch in a zygote of its own as soon as it starts, for seconds of a processor, and most tests that
start a peer ask it for one operation or none. What is forked here does all that a zygote does, its walls included,
from `peer.worker.zygote.main` on; only the import is done already, and it is no child of the peer's: a line tells each
end that the other is gone.

Tests that are about zygotes, their start, their place among processes or their memory have real ones: `real_zygotes`.

    Nursery            the process, for as long as a session of tests
    python -m tests.zygotes serve PATH          it, at the socket PATH
    python -m tests.zygotes peer PATH ...       a peer, as `peer.process` with these arguments, with zygotes from it
    python -m tests.zygotes run PATH CODE ...   as `python -c CODE` with these arguments: its peers have zygotes from it
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from compute import uncompiled
from peer import processes
from peer.worker import zygote, zygote_process
from peer.worker.sandbox import Settings

_START, _COMMAND = zygote_process._start, processes._command
_MESSAGE = 65_536  # bytes at most of what is asked for


class Zygote:
    """What peers know of a zygote's process, as of a Popen. It is not our child: we have a line to who forked it."""

    def __init__(self, path: str, control: int, settings: Settings) -> None:
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line.connect(path)
        socket.send_fds(self._line, [json.dumps(settings.to_wire()).encode()], [control, 2])
        self._status: int | None = None
        self._lock = threading.Lock()

    @functools.cached_property
    def pid(self) -> int:
        return int(self._line.recv(_MESSAGE))

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_WR)

    def wait(self) -> int:
        with self._lock:
            if self._status is None:
                assert self.pid
                self._status = int(self._line.recv(_MESSAGE) or -signal.SIGKILL)
                self._line.close()
            return self._status


class Nursery:
    """Where zygotes come from while it is `used`. Its process starts at the first entry, and ends with ours."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="grid-zygotes-")
        self.path = str(Path(self._folder.name) / "asked")
        self._process: subprocess.Popen[bytes] | None = None

    def _open(self) -> None:
        if self._process is not None:
            return
        environment = zygote_process._environment("cpu")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
            door.bind(self.path)
            door.listen(100)  # who comes before torch is there waits
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tests.zygotes", "serve", str(door.fileno())],
                pass_fds=(door.fileno(),),
                env=environment,
                stdin=subprocess.PIPE,  # ends with us
                start_new_session=True,
            )

    def close(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(60)
        self._folder.cleanup()

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Peers that start meanwhile, here or in processes of their own, have zygotes from here."""
        before = zygote_process._start, processes._command
        zygote_process._start, processes._command = self._zygote, self._command  # type: ignore[assignment]
        try:
            yield
        finally:
            zygote_process._start, processes._command = before

    def _zygote(self, control: int, settings: Settings) -> Zygote | subprocess.Popen[bytes]:
        self._open()
        return taken_from(self.path, control, settings)

    def _command(self, *arguments: Any) -> list[str]:
        self._open()
        return _command_at(self.path, *arguments)

    def program(self, code: str, *arguments: str) -> list[str]:
        """The command of a process that runs this as `python -c` does; what it starts has zygotes from here, too. It
        is to find our modules: by its folder, or its PYTHONPATH."""
        self._open()
        return [sys.executable, "-m", "tests.zygotes", "run", self.path, code, *arguments]


@contextlib.contextmanager
def real() -> Iterator[None]:
    """Peers that start meanwhile have zygotes as everywhere else."""
    before = zygote_process._start, processes._command
    zygote_process._start, processes._command = _START, _COMMAND
    try:
        yield
    finally:
        zygote_process._start, processes._command = before


def taken_from(path: str, control: int, settings: Settings) -> Zygote | subprocess.Popen[bytes]:
    """A zygote from the process at this socket; one like any other where it is to compute elsewhere than on the CPU."""
    return Zygote(path, control, settings) if settings.device == "cpu" else _START(control, settings)


def _command_at(path: str, *arguments: Any) -> list[str]:
    """That of a peer with zygotes from the process at this socket."""
    command = _COMMAND(*arguments)
    at = command.index("peer.process")
    return [*command[:at], "tests.zygotes", "peer", path, *command[at + 1 :]]


# --- the process --------------------------------------------------------------------------------------------------


class _Server:
    """Forks a zygote for each who comes, and tells them how it ended; kills it when they do not wait any more."""

    def __init__(self, door: socket.socket) -> None:
        self._door = door
        self._selector = selectors.DefaultSelector()
        self._lines: dict[int, socket.socket] = {}  # by pid of the zygote
        self._woken, self._wakes = socket.socketpair()

    def serve(self) -> None:
        for end in (self._woken, self._wakes):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        for file in (self._door, self._woken, sys.stdin.buffer.raw):  # type: ignore[attr-defined]
            self._selector.register(file, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._door:
                    self._born()
                elif key.fileobj is self._woken:
                    with contextlib.suppress(BlockingIOError):
                        self._woken.recv(4096)
                elif key.data is None:  # the tests are over, and all zygotes end with their parent
                    return
                elif key.data in self._lines:
                    os.kill(key.data, signal.SIGKILL)
                    self._selector.unregister(key.fileobj)
            self._reap()

    def _born(self) -> None:
        line, _ = self._door.accept()
        asked, descriptors, _, _ = socket.recv_fds(line, _MESSAGE, 2)
        if len(descriptors) == 2:
            server = os.getpid()
            pid = os.fork()
            if not pid:
                _be_zygote(descriptors, server, asked.decode())
            self._lines[pid] = line
            with contextlib.suppress(OSError):
                line.send(str(pid).encode())
            self._selector.register(line, selectors.EVENT_READ, pid)
        else:
            line.close()
        for descriptor in descriptors:
            os.close(descriptor)

    def _reap(self) -> None:
        while self._lines:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            with self._lines.pop(pid) as line, contextlib.suppress(OSError, KeyError):
                with contextlib.suppress(KeyError):
                    self._selector.unregister(line)
                line.send(str(os.waitstatus_to_exitcode(status)).encode())


def _be_zygote(descriptors: list[int], parent: int, settings: str) -> NoReturn:
    """The child's whole life: from here it is as if it had been started as a zygote."""
    try:
        os.setsid()
        control = os.dup2(descriptors[0], 3) if descriptors[0] != 3 else 3
        os.dup2(descriptors[1], 2)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        os.closerange(4, 1024)
        zygote.main([str(control), str(parent), settings])
        os._exit(0)
    except SystemExit as ended:
        os._exit(int(ended.code or 0))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(1)


def _as_warm(settings: Settings) -> None:
    if not settings.has_jails:
        uncompiled.keep_out()


def _serve(door: int) -> None:
    zygote.warm(Settings(has_jails=True))
    zygote.warm = _as_warm  # type: ignore[assignment]
    gc.collect()
    gc.freeze()
    _Server(socket.socket(fileno=door)).serve()


def main(mode: str, path: str, *arguments: str) -> int:
    if mode == "serve":
        _serve(int(path))
        return 0
    zygote_process._start = functools.partial(taken_from, path)  # type: ignore[assignment]
    if mode == "run":
        processes._command = functools.partial(_command_at, path)
        code, *sys.argv[1:] = arguments
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        return 0
    from peer import process

    return process.main(arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
