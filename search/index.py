"""The index: objects, their contents and their tags in the store's SQLite file.

Every method takes an open connection and does its work there in a few statements; none begins, commits or
waits. The store runs one function in the database's thread per transaction, and calls these inside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from protocol import limits
from protocol.errors import AlreadyExists, BadRequest, NotFound
from search.compile import SELECT, TagCounts, compile_query, prefix_range, prefixes_in, tags_in, uid_range
from search.query import parse_query
from search.records import Record, check_description, check_record, rows_of
from search.schema import MIGRATIONS, Database, Migration, migrate
from search.tags import parse_tags
from search.terms import Query
from search.text import searched_text

__all__ = [
    "MIGRATIONS",
    "Contents",
    "Database",
    "Found",
    "Index",
    "IndexStatistics",
    "Migration",
    "TagCounts",
    "compile_query",
    "migrate",
]

# Enough to choose where a query starts; a prefix with more tags than these is a poor start anyhow.
_COUNTED_TAGS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Contents:
    """Where an object's bytes are: in a blob file (its sha256 in hex), or inline. `extra` is for the kind's own use."""

    blob: str | None = None
    inline: bytes | None = None
    extra: bytes | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a query, newest first; `truncated` if there is more than was asked for."""

    records: list[Record]
    truncated: bool


@dataclass(frozen=True, slots=True)
class IndexStatistics:
    objects: int
    bytes: int
    tags: int


