"""Every call cancelled at random moments: what it does is done whole or not at all, and nothing stays behind."""

import asyncio
import os
import random

import pytest

from peer.store.contents import Contents
from peer.store.store import Store
from protocol.errors import AlreadyExists, NotFound
from tests.waiting import PATIENCE, descriptors, until

ROUNDS = int(os.environ.get("PEERGRID_CANCELS", "500"))  # the full trial is 10000
pytestmark = pytest.mark.timeout(300 + ROUNDS // 5)


async def cancelled_somewhere(work, chance, most):
    """Run `work`, and cancel it after a while, perhaps twice; whether it ended by itself."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for _ in range(chance.choice((1, 1, 2))):
        loop.call_later(chance.uniform(0, most), task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return False
    return True


async def check_nothing_left(store, kit, folder):
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:  # the database's driver hears last that there is nothing left to do
        _, hanging = await asyncio.wait(others, timeout=PATIENCE)
        assert not hanging
    assert not store._writers
    assert not store._removal.names._locks
    await kit.check_consistent(store, folder)


@pytest.mark.parametrize("nbytes", [200, 70_000], ids=["inline", "blob"])
def test_a_cancelled_put_is_whole_or_absent(run_quick, kit, nbytes):
    chance = random.Random(nbytes)

    async def body(store, folder):
        before = descriptors()
        ended, most = 0, 0.004
        for number in range(1, ROUNDS + 1):
            record = kit.make_record(nbytes)
            data = kit.content_of(record["id"], nbytes)
            done = await cancelled_somewhere(store.publish(record, data), chance, most)
            ended += done
            if ended < number // 8:  # a slow machine: more time, so that some of them end
                most *= 1.1
            try:
                assert await kit.is_whole(store, record["id"])
            except NotFound:
                assert not done
        assert 0 < ended < ROUNDS
        await check_nothing_left(store, kit, folder)
        await until(lambda: descriptors() <= before, descriptors)  # a thread that was reading closes it

    run_quick(body)


def test_cancelled_chunks_leave_no_file(run_quick, kit):
    chance = random.Random(3)
    chunk = bytes(100_000)

    async def send(store, record):
        writer = await store.writer(kit.uint8(record["nbytes"]))
        try:
            for _ in range(30):
                await writer.write(chunk)
        except BaseException:
            await writer.abort()
            raise
        await store.publish(record, writer)

    async def body(store, folder):
        before = descriptors()
        for _ in range(80):
            record = kit.make_record(3_000_000)
            done = await cancelled_somewhere(send(store, record), chance, 0.02)
            try:
                stored = await store.get(record["id"])
            except NotFound:
                assert not done
            else:
                await store.verify(stored.blob)
                await store.delete(record["id"])
        await check_nothing_left(store, kit, folder)
        await until(lambda: descriptors() <= before, descriptors)  # a thread that was reading closes it

    run_quick(body)


def test_a_cancelled_delete_is_whole_or_not_made(run_quick, kit):
    chance = random.Random(5)

    async def body(store, folder):
        for number in range(ROUNDS // 2):
            record = await kit.put(store, (200, 70_000)[number % 2])
            done = await cancelled_somewhere(store.delete(record["id"]), chance, 0.003)
            try:
                assert await kit.is_whole(store, record["id"])
                assert not done
            except NotFound:
                continue
        await check_nothing_left(store, kit, folder)

    run_quick(body)


def test_many_at_once_cancelled_with_equal_contents_leave_only_whole_objects(run_quick, kit):
    chance = random.Random(9)
    data = bytes(range(256)) * 300

    async def one(store):
        record = kit.make_record(len(data))
        await cancelled_somewhere(store.publish(record, data), chance, 0.03)
        if chance.random() < 0.5:
            await cancelled_somewhere(store.delete(record["id"]), chance, 0.03)

    async def body(store, folder):
        for _ in range(20):
            await asyncio.gather(*(one(store) for _ in range(12)))
        for record in (await store.find("")).records:
            assert await kit.bytes_of(store, await store.get(record["id"])) == data
        assert len(kit.blobs_in(folder)) <= 1
        assert kit.temporaries_in(folder) == []

    run_quick(body)


def test_cancelled_edits_are_made_whole_or_not_at_all(run_quick, kit):
    chance = random.Random(11)

    async def body(store, folder):
        uid = (await kit.put(store, tags=["before", "first"]))["id"]
        for number in range(ROUNDS // 2):
            tags = [f"a{number}", f"b{number}"]
            done = await cancelled_somewhere(store.set_tags(uid, tags), chance, 0.002)
            now = (await store.get(uid)).record["tags"]
            assert (now == tags) if done else (now == tags or not set(now) & set(tags))
            assert [r["id"] for r in (await store.find(f"#{now[0]} #{now[1]}")).records] == [uid]

    run_quick(body)


def test_a_cancelled_reading_leaves_no_descriptor(run_quick, kit):
    chance = random.Random(13)

    async def read(store, stored):
        payload = await store.payload(stored)
        try:
            await payload.read(0, payload.nbytes)
        finally:
            payload.close()

    async def body(store, folder):
        stored = await store.get((await kit.put(store, 500_000))["id"])
        before = descriptors()
        for _ in range(ROUNDS // 2):
            await cancelled_somewhere(read(store, stored), chance, 0.001)
        await until(lambda: descriptors() <= before, descriptors)  # a thread that was reading closes it

    run_quick(body)


def test_a_cancelled_opening_lets_the_folder_go(quick_path, kit):
    chance = random.Random(17)

    async def open_and_close():
        store = await Store.open(quick_path / "alice", kit.PEER)
        await store.close()

    async def main():
        before = descriptors()
        for _ in range(60):
            await cancelled_somewhere(open_and_close(), chance, 0.03)
        await open_and_close()
        await until(lambda: descriptors() <= before, descriptors)  # a thread that was reading closes it

    asyncio.run(main())


def test_a_cancelled_put_can_be_repeated(run_quick, kit):
    chance = random.Random(19)

    async def body(store, folder):
        for number in range(100):
            nbytes = (200, 70_000)[number % 2]
            record = kit.make_record(nbytes)
            data = kit.content_of(record["id"], nbytes)
            most = 0.004
            while not await cancelled_somewhere(store.publish(record, data), chance, most):
                most *= 1.1
            with pytest.raises(AlreadyExists):
                await store.publish(record | {"description": "another"}, data, Contents.one(kit.header(nbytes)))
        await check_nothing_left(store, kit, folder)

    run_quick(body)
