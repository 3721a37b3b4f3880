"""What the store keeps in the database: its tables, and one object's row there and back.

The tables of objects, tags and contents are the index's (search/schema.py); the store adds `meta`. What it must
know of an object's contents beyond their place goes into the `extra` column that the index leaves to it.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import msgpack

from peer.store.contents import Contents, StoredTensor
from protocol.errors import AlreadyExists, BadRequest, BadTensor, Corrupt, DataFolderMismatch, TooLarge
from protocol.tensors import TensorHeader
from search.index import Contents as Place
from search.index import Index
from search.records import Record, check_record
from search.schema import MIGRATIONS as INDEX_MIGRATIONS

_VERSION: Final = 1  # of the packed `extra` column


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
    """

    record: Record
    contents: Contents
    inline: bytes | None
    blob: str | None
    start: int

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
    digest: bytes = field(default=b"", init=False)

    def __post_init__(self) -> None:
        if self.inline is not None:
            object.__setattr__(self, "digest", hashlib.sha256(self.inline).digest())

    def place(self) -> Place:
        """As the index keeps it."""
        contents = self.contents
        tensors = [[name, header.dtype, list(header.shape)] for name, header in contents.tensors]
        fields = [_VERSION, self.start, self.digest, tensors, dict(contents.metadata), contents.extra]
        return Place(blob=self.blob, inline=self.inline, extra=msgpack.packb(fields))


def insert(db: sqlite3.Connection, index: Index, record: Record, sealed: Sealed) -> None:
    """Add the object; nothing if the very same one is there (a repeated request), AlreadyExists if another is."""
    place = sealed.place()
    try:
        index.insert(db, record, place)
    except AlreadyExists:
        if index.contents(db, record["id"]) != place or not _says_the_same(index.get(db, record["id"]), record):
            raise


def _says_the_same(stored: Record | None, record: Record) -> bool:
    # A repeated request may have been received at another time; all else is the asker's.
    fresh = check_record({**record, "published": True})
    return stored is not None and all(stored[name] == fresh[name] for name in fresh.keys() - {"created"})


def find(db: sqlite3.Connection, index: Index, uid: bytes) -> StoredObject | None:
    """The object, with inline bytes checked. Corrupt where they or their description are not what was stored."""
    record, place = index.get(db, uid), index.contents(db, uid)
    if record is None or place is None:
        return None
    try:
        version, start, digest, rows, metadata, extra = msgpack.unpackb(place.extra or b"")
        tensors = tuple((name, TensorHeader(dtype, tuple(shape))) for name, dtype, shape in rows)
        contents = Contents(tensors, metadata, extra)
    except (ValueError, TypeError, BadTensor, TooLarge, msgpack.UnpackException) as error:
        raise _damaged(uid) from error
    if version != _VERSION or (place.inline is not None and hashlib.sha256(place.inline).digest() != digest):
        raise _damaged(uid)
    return StoredObject(record, contents, place.inline, place.blob, start)


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
