"""The store's contract: what was acknowledged is there, once, whole, and only while it is wanted."""

import asyncio
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors

from peer.store.contents import Contents
from peer.store.store import Store
from protocol import limits
from protocol.errors import (
    AlreadyExists,
    BadRequest,
    BadTag,
    BadTensor,
    DataFolderInUse,
    DataFolderMismatch,
    NotFound,
    StorageError,
    TooLarge,
)
from protocol.tensors import TensorHeader
from tests.waiting import descriptors, until

ROOT = Path(__file__).parents[2]


# --- there and back ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("nbytes", [0, 1, limits.STORE_INLINE - 1, limits.STORE_INLINE, 3_000_001])
def test_what_was_published_is_read_back(run, kit, nbytes):
    async def body(store, folder):
        record = await kit.put(store, nbytes)
        stored = await store.get(record["id"])
        assert await kit.bytes_of(store, stored) == kit.content_of(record["id"], nbytes)
        assert (stored.blob is None) == (nbytes < limits.STORE_INLINE)
        assert {name: stored.record[name] for name in record} == record
        assert (stored.record["peer"], stored.record["peer_id"]) == ("alice", kit.PEER)

    run(body)


@pytest.mark.parametrize("nbytes", [100, 200_000])
def test_what_was_published_is_there_after_a_restart(run, kit, nbytes):
    uids = []

    async def first(store, folder):
        uids.append((await kit.put(store, nbytes))["id"])

    async def second(store, folder):
        assert await kit.is_whole(store, uids[0])
        assert await kit.check_consistent(store, folder) == set(uids)

    run(first)
    run(second)


