"""A payload on its way in: its chunks as they arrive, in order, read piece by piece or into a buffer."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol

from protocol import limits
from protocol.errors import GridError, PeerLost, TimedOut
from protocol.messages import Chunk

_WHOLE: Final = 64 * limits.KIB  # chunks below this are joined: each by itself would cost more than its bytes


class Line(Protocol):
    """What a stream needs of its connection."""

    @property
    def peer_name(self) -> str: ...

    def stream_read(self, stream: int, nbytes: int) -> None:
        """So many bytes were put away: the sender may send as many more."""

    def stream_given_up(self, stream: int, message: str) -> None:
        """Nobody wants the rest."""


class IncomingStream:
    """The chunks of one payload. Read it with `async for`, or `into` a buffer; one reader, once.

    What is not read to its end must be given up with `abort`; a handler's stream is when the handler returns.
    A cancelled `async for` has lost nothing and may go on; a cancelled `into` has given the stream up.

    Raises (from reading):
        TimedOut: no byte came for limits.STALL_TIMEOUT.
        PeerLost: the connection broke, or either end gave the stream up.
    """

    def __init__(self, line: Line, stream: int, nbytes: int) -> None:
        self._line = line
        self._stream = stream
        self.nbytes = nbytes
        self._arrived = 0
        self._read = 0
        self._lent = 0  # of what was read, the bytes that the caller may still be busy with
        self._chunks: deque[memoryview | bytearray] = deque()
        self._target: memoryview | None = None
        self._failure: GridError | None = None
        self._wake = asyncio.Event()

    @property
    def id(self) -> int:
        return self._stream

    @property
    def has_arrived(self) -> bool:
        return self._arrived == self.nbytes

    def __aiter__(self) -> IncomingStream:
        return self

    async def __anext__(self) -> memoryview:
        # The room of a chunk is given back when the next one is asked for: by then the caller is done with it.
        self._give_back(self._lent)
        self._lent = 0
        if self._read == self.nbytes:
            raise StopAsyncIteration
        while not self._chunks:
            await self._progress()
        chunk = memoryview(self._chunks.popleft())
        self._read += len(chunk)
        self._lent = len(chunk)
        return chunk

    async def into(self, target: memoryview) -> None:
        """Fill `target`, which is exactly `nbytes` long; nothing was read before."""
        target = target.cast("B")
        if len(target) != self.nbytes or self._read:
            raise ValueError(f"a buffer of {len(target)} for {self.nbytes} bytes, of which {self._read} were read")
        while self._chunks:
            chunk = self._chunks.popleft()
            target[self._read : self._read + len(chunk)] = chunk
            self._read += len(chunk)
            self._give_back(len(chunk))
        self._target = target
        try:
            while not self.has_arrived:
                await self._progress()
        except asyncio.CancelledError:
            self.abort("the reader gave up")
            raise
        finally:
            self._target = None
        self._read = self.nbytes

    def abort(self, message: str = "not wanted") -> None:
        """Tell the sender to stop. What is under way is thrown away; who waits for it gets PeerLost."""
        self.fail(PeerLost("this end gave the transfer up", peer=self._line.peer_name))
        self._chunks.clear()
        self._line.stream_given_up(self._stream, message)

    def feed(self, chunk: Chunk) -> None:
        """The next chunk came (for the connection)."""
        payload = chunk.payload
        self._arrived += len(payload)
        if self._target is not None:
            self._target[chunk.offset : chunk.offset + len(payload)] = payload
            self._give_back(len(payload))
        elif len(payload) >= _WHOLE:
            self._chunks.append(owned(payload))
        elif self._chunks and isinstance(tail := self._chunks[-1], bytearray) and len(tail) < _WHOLE:
            tail += payload
        else:
            self._chunks.append(bytearray(payload))
        self._wake.set()

    def fail(self, error: GridError) -> None:
        """No more will come (for the connection). What came can still be read."""
        if self._failure is None and not (self.has_arrived and self._read == self.nbytes):
            self._failure = error
        self._wake.set()

    def _give_back(self, nbytes: int) -> None:
        if nbytes:
            self._line.stream_read(self._stream, nbytes)

    async def _progress(self) -> None:
        if self._failure is not None:
            raise self._failure.again()
        self._wake.clear()
        try:
            async with asyncio.timeout(limits.STALL_TIMEOUT):
                await self._wake.wait()
        except TimeoutError:
            stalled = TimedOut(
                f"no byte came for {limits.STALL_TIMEOUT:g} s, after {self._arrived} of {self.nbytes}",
                peer=self._line.peer_name,
            )
            self.fail(stalled)
            self.abort("stalled")
            raise stalled from None


def owned(payload: memoryview) -> memoryview:
    """The payload, to be kept: copied where keeping it would keep a message alive that is much larger."""
    whole = payload.nbytes if payload.obj is None else memoryview(payload.obj).nbytes
    return memoryview(bytes(payload)) if whole > 2 * len(payload) + 4 * limits.KIB else payload
