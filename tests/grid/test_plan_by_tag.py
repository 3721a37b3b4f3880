"""Plans by tag over real peers: explained, in a world that changes, at several peers, as objects that others run."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import os
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import torch
from torch import nn

import grid
from grid import jobs
from grid.client import Grid
from peer.folders import Folders
from peer.keys import Identity
from protocol.errors import BadRequest, Changed, QueryError


def _tag() -> str:
    return f"t{os.urandom(6).hex()}"


@grid.plan
def total(x: torch.Tensor, scale: float = 1.0, mode: str = "sum") -> torch.Tensor:
    return getattr(x, mode)() * scale


# --- arguments --------------------------------------------------------------------------------------------


async def test_queries_may_stand_in_lists_and_dicts_and_defaults_and_texts_are_options(peers: Folders) -> None:
    tag = _tag()

    def mixed(pairs: dict[str, list[torch.Tensor]], mode: str, x: Any = f"#{tag} #x") -> torch.Tensor:
        assert mode == "mean" and isinstance(mode, str)
        return pairs["both"][0] + pairs["both"][1] + getattr(x, mode)()

    async with grid.connect(folders=peers) as g:
        await g["alice"].send(torch.tensor([1.0, 2.0]), tags=[tag, "x"])
        await g["bob"].send(torch.tensor([10.0, 20.0]), tags=[tag, "y"], name="hand written")
        result = await g.run(mixed, {"both": [f"#{tag} #x", grid.query("hand written")]}, "mean")
        assert torch.equal(await result.get(), torch.tensor([12.5, 23.5]))
        with pytest.raises(QueryError):
            await g.run(mixed, f"#{tag} |", "mean")
        for hit in await g.search(f"#{tag}"):
            await hit.delete()


async def test_a_text_that_was_meant_as_a_query_is_named_in_the_error(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.ones(2))
        with pytest.raises(grid.CannotCapture, match=r"b='digits'.*no tag.*grid\.query"):
            await g.run(lambda a, b: a + b.sum(), x, b="digits")


async def test_a_query_that_finds_nothing_says_what_was_perhaps_meant(peers: Folders) -> None:
    tag = _tag()
    async with grid.connect(folders=peers) as g:
        await g["alice"].send(torch.ones(2), tags=[tag, "images"])
        with pytest.raises(grid.NotFound, match=r"x: nothing matches.*matches #imagse; did you mean #images\?"):
            await g.run(total, f"#{tag} #imagse")
        with pytest.raises(grid.NotFound, match=r"Nothing at all matches name:\w+; #\w+ finds tensor \w+ at alice"):
            await g.run(total, f"#{tag} name:{_tag()}")
        await g["bob"].send(torch.zeros(2), tags=[tag, "images"])
        with pytest.raises(grid.Ambiguous, match=r"x: 2 objects match.*g\.map"):
            await g.run(total, f"#{tag} #images")
        with pytest.raises(BadRequest, match=r"total\(.*there is no argument scal; did you mean scale\?"):
            await g.run(total, f"#{tag} #images", scal=3)


# --- explained --------------------------------------------------------------------------------------------


@grid.plan
def accuracy(images: torch.Tensor, labels: torch.Tensor, model: nn.Module) -> torch.Tensor:
    return (model(images).argmax(1) == labels).float().mean()


async def test_an_explanation_says_what_would_go_where_and_nothing_goes(peers: Folders) -> None:
    tag, model = _tag(), nn.Linear(64, 10)
    async with grid.connect(folders=peers) as g, grid.connect(folders=peers, identity=Identity.generate()) as asker:
        await g["bob"].send(torch.randn(100, 64), tags=[tag, "images"], private=True)
        await g["bob"].send(torch.randint(0, 10, (100,)), tags=[tag, "labels"])
        await g["alice"].send(model, tags=[tag, "model"])
        queries: dict[str, Any] = {"images": f"#{tag} #images", "labels": f"#{tag} #labels", "model": f"#{tag} #model"}
        before = [await peer.status() for peer in asker]
        told = await asker.explain(accuracy, **queries)
        assert [status["temporaries"] for status in before] == [(await peer.status())["temporaries"] for peer in asker]
        found = [(each.what, each.query, each.peer, each.kind, each.shape, each.nbytes) for each in told.found]
        assert found[:2] == [
            ("images", queries["images"], "bob", "tensor", (100, 64), 25_600),
            ("labels", queries["labels"], "bob", "tensor", (100,), 800),
        ]
        assert found[2][:4] == ("model", queries["model"], "alice", "model")
        assert told.peer == "bob" and told.problem is None
        assert [(each.peer, each.forbidden) for each in told.places] == [
            ("bob", ()),
            ("alice", ("images is private and stays at bob",)),
        ]
        assert told.moves == (grid.explaining.Movement("model", "alice", "bob", 2, 64 * 10 * 4 + 40),)
        assert told.nbytes == 2600 and told.cost.operations >= 4 and told.cost.work > 0
        assert dataclasses.is_dataclass(told)
        with pytest.raises(dataclasses.FrozenInstanceError):
            told.peer = "alice"  # type: ignore[misc]
        text = str(told)
        for word in ("images", "2.6 kB", "private tensor", "runs at bob", "stays at bob", "of memory"):
            assert word in text
        assert re.search(r"model \(2 tensors\) +alice +bob +2\.6 kB", text)
        result = await asker.run(accuracy, **queries)
        assert result.location is asker["bob"]
        with pytest.raises(grid.Denied):
            await result.get()


async def test_an_explanation_of_what_may_run_nowhere_says_why(peers: Folders) -> None:
    tag = _tag()
    async with grid.connect(folders=peers) as g, grid.connect(folders=peers, identity=Identity.generate()) as asker:
        await g["alice"].send(torch.ones(3), tags=[tag, "a"], private=True)
        await g["bob"].send(torch.ones(3), tags=[tag, "b"], private=True)
        told = await asker.explain(lambda a, b: a + b, f"#{tag} #a", f"#{tag} #b")
        assert told.peer is None and told.problem is not None and "a at alice, b at bob" in told.problem
        assert "runs nowhere" in str(told) and told.moves == ()
        with pytest.raises(grid.NotCollocated, match="a at alice, b at bob"):
            await asker.run(lambda a, b: a + b, f"#{tag} #a", f"#{tag} #b")


# --- a world that changes ---------------------------------------------------------------------------------


def between(monkeypatch: pytest.MonkeyPatch, *changes: Callable[[], Awaitable[Any]]) -> None:
    """The first run of a plan is held between search and run until the first change is done, the next for the next."""
    job, left = jobs.Call.job, list(changes)

    async def held(call: Any, part: Any) -> Any:
        made = await job(call, part)
        if left:
            await left.pop(0)()
        return made

    monkeypatch.setattr(jobs.Call, "job", held)


async def test_an_object_that_moved_meanwhile_is_found_again(peers: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    tag = _tag()
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.ones(3), tags=tag)
        between(monkeypatch, lambda: x.move(g["bob"]))
        result = await g.run(total, f"#{tag}")
        assert result.location is g["bob"] and float(await result.get()) == 3


async def test_a_tag_that_is_anothers_meanwhile_is_looked_up_again(
    peers: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = _tag()
    async with grid.connect(folders=peers) as g:
        old = await g["alice"].send(torch.ones(3), tags=[tag, f"{tag}-x"])
        new = await g["alice"].send(torch.full((3,), 2.0), tags=[tag])

        async def retag() -> None:
            await old.untag(f"{tag}-x")
            await new.tag(f"{tag}-x")

        between(monkeypatch, retag)
        assert float(await (await g.run(total, f"#{tag}-x")).get()) == 6
        assert float(await (await g.run(total, f"#{tag}-x")).get()) == 6


async def test_an_object_that_is_gone_meanwhile_is_said_to_be(peers: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    tag = _tag()
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.ones(3), tags=tag)
        between(monkeypatch, x.delete)
        said = rf"nothing matches.*changed.*'#{tag}' found tensor \w+ at alice, and now nothing"
        with pytest.raises(grid.NotFound, match=said):
            await g.run(total, f"#{tag}")


async def test_what_changes_twice_is_an_error_that_says_what_changed(
    peers: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = _tag()
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.ones(3), tags=tag)

        async def move(to: str) -> None:
            nonlocal x
            x = await x.move(g[to])

        between(monkeypatch, lambda: move("bob"), lambda: move("carol"))
        with pytest.raises(Changed, match=r"at alice, and now tensor \w+ at bob.*at bob, and now tensor \w+ at carol"):
            await g.run(total, f"#{tag}")


async def test_a_tag_that_has_nothing_to_do_with_it_changes_nothing(
    peers: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag, runs = _tag(), []
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.ones(3), tags=tag)
        between(monkeypatch, lambda: x.tag("other"), lambda: asyncio.sleep(0, runs.append(1)))
        assert float(await (await g.run(total, f"#{tag}")).get()) == 3
        assert runs == []


async def test_a_peer_that_ends_meanwhile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async with grid.local("alice", "bob", patience=0.5) as g:
        await g["bob"].send(torch.ones(3), tags="x")
        between(monkeypatch, lambda: g.stop_peer("bob", kill=True))
        with pytest.raises(grid.NotFound, match=r"found tensor \w+ at bob, and now nothing"):
            await g.run(total, "#x")


# --- at several peers -------------------------------------------------------------------------------------


async def _spread(g: Grid, tag: str, *names: str) -> None:
    for number, name in enumerate(names, 1):
        await g[name].send(torch.full((number, 2), float(number)), tags=[tag, "x"])
        await g[name].send(torch.arange(float(number)), tags=[tag, "y"])


async def test_a_map_runs_at_each_peer_on_its_own_part_and_the_model_goes_to_each_once(peers: Folders) -> None:
    tag, model = _tag(), nn.Linear(2, 1, bias=False)
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
    tag = _tag()

    @grid.plan
    def own() -> torch.Tensor:
        return grid.load(f"#{tag} #x").sum() + grid.load(f"#{tag} #y").sum()

    async with grid.connect(folders=peers) as g:
        await _spread(g, tag, "alice", "bob")
        values = await g.fetch(await g.map(own))
        assert {name: float(value) for name, value in values.items()} == {"alice": 2.0, "bob": 9.0}


async def test_what_a_map_gave_goes_into_the_next_one(peers: Folders) -> None:
    tag = _tag()
    async with grid.connect(folders=peers) as g:
        await _spread(g, tag, "alice", "bob")
        means = await g.map(lambda x: x.mean(0), f"#{tag} #x")
        centred = await g.map(lambda x, mean: (x - mean).abs().sum(), f"#{tag} #x", mean=means)
        assert {name: float(value) for name, value in (await g.fetch(centred)).items()} == {"alice": 0.0, "bob": 0.0}
        one = await g.map(total, f"#{tag} #x peer:bob")
        assert list(one) == ["bob"] and float(await one["bob"].get()) == 8


async def test_parts_that_do_not_match_are_refused_before_anything_runs(peers: Folders) -> None:
    tag = _tag()
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
    tag = _tag()
    async with grid.connect(folders=peers) as g:
        await _spread(g, tag, "alice", "bob")
        for name in ("alice", "bob"):
            await g[name].send(torch.tensor([0 if name == "alice" else 9]), tags=[tag, "at"])
        with pytest.raises(grid.GridError, match=r"map\(\) failed at 1 of 2 peers: bob: ") as failed:
            await g.map(lambda x, at: x.index_select(0, at), f"#{tag} #x", f"#{tag} #at")
        assert failed.value.results is not None and list(failed.value.results) == ["alice"]
        assert torch.equal(await failed.value.results["alice"].get(), torch.ones(1, 2))


async def test_a_private_model_is_not_mapped_over_data_elsewhere(peers: Folders) -> None:
    tag = _tag()
    async with grid.connect(folders=peers) as g, grid.connect(folders=peers, identity=Identity.generate()) as asker:
        await _spread(g, tag, "alice", "bob")
        await g["alice"].send(nn.Linear(2, 1), tags=[tag, "model"], private=True)
        with pytest.raises(grid.NotCollocated, match=r"run at bob.*model at alice"):
            await asker.map(lambda x, model: model(x), f"#{tag} #x", f"#{tag} #model")


# --- combined ---------------------------------------------------------------------------------------------


async def test_results_are_combined_from_peer_to_peer(peers: Folders) -> None:
    tag = _tag()
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
    tag = _tag()
    async with grid.connect(folders=peers) as g:
        await _spread(g, tag, "alice", "bob")
        reduced = await g.reduce(lambda x: (x.sum(), {"rows": x.shape[0], "flag": x > 0}), f"#{tag} #x peer:alice")
        assert reduced[1]["rows"] == 1
        reduced = await g.reduce(lambda x: (x.sum(), {"rows": x.shape[0]}), f"#{tag} #x", how="sum")
        assert float(await reduced[0].get()) == 10 and reduced[1]["rows"] == 3
        with pytest.raises(BadRequest, match="no sum"):
            await g.reduce(lambda x: x, f"#{tag} #x")


async def test_a_private_result_stays_and_the_others_come_to_it(peers: Folders) -> None:
    tag = _tag()
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


# --- plans and models as objects --------------------------------------------------------------------------


async def test_a_stored_plan_is_called_on_pointers_and_gives_pointers(peers: Folders) -> None:
    tag = _tag()

    @grid.plan
    def stats(pair: tuple[torch.Tensor, torch.Tensor], scale: torch.Tensor) -> Any:
        """Two sums, scaled."""
        return {"first": pair[0].sum() * scale, "second": pair[1].sum() * scale}

    async with grid.connect(folders=peers) as g:
        await stats.build((torch.zeros(3), torch.zeros(2)), torch.tensor(0.0)).send(g["alice"], tags=[tag, "plan"])
        await g["bob"].send(torch.ones(2), tags=[tag, "y"])
    async with grid.connect(folders=peers, identity=Identity.generate()) as other:
        hit = (await other.search(f"#{tag} kind:plan")).one()
        assert isinstance(hit, grid.RemotePlan) and hit.record["description"] == "Two sums, scaled."
        x, y = await other["bob"].send(torch.ones(3)), await other["bob"].send(torch.ones(2))
        result = await hit((x, y), 3.0)
        assert result["first"].location is other["bob"]
        assert (float(await result["first"].get()), float(await result["second"].get())) == (9.0, 6.0)
        again = await other.run(f"#{tag} #plan", pair=[x, f"#{tag} #y"], scale=2)
        assert float(await again["second"].get()) == 4
        here = await hit((torch.ones(3), torch.ones(2)), 1.0)
        assert here["first"].location is other["alice"]
        inside = await other.run(lambda x, y, stored: stored((x, y), torch.tensor(2.0))["first"] + 1, x, y, stored=hit)
        assert float(await inside.get()) == 7
        closed = await other.run(lambda x, y: hit((x, y), torch.tensor(1.0))["second"], x, y)
        assert float(await closed.get()) == 2
        copy = await hit.copy(other["carol"])
        assert float(await (await copy((x, y), 1.0))["first"].get()) == 3
        await copy.delete()


async def test_a_stored_plan_says_what_it_takes(peers: Folders) -> None:
    tag = _tag()

    def shifted(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        return x + by

    async with grid.connect(folders=peers) as g:
        hit = await grid.plan(shifted).build(torch.zeros(4), torch.tensor(0.0)).send(g["alice"], tags=tag)
        x = await g["bob"].send(torch.ones(4))
        for args, kwargs, said in (
            ((x,), {}, "takes x, by; missing: by"),
            ((x, 1.0, 2.0), {}, "takes x, by; given were x, by, argument 3"),
            ((x,), {"bye": 1.0}, "takes x, by; given were x, bye"),
            ((x, "much"), {}, "cannot be the text 'much'"),
            ((await g["bob"].send(torch.ones(4).long()), 1.0), {}, r"it takes x: float32.*given int64"),
            ((await g["bob"].send(torch.ones(4, 1)), 1.0), {}, r"it takes x: float32.*given float32 \[4, 1\]"),
        ):
            with pytest.raises(BadRequest, match=said):
                await hit(*args, **kwargs)


async def test_a_stored_plan_that_loads_by_tag_loads_when_it_runs(peers: Folders) -> None:
    tag = f"{_tag()}.v1"

    @grid.plan
    def predicted(x: torch.Tensor) -> torch.Tensor:
        return grid.load(f"#{tag} kind:model")(x) + grid.load(f"#{tag} #shift")

    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    async with grid.connect(folders=peers) as g:
        await g["alice"].send(model, tags=tag)
        await g["bob"].send(torch.ones(2), tags=[tag, "shift"])
        result = await g.run(predicted, await g["bob"].send(x))
        assert torch.allclose(await result.get(), model(x) + 1, atol=1e-6)
        with pytest.raises(grid.CannotCapture, match=r"g\.build"):
            predicted.build(x)
        hit = await (await g.build(predicted, x)).send(g["carol"], tags=[tag, "loading"])
        assert torch.allclose(await (await hit(x)).get(), model(x) + 1, atol=1e-6)


async def test_a_stored_model_is_run_by_tag_whatever_its_author_called_its_input(peers: Folders) -> None:
    tag, model, x = _tag(), nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(60, 8)
    async with grid.connect(folders=peers) as g:
        await g["alice"].send(model, tags=[tag, "model"])
        await g["bob"].send(x, tags=[tag, "images"])
    async with grid.connect(folders=peers, identity=Identity.generate()) as other:
        hit = (await other.search(f"#{tag} kind:model")).one()
        for result in (
            await other.run(hit, images=f"#{tag} #images"),
            await other.run(f"#{tag} kind:model", f"#{tag} #images"),
        ):
            assert result.location is other["bob"]
            assert torch.allclose(await result.get(), model(x), atol=1e-6)
        with pytest.raises(BadRequest, match="the model takes"):
            await other.run(hit, f"#{tag} #images", f"#{tag} #images")
        with pytest.raises(BadRequest, match="finds a tensor, which cannot be run"):
            await other.run(f"#{tag} #images")


async def test_a_module_here_is_run_where_the_data_are(peers: Folders) -> None:
    model, x = nn.Linear(5, 2), torch.randn(3, 5)
    async with grid.connect(folders=peers) as g:
        there = await g["bob"].send(x)
        result = await g.run(model, there)
        assert result.location is g["bob"] and torch.allclose(await result.get(), model(x), atol=1e-6)


# --- modules that a plan trains ---------------------------------------------------------------------------


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    return loss


async def test_a_plan_that_trains_a_module_leaves_it_trained_here_or_at_its_peer(peers: Folders) -> None:
    x, y = torch.randn(20, 3), torch.randn(20, 1)
    local = nn.Linear(3, 1)
    here, sent = copy.deepcopy(local), copy.deepcopy(local)
    losses = [step(local, optimizer, x, y).item() for optimizer in [torch.optim.Adam(local.parameters())] * 3]
    async with grid.connect(folders=peers) as g:
        xs, ys = await g["bob"].send(x), await g["bob"].send(y)
        there = await g["bob"].send(sent)
        for module in (here, there):
            optimizer = torch.optim.Adam(module.parameters())
            for loss in losses:
                result = await g.run(step, module, optimizer, xs, ys)
                assert result.location is g["bob"] and float(await result.get()) == pytest.approx(loss, abs=1e-5)
        assert isinstance(there.weight, grid.Pointer)
        for trained in (here, await there.get()):
            assert torch.allclose(trained.weight, local.weight, atol=1e-5)  # type: ignore[arg-type]


async def test_a_module_that_a_plan_returns_is_one_at_the_peer(peers: Folders) -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)

    def halved(model: nn.Module, x: torch.Tensor) -> Any:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
        return model, model(x)

    async with grid.connect(folders=peers) as g:
        made, result = await g.run(halved, copy.deepcopy(model), await g["bob"].send(x))
        assert isinstance(made, grid.RemoteModule) and made.location is g["bob"]
        assert torch.allclose(await result.get(), model(x) / 2, atol=1e-6)
        assert torch.allclose((await made.get()).weight, model.weight / 2)  # type: ignore[arg-type]


# --- the old demo, in the clear ---------------------------------------------------------------------------


class Hidden(nn.Module):
    """Alice's alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, kernel_size=5, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.hidden = nn.Linear(8 * 12 * 12, 32)
        self.out = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.out(torch.relu(self.hidden(x.flatten(1))))


