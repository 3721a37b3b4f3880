"""Published objects whose holder has them damaged: other holders of the same contents are found and used."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import grid
from grid.local_grid import Processes
from peer import transfers
from peer.folders import Folders
from peer.keys import Identity
from peer.objects import Objects
from peer.peer import Peer, Settings
from protocol import limits
from protocol.errors import Corrupt, NotFound
from tests.waiting import until

VALUE = torch.arange(limits.BLOCK, dtype=torch.int64)  # 8 blocks
BAD = 5  # the block that is damaged


def blobs_of(folders: Folders, name: str) -> list[Path]:
    return list((folders.peer_data(name) / "blobs").iterdir())


def blob_of(folders: Folders, name: str) -> Path:
    (blob,) = blobs_of(folders, name)
    return blob


def damage(folders: Folders, name: str, block: int = BAD) -> None:
    """Flip one bit of the value."""
    blob = blob_of(folders, name)
    at = blob.stat().st_size - VALUE.nbytes + block * limits.BLOCK
    with blob.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


@pytest.fixture(scope="module")
def peers() -> Iterator[Folders]:
    """alice, bob and carol of this module's own: what is in their folders is what its tests have put there."""
    with tempfile.TemporaryDirectory(prefix="grid-tests-") as folder, asyncio.Runner() as runner:
        processes = Processes(Folders.under(Path(folder)))
        runner.run(processes.start("alice", "bob", "carol"))
        yield processes.folders
        runner.run(processes.close())


@asynccontextmanager
async def three(folders: Folders) -> AsyncIterator[Any]:
    """A client of alice, bob and carol, who have nothing."""
    async with grid.connect(folders=folders) as g:
        await g.refresh()
        for peer in g:
            await peer.clear()
        await until(lambda: not any(blobs_of(folders, name) for name in ("alice", "bob", "carol")))
        yield g


async def test_a_fetch_goes_on_at_another_holder_and_says_who_was_bad(peers: Folders) -> None:
    async with three(peers) as g:
        x = await g["alice"].send(VALUE, tags="#x")
        await x.copy(g["bob"])
        damage(peers, "alice")
        assert torch.equal(await x.fetch(), VALUE)
        from_alice, from_bob = g.statistics()[g["alice"].id], g.statistics()[g["bob"].id]
        assert (from_alice.corrupt, from_bob.corrupt) == (1, 0)
        # Each block once: those before the bad one from alice, the rest from bob.
        assert from_alice.payload_received == BAD * limits.BLOCK
        assert from_bob.payload_received == (8 - BAD) * limits.BLOCK


async def test_a_file_is_saved_with_what_another_holder_has(peers: Folders, tmp_path: Path) -> None:
    async with three(peers) as g:
        x = await g["alice"].send(VALUE, tags="#x")
        await x.copy(g["bob"])
        damage(peers, "alice")
        await x.save(tmp_path / "x.npy")
        assert torch.equal(torch.from_numpy(np.load(tmp_path / "x.npy")), VALUE)


async def test_a_blob_that_is_gone_is_had_from_another_holder(peers: Folders) -> None:
    async with three(peers) as g:
        x = await g["alice"].send(VALUE, tags="#x")
        await x.copy(g["bob"])
        blob_of(peers, "alice").unlink()
        assert torch.equal(await x.fetch(), VALUE)


@pytest.mark.parametrize("doing", ["copy", "move"])
async def test_a_pull_goes_on_at_another_holder(peers: Folders, doing: str) -> None:
    async with three(peers) as g:
        x = await g["alice"].send(VALUE, tags="#x")
        await x.copy(g["bob"])
        damage(peers, "alice")
        there = await (x.copy if doing == "copy" else x.move)(g["carol"])
        assert there.location.name == "carol" and torch.equal(await there.fetch(), VALUE)
        assert len(await g.search("#x")) == (3 if doing == "copy" else 2)
        assert blob_of(peers, "carol").name == blob_of(peers, "bob").name


@pytest.mark.parametrize("block", [BAD, 0])
async def test_a_model_is_had_from_another_holder_of_program_and_weights(
    peers: Folders, tmp_path: Path, block: int
) -> None:
    async with three(peers) as g:
        net = nn.Sequential(nn.Flatten(), nn.Linear(1024, 1100))
        x = torch.randn(2, 1024)
        await g["alice"].send(net, tags="#net")
        model = (await g.search("#net")).one()
        await model.copy(g["bob"])
        damage(peers, "alice", block)
        assert torch.equal((await model.fetch())(x), net(x))
        await model.save(tmp_path / "net.safetensors")
        assert torch.equal(load_file(tmp_path / "net.safetensors")["1.weight"], net.state_dict()["1.weight"])
        there = await model.copy(g["carol"])
        assert torch.equal((await there.fetch())(x), net(x))
        assert blob_of(peers, "carol").name == blob_of(peers, "bob").name


