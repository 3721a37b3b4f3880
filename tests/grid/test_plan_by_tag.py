"""Plans by tag over real peers: their arguments, explained, in a world that changes, of copies."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import torch
from torch import nn

import grid
from grid import calls
from peer.folders import Folders
from peer.keys import Identity
from protocol.errors import BadRequest, Changed, QueryError
from tests.tags import fresh_tag


@grid.plan
def total(x: torch.Tensor, scale: float = 1.0, mode: str = "sum") -> torch.Tensor:
    return getattr(x, mode)() * scale


# --- arguments --------------------------------------------------------------------------------------------


async def test_queries_may_stand_in_lists_and_dicts_and_defaults_and_texts_are_options(peers: Folders) -> None:
    tag = fresh_tag()

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
    tag = fresh_tag()
    async with grid.connect(folders=peers) as g:
        await g["alice"].send(torch.ones(2), tags=[tag, "images"])
        with pytest.raises(grid.NotFound, match=r"x: nothing matches.*matches #imagse; did you mean #images\?"):
            await g.run(total, f"#{tag} #imagse")
        with pytest.raises(grid.NotFound, match=r"Nothing at all matches name:\w+; #\w+ finds tensor \w+ at alice"):
            await g.run(total, f"#{tag} name:{fresh_tag()}")
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
    tag, model = fresh_tag(), nn.Linear(64, 10)
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
    tag = fresh_tag()
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
    job, left = calls.Call.job, list(changes)

    async def held(call: Any, part: Any) -> Any:
        made = await job(call, part)
        if left:
            await left.pop(0)()
        return made

    monkeypatch.setattr(calls.Call, "job", held)


async def test_an_object_that_moved_meanwhile_is_found_again(peers: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    tag = fresh_tag()
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.ones(3), tags=tag)
        between(monkeypatch, lambda: x.move(g["bob"]))
        result = await g.run(total, f"#{tag}")
        assert result.location is g["bob"] and float(await result.get()) == 3


async def test_a_tag_that_is_anothers_meanwhile_is_looked_up_again(
    peers: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = fresh_tag()
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
    tag = fresh_tag()
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.ones(3), tags=tag)
        between(monkeypatch, x.delete)
        said = rf"nothing matches.*changed.*'#{tag}' found tensor \w+ at alice, and now nothing"
        with pytest.raises(grid.NotFound, match=said):
            await g.run(total, f"#{tag}")


async def test_what_changes_twice_is_an_error_that_says_what_changed(
    peers: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = fresh_tag()
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
    tag, runs = fresh_tag(), []
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


# --- copies -----------------------------------------------------------------------------------------------


async def test_of_copies_of_one_value_the_nearest_is_taken(peers: Folders) -> None:
    tag = fresh_tag()
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
    tag = fresh_tag()
    async with grid.connect(folders=peers) as g, grid.connect(folders=peers, identity=Identity.generate()) as asker:
        x = await g["alice"].send(torch.randn(100), tags=[tag], private=True)
        await x.copy(g["bob"])
        assert (await g.run(total, f"#{tag}")).shape == ()
        with pytest.raises(grid.Ambiguous):
            await asker.run(total, f"#{tag}")
        for hit in await g.search(f"#{tag}"):
            await hit.delete()