async def test_labels_of_the_first_images_come_back_by_tags_alone() -> None:
    images, model = torch.randn(200, 1, 28, 28), Hidden().eval()
    expected = model(images[:100]).argmax(1)

    @grid.plan
    def first_labels(images: torch.Tensor, model: nn.Module) -> torch.Tensor:
        return model(images[:100]).argmax(1)

    async with grid.local("alice", "bob") as g:
        await g["bob"].send(images, tags="#mnist #images")
        await g["alice"].send(model, tags="#mnist #classifier", example=images[:2])
        async with grid.connect(folders=g.folders, identity=Identity.generate()) as asker:
            result = await asker.run(first_labels, images="#mnist #images", model="#mnist #classifier")
            assert result.location is asker["bob"] and torch.equal(await result.get(), expected)
            carried = sum(each.payload_sent + each.payload_received for each in asker.traffic())
            assert carried < 20_000  # the model's program, and a hundred labels: no image, no weight


async def test_a_stored_plan_takes_its_large_constants_along(peers: Folders) -> None:
    tag, table = _tag(), torch.randn(200, 50)

    @grid.plan
    def looked_up(x: torch.Tensor) -> torch.Tensor:
        return table[x].sum(1)

    async with grid.connect(folders=peers) as g:
        for _ in range(2):
            stored = await looked_up.build(torch.tensor([1, 2, 3])).send(g["alice"], tags=[tag, "looked"])
        await stored.untag("looked")
    async with grid.connect(folders=peers, identity=Identity.generate()) as other:
        x = await other["bob"].send(torch.tensor([5, 7, 150, 3]))
        assert (await other.explain(f"#{tag} #looked", x)).found[-1].nbytes == 40_000
        (result,) = (await other.map(f"#{tag} #looked", x)).values()
        assert torch.allclose(await result.get(), table[[5, 7, 150, 3]].sum(1), atol=1e-5)


