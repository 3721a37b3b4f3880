"""Straight from the socket into place: the bytes of a chunk are written by the system where they belong.

Between the transport and the library's WebSocket stands `Direct`, once a session is open. It reads the heads of
WebSocket frames and gives the library, frame by frame, everything but one: a whole binary message that is one large
CHUNK frame of a stream that somebody reads. Of that, after its heads, the system reads the payload into the memory
that `Places` names; where it came masked it is unmasked there. What is not exactly such a frame, hostile ones
among them, is the library's and the session's to judge, as without this.

It has no memory of its own but the few bytes of a head that came in parts: what else is read waits in one buffer that
all connections of a thread share, and is passed on before the next read.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Final, Protocol

from websockets.frames import apply_mask  # type: ignore[attr-defined]  # the fast one, where the library has it
from websockets.protocol import CLIENT, State

from peer import near
from peer.transport import LowWater, Socket, is_between_frames, waiting_to_be_read, whole_message
from protocol import codec, limits, messages
from protocol.codec import FrameType
from protocol.errors import ProtocolError
from protocol.messages import Chunk

_BINARY: Final = 0x82  # a whole binary message
_MASKED: Final = 0x80
_LONG: Final = 127  # in place of a length: eight bytes with it follow
_LONG_HEAD: Final = 10
_MASK_BYTES: Final = 4
_CHUNK_HEADER: Final = 256  # no chunk's header is longer; one that is goes the long way
_SCRATCH: Final = 64 * limits.KIB
_NEAR_CHUNKS: Final = 4 * limits.KIB  # read at once where another chunk is due: what comes with its head is copied
_AT_ONCE: Final = 1024 * limits.KIB  # of a chunk, where as much is still to come
_LARGEST: Final = limits.MAX_FRAME + _LONG_HEAD + _MASK_BYTES
_NOTHING: Final = memoryview(b"")
_threads = threading.local()


class Places(Protocol):
    """Who knows where chunks belong: the connection."""

    def place(self, stream: int, offset: int, nbytes: int) -> memoryview | None:
        """Where this chunk's bytes are to be put; None if it is to come as any other message."""

    def placed(self, size: int, chunk: Chunk) -> None:
        """A message of `size` bytes came: this chunk, whose payload is where `place` said."""


class _Arriving:
    """A chunk whose heads have come, and some of its bytes."""

    __slots__ = ("at", "chunk", "mask", "message_size", "nbytes", "stream", "target")

    def __init__(self, message_size: int, chunk: Chunk, mask: bytes) -> None:
        self.message_size = message_size
        self.stream = chunk.stream
        self.chunk: Chunk | None = chunk  # None once nobody wants it
        self.target = chunk.payload
        self.nbytes = len(chunk.payload)
        self.at = 0
        self.mask = mask  # as it applies to the next byte; empty if there is none


