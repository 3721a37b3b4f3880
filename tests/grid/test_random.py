"""Random numbers at a peer: repeatable, and those of local torch after the same seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import grid
from peer.folders import Folders
from protocol.errors import BadRequest
from tests.grid.forms import is_same, value_of


def _draws(x: Any) -> list[Any]:
    drawn = [F.dropout(x, 0.5), torch.rand_like(x), torch.randn_like(x), x.clone().normal_(2, 3), x.clone().uniform_()]
    drawn += [torch.bernoulli(x.sigmoid()), torch.multinomial(x.softmax(1), 2), x.clone().exponential_()]
    return [*drawn, nn.Dropout2d(0.3)(x[None, ..., None]), torch.randint_like(x, 9)]


async def test_a_seed_gives_the_numbers_of_local_torch(peers: Folders) -> None:
    value = torch.randn(4, 5)
    torch.manual_seed(3)
    expected = _draws(value)
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(value)
        for _ in range(2):
            g["alice"].manual_seed(3)
            made = _draws(x)
            for number, (one, other) in enumerate(zip(made, expected, strict=True)):
                assert is_same(await value_of(one), other), number
        assert not is_same(await value_of(F.dropout(x)), expected[0])


def _of_gammas(x: Any) -> list[Any]:
    y, D = x.abs() + 0.3, torch.distributions
    y.requires_grad_()
    kinds = [D.Gamma(y, y + 1), D.Beta(y, y), D.Dirichlet(y), D.Chi2(y), D.Exponential(y), D.Weibull(y, y + 1)]  # type: ignore[no-untyped-call]
    drawn = [kind.rsample((2,)) for kind in kinds]
    sum(each.pow(2).sum() for each in drawn).backward()
    counts = D.Binomial(7, (y / 9).detach(), validate_args=False).sample((3,))  # type: ignore[no-untyped-call]
    assert y.grad is not None
    return [*drawn, counts, y.grad]


async def test_gammas_and_what_is_made_of_them_are_drawn_there(peers: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", False)
    value = torch.randn(4, 5)
    torch.manual_seed(3)
    expected = _of_gammas(value)
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(value)
        g["alice"].manual_seed(3)
        for number, (one, other) in enumerate(zip(_of_gammas(x), expected, strict=True)):
            assert is_same(await value_of(one), other), number
        for count, p in ((float("nan"), 0.5), (float("inf"), 0.5)):
            with pytest.raises(BadRequest, match="not finite"):
                await torch.binomial(torch.full_like(x, count), torch.full_like(x, p)).get()  # type: ignore[attr-defined]
        with pytest.raises(BadRequest, match="prob must have the shape of count"):
            torch.binomial(x.abs(), x.sigmoid()[0])


async def test_a_seed_takes_its_place_among_the_operations(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.zeros(100))
        g["alice"].manual_seed(1)
        first, second = torch.rand_like(x), torch.rand_like(x)
        g["alice"].manual_seed(1)
        again = torch.rand_like(x)
        assert is_same(await again.fetch(), await first.fetch())  # type: ignore[attr-defined]
        assert not is_same(await again.fetch(), await second.fetch())  # type: ignore[attr-defined]


async def test_a_net_with_dropout_trains_to_the_same_weights_as_here(peers: Folders) -> None:
    def train(net: nn.Module, x: Any) -> None:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()

    net, value = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1)), torch.randn(6, 4)
    async with grid.connect(folders=peers) as g:
        there, x = await g["bob"].send(net), await g["bob"].send(value)
        g["bob"].manual_seed(11)
        train(there, x)
        torch.manual_seed(11)
        train(net, value)
        for made, expected in zip(there.parameters(), net.parameters(), strict=True):
            assert is_same(await made.detach().fetch(), expected.detach())  # type: ignore[attr-defined]


async def test_a_generator_decides_what_is_drawn(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.zeros(50))

        async def drawn(seed: int) -> list[torch.Tensor]:
            generator = torch.Generator().manual_seed(seed)
            made: list[Any] = [
                x.clone().normal_(generator=generator),
                torch.bernoulli(x.sigmoid(), generator=generator),
                torch.multinomial(x.softmax(0), 5, generator=generator),
                torch.bernoulli(x.sigmoid(), generator=generator),
            ]
            return [await each.get() for each in made]

        one, two, other = await drawn(5), await drawn(5), await drawn(6)
        assert all(map(is_same, one, two)) and not is_same(one[0], other[0]) and not is_same(one[1], one[3])


async def test_a_generator_leaves_the_sequence_of_the_peer_as_it_was(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.zeros(50))
        g["alice"].manual_seed(2)
        x.clone().normal_(generator=torch.Generator().manual_seed(5))
        made = await torch.rand_like(x).get()  # type: ignore[attr-defined]
        torch.manual_seed(2)
        assert is_same(made, torch.rand(50))


async def test_what_is_no_seed_is_refused(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        for wrong in (-1, 1 << 63, 1.5, None):
            with pytest.raises(BadRequest, match="a seed is an integer"):
                g["alice"].manual_seed(wrong)  # type: ignore[arg-type]
