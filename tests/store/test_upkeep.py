"""Checking everything names each damaged object; sweeping takes rubbish alone, while everything goes on."""

import asyncio
import itertools
import os
import shutil
import sqlite3

import pytest

from peer.store.fs import Fs
from protocol import limits
from protocol.errors import Corrupt, StorageError
from tests.waiting import descriptors, until

DATABASE = "objects.sqlite"


async def blob_of(store, folder, record):
    return folder / "blobs" / (await store.get(record["id"])).blob


# --- checking ---------------------------------------------------------------------------------------------
def test_a_sound_store_is_whole_and_each_blob_is_read_once(run, kit):
    async def body(store, folder):
        data = os.urandom(kit.LARGE)
        for _ in range(3):
            await kit.put(store, kit.LARGE, data=data)
        for nbytes in (0, 100, 3 * limits.BLOCK):
            await kit.put(store, nbytes)
        seen = []
        report = await store.verify_all(lambda done, of: seen.append((done, of)))
        assert (report.is_whole, report.objects, report.blobs) == (True, 6, 2)
        assert report.bytes == 3 * kit.LARGE + 100 + 3 * limits.BLOCK
        assert seen[-1] == (report.bytes, report.bytes)
        assert seen == sorted(seen)
        assert max(after[0] - before[0] for before, after in itertools.pairwise(seen)) <= limits.BLOCK

    run(body)


def test_an_empty_store_is_whole(run):
    async def body(store, folder):
        report = await store.verify_all()
        assert (report.is_whole, report.objects, report.damaged, report.database) == (True, 0, (), ())

    run(body)


def test_every_kind_of_damage_is_listed_by_the_objects_it_hits(run, kit):
    async def body(store, folder):
        named = {}
        for what in ("rotten", "header", "missing", "cut", "inline", "row", "hashes", "good"):
            nbytes = 1_000 if what in ("inline", "row") else 2 * limits.BLOCK + 5
            named[what] = await kit.put(store, nbytes, name=what, tags=[what])
        twin_data = kit.content_of(named["rotten"]["id"], 2 * limits.BLOCK + 5)
        named["twin"] = await kit.put(store, len(twin_data), data=twin_data, name="twin")
        paths = {what: await blob_of(store, folder, named[what]) for what in ("rotten", "header", "missing", "cut")}
        hashes = (await store.get(named["hashes"]["id"])).blob
        kit.flip(paths["rotten"], limits.BLOCK + 700)
        kit.flip(paths["header"], 20)
        paths["missing"].unlink()
        paths["cut"].chmod(0o600)
        os.truncate(paths["cut"], 100)

        def damage(db):
            find = "(SELECT id FROM objects WHERE name = ?)"
            db.execute(f"UPDATE contents SET inline = zeroblob(1000) WHERE object_id = {find}", ("inline",))
            db.execute("UPDATE objects SET tags = '[' WHERE name = 'row'")
            db.execute("UPDATE blobs SET blocks = zeroblob(24) WHERE name = ?", (hashes,))

        await store._database.write(damage)
        report = await store.verify_all()
        assert report.objects == 9
        found = {damage.id: damage for damage in report.damaged}
        assert set(found) == {record["id"] for what, record in named.items() if what != "good"}
        for what, words in {
            "rotten": "damaged in 1 of 3 blocks (1)",
            "twin": "damaged in 1 of 3 blocks (1)",
            "header": "though its payload is",
            "missing": "is missing",
            "cut": "size",
            "inline": "not what was stored",
            "row": "the row of object",
            "hashes": "list of its block hashes is damaged",
        }.items():
            assert words in found[named[what]["id"]].what
            if what != "row":
                assert (found[named[what]["id"]].name, found[named[what]["id"]].tags) == (
                    what,
                    tuple(named[what]["tags"]),
                )

    run(body)


