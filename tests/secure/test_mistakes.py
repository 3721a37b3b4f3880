"""Calls that cannot be: each is an error that says what to write instead, before anything is shared; and calls that
look as if they could not be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import grid
from peer.folders import Folders
from protocol.errors import BadRequest

TEAM: dict[str, Any] = {"parties": ["alice", "bob"], "provider": "carol"}


@grid.plan
def twice(x: Any) -> Any:
    return x * 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"parties": [1, 2]}, 'a peer is named, such as "alice"'),
        ({"parties": ["alice", None]}, 'a peer is named, such as "alice"'),
        ({"parties": 2}, "parties are 2 to 8 peers"),
        ({"parties": "alice,bob"}, "parties are 2 to 8 peers"),
        ({"provider": ["carol"]}, 'a peer is named, such as "alice"'),
        ({"reveal_to": 7}, 'a peer is named, such as "alice"'),
        ({"precision": 16.0}, "precision=16.0 is not possible"),
        ({"patience": 0}, "patience is a positive number"),
        ({"patience": float("nan")}, "patience is a positive number"),
        ({"patience": "5"}, "patience is a positive number"),
    ],
)
async def test_it_says_what_to_write(team: Folders, given: dict[str, Any], said: str) -> None:
    async with grid.connect(folders=team) as g:
        with pytest.raises(BadRequest, match=said):
            await g.run(twice, x=torch.ones(2), **{**TEAM, **given})
        assert not g.sessions._all


async def test_what_only_fails_on_shares_is_said_before_they_leave(team: Folders) -> None:
    async with grid.connect(folders=team) as g:
        with pytest.raises(BadRequest, match="does not become an integer") as refused:
            await g.run(lambda x: x.long(), x=torch.ones(2), **TEAM)
        assert refused.value.peer is None and not g.sessions._all


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
async def test_nothing_is_shared_as_well(team: Folders, shape: tuple[int, ...]) -> None:
    def sums(x: torch.Tensor) -> Any:
        return x * 2, x.relu().sum(0), x.sum()

    async with grid.connect(folders=team) as g:
        for x in (
            torch.zeros(shape),
            await g["bob"].send(torch.zeros(shape)),
            await g["dave"].send(torch.zeros(shape)),
        ):
            got = (await g.run(sums, x=x, **TEAM)).value
            assert [each.shape for each in got] == [each.shape for each in sums(torch.zeros(shape))]


async def test_a_module_without_values_is_shared_as_well(team: Folders) -> None:
    async with grid.connect(folders=team) as g:
        carol = g["carol"]
        net = await grid.share(nn.Sequential(nn.ReLU(), nn.Flatten()), g["alice"], g["bob"], provider=carol)
        x = torch.randn(2, 3)
        s = await grid.share(x, g["alice"], g["bob"], provider=carol)
        assert torch.allclose(await net(s).get(), x.relu(), atol=1e-4)
        assert type(await net.get()) is nn.Sequential
        with pytest.raises(BadRequest, match=r"reveal\(to=g\[\"bob\"\]\)"):
            await s.reveal(to="bob")
        assert torch.allclose(await s.get(), x, atol=1e-4)
