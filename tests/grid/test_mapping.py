"""Plans at several peers, each on what it has, and what they gave combined from peer to peer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import grid
from grid.client import Grid
from peer.folders import Folders
from peer.keys import Identity
from protocol.errors import BadRequest
from tests.tags import fresh_tag


@grid.plan
def total(x: torch.Tensor) -> torch.Tensor:
    return x.sum()


# --- at several peers -------------------------------------------------------------------------------------


async def _spread(g: Grid, tag: str, *names: str) -> None:
    for number, name in enumerate(names, 1):
        await g[name].send(torch.full((number, 2), float(number)), tags=[tag, "x"])
        await g[name].send(torch.arange(float(number)), tags=[tag, "y"])


async def test_a_map_runs_at_each_peer_on_its_own_part_and_the_model_goes_to_each_once(peers: Folders) -> None:
    tag, model = fresh_tag(), nn.Linear(2, 1, bias=False)
    nn.init.ones_(model.weight)

    def loss(x: torch.Tensor, y: torch.Tensor, model: nn.Module, again: nn.Module) -> Any:
        return {"loss": (model(x).squeeze(1) - y).sum(), "both": again(x), "rows": x.shape[0]}

    async with grid.connect(folders=peers) as g:
        await _spread(g, tag, "alice", "bob", "carol")
        await g["alice"].send(model, tags=[tag, "model"])
    async with grid.connect(folders=peers, identity=Identity.generate()) as asker:
        before = {each.id: each.payload_sent for each in _traffic(await asker["alice"].status())}
        results = await asker.map(loss, f"#{tag} #x", f"#{tag} #y", f"#{tag} #model", f"#{tag} #model")
        after = {each.id: each.payload_sent for each in _traffic(await asker["alice"].status())}
        assert list(results) == ["alice", "bob", "carol"] or set(results) == {"alice", "bob", "carol"}
        assert all(results[name]["loss"].location is asker[name] for name in results)
        values = await asker.fetch(results)
        assert {name: float(each["loss"]) for name, each in values.items()} == {"alice": 2, "bob": 7, "carol": 15}
        assert {name: each["rows"] for name, each in values.items()} == {"alice": 1, "bob": 2, "carol": 3}
        sent = {id: after[id] - before.get(id, 0) for id in after}
        assert (sent[asker["bob"].id], sent[asker["carol"].id]) == (8, 8)


class _Traffic:
    def __init__(self, row: dict[str, Any]) -> None:
        self.id, self.payload_sent = row["id"], row["payload_sent"]


def _traffic(status: dict[str, Any]) -> list[_Traffic]:
    return [_Traffic(row) for row in status["traffic"]]


async def test_what_a_plan_loads_is_each_peers_own_too(peers: Folders) -> None:
    tag = fresh_tag()

    @grid.plan
    def own() -> torch.Tensor:
        return grid.load(f"#{tag} #x").sum() + grid.load(f"#{tag} #y").sum()

    async with grid.connect(folders=peers) as g:
        await _spread(g, tag, "alice", "bob")
        values = await g.fetch(await g.map(own))
        assert {name: float(value) for name, value in values.items()} == {"alice": 2.0, "bob": 9.0}


async def test_what_a_map_gave_goes_into_the_next_one(peers: Folders) -> None:
    tag = fresh_tag()
    async with grid.connect(folders=peers) as g:
        await _spread(g, tag, "alice", "bob")
        means = await g.map(lambda x: x.mean(0), f"#{tag} #x")
        centred = await g.map(lambda x, mean: (x - mean).abs().sum(), f"#{tag} #x", mean=means)
        assert {name: float(value) for name, value in (await g.fetch(centred)).items()} == {"alice": 0.0, "bob": 0.0}
        one = await g.map(total, f"#{tag} #x peer:bob")
        assert list(one) == ["bob"] and float(await one["bob"].get()) == 8


async def test_parts_that_do_not_match_are_refused_before_anything_runs(peers: Folders) -> None:
    tag = fresh_tag()
    async with grid.connect(folders=peers) as g:
        await _spread(g, tag, "alice", "bob")
        y = await g["carol"].send(torch.ones(1), tags=[tag, "y"])
        with pytest.raises(grid.NotCollocated, match=r"x is at alice, bob, and y at alice, bob, carol: carol cannot"):
            await g.map(lambda x, y: x.sum() + y.sum(), f"#{tag} #x", f"#{tag} #y")
        await y.delete()
        await g["bob"].send(torch.ones(1, 2), tags=[tag, "x"])
        with pytest.raises(grid.Ambiguous, match=r"x: 2 objects match .* at bob \(\w{12}, \w{12}\): one of each peer"):
            await g.map(total, f"#{tag} #x")


async def test_where_some_peers_fail_the_others_results_are_there_and_the_error_names_them(peers: Folders) -> None:
    tag = fresh_tag()
    async with grid.connect(folders=peers) as g:
        await _spread(g, tag, "alice", "bob")
        for name in ("alice", "bob"):
            await g[name].send(torch.tensor([0 if name == "alice" else 9]), tags=[tag, "at"])
        with pytest.raises(grid.GridError, match=r"map\(\) failed at 1 of 2 peers: bob: ") as failed:
            await g.map(lambda x, at: x.index_select(0, at), f"#{tag} #x", f"#{tag} #at")
        assert failed.value.results is not None and list(failed.value.results) == ["alice"]
        assert torch.equal(await failed.value.results["alice"].get(), torch.ones(1, 2))


async def test_a_private_model_is_not_mapped_over_data_elsewhere(peers: Folders) -> None:
    tag = fresh_tag()
    async with grid.connect(folders=peers) as g, grid.connect(folders=peers, identity=Identity.generate()) as asker:
        await _spread(g, tag, "alice", "bob")
        await g["alice"].send(nn.Linear(2, 1), tags=[tag, "model"], private=True)
        with pytest.raises(grid.NotCollocated, match=r"run at bob.*model at alice"):
            await asker.map(lambda x, model: model(x), f"#{tag} #x", f"#{tag} #model")


# --- combined ---------------------------------------------------------------------------------------------


async def test_results_are_combined_from_peer_to_peer(peers: Folders) -> None:
    tag = fresh_tag()
    async with grid.connect(folders=peers) as g:
        await _spread(g, tag, "alice", "bob", "carol")
        sums = await g.map(lambda x: x.sum(0), f"#{tag} #x")
        carried = sum(each.payload_sent + each.payload_received for each in g.traffic())
        reduced = await g.reduce(sums, how="sum")
        assert isinstance(reduced, grid.Pointer)
        assert sum(each.payload_sent + each.payload_received for each in g.traffic()) == carried
        assert torch.equal(await reduced.get(), torch.tensor([14.0, 14.0]))
        assert torch.allclose(await (await g.reduce(sums)).get(), torch.tensor([14.0, 14.0]) / 3)
        rows = await g.reduce(lambda x: x, f"#{tag} #x", how="cat")
        assert rows.location is g["carol"] and rows.shape == (6, 2)
        assert sorted((await rows.get())[:, 0].tolist()) == [1, 2, 2, 3, 3, 3]
        counts = await g.map(lambda x: torch.ones_like(x[:, 0]).sum(), f"#{tag} #x")
        means = await g.map(lambda x: x.mean(0), f"#{tag} #x")
        for weights in (counts, {"alice": 1, "bob": 2, "carol": 3}):
            mean = await (await g.reduce(means, weights=weights)).get()
            assert torch.allclose(mean, torch.tensor([14.0, 14.0]) / 6)
        assert torch.equal(await (await g.reduce(sums, how=torch.maximum)).get(), torch.tensor([9.0, 9.0]))
        by_list = await g.reduce(sums, how=lambda all: torch.stack(all).amin(0))
        assert torch.equal(await by_list.get(), torch.tensor([1.0, 1.0]))


async def test_results_of_many_values_are_combined_value_by_value(peers: Folders) -> None:
    tag = fresh_tag()
    async with grid.connect(folders=peers) as g:
        await _spread(g, tag, "alice", "bob")
        reduced = await g.reduce(lambda x: (x.sum(), {"rows": x.shape[0], "flag": x > 0}), f"#{tag} #x peer:alice")
        assert reduced[1]["rows"] == 1
        reduced = await g.reduce(lambda x: (x.sum(), {"rows": x.shape[0]}), f"#{tag} #x", how="sum")
        assert float(await reduced[0].get()) == 10 and reduced[1]["rows"] == 3
        with pytest.raises(BadRequest, match="no sum"):
            await g.reduce(lambda x: x, f"#{tag} #x")


async def test_a_private_result_stays_and_the_others_come_to_it(peers: Folders) -> None:
    tag = fresh_tag()
    async with grid.connect(folders=peers) as g, grid.connect(folders=peers, identity=Identity.generate()) as asker:
        await g["alice"].send(torch.ones(2), tags=[tag, "x"], private=True)
        for name in ("bob", "carol"):
            await g[name].send(torch.ones(2), tags=[tag, "x"])
        results = await asker.map(lambda x: x * 2, f"#{tag} #x")
        reduced = await asker.reduce(results, weights={"alice": 1, "bob": 1, "carol": 2})
        assert reduced.location is asker["alice"]
        with pytest.raises(grid.Denied):
            await reduced.get()
        await g["bob"].send(torch.ones(2), tags=[tag, "z"], private=True)
        await g["alice"].send(torch.ones(2), tags=[tag, "z"], private=True)
        both = await asker.map(lambda x: x * 2, f"#{tag} #z")
        with pytest.raises(grid.NotCollocated, match="a result at alice, a result at bob"):
            await asker.reduce(both)
