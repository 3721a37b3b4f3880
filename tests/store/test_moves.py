"""The journal of moves: what one side noted is there after any end, and an object goes with its note or not at all."""

import asyncio
import random
import sqlite3
import time

import pytest

from peer.store.moves import Arrived, Offered, Unconfirmed
from protocol import limits
from protocol.errors import BadRequest, NotFound, StorageError

TOKEN, OTHER = b"t" * 32, b"u" * 32
ASKER, TARGET, SOURCE = "a" * 52, "b" * 52, "s" * 52
SOON = 2e9


def always(record):
    return True


async def offer(store, kit, nbytes=100, token=TOKEN):
    record = await kit.put(store, nbytes)
    await store.moves.offer(token, record["id"], ASKER, TARGET, SOON)
    return record["id"]


def test_offers_are_withdrawn_together_and_those_that_are_done_stay(run, kit):
    async def body(store, folder):
        done = await offer(store, kit)
        await store.moves.offer(OTHER, done, ASKER, TARGET, SOON)
        assert await store.moves.give_up(TOKEN, done, always)
        await store.moves.withdraw(TOKEN, OTHER)
        assert (await store.moves.find(TOKEN)).is_done and await store.moves.find(OTHER) is None

    run(body)


# --- at the source ----------------------------------------------------------------------------------------
def test_an_offer_is_there_after_a_restart_and_its_token_is_nowhere(run, kit, tmp_path):
    ids = []

    async def first(store, folder):
        ids.append(await offer(store, kit))
        assert await store.moves.find(OTHER) is None

    async def second(store, folder):
        assert await store.moves.find(TOKEN) == Offered(ids[0], ASKER, TARGET, SOON, is_done=False)

    run(first)
    run(second)
    for path in (tmp_path / "alice").iterdir():
        assert path.is_dir() or TOKEN not in path.read_bytes()


@pytest.mark.parametrize("nbytes", [100, limits.STORE_INLINE])
def test_giving_up_deletes_the_object_and_is_acknowledged_again_and_again(run, kit, nbytes):
    async def body(store, folder):
        uid = await offer(store, kit, nbytes)
        for _ in range(3):
            assert await store.moves.give_up(TOKEN, uid, always)
            assert (await store.moves.find(TOKEN)).is_done
            with pytest.raises(NotFound):
                await store.get(uid)
        assert await kit.check_consistent(store, folder) == set()

    run(body)


@pytest.mark.parametrize("nbytes", [100, limits.STORE_INLINE])
def test_an_object_that_was_changed_is_kept_and_the_offer_with_it(run, kit, nbytes):
    async def body(store, folder):
        uid = await offer(store, kit, nbytes)
        before = (await store.get(uid)).record
        await store.set_tags(uid, ["changed"])
        assert not await store.moves.give_up(TOKEN, uid, lambda record: record == before)
        assert not (await store.moves.find(TOKEN)).is_done
        assert await kit.check_consistent(store, folder) == {uid}
        await store.set_tags(uid, before["tags"])  # the target was told, and has dropped its copy
        assert not await store.moves.give_up(TOKEN, uid, lambda record: record == before)
        assert (await store.moves.find(TOKEN)).is_refused
        assert await kit.check_consistent(store, folder) == {uid}

    run(body)


def test_an_object_that_was_deleted_meanwhile_does_not_come_back_by_its_move(run, kit):
    async def body(store, folder):
        uid = await offer(store, kit)
        await store.delete(uid)
        assert not await store.moves.give_up(TOKEN, uid, lambda record: pytest.fail("there is none to look at"))
        assert not (await store.moves.find(TOKEN)).is_done

    run(body)


def test_what_has_the_id_after_the_object_was_given_up_stays(run, kit):
    async def body(store, folder):
        uid = await offer(store, kit)
        assert await store.moves.give_up(TOKEN, uid, always)
        await kit.put(store, 50, uid=uid)  # it came back by another move
        assert await store.moves.give_up(TOKEN, uid, always)
        assert await kit.check_consistent(store, folder) == {uid}

    run(body)


