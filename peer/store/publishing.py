"""Bringing objects in: the blob first, its row last."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Sequence
from functools import lru_cache

from peer.store import journal, rows
from peer.store.blobs import Blobs, Measured
from peer.store.contents import Contents
from peer.store.database import Database
from peer.store.folder import Folder
from peer.store.journal import Arrived
from peer.store.removal import Removal
from peer.store.rows import Row, Sealed
from peer.store.writer import StoreWriter
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import BadRequest, BadTensor, Corrupt, GridError, StorageError
from protocol.tensors import TensorHeader
from search.index import Index
from search.records import Record

_log = logging.getLogger(__name__)


class Publishing:
    """Gets its parts from the store."""

    def __init__(self, folder: Folder, blobs: Blobs, database: Database, index: Index, removal: Removal) -> None:
        self._folder = folder
        self._blobs = blobs
        self._database = database
        self._index = index
        self._removal = removal
        self._inserting = _Inserting(folder, index)

    async def insert(self, record: Record, sealed: Sealed, arrived: Arrived | None) -> None:
        """The row of an object whose bytes are safe, and the note of where it came from, in one transaction."""

        row = Row.of(self._index, record, sealed)
        if arrived is None:
            await self._database.write_one(self._inserting, row)
        else:
            await self._database.write(lambda db: self._insert(db, row, arrived))

    async def place(self, record: Record, writer: StoreWriter, arrived: Arrived | None) -> None:
        """Name the blob that was written, then add its row. To be run undisturbed."""
        assert writer.blob is not None
        sealed = await writer.seal()
        assert sealed.blob is not None
        async with self._removal.names.hold(sealed.blob):
            try:
                await writer.blob.place()
                await self.insert(record, sealed, arrived)
            except GridError as error:
                # After an unclear failure of the commit the row may yet come back with the next start: the
                # blob stays, and is swept then if it did not.
                if type(error) is not StorageError:
                    await self._removal.remove_unused(sealed.blob)
                raise

    async def measure_held(self, content: str, contents: Contents) -> Measured | None:
        """Read the blob of this name if it is here; None unless it holds such contents, every byte of them."""
        header = contents.file_header()
        if contents.nbytes < limits.STORE_INLINE:
            return None  # those are inline, so no blob has their name
        if await self._database.read(lambda db: self._index.blocks(db, content)) is None:
            return None
        try:
            measured = await self._blobs.measure(content, len(header))
        except Corrupt:
            return None  # the bytes are asked for then, which heals it
        if measured.content != content:
            _log.error("blob %s is damaged: run `grid verify`", content[:12])
            return None
        return measured if measured.header == header else None

    async def place_held(self, record: Record, contents: Contents, held: Measured, arrived: Arrived | None) -> bool:
        """Add the row of one more object in a blob that was measured; False if the blob is gone or was changed.

        To be run undisturbed.
        """
        sealed = Sealed(contents, blob=held.content, start=len(held.header), blocks=held.blocks)

        row = Row.of(self._index, record, sealed)

        def change(db: sqlite3.Connection) -> bool:
            if self._index.blocks(db, held.content) is None:
                return False  # its last object was deleted, and the file is about to go
            self._insert(db, row, arrived)
            return True

        async with self._removal.names.hold(held.content):
            if await self._blobs.identity(held.content) != held.identity:
                return False
            return await self._database.write(change)

    def _insert(self, db: sqlite3.Connection, row: Row, arrived: Arrived | None) -> None:
        self._inserting.one(db, row)
        if arrived is not None:
            record = row.prepared.record
            journal.note_arrival(db, arrived, record["id"], record["owner"], time.time())


class _Inserting:
    """The kind of change (commits.py) that adds one row."""

    def __init__(self, folder: Folder, index: Index) -> None:
        self._folder = folder
        self._index = index

    def one(self, db: sqlite3.Connection, row: Row) -> None:
        self._folder.check_room(row.nbytes, lambda: rows.unused(db))
        rows.insert(db, self._index, row)

    def all(self, db: sqlite3.Connection, many: Sequence[Row]) -> None:
        self._folder.check_room(sum(row.nbytes for row in many), lambda: rows.unused(db))
        self._index.insert_all(db, [(row.prepared, row.place) for row in many])


def contents_of(record: Record) -> Contents:
    """The contents that a tensor's record states. BadRequest for other kinds."""
    dtype, shape = record.get("dtype"), record.get("shape")
    if dtype is None or shape is None:
        raise BadRequest("only a tensor's record says what its bytes are: give the contents too")
    return _one(TensorHeader(dtype, tuple(shape)))


@lru_cache(1_024)
def _one(header: TensorHeader) -> Contents:
    return Contents.one(header)  # checking them takes longer than storing a small tensor should


def seal_inline(contents: Contents, data: Buffer) -> Sealed:
    """Small contents whose bytes are all here. BadTensor if they are too few or too many."""
    nbytes = memoryview(data).nbytes
    if nbytes != contents.nbytes:
        raise BadTensor(f"{nbytes} bytes came where {contents.nbytes} are described")
    return Sealed(contents, inline=bytes(data))
