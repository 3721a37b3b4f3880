"""Taking objects away: the row first, then the blob, if no other row names it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from peer.store.blobs import Blobs
from peer.store.database import Database
from peer.store.folder import Folder
from peer.store.waiting import KeyLocks
from protocol.errors import StorageError, StorageFull
from search.index import Index

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Gone(Generic[T]):
    """What a change that takes objects away came to, and the blobs of those that it took."""

    result: T
    blobs: set[str] = field(default_factory=set)


class Removal:
    """Gets its parts from the store.

    Attributes:
        names: a blob's name is held from its placing to its row, and from row to unlinking. Without that, deleting
            the last other object of the same contents could unlink what is being placed.
    """

    def __init__(
        self,
        folder: Folder,
        blobs: Blobs,
        database: Database,
        index: Index,
        names: KeyLocks,
        under_way: set[asyncio.Task[Any]],
    ) -> None:
        self._under_way = under_way  # what the store waits for before it closes
        self._unlinking: set[asyncio.Task[Any]] = set()
        self._folder = folder
        self._blobs = blobs
        self._database = database
        self._index = index
        self.names = names

    async def delete(self, uids: Sequence[bytes], *, is_hurried: bool = False) -> int:
        """Delete objects; how many were here. To be run undisturbed, as all here."""
        return await self.change(lambda db: self._delete_rows(db, uids), is_hurried=is_hurried)

    async def change(self, change: Callable[[sqlite3.Connection], Gone[T]], *, is_hurried: bool = False) -> T:
        """Commit a change that takes objects away, on a full disk too; then their blobs go, if nothing names them.

        Where it is hurried they go behind the caller's back: unlinking a large file takes a while. See `settled`.
        """
        try:
            gone = await self._database.write(change)
        except StorageFull:
            gone = await self._change_when_full(change)
        if gone.blobs:
            task = asyncio.ensure_future(self._remove_blobs(gone.blobs))
            for where in (self._under_way, self._unlinking):
                where.add(task)
                task.add_done_callback(where.discard)
            if not is_hurried:
                await task
        return gone.result

    async def settled(self) -> None:
        """Return when the files of what was taken away so far are gone."""
        if self._unlinking:
            await asyncio.wait(set(self._unlinking))

    async def _remove_blobs(self, blobs: set[str]) -> None:
        for blob in blobs:
            async with self.names.hold(blob):
                await self.remove_unused(blob)

    async def remove_unused(self, blob: str) -> int:
        """Unlink a blob that no row names; the bytes freed. The caller holds its name.

        What fails here is swept by the next start, or by compacting.
        """
        try:
            if not await self._database.read(lambda db: self._index.blob_in_use(db, blob)):
                return await self._blobs.remove(blob)
        except StorageError as error:
            _log.warning("blob %s stays until the next start: %s", blob[:12], error)
        return 0

    def delete_row(self, db: sqlite3.Connection, uid: bytes) -> Gone[bool]:
        """Delete one object's row inside a change; whether there was one."""
        place = self._index.delete(db, uid)
        return Gone(place is not None, {place.blob} if place is not None and place.blob is not None else set())

    def _delete_rows(self, db: sqlite3.Connection, uids: Sequence[bytes]) -> Gone[int]:
        gone = [self.delete_row(db, uid) for uid in uids]
        return Gone(sum(one.result for one in gone), {blob for one in gone for blob in one.blobs})

    async def _change_when_full(self, change: Callable[[sqlite3.Connection], Gone[T]]) -> Gone[T]:
        # Others have filled the disk. The row's deletion needs room in the log, and the reserve is that room.
        await asyncio.to_thread(self._folder.spend_reserve)
        try:
            return await self._database.write(change)
        finally:
            await asyncio.to_thread(self._folder.keep_reserve)