def test_a_token_that_was_not_offered_or_is_for_another_object_does_nothing(run, kit):
    async def body(store, folder):
        uid = await offer(store, kit)
        with pytest.raises(NotFound, match="ask for the move again"):
            await store.moves.give_up(OTHER, uid, always)
        with pytest.raises(BadRequest, match="another object"):
            await store.moves.give_up(TOKEN, b"x" * 16, always)
        for token in (b"", b"x" * (limits.MAX_TOKEN + 1), "text", None):
            with pytest.raises(BadRequest, match="ticket"):
                await store.moves.find(token)
        assert await kit.check_consistent(store, folder) == {uid}

    run(body)


def test_a_shared_blob_stays_when_one_of_its_objects_is_given_up(run, kit):
    async def body(store, folder):
        uid = await offer(store, kit, kit.LARGE)
        other = await kit.put(store, kit.LARGE, data=kit.content_of(uid, kit.LARGE))
        assert await store.moves.give_up(TOKEN, uid, always)
        assert await kit.bytes_of(store, await store.get(other["id"])) == kit.content_of(uid, kit.LARGE)
        assert len(kit.blobs_in(folder)) == 1

    run(body)


def test_offers_lapse_and_those_that_are_done_are_remembered_much_longer(run, kit):
    async def body(store, folder):
        await offer(store, kit)
        done = await offer(store, kit, token=OTHER)
        await store.moves.give_up(OTHER, done, always)
        assert await store.moves.sweep(SOON - 1) == 0 or (await store.moves.find(OTHER)) is None
        now = time.time()
        await store.moves.offer(TOKEN, b"x" * 16, ASKER, TARGET, now - 1)  # the same offer: only its time is set
        assert await store.moves.sweep() == 1
        assert await store.moves.find(TOKEN) is None

    run(body)


def test_what_is_done_is_kept_for_the_time_that_a_target_may_be_away(run, kit):
    async def body(store, folder):
        uid = await offer(store, kit)
        await store.moves.give_up(TOKEN, uid, always)
        now = time.time()
        assert await store.moves.sweep(now + limits.MOVE_KEPT - 60) == 0
        await store.moves.offer(TOKEN, uid, ASKER, TARGET, 0)  # does not shorten it
        assert await store.moves.sweep(now + 60) == 0
        assert await store.moves.sweep(now + limits.MOVE_KEPT + 60) == 1

    run(body)


def test_a_start_forgets_lapsed_offers(run, kit):
    async def first(store, folder):
        await store.moves.offer(TOKEN, b"x" * 16, ASKER, TARGET, time.time() - 1)
        await store.moves.offer(OTHER, b"x" * 16, ASKER, TARGET, SOON)
        assert await store.moves.find(TOKEN) is not None

    async def second(store, folder):
        assert await store.moves.find(TOKEN) is None
        assert await store.moves.find(OTHER) is not None

    run(first)
    run(second)


def test_an_offer_can_be_withdrawn_until_it_is_done(run, kit):
    async def body(store, folder):
        uid = await offer(store, kit)
        await store.moves.withdraw(TOKEN)
        assert await store.moves.find(TOKEN) is None
        await store.moves.offer(TOKEN, uid, ASKER, TARGET, SOON)
        await store.moves.give_up(TOKEN, uid, always)
        await store.moves.withdraw(TOKEN)
        assert (await store.moves.find(TOKEN)).is_done

    run(body)


# --- at the target ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("nbytes", [100, limits.STORE_INLINE])
def test_an_arrival_is_noted_until_it_is_confirmed_also_over_a_restart(run, kit, nbytes):
    records = []

    async def first(store, folder):
        record = kit.make_record(nbytes)
        data = kit.content_of(record["id"], nbytes)
        before = time.time()
        for _ in range(2):  # a repeated one is the same
            await store.publish(record, data, arrived=Arrived(TOKEN, SOURCE))
        (note,) = await store.moves.unconfirmed()
        assert note == Unconfirmed(TOKEN, SOURCE, record["id"], note.since, record["owner"])
        assert before <= note.since <= time.time()
        records.append(record)

    async def second(store, folder):
        assert [note.object for note in await store.moves.unconfirmed()] == [records[0]["id"]]
        for _ in range(2):
            await store.moves.confirmed(TOKEN)
        assert await store.moves.unconfirmed() == []
        assert await kit.check_consistent(store, folder) == {records[0]["id"]}

    run(first)
    run(second)


