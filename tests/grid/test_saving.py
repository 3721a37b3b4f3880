"""Objects into files: what a peer holds is what the file says, and its name is there only when it is whole."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import grid
from grid import files
from peer.folders import Folders
from protocol.errors import BadFile, BadRequest, Denied
from tests.tags import fresh_tag


class Tied(nn.Module):
    """Two layers with one weight, and a buffer that its state dict does not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(300, 300)
        self.second = nn.Linear(300, 300)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.full((300,), 2.0), persistent=False)
        self.register_buffer("shift", torch.ones(300))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x) * self.scale) + self.shift


@pytest.mark.parametrize("ending", [".npy", ".npz", ".csv", ".safetensors", ".pt"])
@pytest.mark.parametrize("rows", [3, 100_000])
async def test_a_pointer_is_saved_without_being_fetched(peers: Folders, tmp_path: Path, ending: str, rows: int) -> None:
    values = torch.arange(rows * 2, dtype=torch.int32).reshape(rows, 2)
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(values)
        seen: list[tuple[int, int]] = []
        written = await (x + 1).save(tmp_path / f"x{ending}", progress=lambda *step: seen.append(step))
        (found,) = files.read(written)
        assert torch.equal(found.tensor.to(torch.int32), values + 1)
        assert seen[-1] == (rows * 8, rows * 8)
        assert torch.equal(await x.fetch(), values)
    assert os.listdir(tmp_path) == [f"x{ending}"]


async def test_a_file_that_is_there_stays_unless_it_is_to_be_overwritten(peers: Folders, tmp_path: Path) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.ones(2))
        await x.save(tmp_path / "x.npy")
        with pytest.raises(BadFile, match="is there already"):
            await (x * 2).save(tmp_path / "x.npy")
        assert np.load(tmp_path / "x.npy").tolist() == [1, 1]
        await (x * 2).save(tmp_path / "x.npy", overwrite=True)
    assert np.load(tmp_path / "x.npy").tolist() == [2, 2]


@pytest.mark.parametrize("ending", [".npz", ".safetensors", ".pt"])
async def test_a_stored_model_is_saved_as_its_state_dict(peers: Folders, tmp_path: Path, ending: str) -> None:
    model, tag = Tied(), fresh_tag()
    async with grid.connect(folders=peers) as g:
        await g["alice"].send(model, tags=[tag], example=torch.ones(1, 300))
        found = (await g.search(f"#{tag}")).one()
        await found.save(tmp_path / f"m{ending}")
    saved = {one.name: one.tensor for one in files.read(tmp_path / f"m{ending}")}
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())


async def test_a_plan_has_no_value(peers: Folders, tmp_path: Path) -> None:
    from grid.saving import Source, save_object

    async with grid.connect(folders=peers) as g:
        with pytest.raises(BadRequest, match="fetch does not work on a plan"):
            await save_object(Source(g["alice"].connect, "alice", bytes(16), "plan"), tmp_path / "x.npy")


async def test_what_is_private_to_another_leaves_no_file(peers: Folders, tmp_path: Path) -> None:
    tag = fresh_tag()
    async with grid.connect(folders=peers) as owner:
        await owner["alice"].send(torch.ones(9), tags=tag, private=True)
        async with grid.connect(folders=Folders.under(tmp_path / "other"), url=owner["alice"].member.urls[0]) as other:
            hit = (await other.search(f"#{tag}")).one()
            with pytest.raises(Denied):
                await hit.save(tmp_path / "x.npy")
    assert os.listdir(tmp_path) == ["other"]


async def test_a_save_that_is_cancelled_leaves_no_file(peers: Folders, tmp_path: Path) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.zeros(16 << 20))
        begun = asyncio.Event()
        saving = asyncio.create_task(x.save(tmp_path / "x.npy", progress=lambda *_: begun.set()))
        await begun.wait()
        assert not (tmp_path / "x.npy").exists()
        saving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saving
        assert not os.listdir(tmp_path)
        assert (await x.sum().get()).item() == 0
