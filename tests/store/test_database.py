"""The database's contract: one commit for many changes, each undone alone, and no doubt about what was done."""

import asyncio
import contextlib
import os
import sqlite3
import threading

import pytest

from peer.store.database import Database
from peer.store.fs import Fs
from peer.store.mark import Mark
from protocol import limits
from protocol.errors import BadRequest, Corrupt, DataFolderMismatch, StorageError, StorageFull


def make_table(db):
    db.execute("CREATE TABLE t(n INTEGER PRIMARY KEY)")


def insert(number):
    return lambda db: db.execute("INSERT INTO t VALUES (?)", (number,)).lastrowid


def numbers(db):
    return [number for (number,) in db.execute("SELECT n FROM t ORDER BY n")]


class Recording(sqlite3.Connection):
    """Notes its statements; raises at one of them when told to."""

    log: list[str]
    failures: dict[str, list[int]]  # statement → error codes of its next runs, 0 for none

    def execute(self, sql, *parameters):
        self.log.append(sql)
        for start, codes in self.failures.items():
            if sql.startswith(start) and codes and (code := codes.pop(0)):
                error = sqlite3.OperationalError("made by the test")
                error.sqlite_errorcode = code
                error.sqlite_errorname = "TEST"
                raise error
        return super().execute(sql, *parameters)


@pytest.fixture
def recording():
    return type("RecordingHere", (Recording,), {"log": [], "failures": {}})


@pytest.fixture
def with_database(tmp_path):
    """Run `body(database)` on a database with a table `t`."""

    @contextlib.asynccontextmanager
    async def opened(migrations=(make_table,), **options):
        folder = os.open(tmp_path, os.O_RDONLY)
        try:
            mark = Mark("mark", folder=folder, fs=Fs())
            database = await Database.open(tmp_path / "db.sqlite", migrations, mark=mark, **options)
            try:
                yield database
            finally:
                await database.close()
        finally:
            os.close(folder)

    def run_body(body, *args, **options):
        async def main():
            async with opened(*args, **options) as database:
                return await body(database)

        return asyncio.run(main())

    return run_body


@contextlib.asynccontextmanager
async def held(database):
    """The writer's thread is busy with a change until the block ends; what is written in it waits."""
    loop, begun, gate = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def change(db):
        loop.call_soon_threadsafe(begun.set)
        assert gate.wait(100)

    task = asyncio.ensure_future(database.write(change))
    await begun.wait()
    try:
        yield
    finally:
        gate.set()
    await task


# --- commits ----------------------------------------------------------------------------------------------
def test_a_change_is_seen_by_the_reading_connection_at_once(with_database):
    async def body(database):
        for number in range(20):
            assert await database.write(insert(number)) == number
            assert await database.read(numbers) == list(range(number + 1))

    with_database(body)


def test_changes_that_wait_together_share_one_commit(with_database, recording):
    async def body(database):
        async with held(database):
            recording.log.clear()
            waiting = [asyncio.ensure_future(database.write(insert(number))) for number in range(50)]
            await asyncio.sleep(0)
        assert await asyncio.gather(*waiting) == list(range(50))

    with_database(body, connection=recording)
    assert recording.log.count("COMMIT") == 2  # the one that held the thread, and theirs


def test_a_commit_is_shared_by_no_more_than_the_limit(with_database, recording, monkeypatch):
    monkeypatch.setattr(limits, "STORE_COMMIT_BATCH", 10)

    async def body(database):
        async with held(database):
            waiting = [asyncio.ensure_future(database.write(insert(number))) for number in range(50)]
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)
        assert recording.log.count("COMMIT") >= 6

    with_database(body, connection=recording)


def test_a_change_that_fails_is_undone_alone(with_database):
    def fails(number):
        def change(db):
            db.execute("INSERT INTO t VALUES (?)", (number,))
            raise BadRequest("no")

        return change

    async def body(database):
        async with held(database):
            waiting = [asyncio.ensure_future(database.write((insert, fails)[n % 2](n))) for n in range(20)]
            await asyncio.sleep(0)
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [isinstance(result, BadRequest) for result in results] == [False, True] * 10
        assert await database.read(numbers) == list(range(0, 20, 2))
        with pytest.raises(BadRequest):
            await database.write(fails(1))
        assert await database.read(numbers) == list(range(0, 20, 2))

    with_database(body)


