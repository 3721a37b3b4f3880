"""Blob files: rot is found before a byte of its block is served, and no name leads out of the folder."""

import asyncio
import os
import random
import threading

import pytest

from peer.store.blob_file import Layout
from peer.store.blobs import Blobs
from peer.store.fs import Fs
from protocol import limits
from protocol.errors import BadRequest, Corrupt, StorageError
from tests.waiting import descriptors, until

NOWHERE = Layout(0, 0, b"")


class Recording(Fs):
    """Notes every name that is opened, and every folder it is opened in."""

    def __init__(self):
        self.opened = []

    def open(self, name, flags, mode=0o600, *, folder):
        self.opened.append(name)
        assert flags & os.O_NOFOLLOW
        return super().open(name, flags, mode, folder=folder)


@pytest.fixture
def with_blobs(tmp_path, kit):
    """Run `body(blobs, folder)` over an empty folder of blobs."""

    def run_body(body, fs=None):
        async def main():
            blobs = Blobs.at(tmp_path / "blobs", fs or Fs())
            try:
                return await body(blobs, tmp_path / "blobs")
            finally:
                blobs.close()

        return asyncio.run(main())

    return run_body


async def place(blobs, kit, data):
    """A blob with `data` in it: its name, and how it lies."""
    writer = blobs.writer(kit.uint8(len(data)))
    await writer.begin()
    await writer.write(data)
    name, blocks = await writer.seal()
    await writer.place()
    await writer.abort()
    return name, Layout(writer.start, len(data), blocks)


async def read(blobs, name, layout, at=0, nbytes=None):
    with await blobs.open(name, layout) as file:
        return await file.read(layout.start + at, layout.nbytes - at if nbytes is None else nbytes)


# --- rot --------------------------------------------------------------------------------------------------
def test_every_part_of_a_blob_reads_as_it_was_written(with_blobs, kit):
    chance = random.Random(3)
    data = chance.randbytes(2 * limits.BLOCK + 12_345)

    async def body(blobs, folder):
        name, layout = await place(blobs, kit, data)
        with await blobs.open(name, layout) as file:
            for _ in range(60):
                at, end = sorted(chance.choices(range(len(data) + 1), k=2))
                assert await file.read(layout.start + at, end - at) == data[at:end]
            for at in range(0, len(data) - 100_000, 300_000):  # in order, without regard to the blocks
                assert await file.read(layout.start + at, 100_000) == data[at : at + 100_000]

    with_blobs(body)


def test_a_reading_of_another_block_is_not_held_up_by_a_rotten_one(with_blobs, kit):
    data = bytes(3 * limits.BLOCK)

    async def body(blobs, folder):
        name, layout = await place(blobs, kit, data)
        kit.flip(folder / name, layout.start + limits.BLOCK + 5)
        assert await read(blobs, name, layout, 0, limits.BLOCK) == bytes(limits.BLOCK)
        assert await read(blobs, name, layout, 2 * limits.BLOCK, 100) == bytes(100)
        for at, nbytes in ((limits.BLOCK - 1, 2), (2 * limits.BLOCK - 1, 1), (0, len(data))):
            with pytest.raises(Corrupt, match="block 1; take the object from another holder") as caught:
                await read(blobs, name, layout, at, nbytes)
            assert caught.value.fields == {"blob": name, "block": 1}

    with_blobs(body)


def test_rot_is_found_after_the_block_was_read_already(with_blobs, kit):
    async def body(blobs, folder):
        name, layout = await place(blobs, kit, bytes(5_000))
        with await blobs.open(name, layout) as file:
            assert await file.read(layout.start, 5_000) == bytes(5_000)
            kit.flip(folder / name, 3_750)
            for _ in range(2):
                with pytest.raises(Corrupt, match=name[:12]):
                    await file.read(layout.start, 5_000)

    with_blobs(body)


