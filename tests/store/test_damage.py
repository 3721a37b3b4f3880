"""A damaged folder opens with all that was acknowledged, or is refused with a sentence; never less in silence."""

import asyncio
import os
import shutil

import pytest

from peer.store.store import Store
from protocol import limits
from protocol.errors import Corrupt, DataFolderMismatch, StorageError

POINTS = 50
DATABASE, LOG, SHARED, MARK = "objects.sqlite", "objects.sqlite-wal", "objects.sqlite-shm", "acknowledged"


async def fill(store, kit):
    """Objects whose rows take some hundred pages; their ids."""
    records = [await kit.put(store, 3_000) for _ in range(40)]
    records += [await kit.put(store, kit.LARGE) for _ in range(3)]
    await store.delete(records.pop()["id"])
    return {record["id"] for record in records}


@pytest.fixture
def run(run_quick):
    return run_quick


@pytest.fixture
def closed(run, kit, quick_path):
    """A folder that was closed in order, and the ids of its objects."""
    ids = run(lambda store, folder: fill(store, kit))
    return quick_path / "alice", ids


@pytest.fixture
def killed(run, kit, quick_path):
    """A folder as kill -9 leaves it: half of it folded into the database, half in the log."""

    async def body(store, folder):
        ids = await fill(store, kit)
        store._database._commits._is_tight = lambda: True  # which has the log folded
        await store.describe(min(ids), "")
        store._database._commits._is_tight = lambda: False
        ids |= await fill(store, kit)
        shutil.copytree(folder, quick_path / "killed")
        return ids

    ids = run(body)
    return quick_path / "killed", ids


