"""The zygote: a process that has imported torch and forks a worker in milliseconds instead of a second.

Started as `python -m peer.worker.zygote FD PARENT SETTINGS` (sandbox.Settings as JSON) with a fresh environment: no key
is in its memory. It runs nothing for anybody. On its control channel (FD):

    peer to zygote                          zygote to peer
    ["spawn", seq, settings] + 1 fd         ["confined", refused]         the walls that could not be raised, and why
    ["jail", seq, settings] + 1 fd          ["unavailable", reason]       torch cannot compute on it; then it ends
    ["party", seq, settings] + 1 fd         ["ready"]                     torch is there
    ["kill", pid]
                                            ["spawned", seq, pid] + 1 fd
                                            ["refused", seq, reason]
                                            ["exited", pid, status]       status as in subprocess: -9 is SIGKILL

The descriptor of "spawn" is the worker's end of its channel to the peer; "jail" is the same for a process of one job
(jail.py), "party" for one of a secure session (secure). Only the zygote kills them: it is their parent, so that a pid
cannot have become somebody else's. At the end of the control channel it kills them all and exits.

Where the system lets it, the zygote is the first process of a namespace: then pids are those in there, "spawned" comes
with a pidfd by which the peer finds its own, and what was started as the zygote only waits for it, and ends as it does.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import select
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final, NoReturn

from peer.worker import confinement, sandbox
from peer.worker.channel import BlockingChannel
from peer.worker.confinement import FILTER
from peer.worker.framing import close_all
from protocol import limits

Life = Callable[[sandbox.Ground, sandbox.Settings, int, int], None]


class Zygote:
    """Forks, kills and reaps, until the control channel ends."""

    def __init__(self, control: BlockingChannel, ground: sandbox.Ground) -> None:
        self._control = control
        self._ground = ground
        self._pid = os.getpid()
        self._workers: set[int] = set()
        self._woken, self._wakes = socket.socketpair()
        for end in (self._woken, self._wakes):
            end.setblocking(False)

    def serve(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, so that the wakeup descriptor is written to
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._control.fileno(), selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            self._control.send(["ready"])
            try:
                while self._turn([key.fd for key, _ in selector.select()]):
                    pass
            finally:
                signal.set_wakeup_fd(-1)  # they end when nobody listens any more
                for pid in self._workers:
                    os.kill(pid, signal.SIGKILL)

    def _turn(self, ready: list[int]) -> bool:
        if self._woken.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                self._woken.recv(4096)
        self._reap()
        if self._control.fileno() not in ready:
            return True
        messages = self._control.receive()
        if messages is None:
            return False
        for message, descriptors in messages:
            self._handle(message, descriptors)
        return True

    def _handle(self, message: Any, descriptors: list[int]) -> None:
        match message:
            case ["spawn" | "jail" | "party" as kind, int(seq), dict(settings)] if len(descriptors) == 1:
                self._spawn(_LIVES[kind], seq, settings, descriptors[0])
            case ["kill", int(pid)] if pid in self._workers:
                os.kill(pid, signal.SIGKILL)
        close_all(descriptors)

    def _spawn(self, life: Life, seq: int, settings: dict[str, Any], channel: int) -> None:
        try:
            pid = _fork_a_session()
        except OSError as error:
            self._control.send(["refused", seq, f"no process could be made: {error.strerror}"])
            return
        if pid == 0:
            _live(life, self._ground, settings, channel, self._pid)
        self._workers.add(pid)
        handles = [os.pidfd_open(pid)] if hasattr(os, "pidfd_open") else []
        try:
            self._control.send(["spawned", seq, pid], handles)
        finally:
            close_all(handles)

    def _reap(self) -> None:
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            self._workers.discard(pid)
            self._control.send(["exited", pid, os.waitstatus_to_exitcode(status)])


def _fork_a_session() -> int:
    """As os.fork, but the child is in a session of its own by then: Linux shares the processors among sessions, so each
    worker can be weighed by itself."""
    line, held = os.pipe()
    with open(line, "rb", buffering=0) as ended:
        try:
            if not (pid := os.fork()):
                os.setsid()
        finally:
            os.close(held)
        ended.read()  # until the other one has closed it too: the child does so behind its setsid
    return pid


def _work(ground: sandbox.Ground, settings: sandbox.Settings, descriptor: int, parent: int) -> None:
    from peer.worker import process

    process.serve(socket.socket(fileno=sandbox.enter(ground, settings, descriptor, parent)), settings)


def _do_one_job(ground: sandbox.Ground, settings: sandbox.Settings, descriptor: int, parent: int) -> None:
    from peer.worker import jail

    jail.serve(socket.socket(fileno=sandbox.enter_jail(ground, settings, descriptor, parent)), ground, settings)


def _take_part(ground: sandbox.Ground, settings: sandbox.Settings, descriptor: int, parent: int) -> None:
    from peer.worker.secure import process

    process.serve(socket.socket(fileno=sandbox.enter(ground, settings, descriptor, parent)), settings)


_LIVES: Final[dict[str, Life]] = {"spawn": _work, "jail": _do_one_job, "party": _take_part}


def _live(life: Life, ground: sandbox.Ground, settings: dict[str, Any], descriptor: int, parent: int) -> NoReturn:
    """All that a child does: the zygote's frames below must not run a second time."""
    try:
        life(ground, sandbox.Settings.from_wire(settings), descriptor, parent)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(70)