class Index:
    """The published objects of the peer of this name and id. Holds nothing else: all state is in the database."""

    def __init__(self, peer_name: str, peer_id: str) -> None:
        self.peer_name = peer_name
        self.peer_id = peer_id

    # --- writing --------------------------------------------------------------------------------------
    def insert(self, db: Database, record: Record, contents: Contents | None = None) -> None:
        """Adds an object. Everything in the index is published, so `published` need not be in the record.

        Raises:
            BadRequest: the record is malformed (search.records.check_record).
            AlreadyExists: an object of that id is there; nothing was changed.
        """
        record = check_record({**record, "published": True})
        added = db.execute(_INSERT, _row(record))
        if added.rowcount != 1:
            raise AlreadyExists(f"an object {record['id'].hex()} is here already", id=record["id"].hex())
        number = added.lastrowid
        contents = contents or Contents()
        db.execute(
            "INSERT INTO contents (object_id, blob, inline, extra) VALUES (?, ?, ?, ?)",
            (number, contents.blob, contents.inline, contents.extra),
        )
        self._add_tags(db, number, record["tags"])
        db.execute("UPDATE totals SET objects = objects + 1, bytes = bytes + ?", (record["nbytes"],))

    def delete(self, db: Database, uid: bytes) -> Contents | None:
        """Removes an object and gives its contents, whose blob the caller may now sweep (see blob_in_use);
        None if it is not here."""
        row = self._locate(db, uid, "nbytes")
        if row is None:
            return None
        number, tags, nbytes = row
        contents = self.contents(db, uid)
        self._drop_tags(db, number, tags)
        db.execute("DELETE FROM contents WHERE object_id = ?", (number,))
        db.execute("DELETE FROM objects WHERE id = ?", (number,))
        db.execute("UPDATE totals SET objects = objects - 1, bytes = bytes - ?", (nbytes,))
        return contents

    def set_tags(self, db: Database, uid: bytes, tags: str | Sequence[str]) -> tuple[str, ...]:
        """Makes these the object's tags, and gives them as they are stored.

        Raises:
            NotFound, BadTag, TooLarge (more than MAX_TAGS).
        """
        wanted = parse_tags(tags)
        number, present, _ = self._require(db, uid)
        self._drop_tags(db, number, [tag for tag in present if tag not in wanted])
        self._add_tags(db, number, [tag for tag in wanted if tag not in present])
        db.execute("UPDATE objects SET tags = ? WHERE id = ?", (_json(wanted), number))
        return wanted

    def retag(
        self, db: Database, uid: bytes, add: str | Sequence[str] = (), remove: str | Sequence[str] = ()
    ) -> tuple[str, ...]:
        """Takes the tags `remove` away, adds the tags `add`, and gives all that the object has now.

        Adding one that is there, or removing one that is not, changes nothing. Raises as set_tags.
        """
        unwanted = parse_tags(remove)
        present = self._require(db, uid)[1]
        return self.set_tags(db, uid, [tag for tag in present if tag not in unwanted] + list(parse_tags(add)))

    def describe(self, db: Database, uid: bytes, description: str) -> None:
        """Replaces the description. Raises NotFound, or BadRequest for a text that cannot be one."""
        check_description("description", description)
        number, _, name = self._require(db, uid)
        db.execute(
            "UPDATE objects SET description = ?, words = ? WHERE id = ?",
            (description, _words(name, description), number),
        )

    # --- reading --------------------------------------------------------------------------------------
    def get(self, db: Database, uid: bytes) -> Record | None:
        """The record of one object, or None."""
        row = db.execute(f"{SELECT} FROM objects o WHERE o.uid = ?", (uid,)).fetchone()
        return None if row is None else self._record(row)

    def contents(self, db: Database, uid: bytes) -> Contents | None:
        """Where the bytes of one object are, or None if the object is not here."""
        row = db.execute(
            "SELECT c.blob, c.inline, c.extra FROM objects o JOIN contents c ON c.object_id = o.id WHERE o.uid = ?",
            (uid,),
        ).fetchone()
        return None if row is None else Contents(*row)

    def find(self, db: Database, query: Query | str, limit: int = limits.MAX_HITS) -> Found:
        """The objects that a query matches, the last inserted first, at most `limit` of them.

        Raises:
            QueryError: `query` is a text that does not parse.
        """
        parsed = parse_query(query) if isinstance(query, str) else query
        sql, values = compile_query(parsed, _read_counts(db, parsed), limit + 1, self.peer_name, self.peer_id)
        rows = db.execute(sql, values).fetchall()
        return Found([self._record(row) for row in rows[:limit]], len(rows) > limit)

    def by_prefix(self, db: Database, digits: str, limit: int = 10) -> list[Record]:
        """The objects whose ids begin with these hexadecimal digits, in the order of their ids."""
        if not 0 < len(digits) <= 32 or not set(digits.lower()) <= set("0123456789abcdef"):
            raise BadRequest(f"{digits[:40]!a} is not the beginning of an id; ids are 32 digits 0-9 a-f")
        sql = f"{SELECT} FROM objects o WHERE o.uid BETWEEN ? AND ? ORDER BY o.uid LIMIT ?"
        rows = db.execute(sql, (*uid_range(digits.lower()), limit)).fetchall()
        return [self._record(row) for row in rows]

    def blob_in_use(self, db: Database, blob: str) -> bool:
        """Whether any object's contents are in this blob file. (Equal contents share one.)"""
        return db.execute("SELECT 1 FROM contents WHERE blob = ? LIMIT 1", (blob,)).fetchone() is not None

    def blobs(self, db: Database) -> Iterator[str]:
        """The blob files that objects are in, each once: what a sweep must keep."""
        rows = db.execute("SELECT DISTINCT blob FROM contents WHERE blob IS NOT NULL")
        while (row := rows.fetchone()) is not None:
            yield row[0]

    def statistics(self, db: Database) -> IndexStatistics:
        """How much is here. Takes the same few microseconds for any number of objects; `tags` a little more."""
        objects, nbytes = db.execute("SELECT objects, bytes FROM totals").fetchone()
        return IndexStatistics(objects, nbytes, db.execute("SELECT count(*) FROM tags").fetchone()[0])

    # --- inside ---------------------------------------------------------------------------------------
    def _record(self, row: Sequence[Any]) -> Record:
        uid, kind, name, owner, description, dtype, shape, nbytes, private, labels, created, tags = row
        return {
            "id": uid,
            "kind": kind,
            "name": name,
            "owner": owner,
            "tags": json.loads(tags),
            "description": description,
            "dtype": dtype,
            "shape": None if shape is None else json.loads(shape),
            "nbytes": nbytes,
            "private": bool(private),
            "labels": json.loads(labels),
            "created": created,
            "published": True,
            "peer": self.peer_name,
            "peer_id": self.peer_id,
        }

    def _locate(self, db: Database, uid: bytes, also: str = "name") -> tuple[int, list[str], Any] | None:
        """Row number, tags, and one more column of an object."""
        row = db.execute(f"SELECT id, tags, {also} FROM objects WHERE uid = ?", (uid,)).fetchone()
        return None if row is None else (row[0], json.loads(row[1]), row[2])

    def _require(self, db: Database, uid: bytes) -> tuple[int, list[str], Any]:
        located = self._locate(db, uid)
        if located is None:
            raise NotFound(f"there is no published object {uid.hex()} here", id=uid.hex())
        return located

    def _add_tags(self, db: Database, number: int | None, tags: Sequence[str]) -> None:
        for tag in tags:
            db.execute("INSERT INTO tags (name, n) VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET n = n + 1", (tag,))
            db.execute(
                "INSERT INTO object_tags (tag_id, object_id) SELECT id, ? FROM tags WHERE name = ?", (number, tag)
            )

    def _drop_tags(self, db: Database, number: int, tags: Sequence[str]) -> None:
        for tag in tags:
            db.execute(
                "DELETE FROM object_tags WHERE tag_id = (SELECT id FROM tags WHERE name = ?) AND object_id = ?",
                (tag, number),
            )
            db.execute("UPDATE tags SET n = n - 1 WHERE name = ?", (tag,))
            db.execute("DELETE FROM tags WHERE name = ? AND n = 0", (tag,))