async def test_a_model_of_the_same_weights_and_another_program_is_no_other_holder(peers: Folders) -> None:
    async with three(peers) as g:
        net = nn.Sequential(nn.Linear(1024, 1100), nn.ReLU())
        other = nn.Sequential(net[0], nn.Sigmoid())
        await g["alice"].send(net, tags="#net")
        await g["bob"].send(other, tags="#other")
        damage(peers, "alice")
        with pytest.raises(Corrupt):
            await (await g.search("#net")).one().fetch()


async def test_without_another_holder_it_is_corrupt_and_the_source_is_named(peers: Folders) -> None:
    async with three(peers) as g:
        x = await g["alice"].send(VALUE, tags="#x")
        damage(peers, "alice")
        with pytest.raises(Corrupt):
            await x.fetch()
        assert g.statistics()[g["alice"].id].corrupt == 1
        with pytest.raises(Corrupt):
            await x.copy(g["carol"])


async def test_nobody_is_asked_for_private_contents(peers: Folders, tmp_path: Path) -> None:
    async with three(peers) as g:
        x = await g["alice"].send(VALUE, tags="#x", private=True)
        await x.copy(g["bob"])
        damage(peers, "alice")
        with pytest.raises(Corrupt):
            await x.fetch()
        with pytest.raises(Corrupt):
            await x.save(tmp_path / "x.npy")
        with pytest.raises(Corrupt):
            await x.copy(g["carol"])


async def test_a_pull_of_what_is_gone_goes_to_another_holder(peers: Folders) -> None:
    async with three(peers) as g:
        x = await g["alice"].send(VALUE, tags="#x")
        await x.copy(g["bob"])
        damage(peers, "alice", 0)
        there = await x.copy(g["carol"])
        assert torch.equal(await there.fetch(), VALUE)


async def test_a_holder_that_describes_something_else_is_not_one(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = [await Peer.start(Settings(name, port=0, folders=folders)) for name in ("alice", "bob")]
    try:
        async with grid.connect(folders=folders) as g:
            x = await g["alice"].send(VALUE, tags="#x")
            y = await g["bob"].send(torch.cat([VALUE, VALUE]), tags="#y")

            async def any_content(self: Objects, asker: str, content: str) -> Any:
                return await self.find(asker, y._handle.id)

            monkeypatch.setattr(Objects, "by_content", any_content)
            blob_of(folders, "alice").unlink()
            with pytest.raises(Corrupt):
                await x.fetch()
            assert g.statistics()[g["bob"].id].payload_received < VALUE.nbytes
    finally:
        await alice.close()
        await bob.close()


async def test_what_others_keep_private_is_not_used_and_not_told(peers: Folders) -> None:
    async with three(peers) as g:
        x = await g["alice"].send(VALUE, tags="#x")
        async with grid.connect(folders=peers, identity=Identity.generate()) as others:
            theirs = await others["bob"].send(VALUE, tags="#theirs", private=True)
            damage(peers, "alice")
            with pytest.raises(Corrupt):
                await x.fetch()
            args = {"content": blob_of(peers, "alice").name}
            with pytest.raises(NotFound):  # who knows the contents does not learn who else has them
                await g["bob"].request("describe", args)
            assert (await others["bob"].request("describe", args))["record"]["tags"] == ["theirs"]
            mine = await g["carol"].send(VALUE, tags="#mine", private=True)
            assert torch.equal(await x.fetch(), VALUE) and mine.location.name == "carol"
            await theirs.delete()


@pytest.mark.parametrize(("block", "what"), [(BAD, "the whole of a transfer"), (0, "what the peers that have it sent")])
async def test_a_holder_that_lies_about_what_it_has_is_found_out(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, what: str
) -> None:
    """Each of its blocks is as it says; together they are not the contents of that name."""
    alice, bob = [await Peer.start(Settings(name, port=0, folders=folders)) for name in ("alice", "bob")]
    try:
        async with grid.connect(folders=folders) as g:
            x = await g["alice"].send(VALUE, tags="#x")
            y = await g["bob"].send(VALUE + 1, tags="#y")

            async def any_content(self: Objects, asker: str, content: str) -> Any:
                return await self.find(asker, y._handle.id)

            monkeypatch.setattr(Objects, "by_content", any_content)
            monkeypatch.setattr(transfers, "_token", lambda held: b"t" * 32)
            damage(folders, "alice", block)
            with pytest.raises(Corrupt, match=what):
                await x.fetch()
            with pytest.raises(Corrupt, match=what):
                await x.save(tmp_path / "x.npy")
            assert not (tmp_path / "x.npy").exists()
            assert torch.equal(await y.fetch(), VALUE + 1)
    finally:
        await alice.close()
        await bob.close()
