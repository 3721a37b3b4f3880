"""One bit flipped in each of many blobs: every one is found by whoever reads there, and no such bit is given out."""

import random

import pytest

from protocol import limits
from protocol.errors import Corrupt

BLOBS, LARGE_ONES = 1_000, 30  # of these so many have several blocks


async def read_by_payload(store, stored, at, nbytes):
    payload = await store.payload(stored, span=(stored.start + at, nbytes), prefix=b"prefix")
    try:
        assert bytes(await payload.read(0, 6)) == b"prefix"
        return b"".join([bytes(await payload.read(6 + n, min(1 << 20, nbytes - n))) for n in range(0, nbytes, 1 << 20)])
    finally:
        payload.close()


async def read_at_once(store, stored, at, nbytes):
    return await store.read(stored, stored.start + at, nbytes)


def around(chance, at, end):
    """Some part of a payload of `end` bytes that has the byte `at`: the whole, the byte alone, or more than it."""
    low, high = chance.choice(((0, end), (at, at + 1), (chance.randrange(at + 1), chance.randrange(at, end) + 1)))
    return low, high - low


@pytest.mark.timeout(300)
def test_of_so_many_flipped_bits_each_is_found_and_none_is_served(run_quick, kit):
    chance = random.Random(5)

    async def body(store, folder):
        detected = whole_elsewhere = 0
        for number in range(BLOBS):
            nbytes = chance.randrange(2, 5) * limits.BLOCK + 99 if number < LARGE_ONES else kit.LARGE
            record = await kit.put(store, nbytes)
            stored = await store.get(record["id"])
            at = chance.randrange(nbytes)
            kit.flip(folder / "blobs" / stored.blob, stored.start + at, chance.randrange(8))
            read = chance.choice((read_by_payload, read_at_once))
            try:
                await read(store, stored, *around(chance, at, nbytes))
            except Corrupt as error:
                assert error.fields == {"blob": stored.blob, "block": at // limits.BLOCK}
                detected += 1
            if nbytes > limits.BLOCK:  # what is in other blocks is given out as it was stored
                low = 0 if at >= limits.BLOCK else limits.BLOCK
                data = await read(store, stored, low, limits.BLOCK)
                whole_elsewhere += data == kit.content_of(record["id"], nbytes)[low : low + limits.BLOCK]
        assert (detected, whole_elsewhere) == (BLOBS, LARGE_ONES)
        report = await store.verify_all()
        assert len(report.damaged) == report.objects == BLOBS

    run_quick(body)


def test_a_flipped_bit_of_a_files_header_is_found_by_checking_everything(run, kit):
    async def body(store, folder):
        record = await kit.put(store, kit.LARGE)
        stored = await store.get(record["id"])
        kit.flip(folder / "blobs" / stored.blob, 37, bit=4)
        assert await kit.is_whole(store, record["id"])  # our own reading does not use it
        assert [damage.id for damage in (await store.verify_all()).damaged] == [record["id"]]

    run(body)
