"""Published tensors larger than anybody's memory, over real peers: what is read, what is checked, and what stays.

`PEERGRID_LARGE` (MiB) makes the tensor larger than the usual 256 MiB; nothing here holds all of it.
"""

from __future__ import annotations

import array
import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import grid
from grid.local_grid import Processes
from peer.arrivals import Arrival
from peer.folders import Folders
from peer.keys import Identity
from peer.store.contents import Contents
from peer.store.store import Store
from protocol import limits
from protocol.errors import Corrupt, ReadOnly
from protocol.tensors import TensorHeader
from tests import zygotes
from tests.page_cache import cached, cool
from tests.waiting import until

MIB = limits.MIB
ROWS = int(os.environ.get("PEERGRID_LARGE", "256"))  # of 1 MiB each
GROWTH = 64 * MIB  # what a process may have above idle

pytestmark = pytest.mark.timeout(300 + ROWS)


@dataclass
class Place:
    """alice, who has published tensors of ROWS rows (each full of its number), and bob; and where that is."""

    folders: Folders
    processes: Processes

    def blob(self) -> Path:
        """The one large file that alice has."""
        blobs = self.folders.peer_data("alice") / "blobs"
        return max(blobs.iterdir(), key=lambda path: path.stat().st_size)

    def pids(self) -> list[int]:
        """Of alice: the peer, the zygote, the workers."""
        found = [self.processes["alice"].pid]
        for pid, parent in _parents():
            if parent in found:
                found.append(pid)
        return found


def _parents() -> list[tuple[int, int]]:
    """(pid, parent) of all processes, older ones first."""
    pairs = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(") ")[2].split()
            except OSError:
                continue
            pairs.append((int(folder.name), int(fields[1])))
    return sorted(pairs)


def memory(pid: int) -> tuple[int, int]:
    """(bytes resident now, the most ever), pages of mapped files included."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith("kB")}
    return kib["VmRSS"] * 1024, kib["VmHWM"] * 1024


class Watched:
    """How much each process of a peer grows at most, from here on."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._idle = {pid: memory(pid)[0] for pid in place.pids()}
        for pid in self._idle:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the most ever starts anew

    def growth(self) -> int:
        assert set(self._place.pids()) <= set(self._idle), "a process that was not there before"
        return max(memory(pid)[1] - idle for pid, idle in self._idle.items())


