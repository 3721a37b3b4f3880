"""The short way between two processes of one user on one machine: a Unix socket beside a peer's TCP port.

What passes is the same, and who is there proves it by the same handshake. But to hand the system a small message takes
a sender 1 to 4 us where TCP takes 4 to 16, and nothing runs in between (docs/decisions/0005). Linux only: the name is
an abstract one (unix(7)), which whoever shares the peer's loopback reaches, as the port, and which ends with the peer.
Everybody else, and everything that is in the way of this, has TCP.
"""

from __future__ import annotations

import logging
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
_AT_MOST: Final = 4 * limits.NEAR_BUFFER  # of what is taken when the other end has gone: more does not wait in a line
_BROKEN: Final = (BrokenPipeError, ConnectionResetError)
_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred: process, user, group
_CORE: Final = 36  # of the fields of proc_pid_stat(5) behind the command's name
_log = logging.getLogger("peergrid.transport")


def listening(host: str, port: int) -> socket.socket | None:
    """What a peer that listens at this address of TCP is to serve beside it, if there is such a thing."""
    made = _socket_for(host)
    if made is None:
        return None
    try:
        made.bind(_name(host, port))
    except OSError as error:
        _log.info("no short way beside port %d: %s", port, error.strerror)
        made.close()
        return None
    return made


def connected(host: str, port: int) -> socket.socket | None:
    """A way to the peer at this address of TCP. None where it listens at no such thing, or is another user's: a
    stranger could stand at the name in its place."""
    made = _socket_for(host)
    if made is None:
        return None
    made.setblocking(False)  # if nobody accepts, TCP is where to wait
    try:
        # From a name that says which thread this is: `core_of` is for the other end.
        made.bind(f"{_PREFIX}{threading.get_native_id()}/{secrets.token_hex(8)}")
        made.connect(_name(host, port))
        if _other_end(made)[1] == os.geteuid() != _nobody():
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
    try:
        return _other_end(pipe)[0]
    except OSError:
        return 0


def take_rest(
    pipe: Any, exc: Exception | None, place: Callable[[int], memoryview], took: Callable[[int], None]
) -> None:
    """Read what came before the other end went, if this is such a way, and sending over it has failed. For who hears
    that the line is lost, with `exc`: here a write fails as soon as the other end has closed, and the event loop gives
    up what it has not read; by TCP the write goes well, and what came is read first. `place` gives memory, `took` is
    told how much of it was filled."""
    if not isinstance(exc, _BROKEN) or not is_near(pipe):
        return
    left = _AT_MOST
    with suppress(OSError, ValueError), socket.socket(fileno=os.dup(pipe.fileno())) as rest:
        while left > 0 and (size := rest.recv_into(place(-1), 0, socket.MSG_DONTWAIT)):
            left -= size
            took(size)


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


def _socket_for(host: str) -> socket.socket | None:
    """A socket, if there may be such a way beside this address: it is of this machine alone, and no name, which the
    system's resolver may lead elsewhere."""
    try:
        return socket.socket(socket.AF_UNIX) if sys.platform == "linux" and ip_address(host).is_loopback else None
    except (ValueError, OSError):
        return None


def _name(host: str, port: int) -> str:
    return f"{_PREFIX}{host}:{port}"


def _nobody() -> int:
    """What the system calls every user that it has no number for here: equal numbers do not make them one user."""
    try:
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return 65534


def _other_end(pipe: Any) -> tuple[int, int, int]:
    found: tuple[int, int, int] = _CREDENTIALS.unpack(
        pipe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return found
