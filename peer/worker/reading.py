"""Strangers' files, read behind the walls of workers: `python -m peer.worker.reading FD PARENT KIND...`.

Whoever reads a file may be talked into anything by it, so that nobody does it but a process that has no files, no
network and nobody to talk to: forked for this one file, gone when it is read. On its control channel (FD):

    who wants files read to here       from here
    ["spawn"] + 1 fd                   ["confined", refused]     the walls that could not be raised, and why; then,
                                       ["ready"]                 where they are enough, torch is there

The descriptor of "spawn" is the reader's end of a channel of its own, by which it is told ["read", kind] + the file,
open to be read, and answers once:

    ["found", what, head, total] + 1 fd     a sealed memory file of `total` bytes, of which `head` are the head
    ["failed", fault]                       compute/importing/reading.py says what `what` and the head are

A reader that dies without an answer met something that it was not to do, or took too long. All end with this process,
and this one with who started it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import socket
import sys
import warnings
from typing import NoReturn

from peer.worker import confinement, memory, sandbox
from peer.worker.channel import BlockingChannel
from peer.worker.framing import close_all
from peer.worker.zygote import Parent
from protocol import limits
from protocol.errors import GridError


def main(arguments: list[str]) -> None:
    sandbox.reset_signals()
    parent = Parent(int(arguments[1]))
    control = _channel(socket.socket(fileno=int(arguments[0])))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        walls = _first_wall(control, parent)
        from compute.importing import reading

        warnings.simplefilter("ignore")  # torch's, that files are mapped to be read
        reading.warm(arguments[2:])
        ground = sandbox.Ground.laid(walls)
        parent.watch()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system reaps them: nobody asks how they ended
        control.send(["ready"])
        while (messages := control.receive()) is not None:
            for message, descriptors in messages:
                if message == ["spawn"] and len(descriptors) == 1:
                    _spawn(ground, descriptors[0])
                close_all(descriptors)


def _first_wall(control: BlockingChannel, parent: Parent) -> confinement.Confinement:
    refused = confinement.tried()
    control.send(["confined", refused])
    if confinement.missing(refused) is not None:
        os._exit(1)  # who asked knows why
    walls = confinement.Confinement()
    if walls.new_processes():
        parent.watch()
        parent.fork(control.fileno())
    return walls


def _spawn(ground: sandbox.Ground, descriptor: int) -> None:
    """A reader. Where there can be none, its channel closes without an answer."""
    own = os.getpid()
    with contextlib.suppress(OSError):
        if os.fork() == 0:
            _become_reader(ground, descriptor, own)


def _become_reader(ground: sandbox.Ground, descriptor: int, parent: int) -> NoReturn:
    """The child's whole life."""
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (limits.READER_CPU, limits.READER_CPU))
        settings = sandbox.Settings(memory=limits.READER_MEMORY)
        channel = _channel(socket.socket(fileno=sandbox.enter(ground, settings, descriptor, parent)))
        messages = channel.receive()
        for message, descriptors in messages or ():
            match message:
                case ["read", str(kind)] if len(descriptors) == 1:
                    _answer(channel, kind, descriptors[0])
    finally:
        os._exit(0)


def _answer(channel: BlockingChannel, kind: str, file: int) -> None:
    try:
        what, head, total, found = _read(kind, file)
    except GridError as error:
        channel.send(["failed", error.to_fault()])
    else:
        channel.send(["found", what, head, total], [found])


def _read(kind: str, file: int) -> tuple[str, int, int, int]:
    from compute.importing import reading

    size = os.fstat(file).st_size
    data = memory.map_private(file, 0, size, is_read_only=True) if size else memoryview(b"")
    what, head, rest = reading.read(kind, data)
    found = memory.new_file("found")
    at = 0
    for piece in itertools.chain((head,), rest):
        view = memoryview(piece).cast("B")
        memory.write_all(found, view, at)
        at += view.nbytes
    memory.seal(found)
    return what, len(head), at, found


def _channel(sock: socket.socket) -> BlockingChannel:
    return BlockingChannel(sock, send_limit=limits.WORKER_REPLY, receive_limit=limits.WORKER_REPLY)


if __name__ == "__main__":
    main(sys.argv[1:])