def test_a_blob_cut_short_or_grown_is_not_opened(with_blobs, kit):
    async def body(blobs, folder):
        for size in (0, 10, 4_999, 6_000):
            name, layout = await place(blobs, kit, bytes(5_000))
            (folder / name).chmod(0o600)
            os.truncate(folder / name, size)
            with pytest.raises(Corrupt, match="size"):
                await blobs.open(name, layout)

    with_blobs(body)


def test_a_blob_cut_short_while_it_is_open_is_found(with_blobs, kit):
    async def body(blobs, folder):
        name, layout = await place(blobs, kit, bytes(5_000))
        with await blobs.open(name, layout) as file:
            (folder / name).chmod(0o600)
            os.truncate(folder / name, 1_000)
            with pytest.raises(Corrupt, match="cut short"):
                await file.read(layout.start, 5_000)

    with_blobs(body)


def test_a_blob_without_all_its_block_hashes_is_not_opened(with_blobs, kit):
    async def body(blobs, folder):
        name, layout = await place(blobs, kit, bytes(limits.BLOCK + 1))
        for blocks in (b"", layout.blocks[:8], layout.blocks + bytes(8)):
            with pytest.raises(Corrupt):
                await blobs.open(name, Layout(layout.start, layout.nbytes, blocks))

    with_blobs(body)


def test_opening_a_blob_reads_nothing_of_it(with_blobs, kit, monkeypatch):
    async def body(blobs, folder):
        name, layout = await place(blobs, kit, bytes(3 * limits.BLOCK))
        monkeypatch.setattr(os, "pread", None)
        monkeypatch.setattr(os, "preadv", None)
        (await blobs.open(name, layout)).close()

    with_blobs(body)


def test_measuring_gives_the_name_and_the_block_hashes_of_what_is_there_now(with_blobs, kit):
    async def body(blobs, folder):
        name, layout = await place(blobs, kit, random.Random(1).randbytes(2 * limits.BLOCK + 7))
        seen = []
        measured = await blobs.measure(name, layout.start, seen.append)
        assert (measured.content, measured.blocks, sum(seen)) == (name, layout.blocks, layout.nbytes)
        kit.flip(folder / name, layout.start + limits.BLOCK)
        measured = await blobs.measure(name, layout.start)
        assert measured.content != name
        assert [at for at in range(3) if measured.blocks[8 * at :][:8] != layout.blocks[8 * at :][:8]] == [1]
        assert (await blobs.measure(name)).content == measured.content  # wherever the payload begins

    with_blobs(body)


def test_writing_the_same_contents_again_heals_a_rotten_blob(with_blobs, kit):
    async def body(blobs, folder):
        name, layout = await place(blobs, kit, b"x" * 5_000)
        kit.flip(folder / name, 3_750)
        with pytest.raises(Corrupt):
            await read(blobs, name, layout)
        assert await place(blobs, kit, b"x" * 5_000) == (name, layout)
        assert await read(blobs, name, layout) == b"x" * 5_000

    with_blobs(body)


def test_a_cancelled_check_leaves_no_descriptor_and_does_not_read_to_the_end(with_blobs, kit):
    async def body(blobs, folder):
        name, layout = await place(blobs, kit, bytes(4 * limits.BLOCK))
        before = descriptors()
        begun, loop, seen, go_on = asyncio.Event(), asyncio.get_running_loop(), [], threading.Event()

        def first_piece(nbytes):
            seen.append(nbytes)
            loop.call_soon_threadsafe(begun.set)
            go_on.wait(100)

        task = asyncio.ensure_future(blobs.measure(name, layout.start, first_piece))
        await begun.wait()
        task.cancel()
        loop.call_later(0.05, go_on.set)  # when `task` has had its turn
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == [limits.BLOCK]
        await until(lambda: descriptors() <= before)

    with_blobs(body)


def test_closing_ends_a_check(with_blobs, kit):
    async def body(blobs, folder):
        name, layout = await place(blobs, kit, bytes(4 * limits.BLOCK))
        begun = threading.Event()

        def first_piece(nbytes):
            begun.set()
            blobs._is_closing.wait(100)

        task = asyncio.ensure_future(blobs.measure(name, layout.start, first_piece))
        await asyncio.to_thread(begun.wait, 20)
        blobs._is_closing.set()
        with pytest.raises(StorageError, match="given up"):
            await task

    with_blobs(body)