class Parent:
    """Whoever we end with: what started us or, where we are the first process of a namespace, what waits for us."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._line: int | None = None  # ends with the parent: in a namespace its pid tells nothing
        self.watch()

    def watch(self) -> None:
        """Again after each change of who we are: that makes the kernel forget it."""
        sandbox.die_with(self._pid)
        if self._line is not None and select.select([self._line], [], [], 0)[0]:
            os._exit(1)

    def fork(self, control: int) -> None:
        """Only the child returns, as the first process of its namespace; it ends with this one, and this as it did."""
        line, held = os.pipe()
        child = os.fork()
        if child:
            os.close(line)
            os.close(control)
            _end_like(child)
        os.close(held)
        self._pid, self._line = 0, line
        self.watch()


def _end_like(child: int) -> NoReturn:
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)  # SIGKILL needs none
        os.kill(os.getpid(), -code)
    os._exit(abs(code))


def _confine(settings: sandbox.Settings, control: BlockingChannel, parent: Parent) -> confinement.Confinement | None:
    """The first wall, and word to the peer of all."""
    if not settings.is_sandboxed:
        control.send(["confined", None])
        return None
    refused = confinement.tried(settings.device)
    control.send(["confined", refused])
    if confinement.missing(refused) is not None:
        os._exit(1)  # the peer knows why
    walls = confinement.Confinement(settings.device)
    if walls.new_processes():
        parent.watch()
        parent.fork(control.fileno())
    return walls


def warm(settings: sandbox.Settings) -> str | None:
    """Imports torch and what runs on it, and runs it once; or says why torch cannot compute on the device."""
    from compute import uncompiled
    from peer.worker import device, process
    from peer.worker.secure import process as party

    if not settings.has_jails:  # these run what people wrote, of which nobody knows what it needs of torch
        uncompiled.keep_out()
    if (reason := device.unavailable(settings.device)) is not None:
        return reason
    process.warm()
    party.warm()
    if settings.has_jails:
        from peer.worker import jail

        jail.warm()
    return None


def _few_descriptors() -> None:
    """As most processes begin: what is forked closes all that are not its own, with a call for each where the system
    knows no better."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = limits.ZYGOTE_DESCRIPTORS
    resource.setrlimit(resource.RLIMIT_NOFILE, (most if soft == resource.RLIM_INFINITY else min(soft, most), hard))


def main(arguments: list[str]) -> None:
    descriptor, settings = int(arguments[0]), sandbox.Settings.from_wire(json.loads(arguments[2]))
    sandbox.reset_signals()
    _few_descriptors()
    parent = Parent(int(arguments[1]))
    sock = socket.socket(fileno=descriptor)
    control = BlockingChannel(sock, send_limit=limits.WORKER_REPLY, receive_limit=limits.WORKER_REPLY)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        walls = _confine(settings, control, parent)
        if (reason := warm(settings)) is not None:
            control.send(["unavailable", reason])
            os._exit(1)
        if walls is not None and FILTER not in walls.refused:
            walls.prepare(settings.threads)
        ground = sandbox.Ground.laid(walls)
        parent.watch()
        # What is here now stays shared with the workers: collections must not touch it.
        gc.collect()
        gc.freeze()
        Zygote(control, ground).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
