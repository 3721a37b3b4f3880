"""Messages with file descriptors over a unix stream socket: how they are framed, and read again.

A message is `length u32 | descriptors u8 | msgpack`, little-endian. Descriptors ride in the same sendmsg as the
first byte of their message. The kernel keeps them in order and hands them over no later than that byte, but may
put bytes of earlier messages in front of it: so they wait in a queue, and each message takes as many as it says.
Either end may be hostile to the other: sizes are checked before anything is kept, and what is wrong ends the
channel (ProtocolError), with every descriptor closed. A receiver that has no descriptor left to take one with gets
NONE_LEFT in its place: that is nobody's fault at the other end.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgpack

from protocol import limits
from protocol.codec import Pack, unpack_bounded
from protocol.errors import BadRequest, ProtocolError
from protocol.sizes import beyond

_PRELUDE: Final = struct.Struct("<IB")
_ROOM: Final = 16
ANCILLARY: Final = socket.CMSG_SPACE(_ROOM * array.array("i").itemsize)  # for recvmsg_into: room for descriptors
CLOEXEC: Final = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))  # what is no plain number is joined by Python
CUT: Final = int(socket.MSG_CTRUNC)  # of the flags: descriptors came that were not put in; perhaps none was
NONE_LEFT: Final = -1
_UNREADABLE: Final = (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError)

Controls = Sequence[tuple[int, int, bytes]]  # what recvmsg_into tells beside the bytes
Message = tuple[Any, list[int]]  # what was packed, and its descriptors, now the receiver's to close


def encode(message: Any, descriptors: int = 0, limit: int = limits.WORKER_MESSAGE, pack: Pack = msgpack.packb) -> bytes:
    """One message, framed.

    Raises:
        BadRequest: a value that msgpack cannot hold.
        TooLarge: more than `limit` bytes.
    """
    try:
        body = pack(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadRequest(f"an argument that cannot travel: {error}") from None
    if len(body) > limit:
        sentence = "a message of {size} bytes between peer and worker; send large values as objects"
        raise beyond("WORKER_MESSAGE", len(body), sentence, allowed=limit)
    return _PRELUDE.pack(len(body), descriptors) + body


class Decoder:
    """Bytes and descriptors in, messages out. After a ProtocolError it is beyond use; `close` it.

    Args:
        limit: bytes of one message.
        containers: lists and maps in one: a megabyte of empty ones would hold the reader for a quarter of a second.
    """

    def __init__(self, limit: int, containers: int | None = None) -> None:
        self._limit = limit
        self._containers = limit if containers is None else containers
        self._most_alone = min(limit, self._containers)
        self._bytes = bytearray()
        self._descriptors: deque[int] = deque()
        self._is_short = False  # until the message that has fewer than it says

    def feed(
        self, data: bytes | bytearray | memoryview, descriptors: Iterable[int] = (), *, is_short: bool = False
    ) -> Iterator[Message]:
        """The messages complete with this. Consume it all before feeding again.

        `is_short`: more descriptors came than there was room for in this process; NONE_LEFT stands for the others.
        """
        self._descriptors.extend(descriptors)
        self._is_short |= is_short
        if len(self._descriptors) > limits.WORKER_BACKLOG:
            raise ProtocolError("descriptors without messages")
        kept = self._bytes
        if kept:
            kept += data
            data = kept
        at = 0
        with memoryview(data) as view:
            while len(view) - at >= _PRELUDE.size:
                length, count = _PRELUDE.unpack_from(view, at)
                self._check(length, count)
                start, end = at + _PRELUDE.size, at + _PRELUDE.size + length
                if end > len(view):
                    break
                with view[start:end] as body:
                    message = self._unpack(body)
                at = end
                yield message, [self._descriptors.popleft() for _ in range(count)]
            if data is kept and not at:
                return  # a long message grows in place
            self._bytes = bytearray(view[at:])

    def alone(self, data: memoryview) -> Any:
        """The message, if these bytes are one, whole and without descriptors, as nearly all are, and nothing came
        before it; None of anything else, and of what may have too many lists and maps, which is to be fed."""
        if self._bytes or len(data) < _PRELUDE.size:
            return None
        length, count = _PRELUDE.unpack_from(data)
        if count or length + _PRELUDE.size != len(data) or length > self._most_alone:
            return None
        try:
            return msgpack.unpackb(data[_PRELUDE.size :], raw=False)
        except _UNREADABLE as error:
            raise _unreadable(error) from None

    def _unpack(self, body: memoryview) -> Any:
        try:
            # Each takes a byte, so that only a long message can have too many.
            if len(body) > self._containers:
                return unpack_bounded(body, self._containers)
            return msgpack.unpackb(body, raw=False)
        except _UNREADABLE as error:
            raise _unreadable(error) from None

    def _check(self, length: int, count: int) -> None:
        if length > self._limit:
            raise ProtocolError(f"a message of {length} bytes; at most {self._limit}")
        if self._is_short and limits.WORKER_FDS >= count > len(self._descriptors):
            self._descriptors.extend([NONE_LEFT] * (count - len(self._descriptors)))
            self._is_short = False
        # They came with the first byte of this prelude, or earlier.
        if count > limits.WORKER_FDS or count > len(self._descriptors):
            raise ProtocolError(f"a message that claims {count} descriptors; {len(self._descriptors)} came")

    def close(self) -> None:
        self._bytes = bytearray()
        close_all(self._descriptors)
        self._descriptors.clear()


def _unreadable(error: Exception) -> ProtocolError:
    return ProtocolError(f"a message that does not decode: {error}")


def close_all(descriptors: Iterable[int]) -> None:
    for fd in descriptors:
        if fd != NONE_LEFT:
            os.close(fd)


def copies(descriptors: Iterable[int]) -> list[int]:
    copies: list[int] = []
    try:
        for fd in descriptors:
            copies.append(os.dup(fd))
    except OSError:
        close_all(copies)
        raise
    return copies


def ancillary(descriptors: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []


def descriptors_in(controls: Controls, flags: int) -> list[int]:
    """Those that came with a message, as far as this process could take them; `flags` are those of recvmsg_into."""
    received = array.array("i")
    for level, kind, data in controls:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(data[: len(data) - len(data) % received.itemsize])
    if flags & CUT and len(received) >= _ROOM:
        close_all(received)
        raise ProtocolError("more descriptors than one message may carry")
    return list(received)


def tune(sock: socket.socket) -> None:
    """Room for a few batches, so that neither end waits for the other at each message."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.MIB)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, limits.MIB)
