"""What the store keeps in the database: its tables, and one object's row there and back.

The tables of objects, tags, contents and blobs are the index's (search/schema.py); the store adds `meta`, and the
journal of moves (journal.py). What it must know of an object's contents beyond their place goes into the `extra`
column that the index leaves to it: `XXH3-128 of the rest and of the inline bytes | version u8 | start u64 | contents`.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

from blake3 import blake3
from xxhash import xxh3_128

from peer.store import journal
from peer.store.blob_file import Layout
from peer.store.contents import Contents, StoredTensor
from protocol import limits
from protocol.errors import AlreadyExists, BadRequest, BadTensor, Corrupt, DataFolderMismatch
from search.index import Contents as Place
from search.index import Index, Prepared
from search.records import Record
from search.schema import MIGRATIONS as INDEX_MIGRATIONS

_VERSION: Final = 1  # of the packed `extra` column
_SEAL_BYTES: Final = 16
_HEAD: Final = struct.Struct("<BQ")  # _VERSION, and StoredObject.start


def _index_step(number: int) -> Callable[[sqlite3.Connection], None]:
    """Migration `number` of the index."""

    def apply(db: sqlite3.Connection) -> None:
        (step,) = (step for step in INDEX_MIGRATIONS if step.number == number)
        for statement in step.statements:
            db.execute(statement)

    return apply


def _first(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID")
    _index_step(1)(db)
    for statement in journal.TABLES:
        db.execute(statement)


# Numbered from 1 by their place: never reorder, never edit one that has been released.
MIGRATIONS: Final[tuple[Callable[[sqlite3.Connection], None], ...]] = (_first,)


def check_owner(db: sqlite3.Connection, folder: str, peer_id: str) -> None:
    """DataFolderMismatch unless the folder is this peer's, or nobody's yet."""
    row = db.execute("SELECT value FROM meta WHERE name = 'peer_id'").fetchone()
    if row is not None and row[0] != peer_id:
        raise DataFolderMismatch(
            f"the data folder {folder} belongs to peer {row[0][:12]}, and this one is {peer_id[:12]}: "
            "start the peer with the key that it was made with, or choose another folder with --data-dir",
            found=row[0],
            known=peer_id,
        )


def has_owner(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM meta WHERE name = 'peer_id'").fetchone() is not None


def bind_owner(db: sqlite3.Connection, peer_id: str) -> None:
    db.execute("INSERT INTO meta VALUES ('peer_id', ?) ON CONFLICT (name) DO NOTHING", (peer_id,))


@dataclass(frozen=True)
class StoredObject:
    """A published object: its record, what it is made of, and where the bytes are.

    Attributes:
        record: as search gives it.
        contents: tensors, metadata and extra bytes.
        inline: all the tensors' bytes, checked, where they are in the row; else None.
        blob: the name of the blob file, where they are in one; else None.
        start: where the first tensor begins in the blob file; 0 for inline ones.
        blocks: XXH3-64 (u64 little-endian) of every limits.BLOCK of the payload, which is all tensors' bytes, one
            after another, without the file's header; empty for inline ones.
    """

    record: Record
    contents: Contents
    inline: bytes | None
    blob: str | None
    start: int
    blocks: bytes = b""

    @cached_property
    def content(self) -> str:
        """The name of the contents: the BLAKE3 of their file in hex, also of those that are inline and have none.

        Equal names are equal contents: tensors, their names, metadata, and the program of a model or plan (`extra`).
        """
        return self.blob if self.blob is not None else _name(self.contents, self.inline)

    @property
    def layout(self) -> Layout:
        """Where the payload is in the blob file."""
        return Layout(self.start, self.contents.nbytes, self.blocks)

    @cached_property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Name to header and place, in the order of the bytes. Offsets count from the start of blob or inline."""
        return self.contents.lay_out(self.start)

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.contents.metadata

    @property
    def extra(self) -> bytes:
        return self.contents.extra


