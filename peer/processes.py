"""Peers in other processes: started, watched and ended from here.

PeerProcess.start(...)    a peer in a process of its own, ready when the call returns
end(pid)                  ends a peer that somebody else started
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

from peer.peer import Settings
from protocol import limits
from protocol.errors import GridError, SetupError

_LOG_TAIL: Final = 2_000  # bytes of a dead child's log that its error shows
_log = logging.getLogger("peergrid.processes")


class PeerProcess:
    """A peer that runs as a child process. `start` it, then `stop` it or `let_go`.

    Unless it is let go it ends with this process, however this one ends.
    """

    def __init__(self, name: str, process: subprocess.Popen[bytes], reader: _Line) -> None:
        self.name = name
        self.id = ""
        self.url = ""
        self.pid = process.pid
        self._process = process
        self._line = reader

    def __repr__(self) -> str:
        return f"<PeerProcess {self.name} {self.url} pid {self.pid}>"

    @classmethod
    async def start(
        cls, settings: Settings, log: Path, *, outlives_us: bool = False, timeout: float = limits.PEER_START
    ) -> PeerProcess:
        """Start a peer and wait until it can be found and asked. What it says goes to the end of the file `log`.

        Cancelling ends the child.

        Raises:
            what Peer.start raised in the child; SetupError if the child died, or took longer than `timeout`.
        """
        said = _size(log)
        process, line = _spawn(settings, log, outlives_us)
        made = cls(settings.name, process, line)
        try:
            await made._wait_ready(timeout, log, said)
        except BaseException:
            await made.kill()
            raise
        return made

    async def _wait_ready(self, timeout: float, log: Path, said: int) -> None:
        try:
            async with asyncio.timeout(timeout):
                line = await self._line.read()
        except TimeoutError:
            raise SetupError(f"{self.name} was not ready after {timeout:g} s; its log is {log}") from None
        if not line:
            raise SetupError(f"{self.name} ended while it was starting{_tail(log, said)}")
        told = json.loads(line)
        if "error" in told:
            raise GridError.from_fault(told["error"])
        self.id, self.url = told["id"], told["url"]

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    async def stop(self, grace: float = limits.PEER_STOP) -> None:
        """End it: SIGTERM, and SIGKILL after `grace` seconds. Returns when it is gone; safe to call twice."""
        try:
            self._process.terminate()
            async with asyncio.timeout(grace):
                await self._line.wait_end()
                await self._ended()
        except TimeoutError:
            _log.warning("%s did not stop within %g s, and is killed", self.name, grace)
        finally:
            await self.kill()

    async def kill(self) -> None:
        """End it as a power cut would. No effect on one that has ended."""
        self._process.kill()
        self._line.close()
        await self._ended()

    def let_go(self) -> None:
        """It goes on without us (start it with `outlives_us`)."""
        self._line.close()
        # Popen warns of a child that it never saw the end of. Nobody here is going to: init reaps it.
        self._process.returncode = 0

    async def _ended(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._process.wait)


class _Line:
    """Our end of the socket that a child shares with us: its one line, and later its end."""

    def __init__(self, ours: socket.socket) -> None:
        ours.setblocking(False)
        self._socket = ours

    async def read(self) -> bytes:
        """The line; empty if the child ended without one."""
        got = bytearray()
        while not got.endswith(b"\n"):
            data = await asyncio.get_running_loop().sock_recv(self._socket, 65_536)
            if not data:
                return b""
            got += data
        return bytes(got)

    async def wait_end(self) -> None:
        while self._socket.fileno() >= 0 and await asyncio.get_running_loop().sock_recv(self._socket, 65_536):
            pass

    def close(self) -> None:
        self._socket.close()


def _spawn(settings: Settings, log: Path, outlives_us: bool) -> tuple[subprocess.Popen[bytes], _Line]:
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as undo, theirs, log.open("ab") as output:
        undo.enter_context(ours)
        process = subprocess.Popen(
            _command(settings, theirs.fileno(), outlives_us),
            pass_fds=(theirs.fileno(),),
            # The same modules as ours, wherever they were found.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # a Ctrl-C at the terminal is for us; we end our children in order
        )
        undo.pop_all()
    return process, _Line(ours)


def _command(settings: Settings, fd: int, outlives_us: bool) -> list[str]:
    folders = settings.folders
    command = [sys.executable, "-P", "-m", "peer.process", settings.name, "--host", settings.host]
    command += ["--folders", str(folders.config), str(folders.data), str(folders.runtime)]
    command += ["--ready-fd", str(fd)] + ([] if outlives_us else ["--with-parent"])
    command += [f"--join={url}" for url in settings.join]
    command += [f"--advertise={url}" for url in settings.advertise]
    command += [f"--lease-grace={settings.lease_grace:g}", f"--workers={json.dumps(settings.workers.to_plain())}"]
    if settings.port is not None:
        command.append(f"--port={settings.port}")
    if settings.data_dir is not None:
        command.append(f"--data-dir={settings.data_dir}")
    return command


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tail(log: Path, start: int) -> str:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - _LOG_TAIL))
        text = file.read().decode(errors="replace").strip()
        if text:
            return f"; its last words in {log}:\n{text}"
    return f"; its log is {log}"


async def end(pid: int, grace: float = limits.PEER_STOP) -> bool:
    """End a process: SIGTERM, and SIGKILL after `grace` seconds. Returns when it is gone; False if it had to be killed.

    Raises:
        SetupError: it belongs to another user.
    """
    try:
        # A descriptor, where the system has them: a number may be another process's by the time we use it.
        handle = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
    except ProcessLookupError:
        return True
    try:
        _send(pid, handle, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                await _gone(pid, handle)
            return True
        except TimeoutError:
            _send(pid, handle, signal.SIGKILL)
            await _gone(pid, handle)
            return False
    finally:
        if handle is not None:
            os.close(handle)


def _send(pid: int, handle: int | None, number: signal.Signals) -> None:
    try:
        with contextlib.suppress(ProcessLookupError):
            if handle is None:
                os.kill(pid, number)
            else:
                signal.pidfd_send_signal(handle, number)
    except PermissionError:
        raise SetupError(f"process {pid} belongs to another user, who has to end it") from None


async def _gone(pid: int, handle: int | None) -> None:
    if handle is not None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(handle, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(handle)
        return
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(pid, 0)
            await asyncio.sleep(0.02)