@pytest.mark.parametrize(
    ("statement", "before"),
    [("BEGIN", 0), ("UPDATE counter", 1), ("COMMIT", 1), ("ROLLBACK", 0), ("SAVEPOINT", 0), ("RELEASE", 0)],
)
def test_a_shared_transaction_that_is_lost_is_done_one_by_one(with_database, recording, statement, before):
    async def body(database):
        async with held(database):
            # The change that holds the thread has yet to make `before` of these statements itself.
            recording.failures[statement] = [0] * before + [sqlite3.SQLITE_IOERR_WRITE]
            waiting = [asyncio.ensure_future(database.write(insert(number))) for number in range(9)]
            if not before:  # then each is tried by itself within the transaction, and undone if it fails
                waiting.append(asyncio.ensure_future(database.write(insert(0))))
            await asyncio.sleep(0)
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert results[:9] == list(range(9))
        assert all(isinstance(result, StorageError) for result in results[9:])
        assert await database.read(numbers) == list(range(9))
        assert recording.failures[statement] == []

    with_database(body, connection=recording)


def test_a_transaction_that_sqlite_gave_up_takes_nothing_of_the_others_with_it(with_database):
    def gives_up(db):
        db.execute("ROLLBACK")  # as SQLite does by itself on a full disk

    async def body(database):
        async with held(database):
            changes = [insert(1), gives_up, insert(2)]
            waiting = [asyncio.ensure_future(database.write(change)) for change in changes]
            await asyncio.sleep(0)
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert (results[0], results[2]) == (1, 2)
        assert isinstance(results[1], StorageError)
        assert await database.read(numbers) == [1, 2]

    with_database(body)


class Numbers:
    """A kind of change that inserts a number; notes how many came at once."""

    def __init__(self):
        self.at_once = []

    def one(self, db, number):
        self.at_once.append(1)
        db.execute("INSERT INTO t VALUES (?)", (number,))

    def all(self, db, numbers):
        self.at_once.append(len(numbers))
        db.executemany("INSERT INTO t VALUES (?)", [(number,) for number in numbers])


def test_changes_of_a_kind_that_wait_together_are_made_together(with_database):
    kind = Numbers()

    async def body(database):
        async with held(database):
            waiting = [asyncio.ensure_future(database.write_one(kind, number)) for number in range(10)]
            waiting.append(asyncio.ensure_future(database.write(insert(10))))
            waiting += [asyncio.ensure_future(database.write_one(kind, number)) for number in range(11, 14)]
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)
        assert await database.read(numbers) == list(range(14))

    with_database(body)
    assert kind.at_once == [10, 3]


def test_one_of_a_kind_that_fails_is_undone_alone(with_database):
    kind = Numbers()

    async def body(database):
        async with held(database):
            waiting = [asyncio.ensure_future(database.write_one(kind, number)) for number in (1, 2, 2, 3)]
            await asyncio.sleep(0)
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [isinstance(result, StorageError) for result in results] == [False, False, True, False]
        assert await database.read(numbers) == [1, 2, 3]

    with_database(body)
    assert kind.at_once == [4, 1, 1, 1, 1]


# --- errors -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_FULL, StorageFull),
        (sqlite3.SQLITE_IOERR_WRITE, StorageError),
        (sqlite3.SQLITE_CORRUPT, Corrupt),
        (sqlite3.SQLITE_BUSY, StorageError),
        (sqlite3.SQLITE_READONLY, StorageError),
    ],
)
@pytest.mark.parametrize("statement", ["BEGIN", "INSERT", "COMMIT"])
def test_sqlites_errors_come_in_our_words_and_undo_the_change(with_database, recording, code, kind, statement):
    async def body(database):
        recording.failures[statement] = [code]
        with pytest.raises(kind) as caught:
            await database.write(insert(1))
        assert type(caught.value) is kind
        assert await database.read(numbers) == []
        assert await database.write(insert(2)) == 2

    with_database(body, connection=recording)


def test_a_really_full_database_is_storage_full(with_database):
    async def body(database):
        await database.write(lambda db: db.execute("CREATE TABLE big(b BLOB)"))
        (pages,) = await database.read(lambda db: db.execute("PRAGMA page_count").fetchone())
        with pytest.raises(StorageFull, match="full"):
            await database.write(
                lambda db: (
                    db.execute(f"PRAGMA max_page_count={pages}").fetchone(),
                    db.execute("INSERT INTO big VALUES (zeroblob(100000))"),
                )
            )
        assert await database.write(insert(1)) == 1

    with_database(body)


