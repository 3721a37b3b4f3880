"""What a store is asked, which changes nothing in it: objects, their bytes, and which there are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from peer.payloads import MemoryPayload, Payload, Watched
from peer.store import rows
from peer.store.blob_file import BlobFile, corrupt
from peer.store.blobs import Blobs
from peer.store.database import Database
from peer.store.open_files import OpenFiles
from peer.store.payload import BlobPayload, memory_file
from peer.store.rows import StoredObject
from protocol import limits
from protocol.errors import BadRequest, Corrupt, NotFound, StorageError
from search.index import Found, Index
from search.records import Record
from search.terms import Query

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """objects and bytes published; tags in use; changes ever committed; rows whose blob was missing at the start."""

    objects: int
    bytes: int
    tags: int
    changes: int
    missing: int


class Reading:
    """The part of a Store that reads."""

    def __init__(self, blobs: Blobs, database: Database, index: Index) -> None:
        self._blobs = blobs
        self._database = database
        self._index = index
        self._sent = OpenFiles()
        self._missing = 0
        self._is_closed = False

    # --- one object -----------------------------------------------------------------------------------------

    async def get(self, uid: bytes) -> StoredObject:
        """The object, with its bytes where they are inline. NotFound, Corrupt."""
        found = await self._database.read(lambda db: rows.find(db, self._index, uid))
        if found is None:
            raise NotFound(f"there is no published object {uid.hex()} here", id=uid.hex())
        return found

    async def blob(self, stored: StoredObject) -> BlobFile:
        """The blob file of an object that has one, open; the caller closes it. What it reads is checked by block.

        NotFound if the object was deleted meanwhile; Corrupt if the file is missing or not of the size that was stored.
        """
        self._check_open()
        assert stored.blob is not None
        return await self._unless_deleted(stored.blob, self._blobs.open(stored.blob, stored.layout))

    async def verify(self, content: str) -> None:
        """Read and hash all of a blob. Corrupt if it is not what was stored; NotFound if it was deleted meanwhile."""
        self._check_open()
        measured = await self._unless_deleted(content, self._blobs.measure(content))
        if measured.content != content:
            raise corrupt(content, "is not what was stored")

    async def _unless_deleted(self, blob: str, work: Awaitable[T]) -> T:
        try:
            return await work
        except Corrupt:
            if await self._database.read(lambda db: self._index.blob_in_use(db, blob)):
                raise
            raise NotFound("the object was deleted meanwhile") from None

    async def read(self, stored: StoredObject, offset: int, nbytes: int) -> bytes:
        """Bytes of an object, checked, at the offsets of its `tensors`; a payload is cheaper for many readings.

        BadRequest outside of them; Corrupt, which names the block, where they are not what was stored.
        """
        if stored.blob is None:
            assert stored.inline is not None
            if offset < 0 or nbytes < 0 or offset + nbytes > len(stored.inline):
                raise BadRequest(f"{nbytes} bytes from {offset} on are not within {len(stored.inline)}")
            return stored.inline[offset : offset + nbytes]
        with await self.blob(stored) as file:
            return bytes(await file.read(offset, nbytes))

    async def payload(
        self, stored: StoredObject, *, span: tuple[int, int] | None = None, prefix: bytes = b"", asker: str = ""
    ) -> Payload:
        """`prefix` and then the tensors' bytes, or of these only `span` (offset as in `tensors`, size), for sending to
        the principal `asker`; waits where many are open for that one (open_files.py).

        Its `read` raises Corrupt, which names the block, where bytes are not what was stored.
        """
        offset, nbytes = span or (stored.start, stored.contents.nbytes)
        if stored.blob is None:
            assert stored.inline is not None
            return MemoryPayload(prefix + stored.inline[offset : offset + nbytes])
        closed = await self._sent.room(asker)
        try:
            return Watched(BlobPayload(await self.blob(stored), offset, nbytes, prefix), closed)
        except BaseException:
            closed()
            raise

    @asynccontextmanager
    async def reading(self, stored: StoredObject) -> AsyncIterator[int | bytes]:
        """What a worker is given to read the object from, at the offsets of `tensors`: bytes, or a descriptor.

        Bytes for one small tensor, which are then all of it; else a file to map, closed at the end. Of a blob nothing
        has been checked then: who maps it compares each block with `stored.blocks` before using it.
        """
        if stored.blob is not None:
            with await self.blob(stored) as file:
                yield file.fileno()
        elif len(stored.contents.tensors) == 1:
            assert stored.inline is not None
            yield stored.inline
        else:
            assert stored.inline is not None
            with memory_file(stored.inline) as descriptor:
                yield descriptor

    async def owner(self, uid: bytes) -> str | None:
        """Whose object it is, also where nothing else of it can be read; None if it is not here."""
        return await self._database.read(lambda db: self._index.owner(db, uid))

    # --- which there are ------------------------------------------------------------------------------------

    async def find(self, query: Query | str, limit: int = limits.MAX_HITS) -> Found:
        """The records that a query matches, newest first. QueryError for a text that does not parse."""
        return await self._database.read(lambda db: self._index.find(db, query, limit))

    async def by_prefix(self, digits: str, limit: int = 10) -> list[Record]:
        """The records whose ids begin with these hexadecimal digits. BadRequest if they are none."""
        return await self._database.read(lambda db: self._index.by_prefix(db, digits, limit))

    async def holders(self, content: str, limit: int = limits.MAX_HITS) -> list[Record]:
        """The records of the objects here whose contents have this name; of small ones (MAX_CONSTANT) none."""
        return await self._database.read(lambda db: self._index.holders(db, content, limit))

    async def statistics(self) -> StoreStatistics:
        index = await self._database.read(self._index.statistics)
        return StoreStatistics(index.objects, index.bytes, index.tags, self._database.changes, self._missing)

    def _check_open(self) -> None:
        if self._is_closed:
            raise StorageError("the store is closed")
