"""The index: objects, their contents and their tags in the store's SQLite file.

Every method takes an open connection and does its work there in a few statements; none begins, commits or
waits. The store runs one function in the database's thread per transaction, and calls these inside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from protocol import limits
from protocol.errors import AlreadyExists, BadRequest, Corrupt, NotFound
from search.compile import SELECT, TagCounts, compile_query, prefix_range, prefixes_in, tags_in, uid_range
from search.many_rows import insert_rows
from search.query import parse_query
from search.records import Record, check_description
from search.schema import MIGRATIONS, Database, Migration, migrate
from search.stored import WRITTEN, Contents, Prepared, prepare, record_of, texts, words_of
from search.tag_rows import add_all_tags, add_tags, drop_tags, tags_of
from search.tags import parse_tags
from search.terms import Query

__all__ = [
    "MIGRATIONS",
    "Contents",
    "Database",
    "Found",
    "Index",
    "IndexStatistics",
    "Migration",
    "Prepared",
    "TagCounts",
    "compile_query",
    "migrate",
]

# Enough to choose where a query starts; a prefix with more tags than these is a poor start anyhow.
_COUNTED_TAGS: Final = 1_000
_PAGE: Final = 10_000  # rows of one column read at once, where all are read


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a query, newest first; `truncated` if there is more than was asked for.

    `damaged` objects match as well, and their rows cannot be read.
    """

    records: list[Record]
    truncated: bool
    damaged: int = 0


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
    def prepare(self, record: Record) -> Prepared:
        """What `insert` needs of a record, checked. Needs no database: the work for which nobody should wait.

        Everything in the index is published, so `published` need not be in the record.

        Raises:
            BadRequest: the record is malformed (search.records.check_record).
        """
        return prepare(record)

    def insert(self, db: Database, record: Record | Prepared, contents: Contents | None = None) -> None:
        """Adds an object.

        Raises:
            BadRequest: the record is malformed (see `prepare`).
            AlreadyExists: an object of that id is there; nothing was changed.
        """
        prepared = record if isinstance(record, Prepared) else self.prepare(record)
        record = prepared.record
        added = db.execute(_INSERT, prepared.row)
        if added.rowcount != 1:
            raise AlreadyExists(f"an object {record['id'].hex()} is here already", id=record["id"].hex())
        number = added.lastrowid
        contents = contents or Contents()
        db.execute(
            "INSERT INTO contents (object_id, blob, inline, extra, content) VALUES (?, ?, ?, ?, ?)",
            (number, contents.blob, contents.inline, contents.extra, contents.content),
        )
        if contents.blob is not None:
            db.execute(_INSERT_BLOB, (contents.blob, contents.blocks))
        add_tags(db, number, record["tags"])
        db.execute("UPDATE totals SET objects = objects + 1, bytes = bytes + ?", (record["nbytes"],))

    def insert_all(self, db: Database, objects: Sequence[tuple[Prepared, Contents]]) -> None:
        """Adds objects whose ids are not here, at a third of what it costs to insert them one by one.

        If any of them is here, or two are the same, the database raises an error of its own, and the caller is to
        undo the transaction and insert them one by one.
        """
        first = db.execute("SELECT ifnull(max(id), 0) FROM objects").fetchone()[0] + 1
        numbered = list(enumerate(objects, first))
        insert_rows(db, f"objects (id, {WRITTEN})", [(number, *prepared.row) for number, (prepared, _) in numbered])
        insert_rows(
            db,
            "contents (object_id, blob, inline, extra, content)",
            [(number, kept.blob, kept.inline, kept.extra, kept.content) for number, (_, kept) in numbered],
        )
        blobs = [(contents.blob, contents.blocks) for _, contents in objects if contents.blob is not None]
        if blobs:
            db.executemany(_INSERT_BLOB, blobs)
        add_all_tags(db, [(tag, number) for number, (prepared, _) in numbered for tag in prepared.record["tags"]])
        nbytes = sum(prepared.record["nbytes"] for prepared, _ in objects)
        db.execute("UPDATE totals SET objects = objects + ?, bytes = bytes + ?", (len(objects), nbytes))

    def owner(self, db: Database, uid: bytes) -> str | None:
        """Whose it is, also where the rest of its row is damaged; None if it is not here."""
        row = db.execute("SELECT owner FROM objects WHERE uid = ?", (uid,)).fetchone()
        return None if row is None else str(row[0])

    def delete(self, db: Database, uid: bytes) -> Contents | None:
        """Removes an object and gives its contents, whose blob the caller may now sweep (see blob_in_use);
        None if it is not here."""
        row = self._locate(db, uid, "nbytes")
        if row is None:
            return None
        number, tags, nbytes = row
        contents = self.contents(db, uid)
        drop_tags(db, number, tags)
        db.execute("DELETE FROM contents WHERE object_id = ?", (number,))
        if contents is not None and contents.blob is not None and not self.blob_in_use(db, contents.blob):
            db.execute("DELETE FROM blobs WHERE name = ?", (contents.blob,))
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
        drop_tags(db, number, [tag for tag in present if tag not in wanted])
        add_tags(db, number, [tag for tag in wanted if tag not in present])
        db.execute("UPDATE objects SET tags = ? WHERE id = ?", (texts(wanted), number))
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
            (description, words_of(name, description), number),
        )

    # --- reading --------------------------------------------------------------------------------------
    def get(self, db: Database, uid: bytes) -> Record | None:
        """The record of one object, or None."""
        row = db.execute(f"{SELECT} FROM objects o WHERE o.uid = ?", (uid,)).fetchone()
        return None if row is None else self._record(row)

    def contents(self, db: Database, uid: bytes) -> Contents | None:
        """Where the bytes of one object are, or None if the object is not here."""
        row = db.execute(_CONTENTS, (uid,)).fetchone()
        return None if row is None else Contents(*row)

    def whole(self, db: Database, uid: bytes) -> tuple[Record, Contents] | None:
        """The record of one object and where its bytes are, in one look-up; None if the object is not here."""
        row = db.execute(_WHOLE, (uid,)).fetchone()
        if row is None:
            return None
        columns = len(Contents._fields)
        return self._record(row[:-columns]), Contents(*row[-columns:])

    def find(self, db: Database, query: Query | str, limit: int = limits.MAX_HITS) -> Found:
        """The objects that a query matches, the last inserted first, at most `limit` of them.

        Raises:
            QueryError: `query` is a text that does not parse.
        """
        parsed = parse_query(query) if isinstance(query, str) else query
        sql, values = compile_query(parsed, _read_counts(db, parsed), limit + 1, self.peer_name, self.peer_id)
        rows = db.execute(sql, values).fetchall()
        records = self._whole_ones(rows[:limit])
        return Found(records, len(rows) > limit, len(rows[:limit]) - len(records))

    def by_prefix(self, db: Database, digits: str, limit: int = 10) -> list[Record]:
        """The objects whose ids begin with these hexadecimal digits, in the order of their ids."""
        if not 0 < len(digits) <= 32 or not set(digits.lower()) <= set("0123456789abcdef"):
            raise BadRequest(f"{digits[:40]!a} is not the beginning of an id; ids are 32 digits 0-9 a-f")
        sql = f"{SELECT} FROM objects o WHERE o.uid BETWEEN ? AND ? ORDER BY o.uid LIMIT ?"
        rows = db.execute(sql, (*uid_range(digits.lower()), limit)).fetchall()
        records = self._whole_ones(rows)
        return records or [self._record(row) for row in rows]  # whoever means a damaged one is told that it is

    def owned_by(self, db: Database, owner: str, limit: int) -> list[bytes]:
        """The ids of objects of one principal, damaged or not, at most `limit` of them."""
        rows = db.execute("SELECT uid FROM objects WHERE owner = ? LIMIT ?", (owner, limit)).fetchall()
        return [row[0] for row in rows]

    def blob_in_use(self, db: Database, blob: str) -> bool:
        """Whether any object's contents are in this blob file. (Equal contents share one.)"""
        return db.execute("SELECT 1 FROM contents WHERE blob = ? LIMIT 1", (blob,)).fetchone() is not None

    def blobs(self, db: Database) -> Iterator[str]:
        """The blob files that objects are in, each once: what a sweep must keep."""
        rows = db.execute("SELECT name FROM blobs")
        while page := rows.fetchmany(_PAGE):
            yield from chain.from_iterable(page)

    def blocks(self, db: Database, blob: str) -> bytes | None:
        """The block hashes of a blob file; None if no object is in it."""
        row = db.execute("SELECT blocks FROM blobs WHERE name = ?", (blob,)).fetchone()
        return None if row is None else bytes(row[0])

    def holders(self, db: Database, content: str, limit: int = limits.MAX_HITS) -> list[Record]:
        """The objects whose contents have this name, the oldest first, at most `limit` of them: those in the blob file
        of the name, and inline ones that were inserted with it."""
        rows = []
        for column in ("blob", "content"):
            sql = f"{SELECT} FROM contents c JOIN objects o ON o.id = c.object_id WHERE c.{column} = ?"
            rows += db.execute(f"{sql} ORDER BY o.id LIMIT ?", (content, limit)).fetchall()
        return self._whole_ones(rows[:limit])

    def after(self, db: Database, number: int, limit: int) -> list[tuple[int, bytes]]:
        """Row number and id of the next objects after row `number`, in the order of their insertion: all, in pages."""
        sql = "SELECT id, uid FROM objects WHERE id > ? ORDER BY id LIMIT ?"
        return [(row[0], row[1]) for row in db.execute(sql, (number, limit)).fetchall()]

    def statistics(self, db: Database) -> IndexStatistics:
        """How much is here. Takes the same few microseconds for any number of objects; `tags` a little more."""
        objects, nbytes = db.execute("SELECT objects, bytes FROM totals").fetchone()
        return IndexStatistics(objects, nbytes, db.execute("SELECT count(*) FROM tags").fetchone()[0])

    def recount(self, db: Database) -> list[str]:
        """What the kept counts have wrong, in words; counts everything, so it takes its time."""
        counted = db.execute("SELECT count(*), ifnull(sum(nbytes), 0) FROM objects").fetchone()
        kept = db.execute("SELECT objects, bytes FROM totals").fetchone()
        wrong = [] if counted == kept else [f"{counted[0]} objects are there, and {kept and kept[0]} were counted"]
        sql = "SELECT name FROM tags t WHERE n != (SELECT count(*) FROM object_tags o WHERE o.tag_id = t.id) LIMIT 5"
        return wrong + [f"the count of tag #{row[0]} is wrong" for row in db.execute(sql).fetchall()]

    # --- inside ---------------------------------------------------------------------------------------
    def _record(self, row: Sequence[Any]) -> Record:
        return record_of(row, self.peer_name, self.peer_id)

    def _whole_ones(self, rows: Sequence[Sequence[Any]]) -> list[Record]:
        """The records of all rows but those that are damaged, which must not hide the others."""
        records = []
        for row in rows:
            with suppress(Corrupt):
                records.append(self._record(row))
        return records

    def _locate(self, db: Database, uid: bytes, also: str = "name") -> tuple[int, list[str], Any] | None:
        """Row number, tags, and one more column of an object."""
        row = db.execute(f"SELECT id, tags, {also} FROM objects WHERE uid = ?", (uid,)).fetchone()
        return None if row is None else (row[0], tags_of(db, row[0], row[1]), row[2])

    def _require(self, db: Database, uid: bytes) -> tuple[int, list[str], Any]:
        located = self._locate(db, uid)
        if located is None:
            raise NotFound(f"there is no published object {uid.hex()} here", id=uid.hex())
        return located


# An equal blob that is written again brings its hashes again, which heals damaged ones.
_INSERT_BLOB: Final = (
    "INSERT INTO blobs (name, blocks) VALUES (?, ?)"
    " ON CONFLICT (name) DO UPDATE SET blocks = excluded.blocks WHERE blocks IS NOT excluded.blocks"
)
_PLACE: Final = "c.blob, c.inline, c.extra, ifnull(b.blocks, x''), c.content"
_OF_ONE: Final = (
    "FROM objects o JOIN contents c ON c.object_id = o.id LEFT JOIN blobs b ON b.name = c.blob WHERE o.uid = ?"
)
_CONTENTS: Final = f"SELECT {_PLACE} {_OF_ONE}"
_WHOLE: Final = f"{SELECT}, {_PLACE} {_OF_ONE}"
_INSERT: Final = (
    f"INSERT INTO objects ({WRITTEN}) VALUES ({', '.join('?' * (WRITTEN.count(',') + 1))}) ON CONFLICT (uid) DO NOTHING"
)


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