class Direct(asyncio.BufferedProtocol):
    """Takes over the transport of an open WebSocket; see the module's docstring. `heard` is called with every read."""

    def __init__(self, socket: Socket, places: Places, heard: Callable[[], None]) -> None:
        self._heard = heard
        self._socket = socket
        self._places: Places | None = places
        self._is_masked = socket.protocol.side is not CLIENT  # what comes to us
        self._second = _LONG | (_MASKED if self._is_masked else 0)  # byte of a large frame's head
        self._message_at = _LONG_HEAD + (_MASK_BYTES if self._is_masked else 0)
        self._arriving: _Arriving | None = None
        self._head = b""  # the beginning of a frame, too short to tell what it is
        self._through = 0  # bytes of the current frame that are the library's
        self._is_near_chunks = False
        self._low_water = LowWater(socket)
        # What came before may have left the library within a frame: then its end has to be found first.
        self._is_in_step = False
        self._scratch = _scratch()
        socket.transport.set_protocol(self)

    def forget(self, stream: int) -> None:
        """Nobody wants that stream's bytes any more: its memory is not written to from now on."""
        arriving = self._arriving
        if arriving is not None and arriving.stream == stream:
            arriving.chunk = None
            arriving.target = _NOTHING

    def in_part(self) -> int:
        """How much came of a chunk that is not whole yet: in place, or still with the system."""
        return 0 if self._arriving is None else self._arriving.at + waiting_to_be_read(self._socket)

    # --- for the transport --------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        arriving = self._arriving
        if arriving is None:
            return self._scratch[:_NEAR_CHUNKS] if self._is_near_chunks else self._scratch
        if arriving.chunk is None:
            return self._scratch[: arriving.nbytes - arriving.at]
        return arriving.target[arriving.at :]

    def buffer_updated(self, nbytes: int) -> None:
        self._heard()
        if self._arriving is not None:
            self._filled(self._arriving, nbytes)
            return
        data = self._scratch[:nbytes]
        if self._through or self._head or not self._is_in_step or not self._hand_over(data):
            self._take(data)

    def eof_received(self) -> bool | None:
        self._give_library(self._head)
        return self._socket.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        near.take_rest(self._socket.transport.get_extra_info("socket"), exc, self.get_buffer, self.buffer_updated)
        self._arriving = self._places = None
        self._low_water.forget()
        self._socket.connection_lost(exc)

    def pause_writing(self) -> None:
        self._socket.pause_writing()

    def resume_writing(self) -> None:
        self._socket.resume_writing()

    # --- frame by frame -----------------------------------------------------------------------------------

    def _take(self, data: memoryview) -> None:
        if self._head:
            data = memoryview(self._head + data)
            self._head = b""
        while data:
            if self._through:
                data = self._pass_on(data)
            elif not self._is_in_step and not self._find_step():
                self._give_library(data)
                return
            elif not (size := _frame_size(data)) or (start := self._payload_start(data, size)) > len(data):
                self._head = bytes(data)  # at most a chunk's heads
                return
            elif start and (arriving := self._chunk_in(data, size, start)) is not None:
                data = self._begin(arriving, data[start:])
            elif size < len(data) and self._hand_over(data[:size]):
                data = data[size:]
            else:
                self._is_near_chunks = False
                self._through = size

    def _hand_over(self, data: memoryview) -> bool:
        """Give the socket's sink the message that these bytes are, where that is a short one in one frame; whether it
        took it."""
        sink, protocol = self._socket.sink, self._socket.protocol
        if sink is None or protocol.current_size is not None or protocol.state is not State.OPEN:
            return False
        message = whole_message(data, is_masked=self._is_masked)
        if message is None or not sink(message):
            return False
        self._is_near_chunks = False
        return True

    def _pass_on(self, data: memoryview) -> memoryview:
        size = min(self._through, len(data))
        self._through -= size
        self._give_library(data[:size])
        return data[size:]

    def _give_library(self, data: bytes | memoryview) -> None:
        if data:
            self._socket.data_received(bytes(data))

    def _find_step(self) -> bool:
        """Whether a frame begins here, as far as the library is concerned."""
        self._is_in_step = is_between_frames(self._socket)
        return self._is_in_step

    # --- chunks -------------------------------------------------------------------------------------------

    def _payload_start(self, data: memoryview, size: int) -> int:
        """Where the payload begins if this is a chunk that could be placed, or how many bytes it takes to know; 0 if
        it is none."""
        if data[0] != _BINARY or data[1] != self._second or not self._message_at < size <= _LARGEST:
            return 0
        at = self._message_at + codec.PRELUDE_BYTES
        if len(data) < at:
            return at
        parts = codec.prelude(self._unmasked(data, self._message_at, at))
        if parts is None or parts[0] != FrameType.CHUNK or parts[1] > _CHUNK_HEADER or at + sum(parts[1:]) != size:
            return 0
        return at + parts[1]

    def _unmasked(self, data: memoryview, start: int, end: int) -> bytes:
        """Bytes of the message."""
        return apply_mask(data[start:end], self._mask(data, start)) if self._is_masked else bytes(data[start:end])

    def _mask(self, data: memoryview, start: int) -> bytes:
        """The mask as it applies from there on."""
        mask, turn = bytes(data[_LONG_HEAD : self._message_at]), (start - self._message_at) % 4
        return mask[turn:] + mask[:turn]

    def _chunk_in(self, data: memoryview, size: int, start: int) -> _Arriving | None:
        """The chunk whose heads these are, if somebody has a place for it."""
        protocol, places = self._socket.protocol, self._places
        if places is None or protocol.state is not State.OPEN or protocol.current_size is not None:
            return None
        try:
            header = codec.unpack_header(self._unmasked(data, self._message_at + codec.PRELUDE_BYTES, start))
            stream, offset = header.get("stream"), header.get("offset")
            target = places.place(stream, offset, size - start) if type(stream) is type(offset) is int else None
            if target is None:
                return None
            chunk = messages.parse(codec.Frame(FrameType.CHUNK, header, target))
        except ProtocolError:
            return None  # the session says so when it comes to it
        assert isinstance(chunk, Chunk)
        return _Arriving(size - self._message_at, chunk, self._mask(data, start) if self._is_masked else b"")

    def _begin(self, arriving: _Arriving, data: memoryview) -> memoryview:
        """Put what came with the heads into place; what is behind it."""
        came = data[: arriving.nbytes]
        arriving.target[: len(came)] = came
        self._arriving = arriving
        self._is_near_chunks = True
        self._filled(arriving, len(came))
        return data[len(came) :]

    def _filled(self, arriving: _Arriving, nbytes: int) -> None:
        """So many bytes more are in place."""
        chunk, places = arriving.chunk, self._places
        if arriving.mask and nbytes and chunk is not None:
            fresh = arriving.target[arriving.at : arriving.at + nbytes]
            fresh[:] = apply_mask(fresh, arriving.mask)
            turn = nbytes % 4
            arriving.mask = arriving.mask[turn:] + arriving.mask[:turn]
        arriving.at += nbytes
        left = arriving.nbytes - arriving.at
        if is_whole := not left:
            self._arriving = None
        self._low_water.set(min(left, _AT_ONCE) or 1)
        if is_whole and chunk is not None and places is not None:
            places.placed(arriving.message_size, chunk)


def _frame_size(data: memoryview) -> int:
    """The size of the WebSocket frame that begins here, its head included (RFC 6455, 5.2); 0 if too little is there."""
    if len(data) < 2:
        return 0
    length, head = data[1] & ~_MASKED, 2
    if length >= _LONG - 1:
        head = 4 if length < _LONG else _LONG_HEAD
        if len(data) < head:
            return 0
        length = int.from_bytes(data[2:head], "big")
    return head + length + (_MASK_BYTES if data[1] & _MASKED else 0)


def _scratch() -> memoryview:
    """This thread's buffer for what is passed on before the next read."""
    made: memoryview | None = getattr(_threads, "scratch", None)
    if made is None:
        made = _threads.scratch = memoryview(bytearray(_SCRATCH))
    return made