# --- copies -----------------------------------------------------------------------------------------------


async def test_of_copies_of_one_value_the_nearest_is_taken(peers: Folders) -> None:
    tag = _tag()
    async with grid.connect(folders=peers) as g:
        alice, bob, carol = g["alice"], g["bob"], g["carol"]
        model = await alice.send(nn.Linear(4, 2), tags=[tag, "model"])
        await (await g.search(f"#{tag}")).one().copy(bob)
        x = await alice.send(torch.randn(100, 4), tags=[tag, "x"])
        await x.copy(carol)
        y = await bob.send(torch.randn(300, 4), tags=[tag, "y"])

        def plan(x: torch.Tensor, y: torch.Tensor, model: nn.Module) -> torch.Tensor:
            return model(x).sum() + model(y).sum()

        found: dict[str, Any] = {"x": f"#{tag} #x", "y": f"#{tag} #y", "model": f"#{tag} #model"}
        told = await g.explain(plan, **found)
        assert {(each.what, each.peer) for each in told.found} >= {("y", "bob"), ("model", "bob")}
        assert told.peer == "bob" and all(move.what == "x" for move in told.moves)
        here = await carol.send(torch.randn(500, 4))
        assert (await g.explain(plan, x=f"#{tag} #x", y=here, model=f"#{tag} #model")).found[0].peer == "carol"
        whole = await model.fetch()
        want = whole(await x.fetch()).sum() + whole(await y.fetch()).sum()
        assert torch.allclose(await (await g.run(plan, **found)).get(), want, rtol=1e-4, atol=1e-4)
        await carol.send(torch.randn(100, 4), tags=[tag, "x"])  # looks the same, and is another value
        with pytest.raises(grid.Ambiguous, match="3 objects match"):
            await g.run(plan, **found)
        for hit in await g.search(f"#{tag}"):
            await hit.delete()


