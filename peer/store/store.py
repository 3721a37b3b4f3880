"""The store: published objects, durable once acknowledged.

    put     temporary file → write → fsync → rename → fsync of the folder → row committed → return
    delete  row first, then the file, if no other object has the same contents

So a crash leaves files without a row, which the next start sweeps, and never a row without its file.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from peer.payloads import MemoryPayload, Payload
from peer.store import rows
from peer.store.blob_file import BlobFile, corrupt
from peer.store.blobs import Blobs, check_name, is_blob_folder_used
from peer.store.contents import Contents
from peer.store.database import Database
from peer.store.folder import BLOBS, DATABASE, MARK, Folder
from peer.store.fs import Fs
from peer.store.mark import Mark
from peer.store.moves import Arrived, Moves
from peer.store.payload import BlobPayload, memory_file
from peer.store.publishing import Publishing, contents_of, seal_inline
from peer.store.removal import Removal
from peer.store.rows import StoredObject
from peer.store.upkeep import CompactReport, Progress, Upkeep, VerifyReport
from peer.store.waiting import KeyLocks, undisturbed
from peer.store.writer import StoreWriter
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import BadRequest, Corrupt, NotFound, StorageError
from search.index import Found, Index
from search.records import Record
from search.terms import Query

__all__ = ["Arrived", "CompactReport", "Store", "StoreStatistics", "StoredObject", "VerifyReport"]

T = TypeVar("T")

_CLEAR_BATCH: Final = 1_000  # objects deleted in one transaction: others wait no longer than for these


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

    Attributes:
        moves: the journal of moves.
    """

    def __init__(self, folder: Folder, blobs: Blobs, database: Database, index: Index) -> None:
        self._folder = folder
        self._blobs = blobs
        self._database = database
        self._index = index
        self._under_way: set[asyncio.Task[Any]] = set()
        self._removal = Removal(folder, blobs, database, index, KeyLocks(), self._under_way)
        self._publishing = Publishing(folder, blobs, database, index, self._removal)
        self._upkeep = Upkeep(blobs, database, index, self._removal)
        self.moves = Moves(database, index, self._removal, self._whole)
        self._writers: set[StoreWriter] = set()
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

    async def _begin(self) -> None:
        """What a start does before anyone else may: sweep files that no row names, and lapsed offers."""
        self._missing = await undisturbed(self._upkeep.sweep())
        await self.moves.sweep()

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

    async def publish(
        self,
        record: Record,
        payload: StoreWriter | Buffer,
        contents: Contents | None = None,
        *,
        arrived: Arrived | None = None,
    ) -> None:
        """Store an object; when this returns, it is durable.

        Args:
            record: search/records.py; its `nbytes`, `dtype` and `shape` must be the contents' own for a tensor.
            payload: a writer that has all its bytes, or the bytes themselves.
            contents: what the bytes are; may be left out for a tensor, whose record says it.
            arrived: of an object that was moved here: noted in the same transaction, until `moves.confirmed`.

        The same object once more (a repeated request) is acknowledged once more. The writer is spent in any case.

        Raises:
            AlreadyExists: another object has that id; it stays as it was.
            BadRequest, BadTensor, BadTag, TooLarge: the record or the bytes are not well formed.
        """
        if isinstance(payload, StoreWriter):
            return await self._publish_written(record, payload, arrived)
        self._check_open()
        contents = contents or contents_of(record)
        if contents.nbytes < limits.STORE_INLINE:
            rows.check_agrees(record, contents)
            return await self._publishing.insert(record, seal_inline(contents, payload), arrived)
        return await self._publish_written(record, await self._written(contents, payload), arrived)

    async def _publish_written(self, record: Record, writer: StoreWriter, arrived: Arrived | None) -> None:
        try:
            self._check_open()
            rows.check_agrees(record, writer.contents)
            if writer.blob is None:
                await self._publishing.insert(record, await writer.seal(), arrived)
            else:
                await self._whole(self._publishing.place(record, writer, arrived))
        finally:
            await writer.abort()

    async def publish_held(
        self, record: Record, content: str, contents: Contents | None = None, *, arrived: Arrived | None = None
    ) -> bool:
        """Store an object whose blob is here already, without its bytes; False, and nothing done, if it is not.

        All of the blob is read and compared with its name first; a damaged one is as if it were not here: bytes that
        are sent then heal it. Arguments and errors as of `publish`; `content` is StoredObject.content.

        Who names a content need not have it: before this, see that the asker may take one of `holders(content)`, or
        that the source has proved to hold the bytes.
        """
        self._check_open()
        check_name(content)
        contents = contents or contents_of(record)
        rows.check_agrees(record, contents)
        held = await self._publishing.measure_held(content, contents)
        if held is None:
            return False
        self._check_open()
        return await self._whole(self._publishing.place_held(record, contents, held, arrived))

    async def _written(self, contents: Contents, data: Buffer) -> StoreWriter:
        writer = await self.writer(contents)
        try:
            await writer.write(data)
        except BaseException:
            await writer.abort()
            raise
        return writer

    # --- changes --------------------------------------------------------------------------------------------

    async def delete(self, uid: bytes, *, is_hurried: bool = False) -> bool:
        """Delete an object; whether there was one. Works on a full disk too. Where it is hurried its file is on its way
        out when this returns: see `settled`."""
        self._check_open()
        return await self._whole(self._removal.delete([uid], is_hurried=is_hurried)) == 1

    async def settled(self) -> None:
        """Return when the files of what was deleted so far are gone, and their room is there again."""
        await self._removal.settled()

    async def clear(self, owner: str, *, is_hurried: bool = False) -> int:
        """Delete all objects of one principal; how many there were. Cancelled midway, it has deleted some. `is_hurried`
        as for `delete`."""
        self._check_open()
        count = 0
        while True:
            ids = await self._database.read(lambda db: self._index.owned_by(db, owner, _CLEAR_BATCH))
            if not ids:
                return count
            count += await self._whole(self._removal.delete(ids, is_hurried=is_hurried))

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

    async def owner(self, uid: bytes) -> str | None:
        """Whose object it is, also where nothing else of it can be read; None if it is not here."""
        return await self._database.read(lambda db: self._index.owner(db, uid))

    # --- out ------------------------------------------------------------------------------------------------

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
        self, stored: StoredObject, *, span: tuple[int, int] | None = None, prefix: bytes = b""
    ) -> Payload:
        """`prefix` and then the tensors' bytes, or of these only `span` (offset as in `tensors`, size), for sending.

        Its `read` raises Corrupt, which names the block, where bytes are not what was stored.
        """
        offset, nbytes = span or (stored.start, stored.contents.nbytes)
        if stored.blob is None:
            assert stored.inline is not None
            return MemoryPayload(prefix + stored.inline[offset : offset + nbytes])
        return BlobPayload(await self.blob(stored), offset, nbytes, prefix)

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

    # --- upkeep ---------------------------------------------------------------------------------------------

    async def verify_all(self, progress: Progress = lambda done, of: None) -> VerifyReport:
        """Check everything: the database, and every object's bytes against their hashes, one object after another.

        Everything else goes on meanwhile. `progress(done, of)` counts bytes; it may be called from a thread.
        """
        self._check_open()
        return await self._upkeep.verify(progress)

    async def compact(self) -> CompactReport:
        """Remove files that no row names and nobody writes, fold the log, and write the database anew if that pays.

        Everything else goes on meanwhile, but changes wait while the database is written anew.
        """
        self._check_open()
        await self.moves.sweep()
        return await self._upkeep.compact(self._whole)

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
        await store._begin()
        await asyncio.to_thread(folder.keep_reserve)
        undo.pop_all()
    return store


async def _bind(database: Database, peer_id: str) -> None:
    if not await database.read(rows.has_owner):
        await database.write(lambda db: rows.bind_owner(db, peer_id))