# --- names ------------------------------------------------------------------------------------------------
BAD_NAMES = [
    "../x",
    "/etc/passwd",
    "a\0b",
    "%2e%2e",
    "",
    ".",
    "0" * 63,
    "0" * 65,
    "A" * 64,
    "0" * 64 + "\n",
    "../" + "0" * 61,
    "０" * 64,  # full-width digits
    b"0" * 64,
    None,
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_what_is_not_a_hash_is_refused_before_anything_is_opened(with_blobs, name):
    fs = Recording()

    async def body(blobs, folder):
        for call in (lambda name: blobs.open(name, NOWHERE), blobs.measure, blobs.remove):
            with pytest.raises(BadRequest, match="64 lowercase hexadecimal digits"):
                await call(name)

    with_blobs(body, fs)
    assert fs.opened == []


def plant_link(path, outside):
    path.symlink_to(outside)


def plant_hard_link(path, outside):
    path.hardlink_to(outside)


def plant_pipe(path, outside):
    os.mkfifo(path)


def plant_folder(path, outside):
    path.mkdir()


@pytest.mark.parametrize("plant", [plant_link, plant_hard_link, plant_pipe, plant_folder])
def test_what_was_planted_under_a_hash_is_refused(with_blobs, tmp_path, plant):
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret")

    async def body(blobs, folder):
        plant(folder / ("0" * 64), outside)
        # The linked file has the right size: its hashes alone are not those that were stored.
        with pytest.raises(Corrupt):
            await asyncio.wait_for(read(blobs, "0" * 64, Layout(0, 6, bytes(8))), 60)

    with_blobs(body)


def test_a_link_is_refused_even_where_it_leads_to_the_right_bytes(with_blobs, kit, tmp_path):
    async def body(blobs, folder):
        name, layout = await place(blobs, kit, bytes(5_000))
        (folder / name).rename(tmp_path / "outside")
        (folder / name).symlink_to(tmp_path / "outside")
        for refused in (blobs.open(name, layout), blobs.measure(name)):
            with pytest.raises(Corrupt, match="link"):
                await refused

    with_blobs(body)


def test_a_planted_link_is_replaced_by_the_blob_and_its_target_stays(with_blobs, kit, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret")

    async def body(blobs, folder):
        name, layout = await place(blobs, kit, bytes(5_000))
        assert await blobs.remove(name) > 5_000
        plant_link(folder / name, outside)
        assert await place(blobs, kit, bytes(5_000)) == (name, layout)
        assert await read(blobs, name, layout) == bytes(5_000)

    with_blobs(body)
    assert outside.read_bytes() == b"secret"


def test_a_blob_folder_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "blobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Exception, match="the disk refused the folder"):
        Blobs.at(tmp_path / "blobs", Fs())


# --- reading ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("at", "nbytes"), [(-1, 1), (0, -1), (0, 5_001), (5_001, 0), (-128, 128)])
def test_reading_outside_of_the_payload_is_refused(with_blobs, kit, at, nbytes):
    async def body(blobs, folder):
        name, layout = await place(blobs, kit, bytes(5_000))
        with await blobs.open(name, layout) as file:
            with pytest.raises(BadRequest, match="not within"):
                await file.read(layout.start + at, nbytes)

    with_blobs(body)


def test_removing_what_is_not_there_frees_nothing(with_blobs):
    async def body(blobs, folder):
        assert await blobs.remove("0" * 64) == 0

    with_blobs(body)


def test_a_file_left_open_at_the_end_says_that_the_store_is_closed(with_blobs, kit):
    left = []

    async def body(blobs, folder):
        name, layout = await place(blobs, kit, bytes(5_000))
        left.append(await blobs.open(name, layout))

    async def late(blobs, folder):
        with left.pop() as file, pytest.raises(StorageError, match="closed"):
            await file.read(file.layout.start, 1)

    with_blobs(body)
    with_blobs(late)
