"""The SQLite file: one connection that writes, one that only reads, each in its thread.

Changes are functions over the connection, and those that wait together share one commit (group commit): at 64
writers that is 19 times the rate of one commit each, at the same durability (WAL, synchronous=FULL). There is
exactly one writing connection in the process, and only it checkpoints; SQLite before 3.51.3 can corrupt a WAL
that two connections reset at once.

aiosqlite runs each statement as one hop to its thread and offers no public call that runs a function there; its
`Connection._execute`, through which all its own calls go, does exactly that. It is used in one place, `_in_thread`.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import aiosqlite

from peer.store.commits import Change, Commits, Kind, compact, roll_back
from peer.store.mark import Mark
from peer.store.sqlite_errors import damaged, database_errors, is_damage, translated
from peer.store.waiting import undisturbed
from protocol import limits
from protocol.errors import DataFolderMismatch, StorageError

T = TypeVar("T")
Item = TypeVar("Item")
Migration = Callable[[sqlite3.Connection], object]
"""One step of the schema, run once in a transaction of its own; its number is its place in the list, from 1."""

_BUSY_MS: Final = 5_000  # some other program (a backup, the sqlite3 shell) may hold the file for a moment
_HEADER_BYTES: Final = 100
_MAGIC: Final = b"SQLite format 3\0"
_FOLD_PAGES: Final = 8_192  # of 4 KiB; the log is folded into the file when it has so many: a page is then in it often
_LOG_LIMIT: Final = 64 * limits.MIB  # a log that grew beyond this is cut when it starts again

_WRITER_SETTINGS: Final = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA fullfsync=ON",  # macOS: fsync there does not reach the drive
    "PRAGMA foreign_keys=ON",
    f"PRAGMA journal_size_limit={_LOG_LIMIT}",
    f"PRAGMA wal_autocheckpoint={_FOLD_PAGES}",
    "PRAGMA temp_store=MEMORY",
)
_SETTINGS: Final = (
    f"PRAGMA busy_timeout={_BUSY_MS}",
    "PRAGMA trusted_schema=OFF",
    "PRAGMA cell_size_check=ON",
)


class Database:
    """One open SQLite file. Made by `open`; `write` and `read` until `close`.

    No sqlite3 error leaves it: StorageFull, Corrupt or StorageError do.
    """

    def __init__(self, path: Path, mark: Mark, is_tight: Callable[[], bool]) -> None:
        self._path = path
        self._mark = mark
        self._is_tight = is_tight
        self._reader: aiosqlite.Connection | None = None
        self._writer: aiosqlite.Connection | None = None
        self._commits: Commits | None = None
        self._waiting: deque[Change[Any]] = deque()
        self._driver: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        path: Path,
        migrations: Sequence[Migration],
        *,
        mark: Mark,
        is_expected: bool = False,
        inspect: Migration = lambda db: None,
        is_tight: Callable[[], bool] = lambda: False,
        connection: type[sqlite3.Connection] = sqlite3.Connection,
    ) -> Database:
        """Open, check and migrate.

        Args:
            is_expected: other files of the folder say that there is a database.
            inspect: called with the reading connection before anything is written; raises to refuse.
            is_tight: asked before each commit, in the writer's thread: whether the disk is so full that the log has
                to be folded into the file now, while there is room for that.
            connection: the class of the writing connection, for tests.

        Raises:
            DataFolderMismatch: written by a newer version.
            Corrupt: missing though expected, damaged, or short of changes that were acknowledged. The files are
                left as they are.
            StorageError, StorageFull: the disk refused.
        """
        self = cls(path, mark, is_tight)
        try:
            await undisturbed(self._open(migrations, is_expected, inspect, connection))
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """Finish what waits, then fold the log into the file. May be called twice."""
        await undisturbed(self._close())

    async def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """The result of `change(db)`, once its transaction is on the disk.

        `change` runs in the database's thread inside BEGIN IMMEDIATE .. COMMIT, perhaps in the company of others; if
        it raises, what it did is undone, and only that. It must touch nothing but `db`: where a shared
        transaction is lost it is run again. A cancelled caller finds it either done whole or not at all: not
        begun yet it is dropped, else its end is awaited first.
        """
        return await self._wait_for(Change(change, asyncio.get_running_loop().create_future()))

    async def write_one(self, kind: Kind[Item], item: Item) -> None:
        """The same for `kind.one(db, item)`; what waits of the same kind together may be done by `kind.all`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._wait_for(Change(lambda db: kind.one(db, item), future, kind, item))

    async def _wait_for(self, waiting: Change[T]) -> T:
        if self._writer is None:
            raise StorageError("the store is closed")
        self._waiting.append(waiting)
        if self._driver is None:
            self._driver = asyncio.create_task(self._drive())
        try:
            return await waiting.future
        except asyncio.CancelledError:
            await self._give_up(waiting)
            raise

    async def read(self, look: Callable[[sqlite3.Connection], T]) -> T:
        """The result of `look(db)`, which runs on the reading connection and sees one state of the database."""
        if self._reader is None:
            raise StorageError("the store is closed")
        return await _in_thread(self._reader, lambda db: _in_one_state(db, look))

    @property
    def changes(self) -> int:
        """Commits since the database was made."""
        return 0 if self._commits is None else self._commits.count

    @property
    def is_broken(self) -> bool:
        """Whether a sync failed, so that nothing more is written."""
        return self._commits is not None and self._commits.is_broken

    async def compact(self) -> tuple[int, bool]:
        """Fold the log into the file, and write the file anew if that pays; bytes by which both became smaller.

        Changes wait meanwhile: 10 seconds or so for a gigabyte that is written anew.
        """
        if self._writer is None:
            raise StorageError("the store is closed")
        before = self._size()
        is_rewritten = await undisturbed(_in_thread(self._writer, compact))
        return before - self._size(), is_rewritten

    async def check(self, more: Callable[[sqlite3.Connection], Sequence[str]] = lambda db: ()) -> tuple[str, ...]:
        """What SQLite's integrity check, and then `more`, find wrong. On a connection of its own: nobody waits."""
        if self._reader is None:
            raise StorageError("the store is closed")
        with database_errors():
            db = sqlite3.connect(self._address(), uri=True, isolation_level=None, check_same_thread=False)
        try:
            return await undisturbed(asyncio.to_thread(_check, db, more), hurry=db.interrupt)
        finally:
            db.close()

    def _size(self) -> int:
        return sum(path.stat().st_size for path in (self._path, self._log) if path.exists())

    @property
    def _log(self) -> Path:
        return self._path.with_name(self._path.name + "-wal")

    def _address(self) -> str:
        return f"{self._path.absolute().as_uri()}?mode=ro"

    # --- opening and closing --------------------------------------------------------------------------------

    async def _open(
        self, migrations: Sequence[Migration], is_expected: bool, inspect: Migration, kind: type[sqlite3.Connection]
    ) -> None:
        exists = self._path.exists() and self._path.stat().st_size > 0
        if is_expected and not exists:
            raise damaged(f"{self._path.name} is missing or empty")
        if exists:
            # Looked at through a connection that cannot write: SQLite would else fold a damaged log into the
            # file when it closes, and take the last chance to save what is in it.
            await self._open_reader()
            if await self.read(lambda db: self._examine(db, len(migrations), is_expected)):
                await self.read(inspect)
        with database_errors():
            self._writer = await aiosqlite.connect(self._path, isolation_level=None, factory=kind)
        count = await _in_thread(self._writer, lambda db: _prepare(db, migrations))
        if self._reader is None:
            await self._open_reader()
        self._mark.open(count)
        self._commits = Commits(count, self._mark, self._is_tight)

    async def _open_reader(self) -> None:
        with database_errors():
            self._reader = await aiosqlite.connect(self._address(), uri=True, isolation_level=None)
        await _in_thread(self._reader, lambda db: _set(db, _SETTINGS))

    def _examine(self, db: sqlite3.Connection, newest: int, is_expected: bool) -> bool:
        """Whether there is anything in it yet; raises where it must not be used."""
        version = _version(db)
        if version > newest:
            raise DataFolderMismatch(
                f"the data folder {self._path.parent} has version {version}, and this program knows up to {newest}; "
                "run the newer program, or choose another folder with --data-dir",
                found=version,
                known=newest,
            )
        if version == 0:
            if is_expected or db.execute("SELECT 1 FROM sqlite_master").fetchone():
                raise damaged(f"{self._path.name} is not a store's database")
            return False
        if self._log.exists() and self._log.stat().st_size and is_shorter_than_it_says(self._path):
            # Not closed in order: the pages that the file lacks may be in the log, or lost; SQLite would meet that
            # only when it comes to need them. (Looking at all pages of a million objects takes seconds.)
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise damaged(str(verdict))
        (changes,) = db.execute("SELECT changes FROM counter").fetchone()
        acknowledged = self._mark.read()
        if acknowledged is not None and changes < acknowledged:
            raise damaged(f"it holds {changes} changes, and {acknowledged} were acknowledged")
        return True

    async def _close(self) -> None:
        while self._driver is not None:
            await asyncio.wait({self._driver})
        reader, self._reader = self._reader, None
        writer, self._writer = self._writer, None
        try:
            # The writer last: it then has the file to itself, and folds the log into it.
            for connection in (reader, writer):
                if connection is not None:
                    with database_errors():
                        await connection.close()
        finally:
            self._mark.close()

    # --- changes --------------------------------------------------------------------------------------------

    async def _give_up(self, change: Change[Any]) -> None:
        """Drop a change whose caller was cancelled, or wait for its end if its turn has come."""
        if change.is_settled:
            return
        with suppress(ValueError):
            self._waiting.remove(change)
            return
        # The cancellation took the future with it: another one says when the thread is done.
        change.future = asyncio.get_running_loop().create_future()
        with suppress(Exception):  # the caller's error is the cancellation
            await undisturbed(change.future)

    async def _drive(self) -> None:
        """Keep the writer's thread at work for as long as changes wait."""
        assert self._writer is not None and self._commits is not None
        loop = asyncio.get_running_loop()

        def settle(batch: Sequence[Change[Any]]) -> None:
            loop.call_soon_threadsafe(_settle, batch)

        try:
            while self._waiting:
                await _in_thread(self._writer, partial(self._commits.run, waiting=self._waiting, settle=settle))
        finally:
            self._driver = None