@pytest.mark.parametrize("nbytes", [1_000, 300_000])
def test_a_model_keeps_its_tensors_metadata_and_program(run, kit, nbytes):
    tensors = (("w", TensorHeader("float32", (nbytes // 4,))), ("b", TensorHeader("int64", (3,))))
    contents = Contents(tensors, {"class": "Net"}, b"the program")
    data = os.urandom(contents.nbytes)

    async def body(store, folder):
        record = kit.make_record(contents.nbytes, kind="model", dtype=None, shape=None)
        await store.publish(record, data, contents)
        stored = await store.get(record["id"])
        assert stored.contents == contents
        assert (stored.extra, stored.metadata) == (b"the program", {"class": "Net"})
        assert await kit.bytes_of(store, stored) == data
        place = stored.tensors["b"]
        span = await store.payload(stored, span=(place.offset, place.nbytes), prefix=b"first")
        assert span.nbytes == 29
        assert bytes(await span.read(0, 29)) == b"first" + data[-24:]
        assert bytes(await span.read(3, 4)) == b"st" + data[-24:-22]
        assert bytes(await span.read(10, 5)) == data[-19:-14]
        span.close()
        async with store.reading(stored) as source:
            assert os.pread(source, 24, place.offset) == data[-24:]

    run(body)


@pytest.mark.parametrize("nbytes", [1_000, 300_000])
@pytest.mark.parametrize("piece", [7_000, 64_000, 1 << 20])
def test_a_payload_is_read_in_pieces_in_order_or_not(run, kit, nbytes, piece):
    async def body(store, folder):
        record = await kit.put(store, nbytes)
        whole = b"head" + kit.content_of(record["id"], nbytes)
        payload = await store.payload(await store.get(record["id"]), prefix=b"head")
        spans = [(at, min(piece, payload.nbytes - at)) for at in range(0, payload.nbytes, piece)]
        for offset, size in spans + spans[::-1] + [(2, 5), (0, 4), (0, 0)]:
            assert bytes(await payload.read(offset, size)) == whole[offset : offset + size]
        payload.close()

    run(body)


def test_a_payload_closed_while_a_piece_is_read_ahead_leaves_no_descriptor(run, kit):
    async def body(store, folder):
        stored = await store.get((await kit.put(store, 3_000_000))["id"])
        before = descriptors()
        for _ in range(20):
            payload = await store.payload(stored)
            await payload.read(0, 1 << 20)
            payload.close()
        await (await store.payload(stored)).read(0, 0)
        await until(lambda: descriptors() <= before + 1)  # the pieces under way end

    run(body)


def test_a_worker_gets_one_small_tensor_as_bytes_and_a_large_one_as_a_read_only_file(run, kit):
    async def body(store, folder):
        small, large = await kit.put(store, 100), await kit.put(store, kit.LARGE)
        async with store.reading(await store.get(small["id"])) as source:
            assert source == kit.content_of(small["id"], 100)
        stored = await store.get(large["id"])
        async with store.reading(stored) as source:
            place = stored.tensors["data"]
            assert os.pread(source, place.nbytes, place.offset) == kit.content_of(large["id"], kit.LARGE)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.pwrite(source, b"x", 0)

    run(body)


def test_a_plan_without_tensors_is_stored(run, kit):
    async def body(store, folder):
        record = kit.make_record(0, kind="plan", dtype=None, shape=None)
        await store.publish(record, b"", Contents(extra=b"program"))
        assert (await store.get(record["id"])).extra == b"program"

    run(body)


def test_a_blob_is_a_safetensors_file_under_the_hash_of_its_bytes(run, kit):
    async def body(store, folder):
        record = await kit.put(store, kit.LARGE)
        blob = (await store.get(record["id"])).blob
        with safetensors.safe_open(folder / "blobs" / blob, framework="np") as file:
            assert file.get_tensor("data").tobytes() == kit.content_of(record["id"], kit.LARGE)

    run(body)


def test_the_chunk_may_be_reused_once_it_was_taken(run, kit):
    async def body(store, folder):
        chunk = bytearray(50_000)
        writer = await store.writer(kit.uint8(500_000))
        for number in range(10):
            chunk[:] = bytes([number]) * len(chunk)
            await writer.write(memoryview(chunk))
        record = kit.make_record(500_000)
        await store.publish(record, writer)
        stored = await store.get(record["id"])
        assert await kit.bytes_of(store, stored) == b"".join(bytes([number]) * 50_000 for number in range(10))

    run(body)


def test_a_large_object_is_written_and_checked_in_little_memory(tmp_path):
    script = f"""
import asyncio, json, resource
from peer.store.contents import Contents
from peer.store.store import Store
from protocol.tensors import TensorHeader

async def main():
    store = await Store.open({str(tmp_path / "alice")!r}, "p" * 52)
    nbytes, chunk = 192 << 20, bytes(1 << 20)
    record = dict(id=bytes(16), kind="tensor", owner="o" * 52, tags=[], description="", dtype="uint8",
        shape=[nbytes], nbytes=nbytes, private=False, labels=[], created=0.0, published=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    writer = await store.writer(Contents.one(TensorHeader("uint8", (nbytes,))))
    for _ in range(192):
        await writer.write(bytearray(chunk))
    await store.publish(record, writer)
    await store.verify((await store.get(bytes(16))).blob)
    await store.close()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

asyncio.run(main())
"""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=200
    )
    assert int(result.stdout) < 40 << 10  # KiB


# --- refusals ---------------------------------------------------------------------------------------------
def test_the_same_object_once_more_is_acknowledged_once_more(run, kit):
    async def body(store, folder):
        for nbytes in (100, kit.LARGE):
            record = await kit.put(store, nbytes)
            data = kit.content_of(record["id"], nbytes)
            await store.publish(record | {"created": 1.0}, data)
            assert (await store.get(record["id"])).record["created"] == record["created"]
        assert len(await kit.check_consistent(store, folder)) == 2

    run(body)


@pytest.mark.parametrize("nbytes", [100, limits.STORE_INLINE])
def test_another_object_under_an_id_in_use_is_refused_and_leaves_nothing(run, kit, nbytes):
    async def body(store, folder):
        record = await kit.put(store, nbytes)
        with pytest.raises(AlreadyExists):
            await store.publish(record, bytes(nbytes))
        with pytest.raises(AlreadyExists):
            await kit.put(store, nbytes, uid=record["id"], description="another")
        assert await kit.check_consistent(store, folder) == {record["id"]}

    run(body)


def test_objects_put_at_once_are_each_what_they_would_be_alone(run, kit):
    async def body(store, folder):
        there = await kit.put(store, 100, tags=["digits", "old"])
        records = [
            kit.make_record((100, kit.LARGE)[number % 5 == 0], tags=["digits", f"t{number % 3}"][: number % 4])
            for number in range(60)
        ]
        puts = [store.publish(record, kit.content_of(record["id"], record["nbytes"])) for record in records]
        clash = kit.make_record(100, uid=there["id"], description="another")
        twice = kit.make_record(70)
        puts += [store.publish(clash, bytes(100))]
        puts += [store.publish(twice, kit.content_of(twice["id"], 70)) for _ in range(2)]
        results = await asyncio.gather(*puts, return_exceptions=True)
        assert [type(result) for result in results if result is not None] == [AlreadyExists]
        everything = [there, twice, *records]
        assert await kit.check_consistent(store, folder) == {record["id"] for record in everything}
        for tag in ("digits", "old", "t0", "t1", "t2"):
            found = {record["id"] for record in (await store.find(f"#{tag}")).records}
            assert found == {record["id"] for record in everything if tag in record["tags"]}
        assert (await store.verify_all()).is_whole  # the counts too

    run(body)


@pytest.mark.parametrize("change", [{"dtype": "int8"}, {"shape": [8]}, {"nbytes": 1}, {"dtype": None}])
def test_a_record_that_does_not_describe_the_contents_is_refused(run, kit, change):
    async def body(store, folder):
        record = kit.make_record(kit.LARGE) | change
        with pytest.raises(BadRequest):
            await store.publish(record, bytes(kit.LARGE), kit.uint8(kit.LARGE))
        assert await kit.check_consistent(store, folder) == set()

    run(body)


@pytest.mark.parametrize("nbytes", [100, limits.STORE_INLINE])
def test_too_few_or_too_many_bytes_are_refused_and_leave_nothing(run, kit, nbytes):
    async def body(store, folder):
        writer = await store.writer(kit.uint8(nbytes))
        await writer.write(bytes(nbytes - 1))
        with pytest.raises(BadTensor, match="came"):
            await store.publish(kit.make_record(nbytes), writer)
        writer = await store.writer(kit.uint8(nbytes))
        with pytest.raises(BadTensor, match="more than"):
            await writer.write(bytes(nbytes + 1))
        await writer.abort()
        assert await kit.check_consistent(store, folder) == set()

    run(body)


def test_a_spent_writer_takes_nothing_more(run, kit):
    async def body(store, folder):
        for nbytes in (100, kit.LARGE):
            writer = await store.writer(kit.uint8(nbytes))
            await writer.write(bytes(nbytes))
            await store.publish(kit.make_record(nbytes), writer)
            with pytest.raises(StorageError, match="begin again"):
                await writer.write(b"")
            with pytest.raises(StorageError, match="begin again"):
                await store.publish(kit.make_record(nbytes), writer)

    run(body)


def test_a_program_without_its_contents_is_refused(run, kit):
    async def body(store, folder):
        with pytest.raises(BadRequest, match="give the contents"):
            await store.publish(kit.make_record(0, kind="plan", dtype=None, shape=None), b"")

    run(body)


# --- changes ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("nbytes", [100, limits.STORE_INLINE])
def test_a_deleted_object_is_gone_with_its_file(run, kit, nbytes):
    async def body(store, folder):
        record = await kit.put(store, nbytes)
        assert await store.delete(record["id"])
        assert not await store.delete(record["id"])
        with pytest.raises(NotFound, match=record["id"].hex()):
            await store.get(record["id"])
        assert await kit.check_consistent(store, folder) == set()

    run(body)


def test_an_open_blob_outlives_its_object(run, kit):
    async def body(store, folder):
        record = await kit.put(store, kit.LARGE)
        stored = await store.get(record["id"])
        with await store.blob(stored) as file:
            await store.delete(record["id"])
            data = await file.read(stored.start, kit.LARGE)
        assert data == kit.content_of(record["id"], kit.LARGE)
        with pytest.raises(NotFound, match="deleted"):
            await store.blob(stored)

    run(body)


def test_equal_contents_share_one_file_until_the_last_is_deleted(run, kit):
    async def body(store, folder):
        data = os.urandom(kit.LARGE)
        first, second = [await kit.put(store, kit.LARGE, data=data) for _ in range(2)]
        assert len(kit.blobs_in(folder)) == 1
        await store.delete(first["id"])
        assert await kit.bytes_of(store, await store.get(second["id"])) == data
        await store.delete(second["id"])
        assert kit.blobs_in(folder) == []

    run(body)


def test_equal_contents_put_and_deleted_at_once_never_lose_their_file(run, kit):
    data = os.urandom(kit.LARGE)

    async def turn(store, rounds):
        for _ in range(rounds):
            record = await kit.put(store, kit.LARGE, data=data)
            assert await kit.bytes_of(store, await store.get(record["id"])) == data
            await store.delete(record["id"])

    async def body(store, folder):
        await asyncio.gather(*(turn(store, 12) for _ in range(6)))
        assert kit.blobs_in(folder) == []

    run(body)


def test_tags_and_descriptions_change_what_is_found(run, kit):
    async def body(store, folder):
        uid = (await kit.put(store, 100))["id"]
        assert await store.set_tags(uid, ["#a", "b"]) == ("a", "b")
        assert await store.retag(uid, ["c"], ["a"]) == ("b", "c")
        await store.describe(uid, "hand-written")
        (record,) = (await store.find("#b #c hand-written")).records
        assert (record["id"], record["tags"]) == (uid, ["b", "c"])
        assert (await store.find("#digits")).records == []
        assert [r["id"] for r in await store.by_prefix(uid.hex()[:8])] == [uid]
        with pytest.raises(BadTag):
            await store.set_tags(uid, ["no blanks"])
        with pytest.raises(TooLarge):
            await store.retag(uid, [f"t{n}" for n in range(limits.MAX_TAGS)])
        for change in (store.set_tags(b"x" * 16, []), store.retag(b"x" * 16), store.describe(b"x" * 16, "")):
            with pytest.raises(NotFound):
                await change
        assert (await store.get(uid)).record["tags"] == ["b", "c"]

    run(body)


def test_clear_deletes_one_owners_objects_alone(run, kit):
    async def body(store, folder):
        for nbytes in (10, kit.LARGE, 20):
            await kit.put(store, nbytes)
        other = await kit.put(store, kit.LARGE, owner="q" * 52)
        assert await store.clear(kit.OWNER) == 3
        assert await kit.check_consistent(store, folder) == {other["id"]}
        assert await store.clear(kit.OWNER) == 0

    run(body)


def test_statistics_count_what_is_there(run, kit):
    async def body(store, folder):
        await kit.put(store, 100, tags=["a", "b"])
        await kit.put(store, kit.LARGE, tags=["b"])
        found = await store.statistics()
        assert (found.objects, found.bytes, found.tags, found.missing) == (2, 100 + kit.LARGE, 2, 0)
        assert found.changes >= 2

    run(body)


# --- the folder -------------------------------------------------------------------------------------------
def test_the_folder_and_all_in_it_are_its_users_alone(run, kit):
    async def body(store, folder):
        await kit.put(store, kit.LARGE)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "blobs").stat().st_mode) == 0o700
        (blob,) = (folder / "blobs").iterdir()
        assert stat.S_IMODE(blob.stat().st_mode) == 0o400

    run(body)


def test_a_folder_in_use_is_refused_with_the_process_that_has_it(run, kit):
    async def body(store, folder):
        with pytest.raises(DataFolderInUse, match=str(os.getpid())) as caught:
            await Store.open(folder, kit.PEER)
        assert caught.value.fields["pid"] == os.getpid()

    run(body)


def test_the_folder_of_another_peer_is_refused_and_left_alone(run, kit, tmp_path):
    async def body(store, folder):
        await kit.put(store)

    run(body)
    with pytest.raises(DataFolderMismatch, match="belongs to peer pppp"):
        asyncio.run(Store.open(tmp_path / "alice", "q" * 52))
    run(kit.check_consistent)


def test_a_closed_store_says_so(run, kit):
    async def body(store, folder):
        record = await kit.put(store, kit.LARGE)
        blob = (await store.get(record["id"])).blob
        await store.close()
        await store.close()
        for call in (
            store.get(record["id"]),
            store.delete(record["id"]),
            store.writer(kit.uint8(1)),
            store.set_tags(record["id"], []),
            store.blob(blob),
            kit.put(store),
        ):
            with pytest.raises(StorageError, match="closed"):
                await call

    run(body)


def test_closing_aborts_what_is_being_written(run, kit):
    async def body(store, folder):
        writer = await store.writer(kit.uint8(kit.LARGE))
        await writer.write(bytes(1_000))
        await store.close()
        assert kit.temporaries_in(folder) == []
        with pytest.raises(StorageError):
            await writer.write(bytes(1_000))

    run(body)


def test_closing_waits_for_what_is_being_published(run, kit):
    async def body(store, folder):
        records = [kit.make_record(kit.LARGE) for _ in range(8)]
        puts = [asyncio.ensure_future(store.publish(r, kit.content_of(r["id"], kit.LARGE))) for r in records]
        while not any(put.done() for put in puts):
            await asyncio.wait(puts, return_when=asyncio.FIRST_COMPLETED)
        await store.close()
        results = await asyncio.gather(*puts, return_exceptions=True)
        assert all(result is None or isinstance(result, StorageError) for result in results)
        return {record["id"] for record, result in zip(records, results, strict=True) if result is None}

    acknowledged = run(body)
    assert acknowledged <= run(kit.check_consistent)


def test_a_start_sweeps_what_has_no_row_and_leaves_strange_files(run, kit, tmp_path, caplog):
    async def body(store, folder):
        await kit.put(store, kit.LARGE)

    run(body)
    blobs = tmp_path / "alice" / "blobs"
    for name in ("tmp-00", "0" * 64, "notes.txt"):
        (blobs / name).write_bytes(b"x")
    run(kit.check_consistent)
    assert (blobs / "notes.txt").exists()
    assert "notes.txt" in caplog.text


def test_a_start_reports_objects_that_lost_their_file(run, kit, tmp_path, caplog):
    async def body(store, folder):
        await kit.put(store, kit.LARGE)

    async def count(store, folder):
        return (await store.statistics()).missing

    run(body)
    (blob,) = (tmp_path / "alice" / "blobs").iterdir()
    blob.unlink()
    assert run(count) == 1
    assert blob.name[:12] in caplog.text


def test_the_store_does_not_import_torch():
    script = "import sys, json, peer.store.store, peer.folders; print(json.dumps('torch' in sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) is False