async def test_copies_whose_values_are_for_others_alone_are_not_known_to_be_copies(peers: Folders) -> None:
    tag = _tag()
    async with grid.connect(folders=peers) as g, grid.connect(folders=peers, identity=Identity.generate()) as asker:
        x = await g["alice"].send(torch.randn(100), tags=[tag], private=True)
        await x.copy(g["bob"])
        assert (await g.run(total, f"#{tag}")).shape == ()
        with pytest.raises(grid.Ambiguous):
            await asker.run(total, f"#{tag}")
        for hit in await g.search(f"#{tag}"):
            await hit.delete()


# --- what a stored plan is ---------------------------------------------------------------------------------


async def test_a_stored_plan_has_the_size_of_its_program_and_names_what_it_lacks(peers: Folders) -> None:
    tag, model = _tag(), nn.Linear(4, 2)

    def scores(x: torch.Tensor, model: nn.Module) -> torch.Tensor:
        return model(x)

    async with grid.connect(folders=peers) as g:
        plan = grid.plan(scores).build(torch.zeros(3, 4), model)
        stored = await plan.send(g["alice"], tags=[tag])
        assert stored.record["nbytes"] == len(plan.program.to_bytes())
        assert (await g.search(f"#{tag}")).one().record["nbytes"] == stored.record["nbytes"]
        copy = await stored.copy(g["bob"])
        assert copy.record["nbytes"] == stored.record["nbytes"]
        x = await g["alice"].send(torch.ones(3, 4))
        with pytest.raises(BadRequest, match=r"takes x, model \(of 2 tensors\); missing: model$"):
            await stored(x)
        with pytest.raises(
            BadRequest, match=r"; model was given in other parts.*: model.weight, model.bias, model.0.weight"
        ):
            await stored(x, nn.Sequential(model))
        assert (await stored(x, model)).shape == (3, 2)
        for hit in await g.search(f"#{tag}"):
            await hit.delete()


