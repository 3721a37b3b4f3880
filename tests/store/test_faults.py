"""The disk fails at the n-th call, for n = 1, 2, 3 ... until nothing fails: no acknowledgement without the object."""

import asyncio
import errno
import itertools
import os
import shutil
import sqlite3
import subprocess

import pytest

from peer.store.fs import Fs
from peer.store.store import Store
from protocol import limits
from protocol.errors import GridError, NotFound, StorageError, StorageFull

CALLS = ("open", "close", "allocate", "free", "write", "pwrite", "fsync", "rename", "unlink")


class Failing(Fs):
    """Fails at call number `at`, and at all later ones if `forever`: with an error number, or by a short write."""

    def __init__(self, at, failure, forever=False):
        self.at = at
        self.failure = failure
        self.forever = forever
        self.count = 0
        self.has_failed = False

    def is_due(self):
        self.count += 1
        due = self.count == self.at or (self.forever and self.count > self.at)
        self.has_failed |= due
        return due


def failing_call(name):
    original = getattr(Fs, name)

    def call(self, *arguments, **options):
        if not self.is_due():
            return original(self, *arguments, **options)
        if self.failure == "short":
            if name != "write":
                return original(self, *arguments, **options)
            return original(self, arguments[0], arguments[1][: max(1, len(arguments[1]) // 3)])
        if name == "close":
            original(self, *arguments)  # Linux lets go of the descriptor whatever close says
        raise OSError(self.failure, os.strerror(self.failure))

    return call


for _name in CALLS:
    setattr(Failing, _name, failing_call(_name))


def failing_connection(at, code, after):
    """A writing connection whose statement number `at` fails, having had its effect or not."""

    class Connection(sqlite3.Connection):
        count = 0

        def execute(self, sql, *parameters):
            type(self).count += 1
            if type(self).count != at:
                return super().execute(sql, *parameters)
            if after:
                super().execute(sql, *parameters)
            error = sqlite3.OperationalError("made by the test")
            error.sqlite_errorcode, error.sqlite_errorname = code, "TEST"
            raise error

    return Connection


async def work(store, kit, acknowledged, deleted):
    """Puts of both sizes, a shared file, a deletion, changed tags; notes what was acknowledged."""
    ids, shared = kit.ids(), bytes(kit.LARGE)
    for nbytes, data in ((100, None), (kit.LARGE, shared), (kit.LARGE, shared), (400_000, None)):
        uid = next(ids)
        try:
            await kit.put(store, nbytes, uid=uid, data=data)
            acknowledged[uid] = kit.content_of(uid, nbytes) if data is None else data
        except StorageError:
            continue
    for uid in list(acknowledged)[::2]:
        try:
            deleted.add(uid)
            await store.delete(uid)
            await store.set_tags(list(acknowledged)[-1], ["changed"])
        except (StorageError, NotFound):
            continue


async def check(folder, kit, acknowledged, deleted):
    """On a sound disk all is as it was promised."""
    async with kit.opened(folder) as store:
        for uid, data in acknowledged.items():
            try:
                stored = await store.get(uid)
            except NotFound:
                assert uid in deleted
                continue
            assert await kit.bytes_of(store, stored) == data
        for record in (await store.find("")).records:
            stored = await store.get(record["id"])
            assert (await kit.bytes_of(store, stored)) is not None  # a row never lacks its contents
        assert kit.temporaries_in(folder) == []


async def attempt(folder, kit, **options):
    """One run of the work on a failing disk, and the check of what came of it on a sound one. The ids acknowledged:
    asyncio says a result in words when it ends, which of all their bytes would take long."""
    acknowledged, deleted = {}, set()
    try:
        store = await Store.open(folder, kit.PEER, **options)
    except GridError as error:
        assert isinstance(error, StorageError)
    else:
        try:
            await work(store, kit, acknowledged, deleted)
        finally:
            try:
                await store.close()
            except StorageError:
                pass
    await check(folder, kit, acknowledged, deleted)
    return set(acknowledged)


@pytest.mark.parametrize(
    ("failure", "forever"),
    [
        (errno.EIO, False),
        (errno.EIO, True),
        (errno.ENOSPC, False),
        (errno.ENOSPC, True),
        (errno.EINTR, False),
        ("short", False),
    ],
)
def test_a_failing_file_call_never_costs_an_acknowledged_object(quick_path, kit, failure, forever):
    before = len(os.listdir("/proc/self/fd"))
    for at in itertools.count(1):
        fs = Failing(at, failure, forever)
        folder = quick_path / str(at)
        acknowledged = asyncio.run(attempt(folder, kit, fs=fs))
        shutil.rmtree(folder)
        if not fs.has_failed:
            break
    assert len(acknowledged) == 4  # the last run had no failure
    assert at > 30
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize(
    ("code", "after", "start"),
    [
        (sqlite3.SQLITE_FULL, False, 1),
        (sqlite3.SQLITE_IOERR_WRITE, False, 2),
        (sqlite3.SQLITE_IOERR_FSYNC, False, 3),
        (sqlite3.SQLITE_IOERR_FSYNC, True, 1),
        (sqlite3.SQLITE_IOERR_WRITE, True, 2),
    ],
)
def test_a_failing_statement_never_costs_an_acknowledged_object(quick_path, kit, code, after, start):
    for at in itertools.count(start, 3):  # each statement fails in at least one of the cases
        connection = failing_connection(at, code, after)
        folder = quick_path / str(at)
        acknowledged = asyncio.run(attempt(folder, kit, connection=connection))
        shutil.rmtree(folder)
        if connection.count < at:
            break
    assert len(acknowledged) == 4
    assert at > 60


def test_a_full_disk_is_told_before_a_byte_is_taken(run, kit):
    class Full(Fs):
        written = 0

        def allocate(self, fd, nbytes):
            if nbytes > 1_000_000:
                raise OSError(errno.ENOSPC, "full")
            super().allocate(fd, nbytes)

    async def body(store, folder):
        with pytest.raises(StorageFull, match="delete objects"):
            await store.writer(kit.uint8(2_000_000))
        assert await kit.check_consistent(store, folder) == set()
        await kit.put(store, kit.LARGE)

    run(body, fs=Full())


@pytest.mark.parametrize("nbytes", [1_000, 100_000], ids=["inline", "blob"])
def test_a_put_leaves_the_room_that_deleting_takes(run, kit, nbytes):
    class Tight(Fs):
        left = 1 << 40

        def free(self, fd):
            return self.left

    fs = Tight()

    async def body(store, folder):
        record = await kit.put(store, nbytes)
        fs.left = limits.STORE_RESERVE
        with pytest.raises(StorageFull):
            await kit.put(store, nbytes)
        assert await store.delete(record["id"])
        assert await kit.check_consistent(store, folder) == set()

    run(body, fs=fs)


def test_a_file_system_that_cannot_reserve_is_used_all_the_same(run, kit):
    class Plain(Fs):
        def allocate(self, fd, nbytes):
            raise OSError(errno.EOPNOTSUPP, "no")

    async def body(store, folder):
        record = await kit.put(store, kit.LARGE)
        assert await kit.is_whole(store, record["id"])

    run(body, fs=Plain())


def test_a_failed_sync_is_not_tried_again(run, kit):
    class Deaf(Fs):
        syncs = 0

        def fsync(self, fd):
            super().fsync(fd)
            self.syncs += 1
            if self.is_armed:
                raise OSError(errno.EIO, "gone")

        is_armed = False

    fs = Deaf()

    async def body(store, folder):
        fs.is_armed, fs.syncs = True, 0
        with pytest.raises(StorageError):
            await kit.put(store, kit.LARGE)
        assert fs.syncs == 1
        fs.is_armed = False
        assert await kit.check_consistent(store, folder) == set()

    run(body, fs=fs)


def test_after_an_unclear_commit_the_blob_stays_until_the_next_start(run, kit):
    connection = kit.failing_commits(sqlite3.SQLITE_IOERR_FSYNC)

    async def body(store, folder):
        connection.is_armed = True
        with pytest.raises(StorageError):
            await kit.put(store, kit.LARGE)
        # The next start may find the row in the log that could not be synced: it must not lack its file.
        assert len(kit.blobs_in(folder)) == 1

    run(body, connection=connection)
    assert run(kit.check_consistent) == set()


def test_a_blob_is_synced_then_named_then_its_name_is_synced_then_its_row(run, kit):
    log = []

    class Noting(Fs):
        def fsync(self, fd):
            log.append(f"sync {os.path.basename(os.readlink(f'/proc/self/fd/{fd}'))[:4]}")
            super().fsync(fd)

        def rename(self, source, target, *, folder):
            log.append(f"rename {source[:4]}")
            super().rename(source, target, folder=folder)

        def unlink(self, name, *, folder):
            log.append("unlink")
            super().unlink(name, folder=folder)

    class Connection(sqlite3.Connection):
        def execute(self, sql, *parameters):
            cursor = super().execute(sql, *parameters)
            if sql == "COMMIT":
                log.append("committed")
            return cursor

    async def body(store, folder):
        log.clear()
        record = await kit.put(store, kit.LARGE)
        assert log == ["sync tmp-", "rename tmp-", "sync blob", "committed"]
        log.clear()
        await store.delete(record["id"])
        assert log == ["committed", "unlink"]

    run(body, fs=Noting(), connection=Connection)


# --- a disk that is really full ---------------------------------------------------------------------------
@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    at = tmp_path / "small"
    at.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", at], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("NOT TESTED: a full disk needs the right to mount a small tmpfs")
    yield at
    subprocess.run(["umount", at], check=True)


@pytest.mark.parametrize("nbytes", [10_000, 100_000], ids=["inline", "blobs"])
def test_a_full_disk_keeps_what_it_has_and_lets_it_be_deleted(small_disk, kit, nbytes):
    folder = small_disk / "alice"

    async def fill(store):
        ids = []
        with pytest.raises(StorageFull):
            while True:
                ids.append((await kit.put(store, nbytes))["id"])
        with pytest.raises(StorageFull):
            while True:
                ids.append((await kit.put(store, 1))["id"])
        return ids

    async def main():
        async with kit.opened(folder) as store:
            ids = await fill(store)
            assert len(ids) > 5
        async with kit.opened(folder) as store:  # a full disk is no reason not to start
            found = {record["id"] for record in (await store.find("")).records}
            assert found == set(ids)
            for uid in ids:
                assert (await store.get(uid)).record["nbytes"] in (1, nbytes)
            for uid in ids:
                assert await store.delete(uid)
            again = await kit.put(store, nbytes)
            assert await kit.is_whole(store, again["id"])
            assert await kit.check_consistent(store, folder) == {again["id"]}

    asyncio.run(main())


@pytest.mark.parametrize("restart", [False, True])
def test_a_disk_that_others_filled_to_the_last_byte_still_deletes(small_disk, kit, restart):
    folder = small_disk / "alice"

    def fill_up():
        with (small_disk / "theirs").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4_096))

    async def delete_all(store, ids):
        for uid in ids:
            assert await store.delete(uid)
        assert await kit.check_consistent(store, folder) == set()

    async def main():
        async with kit.opened(folder) as store:
            ids = [(await kit.put(store, 100_000))["id"] for _ in range(6)]
            if not restart:
                fill_up()
                await delete_all(store, ids)
        if restart:
            fill_up()
            async with kit.opened(folder) as store:
                await delete_all(store, ids)

    asyncio.run(main())


def test_the_reserve_is_there_again_after_it_was_needed(small_disk, kit):
    folder = small_disk / "alice"

    async def main():
        async with kit.opened(folder) as store:
            ids = []
            with pytest.raises(StorageFull):
                while True:
                    ids.append((await kit.put(store, 100_000))["id"])
            for uid in ids:
                await store.delete(uid)
            assert (folder / "reserve").stat().st_size == limits.STORE_RESERVE

    asyncio.run(main())