async def _publish(folders: Folders) -> None:
    """What alice has from the start: written into her store, in pieces."""
    identity = Identity.load(folders.key_file("alice"))
    owner = Identity.load(folders.key_file("client")).id
    store = await Store.open(folders.peer_data("alice"), identity.id, name="alice")
    header = TensorHeader("int32", (ROWS, MIB // 4))
    writer = await store.writer(Contents.one(header))
    for row in range(ROWS):
        await writer.write(bytes(array.array("i", [row]) * (MIB // 4)))
    id = os.urandom(14) + b"\1\1"
    arrival = Arrival(id, "tensor", owner, frozenset(), header, 0, True, ("large",), "", None)
    await store.publish(arrival.record(time.time(), header.nbytes), writer)
    await store.close()


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="grid-tests-") as folder, asyncio.Runner() as runner:
        folders = Folders.under(Path(folder))
        runner.run(_publish(folders))
        processes = Processes(folders)
        with zygotes.real():
            runner.run(processes.start("alice", "bob"))
        yield Place(folders, processes)
        runner.run(processes.close())


async def _found(g: grid.Grid) -> grid.Pointer:
    hit = (await g.search("#large")).one()
    assert isinstance(hit, grid.Pointer)
    assert int(await (hit[0:1].sum()).get()) == 0  # a worker is there
    return hit


async def test_a_slice_reads_its_own_part_of_the_file(place: Place) -> None:
    async with grid.connect(folders=place.folders) as g:
        x = await _found(g)
        cool(place.blob())
        before = cached(place.blob())  # what a worker has mapped stays
        watched = Watched(place)
        part = x[7:9, 100:200]
        assert torch.equal(await part.get(), torch.tensor([[7], [8]], dtype=torch.int32).expand(2, 100))
        assert int(await x[ROWS - 1].max().get()) == ROWS - 1
        assert (await x.narrow(0, 20, 1).fetch()).eq(20).all()
        assert cached(place.blob()) - before < 16 * MIB
        assert watched.growth() < 16 * MIB


async def test_a_large_slice_is_sent_from_the_file(place: Place) -> None:
    async with grid.connect(folders=place.folders) as g:
        x = await _found(g)
        watched = Watched(place)
        half = x[1 : ROWS // 2 + 1]
        for value in (await half.fetch(), await x[1 : ROWS // 2 + 1].get()):
            assert value.shape == (ROWS // 2, MIB // 4)
            assert torch.equal(value[:, 5], torch.arange(1, ROWS // 2 + 1, dtype=torch.int32))
            assert int(value[-1].min()) == ROWS // 2
        assert watched.growth() < GROWTH


async def test_a_slice_is_copied_published_and_computed_on_without_memory(place: Place) -> None:
    async with grid.connect(folders=place.folders) as g:
        x = await _found(g)
        watched = Watched(place)
        most = x[: ROWS - 10]
        there = await most.copy(g["bob"])
        assert int(await there[ROWS - 11].max().get()) == ROWS - 11
        await there.delete()
        tagged = x[2:ROWS]
        await tagged.tag("part")
        assert watched.growth() < GROWTH
        assert int(await tagged[0].max().get()) == 2
        assert tagged.tags == ("#part",)
        await tagged.delete()
        assert int(await x[:, 3].sum().get()) == ROWS * (ROWS - 1) // 2


async def test_what_reads_all_of_it_leaves_nothing_behind(place: Place) -> None:
    async with grid.connect(folders=place.folders) as g:
        x = await _found(g)
        before = {pid: memory(pid)[0] for pid in place.pids()}
        assert int(await x.max().get()) == ROWS - 1
        assert int(await x[:, ::2].amax(1).sum().get()) == ROWS * (ROWS - 1) // 2
        # A worker lets go of what it has read after it has answered.
        await until(lambda: max(memory(pid)[0] - before[pid] for pid in place.pids()) < GROWTH)


async def test_a_view_is_there_when_its_object_was_deleted(place: Place) -> None:
    async with grid.connect(folders=place.folders) as g:
        x = await g["alice"].send(torch.arange(4 * MIB), tags="short")
        part = x[MIB:]
        assert int(await part[0].get()) == MIB
        await x.delete()
        assert torch.equal(await part.fetch(), torch.arange(MIB, 4 * MIB))
        assert torch.equal(await part[5:].get(), torch.arange(MIB + 5, 4 * MIB))


async def test_private_slices_are_kept_from_others(place: Place) -> None:
    other = Identity.generate()
    async with grid.connect(folders=place.folders) as g, grid.connect(folders=place.folders, identity=other) as h:
        x = await g["alice"].send(torch.arange(4 * MIB), tags="mine", private=True)
        assert torch.equal(await x[MIB:].get(), torch.arange(MIB, 4 * MIB))
        theirs = (await h.search("#mine")).one()
        for asked in (theirs[MIB:].get(), theirs[: 2 * MIB].fetch(), theirs[MIB:].copy(h["bob"])):
            with pytest.raises(grid.Denied):
                await asked
        await x.delete()


async def test_a_stored_tensor_is_not_written(place: Place) -> None:
    async with grid.connect(folders=place.folders) as g:
        x = await _found(g)
        with pytest.raises(ReadOnly):
            await x[3:4].add_(1).get()
        assert int(await x[3].max().get()) == 3


async def test_a_flipped_bit_is_found_by_what_reads_its_block_and_by_nothing_else(place: Place) -> None:
    async with grid.connect(folders=place.folders) as g:
        x = await g["alice"].send(torch.arange(2 * MIB, dtype=torch.int64).view(16, -1), tags="rotten")
        blobs = place.folders.peer_data("alice") / "blobs"
        (blob,) = (path for path in blobs.iterdir() if 16 * MIB <= path.stat().st_size < 17 * MIB)
        with blob.open("r+b") as file:
            file.seek(blob.stat().st_size - 16 * MIB + 5 * MIB + 77)
            (byte,) = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 4]))
        for bad in (x[5].sum(), x.sum(), x[4:6] + 1, x[5, :3], x[:, 4:5]):
            with pytest.raises(Corrupt, match=f"block {5 * MIB // limits.BLOCK}[ ;]"):
                await bad.get()
        for bad in (x[4:8], x):  # found while it is being sent
            with pytest.raises(Corrupt, match=f"block {5 * MIB // limits.BLOCK}[ ;]"):
                await bad.fetch()
        assert int(await x[4].max().get()) == 5 * MIB // 8 - 1
        assert torch.equal(await x[6:].get(), torch.arange(6 * MIB // 8, 2 * MIB).view(10, -1))
        await x.delete()
