"""Loops that stay loops, between real peers: dealt in the run, dealt ahead, and made by three parties alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import grid
from peer.folders import Folders
from tests.secure.teams import CLOSE, TEAM, joined

ALONE: dict[str, Any] = {"parties": ["alice", "bob", "dave"]}
STEPS = 70


@grid.plan
def many_steps(x: Any, w: Any) -> Any:
    """Ten operations an iteration: more than are written out here."""

    def step(carried: Any, row: Any) -> Any:
        carried = (carried * 0.5 + row @ w).relu()
        return carried, carried.sum()

    last, kept = grid.scan(step, torch.zeros(3), x)
    return last, kept.mean()


@pytest.fixture(autouse=True)
def _little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops of few iterations stay loops: who asks decides that."""
    monkeypatch.setattr("mpc.lowering.ROOM", 200)


def _data() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {"x": torch.randn(STEPS, 4, generator=generator), "w": torch.randn(4, 3, generator=generator)}


def _check(result: Any, data: dict[str, torch.Tensor]) -> None:
    for got, want in zip(result.value, many_steps(**data), strict=True):
        assert torch.allclose(got, want, atol=CLOSE)


async def test_a_loop_that_is_not_written_out(team: Folders) -> None:
    async with joined(team) as g:
        data = _data()
        foreseen = await g.explain(many_steps, **data, **TEAM)
        assert foreseen.operations < 20 and foreseen.rounds > 4 * STEPS
        result = await g.run(many_steps, **data, **TEAM)
        _check(result, data)
        assert (foreseen.rounds, foreseen.nbytes) == (result.cost.online.rounds, result.cost.online.nbytes)
        prepared = await g.prepare(many_steps, runs=1, **data, **TEAM)
        result = await g.run(many_steps, **data, **TEAM)
        _check(result, data)
        assert (prepared.left(), result.cost.offline.nbytes) == (0, 0)


async def test_a_loop_by_three_parties_alone(team: Folders) -> None:
    async with joined(team) as g:
        data = _data()
        _check(await g.run(many_steps, **data, **ALONE), data)
