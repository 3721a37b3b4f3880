"""Modules as public programs have them: with attributes that were computed, many of one class, with a new head."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import grid
from peer.folders import Folders


class Policy(nn.Module):
    """Keeps what it computed, as policies keep log probabilities and taggers their hidden state."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.saved: list[Any] = []
        self.hidden: Any = None

    def forward(self, x: Any) -> Any:
        out = self.linear(x)
        self.saved.append(out[0])
        self.hidden = (out, out + 1)
        return out


async def test_what_a_module_computed_goes_with_it_to_a_peer_and_back(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        policy, x = Policy(), torch.rand(4, 3)
        expected = policy(x)
        sent: Any = await g["alice"].send(policy)
        there = sent(await g["alice"].send(x))
        assert torch.equal(expected, await there.fetch())
        back: Any = await sent.get()
        assert len(back.saved) == 2
        assert back.saved[0] is policy.saved[0]
        assert torch.equal(back(x), expected)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own: there is a newer form
async def test_weights_that_are_computed_before_each_call(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        net: Any = nn.utils.weight_norm(nn.Conv1d(1, 4, 3))
        x = torch.rand(2, 1, 8)
        sent: Any = await g["alice"].send(net)
        sent(await g["alice"].send(x)).sum().backward()
        net(x).sum().backward()
        assert torch.allclose(net.weight_v.grad, await sent.weight_v.grad.fetch(), atol=1e-6)
        back = await sent.get()
        assert torch.allclose(net(x), back(x))


async def test_modules_of_one_class_are_of_one_class_at_a_peer(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        first: Any = await g["alice"].send(Policy())
        second: Any = await g["bob"].send(Policy())
        assert type(first) is type(second)
        assert type(first) is not type(await g["alice"].send(nn.Linear(1, 1)))
        assert type(await first.get()) is Policy


async def test_a_part_that_was_replaced_by_one_that_is_here_is_named(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        net: Any = await g["alice"].send(nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 5))))
        net[1][0] = nn.Linear(4, 2)
        with pytest.raises(grid.GridError, match=r"its '1.0' is here: send that part alone"):
            await g["alice"].send(net)
        net[1][0] = await g["alice"].send(net[1][0])
        assert (await net(await g["alice"].send(torch.rand(5, 3))).get()).shape == (5, 2)


async def test_a_lazy_module_is_run_before_it_is_sent(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        with pytest.raises(grid.GridError, match=r"lazy module has no parameters yet; run it on an example first"):
            await g["alice"].send(nn.Sequential(nn.LazyLinear(2)))


async def test_copies_have_what_torchs_copies_have(peers: Folders) -> None:
    """Of tensors gradients, and one object by two names; of parameters neither."""
    layer = nn.Linear(2, 2)
    async with grid.connect(folders=peers) as g:
        x = torch.ones(1, 2, requires_grad=True)
        sent: Any = await g["alice"].send(copy.deepcopy(layer))
        made: list[Any] = []
        for net, row in ((layer, x), (sent, await g["alice"].send(x))):
            net(row).sum().backward()
            tied = nn.Parameter(net.weight.data)
            row, same, *parameters = copy.deepcopy([row, row.detach(), net.weight, tied])
            same.add_(1)
            parameters[0].data.add_(1)
            made.append([row, row.grad, *parameters])
            assert [each.grad for each in parameters] == [None, None] and row.requires_grad
        for wanted, found in zip(*made, strict=True):
            torch.testing.assert_close(await found.fetch(), wanted)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
async def test_a_module_at_a_peer_is_compiled_as_the_class_that_it_was(peers: Folders) -> None:
    here = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    async with grid.connect(folders=peers) as g:
        net = await g["alice"].send(copy.deepcopy(here))
        x = torch.randn(4, 2)
        compiled = torch.jit.script(net)
        found = compiled(await g["alice"].send(x))
        torch.testing.assert_close(await found.fetch(), here(x))
        assert compiled[0].weight is net[0].weight and net.location is g["alice"]
