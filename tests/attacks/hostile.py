"""`python -m tests.attacks.hostile`: a zygote like any other, but that its workers run what they are sent.

They are confined as all are: only what a worker does when it is behind its walls is another thing. A message ["script",
source, facts] is run as Python, with `facts` and what is imported here as its names; the answer is ["ran", what it left
in `got`] or ["raised", what]. Every other message is the runtime's. A jail named "script" is run so too, past all that
Python would keep from it.
"""

from __future__ import annotations

import builtins
import ctypes
import encodings.idna  # noqa: F401  what sockets import when they are given a name
import errno
import io
import mmap
import multiprocessing.shared_memory
import os
import pickle
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch

from compute.jail import running
from peer.worker import process, runtime, zygote
from peer.worker.channel import BlockingChannel
from peer.worker.sandbox import Settings
from protocol import limits

_libc = ctypes.CDLL(None, use_errno=True)
_NAMES = (
    ctypes,
    errno,
    io,
    mmap,
    os,
    pickle,
    resource,
    signal,
    socket,
    struct,
    subprocess,
    sys,
    threading,
    time,
    torch,
)


def call(number: int, *words: Any) -> int:
    """A system call by its number."""
    result: int = _libc.syscall(
        ctypes.c_long(number), *(ctypes.c_long(word) if isinstance(word, int) else word for word in words)
    )
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def machine_code(code: bytes) -> Any:
    """These instructions as a function of three words. Its memory is made executable as oneDNN does it."""
    _libc.mmap.restype = ctypes.c_void_p
    address = _libc.mmap(None, ctypes.c_size_t(4096), 3, 0x22, -1, ctypes.c_long(0))
    if _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4096), 7):
        raise OSError(ctypes.get_errno(), "mprotect")
    ctypes.memmove(address, code, len(code))
    return ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p, ctypes.c_long, ctypes.c_long)(address)


def run(source: str, facts: dict[str, Any]) -> list[str]:
    names = {module.__name__: module for module in _NAMES}
    scope: dict[str, Any] = {"call": call, "machine_code": machine_code, "libc": _libc, **names, **facts}
    scope["SharedMemory"] = multiprocessing.shared_memory.SharedMemory
    try:
        exec(builtins.compile(source, "hostile", "exec"), scope)
    except OSError as error:
        return ["raised", errno.errorcode.get(error.errno or 0, type(error).__name__)]
    except BaseException as error:
        return ["raised", type(error).__name__]
    return ["ran", repr(scope.get("got"))]


def serve(sock: socket.socket, settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    channel = BlockingChannel(sock, send_limit=limits.WORKER_REPLY, receive_limit=limits.WORKER_MESSAGE)
    honest = runtime.Runtime(channel.queue)
    while (messages := channel.receive()) is not None:
        for message, descriptors in messages:
            if message[0] == "script":
                channel.queue(run(*message[1:]))
            else:
                honest.handle(message, descriptors)
        channel.flush()


_run_jail = running.run


def run_jail(work: running.Work, tensors: Sequence[torch.Tensor], **how: Any) -> tuple[Any, list[torch.Tensor]]:
    if work.name != "script":
        return _run_jail(work, tensors, **how)
    return {"list": run(work.source, {**work.values, "inputs": tensors})}, []


if __name__ == "__main__":
    process.serve = serve
    running.run = run_jail
    zygote.main(sys.argv[1:])
