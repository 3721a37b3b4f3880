"""What SQLite says, in the grid's words."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from protocol.errors import Corrupt, StorageError, StorageFull

RESTORE: Final = (
    "keep a copy of the data folder, then restore it from a backup, "
    "or save what can be read with `sqlite3 objects.sqlite .recover`"
)
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})
# After a failed sync nobody knows which pages are on the disk, and a second sync may say yes to none of them.
_FATAL: Final = frozenset({sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC})


def translated(error: sqlite3.Error) -> StorageError:
    """The error to raise instead."""
    code = getattr(error, "sqlite_errorcode", 0)
    primary = code & 0xFF
    if primary == sqlite3.SQLITE_FULL:
        return StorageFull(
            "the disk is full: the database cannot grow; delete objects or free space on this peer's disk"
        )
    if primary in _DAMAGED:
        return damaged(str(error))
    if primary == sqlite3.SQLITE_BUSY:
        return StorageError("another program holds this peer's database; end it and try again")
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return StorageError(f"the database failed: {error} ({name}); look at the disk of this peer")


def damaged(how: str) -> Corrupt:
    return Corrupt(f"the database is damaged: {how}; {RESTORE}")


def is_damage(error: BaseException) -> bool:
    """Whether this says that the file is damaged, rather than that something could not be done."""
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED


def is_fatal(error: BaseException) -> bool:
    """Whether nothing may be written after this error."""
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) in _FATAL


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn sqlite3's errors into StorageFull, Corrupt or StorageError."""
    try:
        yield
    except sqlite3.Error as error:
        raise translated(error) from error
