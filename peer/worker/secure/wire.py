"""A line to one other process of the session: the TCP socket of a WebSocket that two peers have opened and proved.

Every message is one binary WebSocket message in one frame (RFC 6455, 5.2), and nothing else comes:

    tag (32 bytes) | kind u8 | 3 bytes of nothing | number u32 | data

The end that dialled masks what it sends. Nothing here waits: the socket is asked what it takes and gives now.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from websockets.frames import apply_mask  # type: ignore[attr-defined]  # the fast one, where the library has it

from protocol import limits

HEAD: Final = struct.Struct("<32sB3xI")
_BINARY: Final = 0x82  # a whole binary message
_MASKED: Final = 0x80
_TINY, _SHORT = 126, 1 << 16
_SCRATCH: Final = 64 * limits.KIB
_AT_ONCE: Final = 256 * limits.KIB  # masked and sent while the processor's cache holds them
_FIRST: Final = limits.MIB  # of a large message's place; then it doubles
_SMALL: Final = 32 * limits.KIB  # joined: cheaper than several pieces
_SEND: Final = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)

View = memoryview | bytes
Allowed = Callable[[bytes, int, int, int], bool]
"""Is asked before a message is kept: its tag, kind, number, size. False: not yet. Raises where it is not due."""
Heard = Callable[[bytes, int, int, bytearray], None]


class Broken(Exception):
    """The other end closed it, or sent what is no message."""


class Wire:
    """One line. `fd` becomes its own; `is_dialler`: this end dialled."""

    def __init__(self, fd: int, *, is_dialler: bool) -> None:
        self._socket = socket.socket(fileno=fd)
        self._is_dialler = is_dialler
        self._out: deque[tuple[memoryview, bytes]] = deque()  # what is to be sent, with the mask that it still needs
        self._scratch = bytearray(_SCRATCH)
        self._view = memoryview(self._scratch)
        self._have = 0  # bytes in it
        self._data: bytearray | None = None  # of a message that comes straight into its place
        self._at = self._size = 0  # how much of it is here, of how much
        self._mask = b""
        self._head: tuple[bytes, int, int] = (b"", 0, 0)
        self.heard = 0.0  # when something came last, by the monotonic clock
        self.is_paused = False  # what comes next is not read yet: it waits at who sends it

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    # --- going out ----------------------------------------------------------------------------------------

    @property
    def is_sending(self) -> bool:
        """Whether the system has not taken everything yet."""
        return bool(self._out)

    @property
    def wanted(self) -> int:
        """For poll: what to wait for."""
        return (0 if self.is_paused else select.POLLIN) | (select.POLLOUT if self._out else 0)

    def send(self, tag: bytes, kind: int, number: int, pieces: Sequence[View]) -> None:
        """One message, after all those before. What the system does not take now goes with `flush`; the bytes must not
        change until then."""
        size = HEAD.size + sum(len(piece) for piece in pieces)
        mark = _MASKED if self._is_dialler else 0
        if size < _TINY:
            head = bytes((_BINARY, mark | size))
        elif size < _SHORT:
            head = struct.pack("!BBH", _BINARY, mark | _TINY, size)
        else:
            head = struct.pack("!BBQ", _BINARY, mark | _TINY + 1, size)
        begin = HEAD.pack(tag, kind, number)
        key = os.urandom(4) if mark else b""
        if size <= _SMALL:
            body = b"".join((begin, *pieces))
            self._queue(head + key + (apply_mask(body, key) if key else body))
        else:
            self._queue(head + key + (apply_mask(begin, key) if key else begin))
            at = 0
            for piece in pieces:
                self._queue(piece, key[at % 4 :] + key[: at % 4])
                at += len(piece)
        self.flush()

    def _queue(self, piece: View, key: bytes = b"") -> None:
        if len(piece):
            self._out.append((memoryview(piece).cast("B"), key))

    def flush(self) -> None:
        """Sends what the system takes now. Broken."""
        while self._out:
            view, key = self._out[0]
            if key:
                # A multiple of four bytes at once, so that the mask begins anew with what is left.
                piece, rest = view[:_AT_ONCE], view[_AT_ONCE:]
                self._out[0] = memoryview(apply_mask(piece, key)), b""
                if len(rest):
                    self._out.insert(1, (rest, key))
                continue
            try:
                sent = self._socket.send(view, _SEND)
            except BlockingIOError:
                return
            except OSError as error:
                raise Broken(error.strerror or "the line broke") from None
            if sent == len(view):
                self._out.popleft()
            else:
                self._out[0] = view[sent:], b""

    # --- coming in ----------------------------------------------------------------------------------------

    def receive(self, allowed: Allowed, heard: Heard) -> None:
        """Takes what has come; `heard` is given whole messages. Broken; and what these raise."""
        while True:
            room = self._room()
            try:
                size = self._socket.recv_into(room, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                raise Broken(error.strerror or "the line broke") from None
            if not size:
                raise Broken("it closed its line")
            self.heard = time.monotonic()
            is_full = size == len(room)
            room.release()
            if self._data is not None:
                self._at += size
                if self._at == self._size:
                    self._whole(heard)
            else:
                self._have += size
                self._take(allowed, heard)
            if self.is_paused or not is_full:
                return

    def resume(self, allowed: Allowed, heard: Heard) -> None:
        """Goes on with what was not to be read yet, if it is now. What these raise."""
        if self.is_paused:
            self.is_paused = False
            self._take(allowed, heard)

    def _room(self) -> memoryview:
        """Where what comes next goes. The place of a large message grows with what has come of it: a head alone takes
        no memory."""
        if self._data is None:
            return self._view[self._have :]
        if self._at == len(self._data):
            self._data += bytes(min(self._at, self._size - self._at))
        return memoryview(self._data)[self._at :]

    def _take(self, allowed: Allowed, heard: Heard) -> None:
        """What is in the scratch, as far as it is whole; the beginning of a large message moves to its place."""
        start = 0
        while self._data is None and (found := self._begin(start)) is not None:
            at, size, key = found
            if not allowed(*self._head, size):
                self.is_paused = True
                break
            here = min(size, self._have - at)
            if here == size or size > _SCRATCH // 2:
                self._data, self._size = bytearray(min(size, max(here, _FIRST))), size
                memoryview(self._data)[:here] = self._view[at : at + here]
                self._at, self._mask, start = here, key, at + here
                if here == size:
                    self._whole(heard)
            else:
                break
        if start:
            left = bytes(self._view[start : self._have])
            self._view[: len(left)] = left
            self._have = len(left)

    def _begin(self, start: int) -> tuple[int, int, bytes] | None:
        """Where the data of the message that begins there are, their size and mask; None: too little of it came."""
        have = self._have - start
        if have < 2:
            return None
        first, second = self._view[start], self._view[start + 1]
        is_masked = bool(second & _MASKED)
        if first != _BINARY or is_masked == self._is_dialler:
            raise Broken("it sent what is no message of a run")
        length = second & 0x7F
        wide = 0 if length < _TINY else 2 if length == _TINY else 8
        end = start + 2 + wide + (4 if is_masked else 0)
        if self._have < end + HEAD.size:
            if wide == 0 and length < HEAD.size:
                raise Broken("it sent a message without a head")
            return None
        if wide:
            length = int.from_bytes(self._view[start + 2 : start + 2 + wide], "big")
        if length < HEAD.size:
            raise Broken("it sent a message without a head")
        key = bytes(self._view[end - 4 : end]) if is_masked else b""
        head = self._view[end : end + HEAD.size]
        self._head = HEAD.unpack(apply_mask(head, key) if key else head)
        return end + HEAD.size, length - HEAD.size, key  # the head is a multiple of four: the mask begins anew

    def _whole(self, heard: Heard) -> None:
        data, self._data = self._data, None
        assert data is not None
        if self._mask:
            _unmask(data, self._mask)
        heard(*self._head, data)


def _unmask(data: bytearray, key: bytes) -> None:
    if len(data) <= _AT_ONCE:
        data[:] = apply_mask(data, key)
        return
    view: Any = memoryview(data)
    for start in range(0, len(data), _AT_ONCE):
        view[start : start + _AT_ONCE] = apply_mask(view[start : start + _AT_ONCE], key)
