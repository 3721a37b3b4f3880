"""The short way between two processes of one user on one machine: a Unix socket beside a peer's TCP port.

What passes is the same, and who is there proves it by the same handshake. But to hand the system a small message takes
a sender 1 to 3 us where TCP takes 4 to 14, and nothing runs in between (docs/decisions/0005). Linux only: the name is
an abstract one (unix(7)), which whoever shares the peer's loopback reaches, as the port, and which ends with the peer.
Everybody else, and everything that is in the way of this, has TCP.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from protocol import limits

_PREFIX: Final = "\0peergrid.1/"
_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred: process, user, group
_CORE: Final = 36  # of the fields of proc_pid_stat(5) behind the command's name


def listening(host: str, port: int) -> socket.socket | None:
    """What a peer that listens at this address of TCP is to serve beside it, if there is such a thing."""
    if not _has_one(host):
        return None
    try:
        made = socket.socket(socket.AF_UNIX)
    except OSError:
        return None
    try:
        made.bind(_name(host, port))
    except OSError:  # somebody has that name
        made.close()
        return None
    return made


def connected(host: str, port: int) -> socket.socket | None:
    """A way to the peer at this address of TCP. None where it listens at no such thing, or is another user's: a
    stranger could stand at the name in its place."""
    if not _has_one(host):
        return None
    try:
        made = socket.socket(socket.AF_UNIX)
    except OSError:
        return None
    made.setblocking(False)  # if nobody accepts, TCP is where to wait
    try:
        # From a name that says which thread this is: `core_of` is for the other end.
        made.bind(f"{_PREFIX}{threading.get_native_id()}/{secrets.token_hex(8)}")
        made.connect(_name(host, port))
        if _of_process(made)[1] == os.geteuid():
            return made
    except OSError:
        pass
    made.close()
    return None


def is_near(pipe: Any) -> bool:
    """Whether this is such a way; of a socket, or of what a transport gives as its own."""
    return pipe is not None and pipe.family == socket.AF_UNIX


def widen(pipe: Any) -> None:
    """Let the system hold as much of what is sent as TCP's would, or large payloads go in small steps."""
    with suppress(OSError):
        pipe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.NEAR_BUFFER)


def process_of(pipe: Any) -> int:
    """The process that dialled; 0 if this end cannot see it."""
    return _of_process(pipe)[0]


def core_of(pipe: Any, name: Any) -> Callable[[], int] | None:
    """What tells the core that the thread runs on, or did last, which dialled from `name`; None where that cannot be
    known. A look takes 11 us."""
    process = process_of(pipe)
    thread = str(name, "ascii", "replace").removeprefix(_PREFIX).partition("/")[0] if isinstance(name, bytes) else ""
    if not process or not thread.isdecimal():
        return None
    return partial(_core, Path(f"/proc/{process}/task/{thread}/stat"))


def _core(stat: Path) -> int:
    try:
        said = stat.read_bytes()
        return int(said[said.rindex(b")") + 1 :].split()[_CORE])
    except (OSError, ValueError, IndexError):
        return -1  # that thread has ended


def _has_one(host: str) -> bool:
    """Whether an address may have such a way beside it: of this machine alone, and not by a name, which the system's
    resolver may lead elsewhere."""
    try:
        return sys.platform == "linux" and ip_address(host).is_loopback
    except ValueError:
        return False


def _name(host: str, port: int) -> str:
    return f"{_PREFIX}{host}:{port}"


def _of_process(pipe: Any) -> tuple[int, int, int]:
    found: tuple[int, int, int] = _CREDENTIALS.unpack(
        pipe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return found
