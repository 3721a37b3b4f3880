"""One value on its way in: what came of it so far, kept in memory (a temporary) or in a file (a published object).

intake = ...Intake(...)
await intake.take(source)     the bytes of a request or an answer; again after a break, from `taken` on
await intake.finish()         all are there: its record. A published object is durable then
await intake.abort()          at any time instead: nothing is left of it
await intake.withdraw()       after `finish`: the object goes again, as nobody wants it any more
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Protocol, Self

from peer.arrivals import Arrival
from peer.buffers import Buffer as Memory
from peer.buffers import BufferPool
from peer.incoming import IncomingStream
from peer.leases import LeaseKey
from peer.objects import Objects, Temporary
from peer.store.store import Arrived, Store
from peer.store.waiting import undisturbed
from peer.store.writer import StoreWriter
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import BadRequest


class Stream(Protocol):
    """Pieces that come one after another: an IncomingStream, or a Download."""

    @property
    def nbytes(self) -> int: ...

    @property
    def hashes(self) -> list[int]:
        """Of the blocks that came and were checked."""

    def block_hash(self, number: int) -> int: ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> memoryview: ...

    async def into(self, target: memoryview) -> None: ...


class Source(Protocol):
    """What brings the bytes of a value: a Call, a Response or a Download."""

    @property
    def payload(self) -> Buffer: ...

    @property
    def stream(self) -> Stream | None: ...


async def pieces_of(source: Source) -> AsyncIterator[Buffer]:
    """The bytes that came beside the message, or those of its stream."""
    if len(source.payload):
        yield source.payload
    if source.stream is not None:
        async for piece in source.stream:
            yield piece


class Intake(Protocol):
    """See the module's docstring. `take` may be cancelled: `taken` is right then, too."""

    @property
    def taken(self) -> int:
        """Bytes that are here for good."""

    @property
    def memory(self) -> int:
        """Bytes of memory that it holds."""

    async def take(self, source: Source) -> None: ...

    async def content(self) -> str | None:
        """The name of the contents, all of which are here; None where they have none."""

    async def finish(self, arrived: Arrived | None = None) -> dict[str, Any]: ...

    async def abort(self) -> None: ...

    async def withdraw(self) -> None: ...


class TemporaryIntake:
    """Into a buffer; of a pointer there is nothing to take."""

    def __init__(self, arrival: Arrival, lease: LeaseKey, nbytes: int, objects: Objects, buffers: BufferPool) -> None:
        objects.check_new(lease[0], [arrival.id])
        self._objects = objects
        self._buffer = buffers.take(nbytes) if arrival.kind == "tensor" else None
        self._arrival = arrival
        self._lease = lease

    @property
    def taken(self) -> int:
        return 0 if self._buffer is None else self._buffer.filled

    @property
    def memory(self) -> int:
        return 0 if self._buffer is None else self._buffer.nbytes

    async def take(self, source: Source) -> None:
        buffer = self._buffer
        if buffer is None:
            return
        is_whole = not buffer.filled
        await _fill(buffer, source)
        if is_whole and source.stream is not None:
            buffer.hashes = source.stream.hashes

    async def content(self) -> str | None:
        return None

    async def finish(self, arrived: Arrived | None = None) -> dict[str, Any]:
        arrival, lease = self._arrival, self._lease
        self._objects.check_new(lease[0], [arrival.id])  # others may have come while the bytes did
        temporary = Temporary(arrival.id, lease[0], lease, arrival.labels, time.time(), arrival.header)
        temporary.target = arrival.target
        temporary.buffer, self._buffer = self._buffer, None
        self._objects.add(temporary)
        return temporary.record()

    async def abort(self) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.release()

    async def withdraw(self) -> None:
        self._objects.remove(self._arrival.id)


async def _fill(buffer: Memory, source: Source) -> None:
    place = buffer.place() if source.stream is not None else None
    if place is None or source.stream is None:
        async for piece in pieces_of(source):
            buffer.append(piece)
        return
    try:
        await source.stream.into(place)
    except BaseException:
        if isinstance(source.stream, IncomingStream):
            buffer.advance(min(len(source.stream.hashes) * limits.BLOCK, len(place)))
        raise
    buffer.advance(len(place))


class PublishedIntake:
    """Into the store: first the spec, where there is one, then the tensors."""

    def __init__(self, arrival: Arrival, nbytes: int, objects: Objects, store: Store) -> None:
        self._arrival = arrival
        self._nbytes = nbytes
        self._objects = objects
        self._store = store
        self._spec = bytearray()
        self._writer: StoreWriter | None = None

    @property
    def taken(self) -> int:
        return len(self._spec) + (self._writer.taken if self._writer is not None else 0)

    @property
    def memory(self) -> int:
        return len(self._spec) + limits.STORE_WRITE_BEHIND

    async def take(self, source: Source) -> None:
        async for piece in pieces_of(source):
            if self._writer is None:
                await undisturbed(self._begin(memoryview(piece)))
            else:
                known = self._known_hash(piece, source.stream)
                await self._writer.write(piece, is_kept=source.stream is not None, block_hash=known)

    def _known_hash(self, piece: Buffer, stream: Stream | None) -> int | None:
        """The hash of a piece that is one block of what is stored, and was checked on its way here."""
        if stream is None or self._spec or len(piece) != limits.BLOCK or self.taken % limits.BLOCK:
            return None
        return stream.block_hash(self.taken // limits.BLOCK)

    async def _begin(self, piece: memoryview) -> None:
        """Take a piece with which the spec may be whole: from then on there is a writer."""
        missing = self._arrival.spec_bytes - len(self._spec)
        self._spec += piece[:missing]
        if len(self._spec) == self._arrival.spec_bytes:
            await self._open()
            assert self._writer is not None
            if len(piece) > missing:
                await self._writer.write(piece[missing:])

    async def _open(self) -> None:
        spec = bytes(self._spec)
        contents = await asyncio.to_thread(self._arrival.contents, spec)  # checking a large program takes a while
        if contents.nbytes + len(spec) != self._nbytes:
            raise BadRequest(f"{self._nbytes} bytes came where {contents.nbytes + len(spec)} are described")
        self._writer = await self._store.writer(contents)

    async def _whole(self) -> StoreWriter:
        if self._writer is None:  # no bytes are no pieces
            if self._arrival.spec_bytes:
                raise BadRequest(f"{self._arrival.spec_bytes} bytes of program are announced, {self.taken} came")
            await self._open()
        assert self._writer is not None
        return self._writer

    async def content(self) -> str | None:
        writer = await self._whole()
        return (await undisturbed(writer.seal())).blob

    async def finish(self, arrived: Arrived | None = None) -> dict[str, Any]:
        writer = await self._whole()
        nbytes = len(self._spec) if self._arrival.kind == "plan" else writer.contents.nbytes
        record = self._arrival.record(time.time(), nbytes)
        await self._store.publish(record, writer, arrived=arrived)
        self._objects.store_changed(self._arrival.id)
        return record

    async def abort(self) -> None:
        if self._writer is not None:
            await self._writer.abort()

    async def withdraw(self) -> None:
        await self._store.delete(self._arrival.id)
        self._objects.store_changed(self._arrival.id)