@dataclass(frozen=True, slots=True)
class Sealed:
    """Contents whose bytes are safe: inline, or in the blob file of that name."""

    contents: Contents
    inline: bytes | None = None
    blob: str | None = None
    start: int = 0
    blocks: bytes = b""

    def place(self) -> Place:
        """As the index keeps it."""
        packed = _HEAD.pack(_VERSION, self.start) + self.contents.packed
        content = None
        if self.inline is not None and self.contents.nbytes > limits.MAX_CONSTANT:
            content = _name(self.contents, self.inline)
        return Place(self.blob, self.inline, _seal(packed, self.inline) + packed, self.blocks, content)


def _name(contents: Contents, inline: bytes | None) -> str:
    """The content name of what is inline: that of the file which it would be."""
    return blake3(contents.file_header()).update(inline or b"").hexdigest()


def _seal(packed: bytes, inline: bytes | None) -> bytes:
    """Tells bits that rotted in the row from those that were stored."""
    seal = xxh3_128(packed)
    seal.update(inline or b"")
    return seal.digest()


class Row(NamedTuple):
    """An object's row, checked and packed: all that can be done before the database's turn."""

    prepared: Prepared
    place: Place

    @classmethod
    def of(cls, index: Index, record: Record, sealed: Sealed) -> Row:
        """BadRequest if the record is malformed."""
        return cls(index.prepare(record), sealed.place())

    @property
    def nbytes(self) -> int:
        """What it takes in the database, all but the record."""
        return len(self.place.inline or b"") + len(self.place.extra or b"") + len(self.place.blocks)


def insert(db: sqlite3.Connection, index: Index, row: Row) -> None:
    """Add the object; nothing if the very same one is there (a repeated request), AlreadyExists if another is."""
    try:
        index.insert(db, row.prepared, row.place)
    except AlreadyExists:
        fresh = row.prepared.record
        if index.contents(db, fresh["id"]) != row.place or not _says_the_same(index.get(db, fresh["id"]), fresh):
            raise


def _says_the_same(stored: Record | None, fresh: Record) -> bool:
    # A repeated request may have been received at another time; all else is the asker's.
    return stored is not None and all(stored[name] == fresh[name] for name in fresh.keys() - {"created"})


def unused(db: sqlite3.Connection) -> int:
    """Bytes of the database's file that rows which are gone have left to new ones."""
    (pages,), (size,) = (db.execute(f"PRAGMA {what}").fetchone() for what in ("freelist_count", "page_size"))
    return int(pages) * int(size)


def find(db: sqlite3.Connection, index: Index, uid: bytes) -> StoredObject | None:
    """The object, with inline bytes checked. Corrupt where they or their description are not what was stored."""
    found = index.whole(db, uid)
    if found is None:
        return None
    record, place = found
    extra = place.extra or b""
    seal, packed = extra[:_SEAL_BYTES], extra[_SEAL_BYTES:]
    if _seal(packed, place.inline) != seal:
        raise _damaged(uid)
    try:
        version, start = _HEAD.unpack_from(packed)
        contents = Contents.unpack(packed[_HEAD.size :])
    except (struct.error, BadTensor) as error:
        raise _damaged(uid) from error
    if version != _VERSION:
        raise _damaged(uid)
    return StoredObject(record, contents, place.inline, place.blob, start, place.blocks)


def check_agrees(record: Mapping[str, Any], contents: Contents) -> None:
    """BadRequest if the record of a tensor does not describe these contents."""
    if record.get("kind") != "tensor":
        return
    stated = (record.get("dtype"), tuple(record.get("shape") or ()), record.get("nbytes"))
    headers = [(header.dtype, header.shape, header.nbytes) for _, header in contents.tensors]
    if headers != [stated]:
        raise BadRequest("the record of a tensor states another dtype, shape or size than the contents have")


def _damaged(uid: bytes) -> Corrupt:
    return Corrupt(
        f"object {uid.hex()[:12]} is not what was stored: take it from another holder or delete it", id=uid.hex()
    )