def damaged_copies(folder, quick_path, name, points=POINTS):
    """Copies of the folder in which the file `name` ends at so many different points."""
    size = (folder / name).stat().st_size
    for number in range(points):
        copy = quick_path / f"cut-{number}"
        shutil.copytree(folder, copy)
        with (copy / name).open("r+b") as file:
            file.truncate(size * number // points)
        yield copy
        shutil.rmtree(copy)


def open_and_count(folder, kit):
    """The ids of the objects in it, all of which are whole; None if it is refused as damaged."""

    async def main():
        async with kit.opened(folder) as store:
            return await kit.check_consistent(store, folder)

    try:
        return asyncio.run(main())
    except Corrupt as error:
        assert "backup" in error.message
        return None


def test_a_killed_folder_opens_with_everything(killed, kit):
    folder, ids = killed
    assert open_and_count(folder, kit) == ids


@pytest.mark.parametrize("name", [DATABASE, LOG, SHARED])
def test_a_file_cut_short_after_a_kill_is_no_silent_loss(killed, kit, quick_path, name):
    folder, ids = killed
    results = [open_and_count(copy, kit) for copy in damaged_copies(folder, quick_path, name)]
    assert all(result in (ids, None) for result in results)
    if name == SHARED:
        assert all(result == ids for result in results)  # it is rebuilt from the log
    if name == LOG:
        assert all(result is None for result in results)  # what was in it is nowhere else


def test_a_database_cut_short_after_an_orderly_end_is_no_silent_loss(closed, kit, quick_path):
    folder, ids = closed
    results = [open_and_count(copy, kit) for copy in damaged_copies(folder, quick_path, DATABASE)]
    assert all(result is None for result in results)
    assert open_and_count(folder, kit) == ids


@pytest.mark.parametrize("missing", [[DATABASE], [DATABASE, LOG, SHARED], [LOG], [DATABASE, LOG, SHARED, MARK]])
def test_a_missing_file_is_no_silent_loss(killed, kit, missing):
    folder, _ = killed
    for name in missing:
        (folder / name).unlink()
    assert open_and_count(folder, kit) is None


def test_the_shared_memory_file_may_be_missing(killed, kit):
    folder, ids = killed
    (folder / SHARED).unlink()
    assert open_and_count(folder, kit) == ids


def test_a_log_damaged_in_the_middle_is_no_silent_loss(killed, kit, quick_path):
    folder, _ = killed
    size = (folder / LOG).stat().st_size
    for number in range(1, 20):
        copy = quick_path / "copy"
        shutil.copytree(folder, copy)
        with (copy / LOG).open("r+b") as file:
            file.seek(size * number // 20)
            file.write(b"\xff" * 64)
        assert open_and_count(copy, kit) is None
        shutil.rmtree(copy)


def test_a_refused_folder_is_left_as_it_was(killed, kit):
    folder, _ = killed
    with (folder / LOG).open("r+b") as file:
        file.truncate((folder / LOG).stat().st_size // 2)
    kept = [DATABASE, LOG, MARK, *(f"blobs/{name}" for name in kit.blobs_in(folder))]
    before = {name: (folder / name).read_bytes() for name in kept}
    assert open_and_count(folder, kit) is None
    assert {name: (folder / name).read_bytes() for name in kept} == before


def test_a_damaged_or_missing_mark_only_weakens_the_check(killed, kit):
    folder, ids = killed
    for content in (b"", b"x" * 16, b"x" * 40):
        (folder / MARK).write_bytes(content)
        assert open_and_count(folder, kit) == ids
    (folder / MARK).unlink()
    assert open_and_count(folder, kit) == ids


def test_something_else_in_the_databases_place_is_refused(closed, kit):
    folder, _ = closed
    (folder / DATABASE).write_bytes(b"not a database at all" * 1_000)
    assert open_and_count(folder, kit) is None


def test_a_flipped_bit_of_inline_contents_is_found(run, kit):
    async def body(store, folder):
        record = await kit.put(store, 1_000)
        other = await kit.put(store, 1_000)

        def flip(db):
            (data,) = db.execute("SELECT inline FROM contents WHERE object_id = 1").fetchone()
            db.execute("UPDATE contents SET inline = ? WHERE object_id = 1", (bytes([data[0] ^ 1]) + data[1:],))

        await store._database.write(flip)
        with pytest.raises(Corrupt, match=record["id"].hex()[:12]):
            await store.get(record["id"])
        assert await kit.is_whole(store, other["id"])
        assert await store.delete(record["id"])

    run(body)


@pytest.mark.parametrize("extra", [None, b"", b"\xc1", b"\x93\x01\x02\x03", b"\x96\x07\x00\xc4\x00\x90\x80\xc4\x00"])
def test_a_damaged_description_of_contents_is_found(run, kit, extra):
    async def body(store, folder):
        record = await kit.put(store, 0)
        await store._database.write(lambda db: db.execute("UPDATE contents SET extra = ?", (extra,)))
        with pytest.raises(Corrupt):
            await store.get(record["id"])

    run(body)


NOT_UTF8 = "CAST(x'5bff5d' AS TEXT)"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("tags", "'['"),
        ("tags", "'5'"),
        ("tags", NOT_UTF8),
        ("tags", "CAST(x'5b22ff225d' AS TEXT)"),
        ("labels", "'['"),
        ("shape", "'['"),
        ("description", NOT_UTF8),
        ("words", NOT_UTF8),
        ("name", "x'00'"),
    ],
)
def test_a_damaged_row_is_found_and_can_be_deleted(run, kit, column, value):
    async def body(store, folder):
        record, other = await kit.put(store, 100), await kit.put(store, 100)
        sql = f"UPDATE objects SET {column} = {value} WHERE uid = ?"
        await store._database.write(lambda db: db.execute(sql, (record["id"],)))
        if column == "words":  # only looked into, never given
            assert (await store.find("word")).records == []
            return
        with pytest.raises(Corrupt, match=record["id"].hex()[:12]):
            await store.get(record["id"])
        found = await store.find("#digits")
        assert [whole["id"] for whole in found.records] == [other["id"]] and found.damaged == 1
        assert await store.delete(record["id"])
        assert await kit.check_consistent(store, folder) == {other["id"]}
        assert (await store.verify_all()).is_whole

    run(body)


def test_damaged_rows_hide_no_others_and_go_with_them(run, kit, monkeypatch):
    monkeypatch.setattr("peer.store.store._CLEAR_BATCH", 2)

    async def body(store, folder):
        data = os.urandom(limits.BLOCK)
        whole, *damaged = [await kit.put(store, len(data), data=data) for _ in range(4)]
        for record in damaged:
            sql = "UPDATE objects SET labels = '5' WHERE uid = ?"
            await store._database.write(lambda db, sql=sql, uid=record["id"]: db.execute(sql, (uid,)))
        (blob,) = kit.blobs_in(folder)
        assert [record["id"] for record in await store.holders(blob)] == [whole["id"]]
        assert [record["id"] for record in await store.by_prefix(whole["id"].hex()[:8])] == [whole["id"]]
        with pytest.raises(Corrupt):
            await store.by_prefix(damaged[0]["id"].hex())
        assert len((await store.verify_all()).damaged) == 3
        assert await store.clear(kit.OWNER) == 4
        assert kit.blobs_in(folder) == []

    run(body)


def test_a_folder_of_a_newer_version_is_refused_by_both_numbers(closed, kit):
    folder, _ = closed

    async def raise_version(to):
        async with kit.opened(folder) as store:
            (old,) = await store._database.write(lambda db: db.execute("PRAGMA user_version").fetchone())
            await store._database.write(lambda db: db.execute(f"PRAGMA user_version={to or old}"))
            return old

    known = asyncio.run(raise_version(99))
    with pytest.raises(DataFolderMismatch, match=f"version 99, and this program knows up to {known}"):
        asyncio.run(Store.open(folder, kit.PEER))


def test_a_folder_that_cannot_be_a_folder_is_refused(quick_path, kit):
    (quick_path / "file").write_bytes(b"")
    for path in (quick_path / "file", quick_path / "file" / "below"):
        with pytest.raises(StorageError, match="the folder"):
            asyncio.run(Store.open(path, kit.PEER))
