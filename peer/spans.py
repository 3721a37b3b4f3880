"""Values of temporaries, in each of the three forms that they have on their way out; one of them is a span.

A view of a published object (`x[a:b]`) whose elements lie together in that object's file is a span of the file: it is
sent, moved and published from there, whatever its size, without being in memory anywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from peer.buffers import Buffer
from peer.objects import Published
from peer.payloads import MemoryPayload, Payload
from peer.store.store import Store
from peer.worker.remote import Exported, Span, Worker
from protocol import codec
from protocol.errors import GridError, InternalError, NotFound
from protocol.tensors import TensorHeader


class StoredSpan:
    """Bytes of a published object's file: open, so that they stay to be read whatever becomes of the object.

    Counted like a Buffer: made with one reference, which `release` gives back. Takes `payload` over. What is read is
    checked by it: Corrupt.

    Attributes:
        place: the name of the contents that it is of, and where in them: spans of one place and size are equal.
    """

    __slots__ = ("_holders", "_payload", "_reading", "nbytes", "place")

    def __init__(self, payload: Payload, place: tuple[str, int]) -> None:
        self.place = place
        self._payload = payload
        self._holders = 1
        self._reading = asyncio.Lock()
        self.nbytes = payload.nbytes

    def acquire(self) -> StoredSpan:
        """One more reference; returns this span."""
        if not self._holders:
            raise InternalError("a span was used after its last reference was given up")
        self._holders += 1
        return self

    def release(self) -> None:
        """One reference less; with the last one the file is closed."""
        self._holders -= 1
        if not self._holders:
            self._payload.close()

    def __del__(self) -> None:
        # Somebody who held it was cancelled before it could say so.
        if self._holders > 0:
            self._payload.close()

    async def read(self, offset: int, size: int) -> codec.Buffer:
        """`size` bytes from `offset` on, both within the span. Several may read at once."""
        async with self._reading:
            return await self._payload.read(offset, size)


Value = bytes | Buffer | StoredSpan
"""A temporary's elements: few of them as bytes; the others are the receiver's to `release`."""


class _SpanPayload:
    """One reader of a span; has a reference until `close`."""

    def __init__(self, span: StoredSpan, on_close: Callable[[], None]) -> None:
        self._span = span
        self._on_close = on_close
        self.nbytes = span.nbytes

    async def read(self, offset: int, size: int) -> codec.Buffer:
        return await self._span.read(offset, size)

    def close(self) -> None:
        self._on_close()


def payload_of(value: Value, on_close: Callable[[], None] | None = None) -> Payload:
    """A value's bytes on their way out; at the end its reference is given back, or `on_close` called instead."""
    if isinstance(value, bytes):
        return MemoryPayload(value, on_close)
    if isinstance(value, StoredSpan):
        return _SpanPayload(value, on_close or value.release)
    return MemoryPayload(value.view(), on_close or value.release, value.hashes)


def release(value: Value) -> None:
    """Give its reference back, if it has one."""
    if not isinstance(value, bytes):
        value.release()


def memory_of(value: Value) -> int:
    """Bytes of memory that it takes to keep it."""
    return 0 if isinstance(value, StoredSpan) else len(value)


class Spans:
    """Opens what workers call a span of a file that they were given."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._opening: set[asyncio.Task[None]] = set()

    async def opened(self, worker: Worker, id: bytes, span: Span) -> Value:
        """The value of temporary `id`, which is this span. Checked when it is read. StorageError, WorkerLost."""
        origin = span.origin
        if origin is not None:
            assert isinstance(origin, Published)
            offset = origin.tensor.offset + span.offset
            try:
                payload = await self._store.payload(
                    origin.stored, span=(offset, span.nbytes), asker=worker.key.principal
                )
                return StoredSpan(payload, (origin.stored.content, offset))
            except NotFound:
                pass
        # The object was deleted, but the worker has its file as long as there are views of it.
        data = (await worker.export(id, in_memory=True)).data
        assert data is not None and not isinstance(data, Span)
        return data

    def open_soon(
        self,
        worker: Worker,
        id: bytes,
        exported: Exported,
        tell: Callable[[tuple[TensorHeader, Value] | GridError], None],
    ) -> None:
        """The same without waiting: `tell` is called once, with the value or what went wrong."""
        task = asyncio.get_running_loop().create_task(self._tell(worker, id, exported, tell))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _tell(
        self,
        worker: Worker,
        id: bytes,
        exported: Exported,
        tell: Callable[[tuple[TensorHeader, Value] | GridError], None],
    ) -> None:
        assert isinstance(exported.data, Span)
        try:
            value = await self.opened(worker, id, exported.data)
        except GridError as error:
            tell(error)
        else:
            tell((exported.header, value))