def test_nothing_is_written_after_a_failed_sync(with_database, recording):
    async def body(database):
        await database.write(insert(1))
        recording.failures["COMMIT"] = [sqlite3.SQLITE_IOERR_FSYNC]
        for number in (2, 3):
            with pytest.raises(StorageError):
                await database.write(insert(number))
        with pytest.raises(StorageError, match="restart the peer"):
            await database.write(insert(4))
        assert await database.read(numbers) == [1]

    with_database(body, connection=recording)


def test_the_reading_connection_cannot_write(with_database):
    async def body(database):
        with pytest.raises(StorageError, match="readonly"):
            await database.read(insert(1))

    with_database(body)


# --- cancelling -------------------------------------------------------------------------------------------
def test_a_change_cancelled_before_its_turn_is_not_made(with_database):
    async def body(database):
        async with held(database):
            waiting = [asyncio.ensure_future(database.write(insert(number))) for number in range(3)]
            await asyncio.sleep(0)
            waiting[1].cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting[1]  # at once: the thread is still held
        await asyncio.gather(waiting[0], waiting[2])
        assert await database.read(numbers) == [0, 2]

    with_database(body)


def test_a_change_cancelled_in_its_turn_is_made_before_the_caller_hears_of_it(with_database):
    async def body(database):
        loop, begun, gate = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

        def change(db):
            loop.call_soon_threadsafe(begun.set)
            gate.wait(100)
            db.execute("INSERT INTO t VALUES (1)")

        task = asyncio.ensure_future(database.write(change))
        await begun.wait()
        task.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not task.done()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await database.read(numbers) == [1]

    with_database(body)


def test_closing_finishes_what_waits(with_database):
    async def body(database):
        waiting = [asyncio.ensure_future(database.write(insert(number))) for number in range(30)]
        await asyncio.sleep(0)
        await database.close()
        await asyncio.gather(*waiting)
        with pytest.raises(StorageError, match="closed"):
            await database.write(insert(99))
        with pytest.raises(StorageError, match="closed"):
            await database.read(numbers)

    async def look(database):
        return await database.read(numbers)

    with_database(body)
    assert with_database(look) == list(range(30))


# --- versions ---------------------------------------------------------------------------------------------
def test_each_migration_runs_once(with_database):
    ran = []

    def step(number):
        return lambda db: ran.append(number)

    async def nothing(database):
        pass

    with_database(nothing, [make_table, step(2)])
    with_database(nothing, [make_table, step(2)])
    with_database(nothing, [make_table, step(2), step(3)])
    assert ran == [2, 3]


def test_a_migration_that_fails_leaves_the_version_before_it(with_database):
    def half(db):
        db.execute("CREATE TABLE half(x)")
        raise BadRequest("no")

    async def nothing(database):
        pass

    async def tables(database):
        return await database.read(lambda db: [name for (name,) in db.execute("SELECT name FROM sqlite_master")])

    with_database(nothing)
    with pytest.raises(BadRequest):
        with_database(nothing, [make_table, half])
    assert "half" not in with_database(tables)


def test_a_newer_version_is_refused_by_both_numbers_and_left_alone(with_database, tmp_path):
    async def nothing(database):
        pass

    with_database(nothing, [make_table, lambda db: None])
    before = (tmp_path / "db.sqlite").read_bytes()
    with pytest.raises(DataFolderMismatch, match="has version 2, and this program knows up to 1"):
        with_database(nothing)
    assert (tmp_path / "db.sqlite").read_bytes() == before


def test_some_other_database_is_refused(with_database, tmp_path):
    other = sqlite3.connect(tmp_path / "db.sqlite")
    other.execute("CREATE TABLE theirs(x)")
    other.commit()
    other.close()

    async def nothing(database):
        pass

    with pytest.raises(Corrupt, match="not a store's database"):
        with_database(nothing)


def test_there_is_one_writing_connection_and_it_syncs_each_commit(with_database):
    async def body(database):
        settings = await database.write(
            lambda db: [
                db.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
            ]
        )
        assert settings == ["wal", 2, 5_000, 1]
        held = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
        assert sum(name.endswith("db.sqlite") for name in held) == 2  # one of them cannot write

    with_database(body)


def _is_open(fd):
    return os.path.lexists(f"/proc/self/fd/{fd}")
