"""A stored plan on objects that are all at one peer runs at once, and no otherwise than by way of the search."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch

import grid
from grid import running
from grid.at_hand import at_hand
from peer.folders import Folders
from peer.keys import Identity
from protocol.errors import BadRequest, GridError, NotFound, PeerLost


@grid.plan
def blend(x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"sum": x + y, "scaled": x * 3.0}


@asynccontextmanager
async def stored(peers: Folders) -> AsyncIterator[tuple[Any, Any, Any]]:
    """A grid, alice, and a plan that she has."""
    async with grid.connect(folders=peers, identity=Identity.generate()) as g:
        alice = g["alice"]
        plan = await blend.build(torch.zeros(4), torch.zeros(4)).send(alice, tags=["#blend"])
        yield g, alice, plan


@pytest.fixture
def searching_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is at hand."""
    monkeypatch.setattr(running, "at_hand", lambda *given: None)


@pytest.fixture
def at_once_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is searched for, captured or placed."""
    monkeypatch.delattr(running, "Call")


async def both(g: Any, alice: Any, plan: Any) -> None:
    x, y = torch.arange(4.0), torch.ones(4)
    a, b = await alice.send(x), await alice.send(y)
    for given, named in (((a, b), {}), ((a,), {"y": b}), ((), {"y": b, "x": a})):
        made = await g.run(plan, *given, **named)
        assert set(made) == {"sum", "scaled"} and made["sum"].location is alice
        assert torch.equal(await made["sum"].get(), x + y) and torch.equal(await made["scaled"].get(), x * 3)


async def test_it_runs_without_a_search(peers: Folders, at_once_only: None) -> None:
    async with stored(peers) as (g, alice, plan):
        await both(g, alice, plan)


async def test_with_one_it_gives_the_same(peers: Folders, searching_only: None) -> None:
    async with stored(peers) as (g, alice, plan):
        await both(g, alice, plan)


async def test_it_is_one_request(peers: Folders, at_once_only: None) -> None:
    async with stored(peers) as (g, alice, plan):
        a, b = await alice.send(torch.ones(4)), await alice.send(torch.ones(4))
        await g.run(plan, a, b)
        before = alice.outbox.link.asked
        await (await g.run(plan, a, b))["sum"].get()
        assert alice.outbox.link.asked - before == 1


async def test_what_is_elsewhere_or_to_be_found_is_not_at_hand(peers: Folders) -> None:
    async with stored(peers) as (g, alice, plan):
        x = torch.ones(4)
        a, b = await alice.send(x), await g["bob"].send(x)
        chain = await g["bob"].link(await alice.send(x))
        for given in ((a, b), (a, x), (a, chain), (a, "#something"), (a, 1.0)):
            assert at_hand(plan, given, {}) is None
        assert at_hand("#blend", (a, a), {}) is None and at_hand(plan, (a, a), {}) is not None
        made = await g.run(plan, a, b)
        assert torch.equal(await made["sum"].get(), 2 * x)


async def refusal(run: Any) -> GridError:
    with pytest.raises(GridError) as caught:
        await run
    return caught.value


@pytest.mark.parametrize("case", ["too few", "too many", "another name", "another dtype", "another size", "gone"])
async def test_what_is_refused_is_refused_alike(peers: Folders, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    async with stored(peers) as (g, alice, plan):
        a, whole = await alice.send(torch.ones(4)), await alice.send(torch.ones(4, dtype=torch.int64))
        small, gone = await alice.send(torch.ones(3)), await alice.send(torch.ones(4))
        await gone.get()
        given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
            "too few": ((a,), {}),
            "too many": ((a, a, a), {}),
            "another name": ((a,), {"z": a}),
            "another dtype": ((a, whole), {}),
            "another size": ((a, small), {}),
            "gone": ((a, gone), {}),
        }
        args, named = given[case]
        ours = await refusal(g.run(plan, *args, **named))
        monkeypatch.setattr(running, "at_hand", lambda *_: None)
        usual = await refusal(g.run(plan, *args, **named))
        assert isinstance(ours, BadRequest) and (ours.code, ours.message) == (usual.code, usual.message)


async def test_a_pointer_of_somebody_else_is_run_as_oneself(peers: Folders) -> None:
    async with stored(peers) as (g, alice, plan), stored(peers) as (_, their_alice, _):
        mine, theirs = await alice.send(torch.ones(4)), await their_alice.send(torch.ones(4))
        with pytest.raises((NotFound, PeerLost, BadRequest)):
            await g.run(plan, theirs, theirs)
        assert torch.equal(await (await g.run(plan, mine, mine))["sum"].get(), torch.full((4,), 2.0))


@grid.plan
def nested(pair: dict[str, torch.Tensor], y: list[torch.Tensor]) -> torch.Tensor:
    return pair["a"] * 2 + pair["b"] + y[0]


async def test_arguments_in_maps_and_lists_are_at_hand_too(peers: Folders) -> None:
    x = torch.ones(4)
    async with grid.connect(folders=peers, identity=Identity.generate()) as g:
        alice = g["alice"]
        plan = await nested.build({"a": x, "b": x}, [x]).send(alice, tags=["#nested"])
        a, b, c = [await alice.send(torch.full((4,), value)) for value in (1.0, 10.0, 100.0)]
        await (await g.run(plan, {"a": a, "b": b}, [c])).get()
        calls: list[tuple[tuple[Any, ...], Any]] = [(({"b": b, "a": a}, [c]), {})]
        for given, named in [*calls, ((), {"y": (c,), "pair": {"a": a, "b": b}})]:
            found = at_hand(plan, given, named)
            assert found is not None and found.ids == [pointer._handle.id for pointer in (a, b, c)]
            assert (await (await g.run(plan, *given, **named)).get()).tolist() == [112.0] * 4
        others: list[tuple[Any, ...]] = [
            (a, b, c),
            ({"a": a, "b": b, "c": c}, [c]),
            ({"a": a}, [c]),
            ({"a": a, "b": b},),
        ]
        for wrong in [*others, ({"a": a, "b": x}, [c]), ({"a": a, "b": b}, [c, c])]:
            assert at_hand(plan, wrong, {}) is None


@grid.plan
def weighed(values: dict[str, torch.Tensor], by: torch.Tensor) -> torch.Tensor:
    return values["b"] * 10 + values["a"] + by


async def test_what_fitted_before_is_compared_and_nothing_else_passes_for_it(peers: Folders) -> None:
    x = torch.ones(4)
    async with grid.connect(folders=peers, identity=Identity.generate()) as g:
        alice = g["alice"]
        plan = await weighed.build({"b": x, "a": x}, x).send(alice, tags=["#weighed"])
        a, b, by = [await alice.send(torch.full((4,), value)) for value in (1.0, 2.0, 100.0)]
        whole, longer = await alice.send(torch.ones(4, dtype=torch.int64)), await alice.send(torch.ones(5))
        for _ in range(2):
            assert at_hand(plan, ({"b": b, "a": a}, by), {}) is not None
        assert plan.fitted is not None and plan.fitted.arguments == (("values", ("b", "a")), ("by", None))
        # In whatever order they are given, and by name, too.
        calls: list[tuple[tuple[Any, ...], Any]] = [
            (({"b": b, "a": a}, by), {}),
            (({"a": a, "b": b}, by), {}),
            (({"b": b, "a": a},), {"by": by}),
            ((), {"by": by, "values": {"b": b, "a": a}}),
        ]
        for given, named in [*calls, *calls]:
            assert (await (await g.run(plan, *given, **named)).get()).tolist() == [121.0] * 4
        # After one that fits: as many, in another place, of another kind or name.
        others: list[tuple[tuple[Any, ...], Any]] = [
            ((b, a, by), {}),
            ((by, {"b": b, "a": a}), {}),
            (({"b": b, "c": a}, by), {}),
            (({"b": b, "a": a},), {"values": by}),
            (({"b": b, "a": a},), {"to": by}),
            (({"b": b, "a": x}, by), {}),
            (({"b": b, "a": whole}, by), {}),
        ]
        for given, named in others:
            assert at_hand(plan, ({"b": b, "a": a}, by), {}) is not None
            assert at_hand(plan, given, named) is None
        for each in ({"b": longer, "a": longer}, longer), ({"b": b, "a": longer}, by):
            found = at_hand(plan, each, {})
            with pytest.raises(GridError) if found is None else contextlib.nullcontext():
                assert (await (await g.run(plan, *each)).get()).tolist() == [12.0] * 5