async def test_numbers_that_a_stored_plan_computes_come_as_tensors(peers: Folders) -> None:
    tag = _tag()

    def sizes(x: torch.Tensor) -> dict[str, Any]:
        return {"rows": x.shape[0], "mean": x.mean(0), "half": x.shape[0] / 2, "fixed": [1.5, (x.shape[1], "text")]}

    async with grid.connect(folders=peers) as g:
        stored = await grid.plan(sizes).build(torch.zeros(7, 3)).send(g["alice"], tags=[tag])
        result = await stored(await g["bob"].send(torch.ones(9, 5)))
        rows, half, columns = [await each.get() for each in (result["rows"], result["half"], result["fixed"][1][0])]
        assert (rows.item(), half.item(), columns.item()) == (9, 4.5, 5)
        assert (rows.dtype, half.dtype) == (torch.int64, torch.float64)
        assert result["fixed"][0] == 1.5 and result["fixed"][1][1] == "text"
        assert (await result["mean"].get()).tolist() == [1.0] * 5
        await stored.delete()


async def test_a_stored_model_called_on_what_is_elsewhere_says_what_brings_them_together(peers: Folders) -> None:
    tag = _tag()
    async with grid.connect(folders=peers) as g:
        await g["alice"].send(nn.Linear(4, 2), tags=[tag])
        model, x = (await g.search(f"#{tag}")).one(), await g["bob"].send(torch.ones(3, 4))
        await model.load()
        with pytest.raises(grid.NotCollocated, match=r"await g\.run\(model, x\)"):
            model(x)
        assert (await g.run(model, x)).shape == (3, 2)
        await model.delete()
