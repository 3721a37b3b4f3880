"""The zygote: a process that has imported torch and forks a worker in milliseconds instead of a second.

Started as `python -m peer.worker.zygote FD PARENT` with a fresh environment, so that no key is in its memory. It
runs nothing for anybody. On its control channel (FD):

    peer to zygote                          zygote to peer
    ["spawn", seq, settings] + 1 fd         ["ready"]                     torch is there
    ["kill", pid]                           ["spawned", seq, pid]
                                            ["refused", seq, reason]
                                            ["exited", pid, status]       status as in subprocess: -9 is SIGKILL

The descriptor is the worker's end of its channel to the peer. Only the zygote kills workers: it is their parent, so
that a pid cannot have become somebody else's. At the end of the control channel it kills them all and exits.
"""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

from peer.worker import sandbox
from peer.worker.channel import BlockingChannel, close_all
from protocol import limits


class Zygote:
    """Forks, kills and reaps, until the control channel ends."""

    def __init__(self, control: BlockingChannel) -> None:
        self._control = control
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
            case ["spawn", int(seq), dict(settings)] if len(descriptors) == 1:
                self._spawn(seq, settings, descriptors[0])
            case ["kill", int(pid)] if pid in self._workers:
                os.kill(pid, signal.SIGKILL)
        close_all(descriptors)

    def _spawn(self, seq: int, settings: dict[str, Any], channel: int) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            self._control.send(["refused", seq, f"no process could be made: {error.strerror}"])
            return
        if pid == 0:
            _become_worker(settings, channel, self._pid)
        self._workers.add(pid)
        self._control.send(["spawned", seq, pid])

    def _reap(self) -> None:
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            self._workers.discard(pid)
            self._control.send(["exited", pid, os.waitstatus_to_exitcode(status)])


def _become_worker(settings: dict[str, Any], descriptor: int, parent: int) -> NoReturn:
    """The child's whole life: the zygote's frames below must not run a second time."""
    try:
        from peer.worker import runtime

        allowed = sandbox.Settings.from_wire(settings)
        descriptor = sandbox.enter(allowed, descriptor, parent)
        runtime.serve(socket.socket(fileno=descriptor), allowed)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(70)


def main(arguments: list[str]) -> None:
    descriptor, parent = int(arguments[0]), int(arguments[1])
    sandbox.reset_signals()
    sandbox.die_with(parent)
    sock = socket.socket(fileno=descriptor)
    control = BlockingChannel(sock, send_limit=limits.WORKER_REPLY, receive_limit=limits.WORKER_REPLY)
    from peer.worker import runtime

    runtime.warm()
    # What is here now stays shared with the workers: collections must not touch it.
    gc.collect()
    gc.freeze()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        Zygote(control).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
