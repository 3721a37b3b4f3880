"""The tables of the index. Numbered migrations; each is a list of single statements.

The store applies them, keeps the number of the last one, and owns the transaction: see `migrate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol


class Rows(Protocol):
    """What `execute` gives back: a cursor, as sqlite3 has it."""

    @property
    def rowcount(self) -> int: ...

    @property
    def lastrowid(self) -> int | None: ...

    def fetchone(self) -> Any: ...

    def fetchmany(self, size: int, /) -> list[Any]: ...

    def fetchall(self) -> list[Any]: ...


class Database(Protocol):
    """An open connection to SQLite 3.38 or newer, as sqlite3 has it. The caller owns its transactions."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Rows: ...

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Rows: ...


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema. `statements` are executed one by one (executescript would commit first)."""

    number: int
    statements: tuple[str, ...]


_OBJECTS = """
CREATE TABLE objects (
    id INTEGER PRIMARY KEY,        -- grows with each insert, so that descending order is newest first
    uid BLOB NOT NULL UNIQUE,      -- the object's id: 16 bytes
    kind TEXT NOT NULL,
    name TEXT,
    owner TEXT NOT NULL,
    description TEXT NOT NULL,
    words TEXT,                    -- folded name, line feed, folded description; NULL where both are empty
    dtype TEXT,
    shape TEXT,                    -- JSON: [60000,28,28]
    nrows INTEGER,                 -- the first dimension
    nbytes INTEGER NOT NULL,
    private INTEGER NOT NULL,
    labels TEXT NOT NULL,          -- JSON list of ids
    reveal TEXT NOT NULL DEFAULT '[]', -- JSON list of ids, or of "*": who may learn what secure runs compute from it
    created REAL NOT NULL,
    tags TEXT NOT NULL             -- JSON list without blanks: untag and delete need no index from objects to tags
)"""

# Apart from objects: small contents in the same row would spread the searched columns over many more pages.
_CONTENTS = """
CREATE TABLE contents (
    object_id INTEGER PRIMARY KEY,
    blob TEXT,                     -- the content name of the blob file, in `blobs`
    inline BLOB,                   -- or the contents themselves, where they are small
    content TEXT,                  -- their content name then, where it may be asked for
    extra BLOB                     -- what the kind needs besides; opaque here
)"""

# One row for each blob file, however many objects are made of it: a start compares the folder with this table alone.
_BLOBS = """
CREATE TABLE blobs (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,     -- the content name: 64 hexadecimal digits
    blocks BLOB NOT NULL           -- hashes of its blocks; opaque here
)"""

# `n` counts the objects of a tag: AND starts from the rarest tag without asking ANALYZE. Rows with n = 0 are removed.
_TAGS = """
CREATE TABLE tags (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    n INTEGER NOT NULL
)"""

_OBJECT_TAGS = """
CREATE TABLE object_tags (
    tag_id INTEGER NOT NULL,
    object_id INTEGER NOT NULL,
    PRIMARY KEY (tag_id, object_id)
) WITHOUT ROWID"""

# One row, kept by insert and delete: counting and adding up 1e6 objects takes tens of milliseconds.
_TOTALS = """
CREATE TABLE totals (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    objects INTEGER NOT NULL,
    bytes INTEGER NOT NULL
)"""

MIGRATIONS: Final[tuple[Migration, ...]] = (
    Migration(
        1,
        (
            _OBJECTS,
            _CONTENTS,
            "CREATE INDEX contents_blob ON contents (blob) WHERE blob IS NOT NULL",
            "CREATE INDEX contents_content ON contents (content) WHERE content IS NOT NULL",
            _BLOBS,
            _TAGS,
            _OBJECT_TAGS,
            _TOTALS,
            "INSERT INTO totals (one, objects, bytes) VALUES (1, 0, 0)",
        ),
    ),
)


def migrate(db: Database, version: int = 0) -> int:
    """Applies the migrations after `version`, in order, and gives the number of the last.

    Call it inside one transaction, and write down the number in the same one.
    """
    for migration in MIGRATIONS:
        if migration.number > version:
            for statement in migration.statements:
                db.execute(statement)
            version = migration.number
    return version