_WRITTEN: Final = (
    "uid, kind, name, owner, description, words, dtype, shape, nrows, nbytes, private, labels, created, tags"
)
_INSERT: Final = (
    f"INSERT INTO objects ({_WRITTEN}) VALUES ({', '.join('?' * (_WRITTEN.count(',') + 1))})"
    " ON CONFLICT (uid) DO NOTHING"
)


def _row(record: Record) -> tuple[Any, ...]:
    """A checked record as the values of _WRITTEN."""
    return (
        record["id"],
        record["kind"],
        record["name"],
        record["owner"],
        record["description"],
        _words(record["name"], record["description"]),
        record["dtype"],
        None if record["shape"] is None else _json(record["shape"]),
        rows_of(record),
        record["nbytes"],
        int(record["private"]),
        _json(record["labels"]),
        record["created"],
        _json(record["tags"]),
    )


def _words(name: str | None, description: str) -> str | None:
    words = searched_text(name, description)
    return None if words == "\n" else words


_encode: Final = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make an encoder for each call


def _json(values: Sequence[Any]) -> str:
    return _encode(list(values))


def _read_counts(db: Database, query: Query) -> TagCounts:
    """What compile_query has to know of the tags in `query`: one look-up for all tags, one for each prefix."""
    tags: dict[str, tuple[int, int]] = {}
    if names := tags_in(query):
        holes = ", ".join("?" * len(names))
        for name, id, n in db.execute(f"SELECT name, id, n FROM tags WHERE name IN ({holes})", names).fetchall():
            tags[name] = (id, n)
    prefixes = {prefix: _count_prefix(db, prefix) for prefix in prefixes_in(query)}
    return TagCounts(tags, prefixes)


def _count_prefix(db: Database, prefix: str) -> int:
    sql = "SELECT ifnull(sum(n), 0) FROM (SELECT n FROM tags WHERE name >= ? AND name < ? LIMIT ?)"
    return int(db.execute(sql, (*prefix_range(prefix), _COUNTED_TAGS)).fetchone()[0])