def test_a_damaged_database_page_is_reported_and_no_reason_to_stop(run, kit):
    async def body(store, folder):
        for _ in range(50):
            await kit.put(store, 1_000)
        await store._database.write(lambda db: db.execute("DELETE FROM object_tags WHERE object_id = 7"))
        await store._database.write(lambda db: db.execute("UPDATE totals SET objects = 3"))
        report = await store.verify_all()
        assert report.damaged == ()
        assert report.database == (
            "50 objects are there, and 3 were counted",
            "the count of tag #digits is wrong",
        )

    run(body)


def test_an_index_that_lost_an_entry_is_found(run, kit, tmp_path):
    async def fill(store, folder):
        for _ in range(50):
            await kit.put(store, 1_000)

    async def check(store, folder):
        return await store.verify_all()

    run(fill)
    path = tmp_path / "alice" / DATABASE
    with sqlite3.connect(path, isolation_level=None) as db:
        (root,) = db.execute(
            "SELECT rootpage FROM sqlite_master WHERE name LIKE 'sqlite_autoindex_objects%'"
        ).fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    db.close()
    with path.open("r+b") as file:  # one cell fewer in the index's page
        file.seek((root - 1) * size + 3)
        count = int.from_bytes(file.read(2), "big")
        file.seek((root - 1) * size + 3)
        file.write((count - 1).to_bytes(2, "big"))
    report = run(check)
    assert not report.is_whole
    assert any("index" in line for line in report.database)


def test_objects_that_go_while_they_are_checked_are_not_called_damaged(run, kit):
    async def body(store, folder):
        records = [await kit.put(store, (100, kit.LARGE)[number % 2]) for number in range(40)]
        check = asyncio.ensure_future(store.verify_all())
        for record in records:
            await store.delete(record["id"])
        report = await check
        assert report.is_whole
        assert report.objects <= 40

    run(body)


def test_a_cancelled_check_leaves_nothing(run, kit):
    async def body(store, folder):
        await kit.put(store, 8 * limits.BLOCK)
        before = descriptors()
        reached = asyncio.Event()
        loop = asyncio.get_running_loop()
        check = asyncio.ensure_future(store.verify_all(lambda done, of: loop.call_soon_threadsafe(reached.set)))
        await reached.wait()
        check.cancel()
        with pytest.raises(asyncio.CancelledError):
            await check
        await until(lambda: descriptors() <= before)

    run(body)


def test_verify_of_one_content(run, kit):
    async def body(store, folder):
        record = await kit.put(store, kit.LARGE)
        path = await blob_of(store, folder, record)
        await store.verify(path.name)
        kit.flip(path, 900)
        with pytest.raises(Corrupt, match="not what was stored"):
            await store.verify(path.name)

    run(body)


# --- sweeping ---------------------------------------------------------------------------------------------
def test_rubbish_is_swept_while_the_store_is_open_and_counted(run, kit):
    async def body(store, folder):
        record = await kit.put(store, kit.LARGE)
        for name in ("tmp-00", "0" * 64, "notes.txt"):
            (folder / "blobs" / name).write_bytes(b"x" * 1_000)
        report = await store.compact()
        assert (report.files, report.file_bytes, report.is_rewritten) == (2, 2_000, False)
        assert report.freed >= 2_000
        assert await kit.check_consistent(store, folder) == {record["id"]}
        assert (folder / "blobs" / "notes.txt").exists()
        assert (await store.compact()).files == 0

    run(body)


def test_what_the_start_swept_is_in_the_first_report(run, kit, tmp_path):
    async def fill(store, folder):
        await kit.put(store, kit.LARGE)

    async def compact(store, folder):
        return [await store.compact() for _ in range(2)]

    run(fill)
    (tmp_path / "alice" / "blobs" / "tmp-00").write_bytes(b"x" * 1_000)
    first, second = run(compact)
    assert (first.files, first.file_bytes, second.files) == (1, 1_000, 0)


