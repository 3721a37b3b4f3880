"""Publishing what is here already by the name of its contents: never a row without its blob, nor another's bytes."""

import asyncio
import os
import random

import pytest
from blake3 import blake3

from peer.store.contents import Contents
from peer.store.moves import Arrived
from protocol import limits
from protocol.errors import AlreadyExists, BadRequest
from protocol.tensors import TensorHeader


async def content_at(store, record):
    return (await store.get(record["id"])).content


def test_equal_contents_are_published_without_their_bytes(run, kit):
    data = os.urandom(limits.BLOCK + kit.LARGE)

    async def body(store, folder):
        first = await kit.put(store, len(data), data=data)
        second = kit.make_record(len(data), tags=["other"])
        assert await store.publish_held(second, await content_at(store, first))
        assert len(kit.blobs_in(folder)) == 1
        assert [record["id"] for record in await store.holders(kit.blobs_in(folder)[0])] == [first["id"], second["id"]]
        await store.delete(first["id"])
        stored = await store.get(second["id"])
        assert await kit.bytes_of(store, stored) == data
        assert (await store.verify_all()).is_whole
        await store.delete(second["id"])
        assert kit.blobs_in(folder) == []

    run(body)


def test_what_is_not_here_is_said_to_be_absent_and_leaves_nothing(run, kit):
    async def body(store, folder):
        small = await kit.put(store, 1_000)
        record = kit.make_record(kit.LARGE)
        assert not await store.publish_held(record, "0" * 64)
        assert not await store.publish_held(kit.make_record(1_000), await content_at(store, small))  # inline: no blob
        gone = await kit.put(store, kit.LARGE)
        content = await content_at(store, gone)
        await store.delete(gone["id"])
        assert not await store.publish_held(record, content)
        assert await kit.check_consistent(store, folder) == {small["id"]}

    run(body)


def test_the_content_of_inline_objects_is_that_of_their_file(run, kit):
    async def body(store, folder):
        record = await kit.put(store, 100)
        stored = await store.get(record["id"])
        file = stored.contents.file_header() + kit.content_of(record["id"], 100)
        assert (stored.content, stored.blob, stored.blocks) == (blake3(file).hexdigest(), None, b"")

    run(body)


def test_a_damaged_blob_is_as_if_it_were_not_here_and_healed_by_the_bytes(run, kit):
    data = os.urandom(3 * limits.BLOCK)

    async def body(store, folder):
        first = await kit.put(store, len(data), data=data)
        content = await content_at(store, first)
        kit.flip(folder / "blobs" / content, limits.BLOCK + 500)
        second = kit.make_record(len(data))
        assert not await store.publish_held(second, content)
        await store.publish(second, data)
        assert await store.publish_held(kit.make_record(len(data)), content)
        for record in (first, second):
            assert await kit.bytes_of(store, await store.get(record["id"])) == data

    run(body)


def test_the_same_bytes_under_another_header_are_other_contents(run, kit):
    async def body(store, folder):
        first = await kit.put(store, kit.LARGE - kit.LARGE % 4)
        content = await content_at(store, first)
        other = kit.make_record(first["nbytes"], dtype="int32", shape=[first["nbytes"] // 4])
        assert not await store.publish_held(other, content)
        with pytest.raises(BadRequest):
            await store.publish_held(other | {"nbytes": 4}, content)
        with pytest.raises(BadRequest, match="64 lowercase"):
            await store.publish_held(other, "../x")
        with pytest.raises(AlreadyExists):
            await store.publish_held(first | {"description": "another"}, content)
        assert await store.publish_held(first, content)  # a repeated request
        assert await kit.check_consistent(store, folder) == {first["id"]}

    run(body)


def test_models_of_the_same_tensors_and_other_programs_have_other_names(run, kit):
    tensors = (("w", TensorHeader("float32", (kit.LARGE,))),)
    data = os.urandom(4 * kit.LARGE)

    async def body(store, folder):
        one, same, other = [kit.make_record(len(data), kind="model", dtype=None, shape=None) for _ in range(3)]
        first, second = [Contents(tensors, {"class": "Net"}, program) for program in (b"first", b"second")]
        await store.publish(one, data, first)
        content = await content_at(store, one)
        assert await store.publish_held(same, content, first)
        assert not await store.publish_held(other, content, second)
        await store.publish(other, data, second)
        assert await content_at(store, other) != content
        for record, program in ((same, b"first"), (other, b"second")):
            assert (await store.get(record["id"])).extra == program
            assert await kit.bytes_of(store, await store.get(record["id"])) == data

    run(body)


def test_an_arrival_is_noted_with_it_and_not_without_it(run, kit):
    async def body(store, folder):
        first = await kit.put(store, kit.LARGE)
        content = await content_at(store, first)
        record = kit.make_record(kit.LARGE)
        assert not await store.publish_held(record, "0" * 64, arrived=Arrived(b"no", "s" * 52))
        assert await store.publish_held(record, content, arrived=Arrived(b"yes", "s" * 52))
        assert [(note.token, note.object) for note in await store.moves.unconfirmed()] == [(b"yes", record["id"])]

    run(body)


def test_a_blob_that_changes_between_the_check_and_the_row_is_not_taken(run, kit):
    async def body(store, folder):
        first = await kit.put(store, kit.LARGE)
        content = await content_at(store, first)
        measure = store._publishing.measure_held

        async def then_rot(*arguments):
            held = await measure(*arguments)
            kit.flip(folder / "blobs" / content, 500)
            return held

        store._publishing.measure_held = then_rot
        assert not await store.publish_held(kit.make_record(kit.LARGE), content)
        assert len((await store.find("")).records) == 1

    run(body)


def test_held_and_deleted_at_once_never_lose_a_file(run, kit):
    chance = random.Random(1)
    data = os.urandom(kit.LARGE)

    async def turn(store, content):
        for _ in range(15):
            record = kit.make_record(kit.LARGE)
            if not await store.publish_held(record, content):
                await store.publish(record, data)
            await asyncio.sleep(0)
            assert await kit.bytes_of(store, await store.get(record["id"])) == data
            if chance.random() < 0.9:
                await store.delete(record["id"])

    async def body(store, folder):
        content = await content_at(store, await kit.put(store, kit.LARGE, data=data))
        await asyncio.gather(*(turn(store, content) for _ in range(6)))
        for record in (await store.find("")).records:
            assert await kit.bytes_of(store, await store.get(record["id"])) == data
            await store.delete(record["id"])
        assert kit.blobs_in(folder) == []

    run(body)
