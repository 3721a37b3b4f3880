"""A payload on its way in: its chunks as they arrive, each checked, read piece by piece or into a buffer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from peer import blocks
from peer.hashing import digest_of, hash_of
from protocol import limits
from protocol.errors import Corrupt, GridError, PeerLost, TimedOut
from protocol.messages import Chunk


class Line(Protocol):
    """What a stream needs of its connection."""

    @property
    def peer_name(self) -> str: ...

    @property
    def brought(self) -> int:
        """A number that grows with every byte of any payload that comes over this connection."""

    def stream_read(self, stream: int, nbytes: int) -> None:
        """So many bytes were put away: the sender may send as many more."""

    def stream_given_up(self, stream: int, message: str) -> None:
        """Nobody wants the rest."""


class IncomingStream:
    """The chunks of one payload. Read it with `async for`, or `into` a buffer; one reader, once.

    What is not read to its end must be given up with `abort`; a handler's stream is when the handler returns.
    A cancelled `async for` has lost nothing and may go on; a cancelled `into` has given the stream up. A piece that
    was read may be kept as long as one likes: it is nobody else's until its last view is gone.

    `preceding` is for a stream that begins in the middle of a value: the hashes of the blocks before it, to be set
    before reading. `hashes` has those of this stream's blocks that came and were found to be as they were sent.
    `on_arrival` is told with each block how many bytes have come.

    Raises (from reading):
        Corrupt: a block, or all of them together, are not what their sender had.
        TimedOut: no byte came for limits.STALL_TIMEOUT.
        PeerLost: the connection broke, or either end gave the stream up.
    """

    def __init__(self, line: Line, stream: int, nbytes: int) -> None:
        self._line = line
        self._stream = stream
        self.nbytes = nbytes
        self.preceding: Sequence[int] = ()
        self.hashes: list[int] = []
        self.on_arrival: Callable[[int], None] | None = None
        self._digest: bytes | None = None
        self._arrived = 0
        self._read = 0
        self._lent = 0  # of what was read, the bytes that the caller may still be busy with
        self._chunks: deque[memoryview] = deque()
        self._target: memoryview | None = None
        self._failure: GridError | None = None
        self._wake = asyncio.Event()

    @property
    def id(self) -> int:
        return self._stream

    @property
    def has_arrived(self) -> bool:
        return self._arrived == self.nbytes

    def block_hash(self, number: int) -> int:
        """Of a block of the value that was read."""
        before = len(self.preceding)
        return self.preceding[number] if number < before else self.hashes[number - before]

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
        if self._read + len(self._chunks[0]) == self.nbytes:
            self._check_whole()
        chunk = self._chunks.popleft()
        self._read += len(chunk)
        self._lent = len(chunk)
        return chunk

    async def into(self, target: memoryview) -> None:
        """Fill `target`, which is exactly `nbytes` long; nothing was read before. What is in it is of use only when
        this has returned."""
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
        self._check_whole()
        self._read = self.nbytes

    def abort(self, message: str = "not wanted") -> None:
        """Tell the sender to stop. What is under way is thrown away; who waits for it gets PeerLost."""
        self.fail(PeerLost("this end gave the transfer up", peer=self._line.peer_name))
        self._chunks.clear()
        self._line.stream_given_up(self._stream, message)

    # --- for the connection -------------------------------------------------------------------------------

    def place(self, offset: int, nbytes: int) -> memoryview:
        """Where the chunk at `offset` belongs, for it to be put there before it is fed."""
        if self._target is not None:
            return self._target[offset : offset + nbytes]
        return blocks.take()[:nbytes]

    def feed(self, chunk: Chunk, is_placed: bool = False) -> None:
        """The next chunk came; `is_placed` if its bytes are where `place` said."""
        if self._failure is not None:
            return
        payload = chunk.payload
        found = hash_of(payload)
        if chunk.hash is not None and chunk.hash != found:
            self._refuse(f"block {len(self.preceding) + len(self.hashes)}")
            return
        self.hashes.append(found)
        self._digest = chunk.digest
        self._arrived += len(payload)
        if self._target is None:
            self._chunks.append(payload if is_placed else owned(payload))
        else:
            if not is_placed or payload.obj is not self._target.obj:
                self._target[chunk.offset : chunk.offset + len(payload)] = payload
            self._give_back(len(payload))
        if self.on_arrival is not None:
            self.on_arrival(self._arrived)
        self._wake.set()

    def fail(self, error: GridError) -> None:
        """No more will come. What came can still be read."""
        if self._failure is None and not (self.has_arrived and self._read == self.nbytes):
            self._failure = error
        self._wake.set()

    # ------------------------------------------------------------------------------------------------------

    def _check_whole(self) -> None:
        """Every block was sound; whether they are all of the value, and in order."""
        if self._digest is not None and self._digest != digest_of([*self.preceding, *self.hashes]):
            raise self._refuse("the whole").again()

    def _refuse(self, what: str) -> GridError:
        peer = self._line.peer_name
        where = f"{what} of a transfer of {self.nbytes} bytes from {peer}"
        error = Corrupt(f"{where} is not what was sent: ask again, or another peer that has it", peer=peer)
        self._failure = error
        self._wake.set()
        self._line.stream_given_up(self._stream, f"{what} arrived corrupt")
        return error

    def _give_back(self, nbytes: int) -> None:
        if nbytes:
            self._line.stream_read(self._stream, nbytes)

    async def _progress(self) -> None:
        """Wait for the next chunk, as long as the line brings anything."""
        if self._failure is not None:
            raise self._failure.again()
        self._wake.clear()
        while not self._wake.is_set():
            brought = self._line.brought
            try:
                async with asyncio.timeout(limits.STALL_TIMEOUT):
                    await self._wake.wait()
            except TimeoutError:
                if brought == self._line.brought:
                    raise self._stalled() from None

    def _stalled(self) -> TimedOut:
        stalled = TimedOut(
            f"no byte came for {limits.STALL_TIMEOUT:g} s, after {self._arrived} of {self.nbytes}",
            peer=self._line.peer_name,
        )
        self.fail(stalled)
        self.abort("stalled")
        return stalled


def owned(payload: memoryview) -> memoryview:
    """The payload, to be kept: copied where keeping it would keep a message alive that is much larger."""
    whole = payload.nbytes if payload.obj is None else memoryview(payload.obj).nbytes
    return memoryview(bytes(payload)) if whole > 2 * len(payload) + 4 * limits.KIB else payload
