"""Stored models and plans in jails, and what a jail would do: `g.explain`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import grid
from peer.folders import Folders
from peer.jail_rules import JailRules
from peer.keys import Identity
from protocol.errors import BadJail, JailFailed, ReadOnly
from tests.grid.jailers import jailing
from tests.tags import fresh_tag

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="jails run on Linux")


@pytest.fixture(scope="module")
def jailers() -> Iterator[Folders]:
    """alice runs everybody's jails, bob nobody's."""
    with jailing(alice=JailRules(for_all=True, seconds=30.0), bob=JailRules()) as folders:
        yield folders


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).eval()


def classified(x: Any, model: Any, prepare: Any) -> Any:
    scores = model(prepare(x))
    return scores.argmax(1), scores.softmax(-1).amax(1)


def loaded(x: Any) -> Any:
    model = grid.load("#loaded-in-a-jail kind:model")
    return model(x) + model(x * 2)


async def test_a_stored_model_and_a_stored_plan_are_called_in_a_jail_as_in_a_plan(jailers: Folders) -> None:
    tag, model, table = fresh_tag(), net(), torch.randn(2000, 4)

    @grid.plan
    def prepare(x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0) + table[:1]

    async with grid.connect(folders=jailers) as g:
        await g["bob"].send(model, tags=f"{tag} model loaded-in-a-jail")
        await prepare.build(torch.zeros(9, 4)).send(g["bob"], tags=f"{tag} prepare")
        x = await g["alice"].send(torch.randn(50, 4))
        given: dict[str, Any] = {"model": f"#{tag} #model", "prepare": f"#{tag} #prepare"}
        # What is needed of both comes to alice, who runs jails.
        big = await g["alice"].send(torch.randn(20_000, 4))
        jailed = await g.run(grid.jail(classified), big, **given)
        planned = await g.run(grid.plan(classified), big, **given)
        for one, other in zip(jailed, planned, strict=True):
            assert torch.equal(await one.get(), await other.get())
        del big
        assert torch.allclose(
            await (await g.run(grid.jail(loaded), x)).get(), await (await g.run(grid.plan(loaded), x)).get(), atol=1e-6
        )
        here = await g.run(grid.jail(lambda_free), x, net_here := net())
        assert torch.allclose(await here.get(), net_here(await x.get()).detach(), atol=1e-6)


def lambda_free(x: Any, model: Any) -> Any:
    while x.shape[0] > 1000:
        x = x[:1000]
    return model(x)


def trained_in_place(x: Any, model: Any) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).sum().backward()
    optimizer.step()
    return x


async def test_what_does_not_go_in_is_said(jailers: Folders) -> None:
    tag = fresh_tag()
    async with grid.connect(folders=jailers) as g:
        x = await g["alice"].send(torch.randn(5, 4))
        with pytest.raises(BadJail, match=r"in training mode.*eval\(\) first"):
            await g.run(grid.jail(lambda_free), x, nn.Linear(4, 2))
        await g["alice"].send(net(), tags=tag)
        with pytest.raises(ReadOnly, match=r"clone\(\)"):
            await g.run(grid.jail(trained_in_place), x, f"#{tag}")
        with pytest.raises(JailFailed):
            await g.run(grid.jail(lambda_free), x.t(), f"#{tag}")


async def test_private_weights_stay_private_in_a_jail(jailers: Folders) -> None:
    tag = fresh_tag()
    async with grid.connect(folders=jailers) as g, grid.connect(folders=jailers, identity=Identity.generate()) as other:
        await other["alice"].send(net(), tags=tag, private=True)
        x = await g["alice"].send(torch.randn(5, 4))
        told = await g.explain(grid.jail(lambda_free), x, f"#{tag}")
        assert told.jail is not None and told.jail.is_rehearsed and "zeros in their place" in str(told)
        result = await g.run(grid.jail(lambda_free), x, f"#{tag}")
        with pytest.raises(grid.Denied):
            await result.fetch()


async def test_a_jail_is_explained_before_it_runs(jailers: Folders) -> None:
    tag = fresh_tag()
    async with grid.connect(folders=jailers) as g:
        await g["alice"].send(torch.randn(1000, 4), tags=f"{tag} x")
        await g["bob"].send(net(), tags=f"{tag} model")
        told = await g.explain(grid.jail(lambda_free), f"#{tag} #x", f"#{tag} #model")
        assert told.peer == "alice" and told.cost is None and told.program == ""
        assert {(each.what, each.peer) for each in told.found} == {("x", "alice"), ("model", "bob")}
        assert [(each.what, each.source) for each in told.moves] == [("model", "bob")]
        assert told.jail is not None and told.jail.seconds == 30 and not told.jail.is_rehearsed
        assert 100 < told.jail.shipped < 20_000
        text = str(told)
        assert text.startswith("jail lambda_free: runs at alice") and "in at most 30 s" in text
        assert {place.peer: bool(place.forbidden) for place in told.places} == {"alice": False, "bob": True}
        y = await g["bob"].send(torch.randn(1000, 4))
        refused = await g.explain(grid.jail(lambda_free), y, f"#{tag} #model")
        assert refused.peer is None and refused.problem is not None and "--jails-for" in refused.problem
        assert told.to_json()["jail"]["seconds"] == 30


# --- equal to plans ---------------------------------------------------------------------------------------

STEPS = (
    "x = x * 2 - 1",
    "x = torch.relu(x) + x.mean(0)",
    "x = model(x) @ model(x).t() @ x",
    "x = torch.where(x > 0.1, x, -x)",
    "x = F.layer_norm(x, (4,))",
    "x = torch.cat([x[2:], x[:2]]).sort(0).values",
    "x = x.cumsum(1).clamp(-3, 3)",
    "x = torch.einsum('ij,kj->ik', x, x) @ x / 10",
    "x = [row for row in (x, x.flip(0), x.roll(1, 1))][1]",
    "x = x - sum(x[i] for i in range(3)) / 3",
)


def _function(steps: list[str], folder: Path) -> Any:
    """The function with these lines, in a file, as source is read from one."""
    lines = ["import torch", "import torch.nn.functional as F", "def made(x, model):", *(f"    {s}" for s in steps)]
    path = folder / f"made_{os.urandom(4).hex()}.py"
    path.write_text("\n".join([*lines, "    return {'x': x, 'n': x.shape[0], 'pair': (x.sum(), x.argmax())}", ""]))
    names: dict[str, Any] = {}
    exec(compile(path.read_text(), str(path), "exec"), names)
    return names["made"]


def test_any_function_gives_the_same_as_a_plan_and_as_a_jail(jailers: Folders, tmp_path: Path) -> None:
    async def connected() -> Any:
        g = await grid.connect(folders=jailers, identity=Identity.generate())
        torch.manual_seed(3)
        await g["alice"].send(net(), tags="property-model")
        return g, await g["alice"].send(torch.randn(6, 4))

    async def both(function: Any, g: Any, x: Any) -> None:
        jailed = await g.run(grid.jail(function), x, model="#property-model")
        planned = await g.run(grid.plan(function), x, model="#property-model")
        assert jailed["n"] == int(await planned["n"].get() if isinstance(planned["n"], grid.Pointer) else planned["n"])
        one = [jailed["x"], *jailed["pair"]]
        other = [planned["x"], *planned["pair"]]
        for a, b in zip(one, other, strict=True):
            assert torch.equal(await a.get(), await b.get())

    with asyncio.Runner() as runner:
        g, x = runner.run(connected())

        @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
        @given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=5))
        def same(steps: list[str]) -> None:
            runner.run(both(_function(steps, tmp_path), g, x))

        try:
            same()
        finally:
            runner.run(g.close())
