"""Hostile workers (hostile.py) under the tests' control: started by a real zygote, asked, and looked after."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest

from peer.worker import memory, zygote_process
from peer.worker.channel import BlockingChannel
from peer.worker.sandbox import Settings
from protocol import limits
from tests import zygotes
from tests.waiting import PATIENCE

_ROOT = Path(__file__).parents[2]


class Told:
    """What comes by one channel, in order."""

    def __init__(self, sock: socket.socket) -> None:
        self.channel = BlockingChannel(sock, send_limit=limits.WORKER_MESSAGE, receive_limit=limits.WORKER_MESSAGE)
        self._heard: list[tuple[Any, list[int]]] = []

    def wait(self, kind: str, subject: Any = None) -> tuple[list[Any], list[int]] | None:
        """The next message of this kind (about this subject), and its descriptors; None if the other end is gone."""
        while True:
            for index, (message, descriptors) in enumerate(self._heard):
                if message[0] == kind and (subject is None or subject == message[1]):
                    del self._heard[index]
                    return message, descriptors
            assert select.select([self.channel.fileno()], [], [], PATIENCE)[0], f"no {kind} came"
            messages = self.channel.receive()
            if messages is None:
                return None
            self._heard += messages


class Den:
    """A zygote whose workers do what scripts say."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._seq = 0
        ours, theirs = socket.socketpair()
        with zygotes.real(), pytest.MonkeyPatch.context() as patch, theirs:
            patch.setattr(zygote_process, "MODULE", "tests.attacks.hostile")
            patch.syspath_prepend(_ROOT)
            self.process = zygote_process._start(theirs.fileno(), settings)
        self.told = Told(ours)
        confined = self.told.wait("confined")
        assert confined is not None
        self.refused: dict[str, str] | None = confined[0][1]
        assert self.told.wait("ready") is not None, "the zygote ended"

    @classmethod
    @contextmanager
    def with_secret(cls, settings: Settings) -> Iterator[Den]:
        """One whose environment had something that is not for those in it."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GRID_SECRET", "not for those in it")
            den = cls(settings)
        yield den
        den.close()

    def spawn(self, settings: Settings | None = None, kind: str = "spawn") -> Worker:
        self._seq += 1
        ours, theirs = socket.socketpair()
        with theirs:
            spawn = [kind, self._seq, (settings or self.settings).to_wire()]
            self.told.channel.send(spawn, [theirs.fileno()])
        spawned = self.told.wait("spawned", self._seq)
        assert spawned is not None, "the zygote ended"
        (_, _, inside), handles = spawned
        pid = zygote_process._pid_of(handles[0], inside)
        for handle in handles:
            os.close(handle)
        return Worker(self, Told(ours), inside, pid)

    def run(self, source: str, settings: Settings | None = None, **facts: Any) -> str:
        """What became of it, in a worker of its own: "ran ...", "raised ..." or the signal that ended it."""
        worker = self.spawn(settings)
        try:
            return worker.run(source, **facts)
        finally:
            worker.close()

    def jail(
        self,
        source: str,
        given: Sequence[tuple[list[Any], list[int]]] = (),
        settings: Settings | None = None,
        **facts: Any,
    ) -> str:
        """The same of a script in a jail, which is given those messages with descriptors before."""
        told, made, (reads, writes) = memory.new_file("told"), memory.new_file("made"), os.pipe()
        try:
            worker = self.spawn(settings, kind="jail")
            for message, descriptors in given:
                worker.told.channel.send(message, descriptors)
            names = [message[1] for message, _ in given]
            work = {"source": source, "name": "script", "line": 1, "args": {}, "kwargs": {}, "values": facts}
            packed = msgpack.packb({**work, "modules": {}, "loads": {}})
            worker.told.channel.send(["job", packed, names, False], [told, made, writes])
            os.close(writes)
            assert select.select([reads], [], [], PATIENCE)[0] and not os.read(reads, 1), "it spoke by its pipe"
            ended = worker.ended()
            worker.close()
            return ended if ended != "exit 0" else _left(made)
        finally:
            for fd in (told, made, reads):
                os.close(fd)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.told.channel.close()


def _left(made: int) -> str:
    """What a jail's script came to, by its own account."""
    length = int.from_bytes(os.pread(made, 4, 0), "little")
    try:
        told = msgpack.unpackb(os.pread(made, length, 4))
    except ValueError:
        return "nonsense"
    if "fault" in told:
        return f"raised {told['fault']['code']}"
    return " ".join(item for item in msgpack.unpackb(told["structure"])["list"])


class Worker:
    def __init__(self, den: Den, told: Told, inside: int, pid: int) -> None:
        self.den = den
        self.told = told
        self.inside = inside  # its pid, as the zygote calls it
        self.pid = pid

    def run(self, source: str, **facts: Any) -> str:
        self.told.channel.send(["script", source, facts])
        return self.answer() or self.ended()

    def answer(self) -> str | None:
        """None if it is gone."""
        if not select.select([self.told.channel.fileno()], [], [], PATIENCE)[0]:
            return "hung"
        messages = self.told.channel.receive()
        return " ".join(messages[0][0]) if messages else None

    def ended(self) -> str:
        exited = self.den.told.wait("exited", self.inside)
        assert exited is not None, "the zygote ended with its worker"
        status = exited[0][2]
        return signal.Signals(-status).name if status < 0 else f"exit {status}"

    def close(self) -> None:
        self.told.channel.close()
