"""The store: published objects, durable once acknowledged.

    put     temporary file → write → fsync → rename → fsync of the folder → row committed → return
    delete  row first, then the file, if no other object has the same contents

So a crash leaves files without a row, which the next start sweeps, and never a row without its file.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, TypeVar

from peer.store import rows
from peer.store.blobs import Blobs, check_name, is_blob_folder_used
from peer.store.contents import Contents
from peer.store.database import Database
from peer.store.folder import BLOBS, DATABASE, MARK, Folder
from peer.store.fs import Fs
from peer.store.mark import Mark
from peer.store.moves import Arrived, Moves
from peer.store.publishing import Publishing, contents_of, seal_inline
from peer.store.reading import Reading, StoreStatistics
from peer.store.removal import Removal
from peer.store.rows import StoredObject
from peer.store.upkeep import CompactReport, Progress, Upkeep, VerifyReport
from peer.store.waiting import KeyLocks, undisturbed
from peer.store.writer import StoreWriter
from protocol import limits
from protocol.codec import Buffer
from search.index import Index
from search.records import Record

__all__ = ["Arrived", "CompactReport", "Store", "StoreStatistics", "StoredObject", "VerifyReport"]

T = TypeVar("T")

_CLEAR_BATCH: Final = 1_000  # objects deleted in one transaction: others wait no longer than for these


class Store(Reading):
    """The published objects of one peer, in one folder, which is its own while it is open.

    Every change is on the disk when its call returns. A cancelled change is done whole or not at all, and its
    caller gets the cancellation when that is settled; a cancelled reading changes nothing. After `close` every
    call raises StorageError. Errors of the disk are StorageFull, Corrupt and StorageError.

    Attributes:
        moves: the journal of moves.
    """

    def __init__(self, folder: Folder, blobs: Blobs, database: Database, index: Index) -> None:
        super().__init__(blobs, database, index)
        self._folder = folder
        self._under_way: set[asyncio.Task[Any]] = set()
        self._removal = Removal(folder, blobs, database, index, KeyLocks(), self._under_way)
        self._publishing = Publishing(folder, blobs, database, index, self._removal)
        self._upkeep = Upkeep(blobs, database, index, self._removal)
        self.moves = Moves(database, index, self._removal, self._whole)
        self._writers: set[StoreWriter] = set()

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
