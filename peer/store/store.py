"""The store: published objects, durable once acknowledged.

    put     temporary file → write → fsync → rename → fsync of the folder → row committed → return
    delete  row first, then the file, if no other object has the same contents

So a crash leaves files without a row, which the next start sweeps, and never a row without its file.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from peer.payloads import MemoryPayload, Payload
from peer.store import rows
from peer.store.blobs import BlobFile, Blobs, is_blob_folder_used
from peer.store.contents import Contents
from peer.store.database import Database
from peer.store.folder import BLOBS, DATABASE, MARK, Folder
from peer.store.fs import Fs
from peer.store.mark import Mark
from peer.store.payload import BlobPayload, memory_file
from peer.store.rows import Sealed, StoredObject
from peer.store.waiting import KeyLocks, undisturbed
from peer.store.writer import StoreWriter
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import BadRequest, Corrupt, GridError, NotFound, StorageError, StorageFull
from protocol.tensors import TensorHeader
from search.index import Found, Index
from search.records import Record
from search.terms import Query

__all__ = ["Store", "StoreStatistics", "StoredObject"]

T = TypeVar("T")

_CLEAR_BATCH: Final = 1_000  # objects deleted in one transaction: others wait no longer than for these
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """objects and bytes published; tags in use; changes ever committed; rows whose blob was missing at the start."""

    objects: int
    bytes: int
    tags: int
    changes: int
    missing: int


class Store:
    """The published objects of one peer, in one folder, which is its own while it is open.

    Every change is on the disk when its call returns. A cancelled change is done whole or not at all, and its
    caller gets the cancellation when that is settled; a cancelled reading changes nothing. After `close` every
    call raises StorageError. Errors of the disk are StorageFull, Corrupt and StorageError.
    """

    def __init__(self, folder: Folder, blobs: Blobs, database: Database, index: Index) -> None:
        self._folder = folder
        self._blobs = blobs
        self._database = database
        self._index = index
        self._names = KeyLocks()  # a blob's name is held from its placing to its row, and from row to unlinking
        self._writers: set[StoreWriter] = set()
        self._under_way: set[asyncio.Task[Any]] = set()
        self._missing = 0
        self._is_closed = False

    @classmethod
    async def open(
        cls,
        folder: str | os.PathLike[str],
        peer_id: str,
        *,
        name: str = "",
        fs: Fs | None = None,
        connection: type[sqlite3.Connection] = sqlite3.Connection,
    ) -> Store:
        """Open the folder for the peer of this id (and name, which records and queries show), or make it.

        `fs` and `connection` stand in for the disk and SQLite in tests.

        Raises:
            DataFolderInUse: another process has it open.
            DataFolderMismatch: another peer's, or written by a newer version.
            Corrupt: the database is missing, damaged, or has lost acknowledged changes; nothing was touched.
        """
        opening = asyncio.ensure_future(_open(Path(folder), Index(name, peer_id), fs or Fs(), connection))
        try:
            return await undisturbed(opening)
        except asyncio.CancelledError:
            if not opening.cancelled() and opening.exception() is None:
                await opening.result().close()
            raise

    async def close(self) -> None:
        """Abort what is being written, finish what is being committed, and let the folder go. May be called twice."""
        if not self._is_closed:
            self._is_closed = True
            await undisturbed(self._close())

    async def _close(self) -> None:
        while self._under_way:
            await asyncio.wait(set(self._under_way))
        for writer in list(self._writers):
            await writer.abort()
        try:
            await self._database.close()
        finally:
            await asyncio.to_thread(self._blobs.close)
            self._folder.release()

    async def sweep(self) -> None:
        """Remove files that no row names. For the start: it would take away what is being published."""
        named = await self._database.read(lambda db: set(self._index.blobs(db)))
        missing = await undisturbed(self._blobs.sweep(named))
        self._missing = len(missing)
        if missing:
            _log.error("%d objects have lost their blob files, such as %s", len(missing), min(missing)[:12])

    # --- in -------------------------------------------------------------------------------------------------

    async def writer(self, contents: Contents) -> StoreWriter:
        """Something that takes the bytes of `contents`; give it to `publish`, or `abort` it.

        Their space is reserved on the disk first: StorageFull comes before any byte.
        """
        self._check_open()
        if contents.nbytes < limits.STORE_INLINE:
            return StoreWriter(contents, None, self._writers)
        writer = StoreWriter(contents, self._blobs.writer(contents), self._writers)
        try:
            await undisturbed(writer.begin())
        except BaseException:
            await writer.abort()
            raise
        return writer

    async def publish(self, record: Record, payload: StoreWriter | Buffer, contents: Contents | None = None) -> None:
        """Store an object; when this returns, it is durable.

        Args:
            record: search/records.py; its `nbytes`, `dtype` and `shape` must be the contents' own for a tensor.
            payload: a writer that has all its bytes, or the bytes themselves.
            contents: what the bytes are; may be left out for a tensor, whose record says it.

        Raises:
            AlreadyExists: an object of that id with other contents or another description is there. (The same
                object once more is acknowledged once more.)
            BadRequest, BadTensor: record or bytes do not fit the contents.
            StorageFull, StorageError: nothing was stored.

        The writer is spent in any case.
        """
        writer = payload if isinstance(payload, StoreWriter) else await self._written(record, payload, contents)
        try:
            self._check_open()
            rows.check_agrees(record, writer.contents)
            if writer.blob is None:
                await self._insert(record, await writer.seal())
            else:
                await self._whole(self._publish(record, writer))
        finally:
            await writer.abort()

    async def _written(self, record: Record, data: Buffer, contents: Contents | None) -> StoreWriter:
        writer = await self.writer(contents or _contents_of(record))
        try:
            await writer.write(data)
        except BaseException:
            await writer.abort()
            raise
        return writer

    async def _publish(self, record: Record, writer: StoreWriter) -> None:
        assert writer.blob is not None
        sealed = await writer.seal()
        assert sealed.blob is not None
        # Without the lock, deleting the last other object of the same contents could unlink what is placed here.
        async with self._names.hold(sealed.blob):
            try:
                self._blobs.placed(sealed.blob, await writer.blob.place())
                await self._insert(record, sealed)
            except GridError as error:
                # After an unclear failure of the commit the row may yet come back with the next start: the
                # blob stays, and is swept then if it did not.
                if type(error) is not StorageError:
                    await self._remove_unused(sealed.blob)
                raise

    async def _insert(self, record: Record, sealed: Sealed) -> None:
        def change(db: sqlite3.Connection) -> None:
            self._folder.check_room(len(sealed.inline or b"") + len(sealed.contents.extra))
            rows.insert(db, self._index, record, sealed)

        await self._database.write(change)

    # --- changes --------------------------------------------------------------------------------------------

    async def delete(self, uid: bytes) -> bool:
        """Delete an object; whether there was one. Works on a full disk too."""
        self._check_open()
        return await self._whole(self._delete([uid])) == 1

    async def clear(self, owner: str) -> int:
        """Delete all objects of one principal; how many there were. Cancelled midway, it has deleted some."""
        self._check_open()
        count = 0
        while True:
            found = await self.find(f"owner:{owner}", _CLEAR_BATCH)
            if not found.records:
                return count
            count += await self._whole(self._delete([record["id"] for record in found.records]))

    async def set_tags(self, uid: bytes, tags: str | Sequence[str]) -> tuple[str, ...]:
        """Make these the object's tags; as they are stored. NotFound, BadTag, TooLarge."""
        return await self._database.write(lambda db: self._index.set_tags(db, uid, tags))

    async def retag(
        self, uid: bytes, add: str | Sequence[str] = (), remove: str | Sequence[str] = ()
    ) -> tuple[str, ...]:
        """Add and remove tags; all that the object has then. NotFound, BadTag, TooLarge."""
        return await self._database.write(lambda db: self._index.retag(db, uid, add, remove))

    async def describe(self, uid: bytes, description: str) -> None:
        """Replace the description. NotFound, BadRequest."""
        await self._database.write(lambda db: self._index.describe(db, uid, description))

    async def _delete(self, uids: Sequence[bytes]) -> int:
        try:
            gone = await self._database.write(partial(self._delete_rows, uids=uids))
        except StorageFull:
            gone = await self._delete_when_full(uids)
        for blob in {blob for blob in gone if blob is not None}:
            async with self._names.hold(blob):
                await self._remove_unused(blob)
        return len(gone)

    def _delete_rows(self, db: sqlite3.Connection, uids: Sequence[bytes]) -> list[str | None]:
        places = [self._index.delete(db, uid) for uid in uids]
        return [place.blob for place in places if place is not None]

    async def _delete_when_full(self, uids: Sequence[bytes]) -> list[str | None]:
        # Others have filled the disk. The row's deletion needs room in the log, and the reserve is that room.
        await asyncio.to_thread(self._folder.spend_reserve)
        try:
            return await self._database.write(partial(self._delete_rows, uids=uids))
        finally:
            await asyncio.to_thread(self._folder.keep_reserve)

    async def _remove_unused(self, blob: str) -> None:
        """Unlink a blob that no row names. The caller holds its name. What fails here is swept by the next start."""
        try:
            if not await self._database.read(lambda db: self._index.blob_in_use(db, blob)):
                await self._blobs.remove(blob)
        except StorageError as error:
            _log.warning("blob %s stays until the next start: %s", blob[:12], error)

    # --- out ------------------------------------------------------------------------------------------------

    async def get(self, uid: bytes) -> StoredObject:
        """The object, with its bytes where they are inline. NotFound, Corrupt."""
        found = await self._database.read(lambda db: rows.find(db, self._index, uid))
        if found is None:
            raise NotFound(f"there is no published object {uid.hex()} here", id=uid.hex())
        return found

    async def blob(self, sha256: str) -> BlobFile:
        """The blob file of a StoredObject, checked and open; the caller closes it.

        NotFound if the object was deleted meanwhile; Corrupt if the file is not what was stored.
        """
        self._check_open()
        try:
            return await self._blobs.open(sha256)
        except Corrupt:
            if await self._database.read(lambda db: self._index.blob_in_use(db, sha256)):
                raise
            raise NotFound("the object was deleted meanwhile") from None

    async def verify(self, sha256: str) -> None:
        """Hash a blob again, whatever is remembered of it. Corrupt if it is not what was stored."""
        self._check_open()
        await self._blobs.verify(sha256)

    async def read(self, sha256: str, offset: int, nbytes: int) -> bytes:
        """Bytes of a blob file; `blob` once and its `read` is cheaper for many."""
        with await self.blob(sha256) as file:
            return await file.read(offset, nbytes)

    async def payload(
        self, stored: StoredObject, *, span: tuple[int, int] | None = None, prefix: bytes = b""
    ) -> Payload:
        """`prefix` and then the tensors' bytes, or of these only `span` (offset as in `tensors`, size), for sending."""
        offset, nbytes = span or (stored.start, stored.contents.nbytes)
        if stored.blob is None:
            assert stored.inline is not None
            return MemoryPayload(prefix + stored.inline[offset : offset + nbytes])
        return BlobPayload(await self.blob(stored.blob), offset, nbytes, prefix)

    @asynccontextmanager
    async def reading(self, stored: StoredObject) -> AsyncIterator[int | bytes]:
        """What a worker is given to read the object from, at the offsets of `tensors`: bytes, or a descriptor.

        Bytes for one small tensor, which are then all of it; else a file to map, closed at the end.
        """
        if stored.blob is not None:
            with await self.blob(stored.blob) as file:
                yield file.fileno()
        elif len(stored.contents.tensors) == 1:
            assert stored.inline is not None
            yield stored.inline
        else:
            assert stored.inline is not None
            with memory_file(stored.inline) as descriptor:
                yield descriptor

    async def find(self, query: Query | str, limit: int = limits.MAX_HITS) -> Found:
        """The records that a query matches, newest first. QueryError for a text that does not parse."""
        return await self._database.read(lambda db: self._index.find(db, query, limit))

    async def by_prefix(self, digits: str, limit: int = 10) -> list[Record]:
        """The records whose ids begin with these hexadecimal digits. BadRequest if they are none."""
        return await self._database.read(lambda db: self._index.by_prefix(db, digits, limit))

    async def statistics(self) -> StoreStatistics:
        index = await self._database.read(self._index.statistics)
        return StoreStatistics(index.objects, index.bytes, index.tags, self._database.changes, self._missing)

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of several steps that neither a cancellation nor `close` comes between."""
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await undisturbed(task)

    def _check_open(self) -> None:
        if self._is_closed:
            raise StorageError("the store is closed")

    def __repr__(self) -> str:
        return f"<Store {self._folder.path}{' closed' if self._is_closed else ''}>"


async def _open(path: Path, index: Index, fs: Fs, connection: type[sqlite3.Connection]) -> Store:
    async with AsyncExitStack() as undo:
        folder = await asyncio.to_thread(Folder.acquire, path, fs)
        undo.callback(folder.release)
        mark = Mark(MARK, folder=folder.fd, fs=fs)
        is_expected = await asyncio.to_thread(lambda: mark.read() is not None or is_blob_folder_used(path / BLOBS))
        blobs = await asyncio.to_thread(Blobs.at, path / BLOBS, fs)
        undo.callback(blobs.close)
        # Opening a database takes some space too, even where there is nothing to write.
        await asyncio.to_thread(folder.spend_reserve)
        database = await Database.open(
            path / DATABASE,
            rows.MIGRATIONS,
            mark=mark,
            is_expected=is_expected,
            inspect=lambda db: rows.check_owner(db, str(path), index.peer_id),
            is_tight=folder.is_tight,
            connection=connection,
        )
        undo.push_async_callback(database.close)
        await _bind(database, index.peer_id)
        store = Store(folder, blobs, database, index)
        await store.sweep()
        await asyncio.to_thread(folder.keep_reserve)
        undo.pop_all()
    return store


async def _bind(database: Database, peer_id: str) -> None:
    if not await database.read(rows.has_owner):
        await database.write(lambda db: rows.bind_owner(db, peer_id))


def _contents_of(record: Record) -> Contents:
    dtype, shape = record.get("dtype"), record.get("shape")
    if dtype is None or shape is None:
        raise BadRequest("only a tensor's record says what its bytes are: give the contents too")
    return Contents.one(TensorHeader(dtype, tuple(shape)))