def is_shorter_than_it_says(path: Path) -> bool:
    """Whether a database file is shorter than its own header says, or has none.

    SQLite writes page 1, which holds the header, whenever the file grows, and before the pages that it grows by.
    Reference: https://www.sqlite.org/fileformat2.html, section 1.3.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
        size = os.fstat(file.fileno()).st_size
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        return True
    page_size = int.from_bytes(header[16:18], "big")
    pages = int.from_bytes(header[28:32], "big")
    return size < pages * (page_size if page_size > 1 else 65_536)


async def _in_thread(connection: aiosqlite.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    """`work(db)` in the connection's thread."""

    def in_thread() -> T:
        with database_errors():
            return work(connection._conn)

    result: T = await connection._execute(in_thread)  # type: ignore[no-untyped-call]
    return result


def _settle(batch: Sequence[Change[Any]]) -> None:
    for change in batch:
        change.settle()


def _prepare(db: sqlite3.Connection, migrations: Sequence[Migration]) -> int:
    """Settings and missing migrations; how many changes were ever committed."""
    _set(db, _SETTINGS + _WRITER_SETTINGS)
    for number, migrate in enumerate(migrations, 1):
        if number > _version(db):
            _migrate(db, number, migrate)
    return int(db.execute("SELECT changes FROM counter").fetchone()[0])


def _migrate(db: sqlite3.Connection, number: int, migrate: Migration) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        if number == 1:
            db.execute("CREATE TABLE counter(changes INTEGER NOT NULL) STRICT")
            db.execute("INSERT INTO counter VALUES (0)")
        migrate(db)
        db.execute(f"PRAGMA user_version={number}")
        db.execute("COMMIT")
    except BaseException:
        roll_back(db)
        raise


def _check(db: sqlite3.Connection, more: Callable[[sqlite3.Connection], Sequence[str]]) -> tuple[str, ...]:
    try:
        _set(db, _SETTINGS)
        found = [str(line) for (line,) in db.execute("PRAGMA integrity_check(20)")]
        return tuple(line for line in found if line != "ok") + tuple(more(db))
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            return (str(error),)
        raise translated(error) from error


def _in_one_state(db: sqlite3.Connection, look: Callable[[sqlite3.Connection], T]) -> T:
    db.execute("BEGIN")
    try:
        return look(db)
    finally:
        roll_back(db)


def _set(db: sqlite3.Connection, settings: Sequence[str]) -> None:
    # A text that rotted is no UTF-8 any more: its row is told as damaged (search/stored.py), and the others are read.
    db.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
    for setting in settings:
        db.execute(setting).fetchall()


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