def test_what_is_being_written_is_not_rubbish(run, kit):
    async def body(store, folder):
        writer = await store.writer(kit.uint8(kit.LARGE))
        uid = b"w" * 16
        await writer.write(kit.content_of(uid, kit.LARGE))
        assert (await store.compact()).files == 0
        await store.publish(kit.make_record(kit.LARGE, uid=uid), writer)
        assert await kit.check_consistent(store, folder) == {uid}
        assert store._blobs._live == set()

    run(body)


def test_sweeping_beside_puts_and_deletions_takes_nothing_that_is_needed(run_quick, kit):
    data = [os.urandom(kit.LARGE) for _ in range(3)]

    async def turn(store, number):
        for at in range(15):
            record = await kit.put(store, kit.LARGE, data=data[(number + at) % 3])
            assert await kit.bytes_of(store, await store.get(record["id"])) == data[(number + at) % 3]
            if at % 4:
                await store.delete(record["id"])

    async def body(store, folder):
        puts = asyncio.gather(*(turn(store, number) for number in range(8)))
        while not puts.done():
            await store.compact()
            await asyncio.sleep(0)
        await puts
        report = await store.verify_all()
        assert (report.is_whole, report.objects) == (True, 8 * 4)
        assert kit.temporaries_in(folder) == []

    run_quick(body)


def test_a_blob_that_could_not_be_unlinked_is_swept_later(run, kit):
    class Stubborn(Fs):
        is_armed = False

        def unlink(self, name, *, folder):
            if self.is_armed:
                raise OSError(5, "no")
            super().unlink(name, folder=folder)

    fs = Stubborn()

    async def body(store, folder):
        record = await kit.put(store, kit.LARGE)
        fs.is_armed = True
        assert await store.delete(record["id"])
        assert len(kit.blobs_in(folder)) == 1
        assert (await store.compact()).files == 0
        fs.is_armed = False
        report = await store.compact()
        assert (report.files, kit.blobs_in(folder)) == (1, [])
        assert report.file_bytes > kit.LARGE

    run(body, fs=fs)


def test_a_database_with_much_unused_space_is_written_anew(run, kit):
    async def body(store, folder):
        kept = await kit.put(store, 1_000)
        for _ in range(60):
            await kit.put(store, 60_000)
        await store.clear("nobody" + "x" * 46)
        for record in (await store.find("")).records:
            if record["id"] != kept["id"]:
                await store.delete(record["id"])
        before = (folder / DATABASE).stat().st_size + (folder / f"{DATABASE}-wal").stat().st_size
        report = await store.compact()
        after = (folder / DATABASE).stat().st_size + (folder / f"{DATABASE}-wal").stat().st_size
        assert report.is_rewritten
        assert report.database_bytes == before - after > 3_000_000
        assert (await store.verify_all()).is_whole
        again = await kit.put(store, 1_000)
        assert await kit.check_consistent(store, folder) == {kept["id"], again["id"]}
        assert not (await store.compact()).is_rewritten
        return kept["id"], again["id"]

    ids = run(body)
    assert run(kit.check_consistent) == set(ids)


def test_nothing_is_swept_after_the_disk_has_failed(run, kit):
    connection = kit.failing_commits(sqlite3.SQLITE_IOERR_FSYNC)

    async def body(store, folder):
        connection.is_armed = True
        with pytest.raises(StorageError):
            await kit.put(store, kit.LARGE)
        with pytest.raises(StorageError, match="restart the peer first"):
            await store.compact()
        assert len(kit.blobs_in(folder)) == 1  # its row may come back

    run(body, connection=connection)


def test_a_copy_of_the_folder_can_be_checked_and_swept_by_itself(run, kit, tmp_path):
    async def fill(store, folder):
        return await kit.put(store, kit.LARGE)

    async def look(folder):
        async with kit.opened(folder) as store:
            return (await store.verify_all()).objects, (await store.compact()).freed

    run(fill)
    shutil.copytree(tmp_path / "alice", tmp_path / "copy")
    objects, freed = asyncio.run(look(tmp_path / "copy"))
    assert (objects, freed >= 0) == (1, True)
