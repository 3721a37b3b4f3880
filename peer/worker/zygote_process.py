"""The peer's end of the zygote: starting it, asking it for workers, noticing its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from peer.worker.channel import LoopChannel
from peer.worker.framing import close_all
from peer.worker.sandbox import Settings
from protocol import limits

MODULE: Final = "peer.worker.zygote"
# What it takes to find programs and libraries and to speak the user's language; nothing that may be a secret.
_PASSED_ON: Final = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "TMPDIR")
# One thread each: a process with more cannot be forked safely. A worker may raise its own number afterwards.
_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_DYING: Final = 0.3  # seconds; the peer stands still for them, once, when everything that computes is gone

Kind = Literal["spawn", "jail", "party"]
"""What a process is for: a worker, one jail, parts in secure runs."""


@dataclass(frozen=True, slots=True)
class ZygoteEvents:
    """Who is told what. `lost` is the last, and is not called after `close`."""

    confined: Callable[[dict[str, str] | None], None]  # walls that are not there, and why; None: there are none
    unavailable: Callable[[str], None]  # why there is no such device
    ready: Callable[[], None]
    spawned: Callable[[int, int], None]  # seq, pid
    refused: Callable[[int, str], None]  # seq, reason
    exited: Callable[[int, int], None]  # pid, status: the negative number of a signal, or the exit status
    lost: Callable[[str], None]  # reason


class ZygoteProcess:
    """A running zygote. Made in the loop that it reports to; starts at once and imports torch in a second or two.

    It dies with the thread that made it (that is how the kernel sees a parent), which is the loop's.
    Raises OSError if no process can be started.
    """

    def __init__(self, events: ZygoteEvents, settings: Settings) -> None:
        self._events = events
        self._inside: dict[int, int] = {}  # pid as everybody knows it -> as the zygote does, in its namespace
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = _start(theirs.fileno(), settings)
            except OSError:
                ours.close()
                raise
        self._channel = LoopChannel(
            ours, self._heard, self._ended, send_limit=limits.WORKER_REPLY, receive_limit=limits.WORKER_REPLY
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def spawn(self, kind: Kind, seq: int, settings: Settings, channel: socket.socket) -> None:
        """One more process, on the other end of `channel` (which stays the caller's to close)."""
        self._channel.send([kind, seq, settings.to_wire()], [channel.fileno()])

    def kill(self, pid: int) -> None:
        """Kills a worker, unless it has ended already."""
        if pid in self._inside:
            self._channel.send(["kill", self._inside[pid]])

    async def close(self) -> None:
        """Kills the zygote, and with it (the kernel does that) every worker. Waits until it is gone."""
        self._channel.close()
        self._process.kill()
        await asyncio.get_running_loop().run_in_executor(None, self._process.wait)

    def _heard(self, message: Any, descriptors: list[int]) -> None:
        try:
            self._handle(message, descriptors)
        finally:
            close_all(descriptors)

    def _handle(self, message: Any, descriptors: list[int]) -> None:
        match message:
            case ["confined", dict() | None as refused]:
                self._events.confined(refused)
            case ["unavailable", str(reason)]:
                self._events.unavailable(reason)
            case ["ready"]:
                self._events.ready()
            case ["spawned", int(seq), int(inside)]:
                pid = _pid_of(descriptors[0], inside) if descriptors else inside
                self._inside[pid] = inside
                self._events.spawned(seq, pid)
            case ["refused", int(seq), str(reason)]:
                self._events.refused(seq, reason)
            case ["exited", int(inside), int(status)]:
                pid = next((pid for pid, known in self._inside.items() if known == inside), inside)
                self._inside.pop(pid, None)
                self._events.exited(pid, status)

    def _ended(self, error: Exception | None) -> None:
        try:
            status = self._process.wait(_DYING)  # its channel ends a little before itself: how is its own to say
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._events.lost(ending(status))


def ending(status: int | None) -> str:
    """How a process ended, in words that fit behind "the worker"."""
    if status is None:
        return "closed its channel"
    if status >= 0:
        return f"ended with status {status}"
    return f"was killed by {signal_name(status)}"


def signal_name(status: int) -> str:
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _pid_of(handle: int, inside: int) -> int:
    """Of the process behind a pidfd, as it is called here; where it is dead, a number that no process has."""
    try:
        with open(f"/proc/self/fdinfo/{handle}") as file:
            pid = next(int(line.split()[1]) for line in file if line.startswith("Pid:"))
    except (OSError, StopIteration):
        pid = -1
    return pid if pid > 0 else -inside


def _start(control: int, settings: Settings) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", MODULE, str(control), str(os.getpid()), json.dumps(settings.to_wire())],
        pass_fds=(control,),
        env=_environment(settings.device),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C at the terminal is for the peer, which then ends us
    )


def _environment(device: str) -> dict[str, str]:
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment.update(dict.fromkeys(_THREADS, "1"))
    environment["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin for work would take it from the peer
    if device == "cuda":
        environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # looks for devices without waking them: forks are to come
        environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # its products are then the same each time
        environment |= {name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES",) if name in os.environ}
    # The same modules as ours, wherever they were found.
    environment["PYTHONPATH"] = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return environment