@pytest.mark.parametrize("nbytes", [100, limits.STORE_INLINE])
def test_the_copy_of_an_object_that_the_source_keeps_goes_with_its_note(run, kit, nbytes):
    async def body(store, folder):
        record = kit.make_record(nbytes)
        await store.publish(record, kit.content_of(record["id"], nbytes), arrived=Arrived(TOKEN, SOURCE))
        assert not await store.moves.drop(OTHER, record["id"])
        assert not await store.moves.drop(TOKEN, b"x" * 16)
        assert await store.moves.drop(TOKEN, record["id"])
        assert await store.moves.unconfirmed() == []
        assert await kit.check_consistent(store, folder) == set()
        assert not await store.moves.drop(TOKEN, record["id"])

    run(body)


def test_a_confirmed_copy_is_not_dropped(run, kit):
    async def body(store, folder):
        record = kit.make_record(100)
        await store.publish(record, kit.content_of(record["id"], 100), arrived=Arrived(TOKEN, SOURCE))
        await store.moves.confirmed(TOKEN)
        assert not await store.moves.drop(TOKEN, record["id"])
        assert await kit.check_consistent(store, folder) == {record["id"]}

    run(body)


# --- one transaction --------------------------------------------------------------------------------------
def test_object_and_note_come_and_go_together_or_not_at_all(run, kit):
    connection = kit.failing_commits(sqlite3.SQLITE_IOERR_WRITE)

    async def body(store, folder):
        uid = await offer(store, kit)
        record = kit.make_record(100)
        arrived = Arrived(OTHER, SOURCE)
        connection.is_armed = True
        with pytest.raises(StorageError):
            await store.moves.give_up(TOKEN, uid, always)
        with pytest.raises(StorageError):
            await store.publish(record, kit.content_of(record["id"], 100), arrived=arrived)
        connection.is_armed = False
        assert not (await store.moves.find(TOKEN)).is_done
        assert await store.moves.unconfirmed() == []
        assert await kit.check_consistent(store, folder) == {uid}

    run(body, connection=connection)


def test_a_cancelled_giving_up_is_whole_or_not_made(run_quick, kit):
    chance = random.Random(23)

    async def body(store, folder):
        ended = 0
        for number in range(200):
            token = number.to_bytes(32, "big")
            uid = await offer(store, kit, (200, 70_000)[number % 2], token)
            task = asyncio.ensure_future(store.moves.give_up(token, uid, always))
            asyncio.get_running_loop().call_later(chance.uniform(0, 0.002), task.cancel)
            try:
                ended += await task
            except asyncio.CancelledError:
                is_done = (await store.moves.find(token)).is_done
                assert is_done == (not (await store.by_prefix(uid.hex())))
        assert ended
        await kit.check_consistent(store, folder)

    run_quick(body)


# --- bounds -----------------------------------------------------------------------------------------------
def test_of_each_principal_so_many_are_remembered_the_newest(run, kit, monkeypatch):
    monkeypatch.setattr(limits, "MOVES_KEPT", 3)

    async def body(store, folder):
        async def end(number, asker, is_given_up):
            token = bytes([number]) * 32
            record = await kit.put(store)
            await store.moves.offer(token, record["id"], asker, TARGET, SOON)
            assert await store.moves.give_up(token, record["id"], lambda _: is_given_up) is is_given_up

        async def known(numbers):
            return [number for number in numbers if await store.moves.find(bytes([number]) * 32) is not None]

        await end(0, TARGET, True)
        for number in range(1, 7):
            await end(number, ASKER, True)
        for number in range(10, 16):
            await end(number, ASKER, False)
        for number in range(20, 26):  # a copy is of use for a shorter time than a move, and goes first
            await store.moves.offer(bytes([number]) * 32, b"x" * 16, ASKER, TARGET, SOON - number, is_move=number < 21)
        assert await known(range(256)) == [0, 4, 5, 6, 13, 14, 15, 20, 21, 22]

    run(body)


def test_a_copy_gives_nothing_up(run, kit):
    async def body(store, folder):
        record = await kit.put(store)
        await store.moves.offer(TOKEN, record["id"], ASKER, TARGET, SOON, is_move=False)
        with pytest.raises(BadRequest):
            await store.moves.give_up(TOKEN, record["id"], always)
        assert await store.get(record["id"])

    run(body)
