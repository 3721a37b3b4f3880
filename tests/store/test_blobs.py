"""Blob files: rot is found before a byte is served, and no name leads out of the folder."""

import asyncio
import os
import random

import pytest

from peer.store import blobs as blobs_module
from peer.store.blobs import Blobs
from peer.store.fs import Fs
from protocol import limits
from protocol.errors import BadRequest, Corrupt

ROTTEN = 200


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
    """A blob with `data` in it; its name."""
    writer = blobs.writer(kit.uint8(len(data)))
    await writer.begin()
    await writer.write(data)
    name = await writer.seal()
    blobs.placed(name, await writer.place())
    return name


def flip(path, bit):
    """Turn one bit of a file over, whatever its mode says."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


# --- rot --------------------------------------------------------------------------------------------------
def test_every_single_flipped_bit_is_found_and_none_is_served(with_blobs, kit):
    chance = random.Random(7)

    async def fill(blobs, folder):
        return [await place(blobs, kit, chance.randbytes(4_000)) for _ in range(ROTTEN)]

    async def look(blobs, folder):
        refused = 0
        for name in names:
            try:
                (await blobs.open(name)).close()
            except Corrupt:
                refused += 1
        return refused

    names = with_blobs(fill)
    assert with_blobs(look) == 0

    async def rot(blobs, folder):
        for name in names:
            flip(folder / name, chance.randrange((folder / name).stat().st_size * 8))
        return await look(blobs, folder)

    assert with_blobs(rot) == ROTTEN


def test_rot_is_found_after_the_blob_was_read_already(with_blobs, kit):
    async def body(blobs, folder):
        name = await place(blobs, kit, bytes(5_000))
        (await blobs.open(name)).close()
        flip(folder / name, 30_000)
        for _ in range(2):
            with pytest.raises(Corrupt, match=name[:12]):
                await blobs.open(name)

    with_blobs(body)


def test_a_blob_cut_short_or_grown_is_found(with_blobs, kit):
    async def body(blobs, folder):
        for size in (0, 10, 4_999, 6_000):
            name = await place(blobs, kit, bytes(5_000))
            (folder / name).chmod(0o600)
            os.truncate(folder / name, size)
            with pytest.raises(Corrupt):
                await blobs.open(name)

    with_blobs(body)


def test_verify_hashes_again_where_opening_trusts_its_memory(with_blobs, kit):
    async def body(blobs, folder):
        name = await place(blobs, kit, bytes(5_000))
        before = (folder / name).stat()
        flip(folder / name, 30_000)
        (folder / name).chmod(0o400)
        os.utime(folder / name, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = os.stat(folder / name)
        blobs.placed(name, after)  # as if nothing of it showed
        (await blobs.open(name)).close()
        with pytest.raises(Corrupt):
            await blobs.verify(name)

    with_blobs(body)


def test_writing_the_same_contents_again_heals_a_rotten_blob(with_blobs, kit):
    async def body(blobs, folder):
        name = await place(blobs, kit, b"x" * 5_000)
        flip(folder / name, 30_000)
        with pytest.raises(Corrupt):
            await blobs.open(name)
        assert await place(blobs, kit, b"x" * 5_000) == name
        await blobs.verify(name)

    with_blobs(body)


def test_a_blob_that_is_written_again_while_it_is_checked_is_not_called_damaged(with_blobs, kit, monkeypatch):
    async def fill(blobs, folder):
        return await place(blobs, kit, bytes(5_000))

    async def body(blobs, folder):
        real = blobs_module._hash_of

        def replaced_meanwhile(fd, stop):
            found = real(fd, stop)
            (folder / "equal").write_bytes((folder / name).read_bytes())
            (folder / "equal").rename(folder / name)
            return found

        monkeypatch.setattr(blobs_module, "_hash_of", replaced_meanwhile)
        (await blobs.open(name)).close()
        monkeypatch.setattr(blobs_module, "_hash_of", real)
        (await blobs.open(name)).close()

    name = with_blobs(fill)
    with_blobs(body)


def test_a_blob_is_hashed_once_for_all_who_open_it_at_once(with_blobs, kit, monkeypatch):
    hashed = []

    async def fill(blobs, folder):
        return await place(blobs, kit, bytes(5_000))

    async def body(blobs, folder):
        monkeypatch.setattr(blobs_module, "_hash_of", lambda fd, stop: hashed.append(fd) or name)
        for file in await asyncio.gather(*(blobs.open(name) for _ in range(20))):
            file.close()

    name = with_blobs(fill)
    with_blobs(body)
    assert len(hashed) == 1


def test_a_cancelled_opening_leaves_no_descriptor_and_does_not_hash_to_the_end(with_blobs, kit, monkeypatch):
    async def fill(blobs, folder):
        return await place(blobs, kit, bytes(5_000))

    async def body(blobs, folder):
        before = len(os.listdir("/proc/self/fd"))
        begun, loop = asyncio.Event(), asyncio.get_running_loop()

        def endless(fd, stop):
            loop.call_soon_threadsafe(begun.set)
            assert stop.wait(20)
            return name

        monkeypatch.setattr(blobs_module, "_hash_of", endless)
        task = asyncio.ensure_future(blobs.open(name))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(os.listdir("/proc/self/fd")) == before

    name = with_blobs(fill)
    with_blobs(body)


def test_verdicts_are_remembered_up_to_the_limit(with_blobs, kit, monkeypatch):
    monkeypatch.setattr(limits, "STORE_VERDICTS", 3)

    async def body(blobs, folder):
        names = [await place(blobs, kit, bytes([number]) * 2_000) for number in range(5)]
        for name in names * 2:
            (await blobs.open(name)).close()
        assert len(blobs._verdicts) == 3

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
        for call in (blobs.open, blobs.verify, blobs.remove):
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
        with pytest.raises(Corrupt):
            await asyncio.wait_for(blobs.open("0" * 64), 5)

    with_blobs(body)


def test_a_link_is_refused_even_where_it_leads_to_the_right_bytes(with_blobs, kit, tmp_path):
    async def body(blobs, folder):
        name = await place(blobs, kit, bytes(5_000))
        (folder / name).rename(tmp_path / "outside")
        (folder / name).symlink_to(tmp_path / "outside")
        with pytest.raises(Corrupt, match="link"):
            await blobs.open(name)

    with_blobs(body)


def test_a_planted_link_is_replaced_by_the_blob_and_its_target_stays(with_blobs, kit, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret")

    async def body(blobs, folder):
        name = await place(blobs, kit, bytes(5_000))
        await blobs.remove(name)
        plant_link(folder / name, outside)
        assert await place(blobs, kit, bytes(5_000)) == name
        await blobs.verify(name)

    with_blobs(body)
    assert outside.read_bytes() == b"secret"


def test_a_blob_folder_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "blobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Exception, match="the disk refused the folder"):
        Blobs.at(tmp_path / "blobs", Fs())


# --- reading ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("offset", "nbytes"), [(-1, 1), (0, -1), (0, 10_000_000), (10_000_000, 0)])
def test_reading_outside_of_the_file_is_refused(with_blobs, kit, offset, nbytes):
    async def body(blobs, folder):
        with await blobs.open(await place(blobs, kit, bytes(5_000))) as file:
            with pytest.raises(BadRequest, match="not within"):
                await file.read(offset, nbytes)

    with_blobs(body)


def test_removing_what_is_not_there_is_no_error(with_blobs):
    async def body(blobs, folder):
        await blobs.remove("0" * 64)

    with_blobs(body)
