"""Plans that train, and plans for any batch, at real peers: what they change, what they return, what runs again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import grid
from peer.folders import Folders
from tests.tags import fresh_tag

X, Y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


def train(model: Any, x: Any, y: Any) -> Any:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)

    def step(i: Any, loss: Any) -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return grid.repeat(20, step, torch.zeros(())), model


async def check_same(module: Any, wanted: nn.Module) -> None:
    values = module.state_dict()
    for name, value in wanted.state_dict().items():
        found = await values[name].fetch() if isinstance(values[name], grid.Pointer) else values[name]
        assert torch.allclose(found, value, rtol=1e-4, atol=1e-5), name


async def test_a_module_at_a_peer_is_trained_there_as_one_program(peers: Folders) -> None:
    here, far_from = network(), network()
    wanted, _ = train(here, X, Y)
    async with grid.connect(folders=peers) as g:
        net = await g["alice"].send(far_from)
        x, y = await g["alice"].send(X), await g["alice"].send(Y)
        loss, trained = await g.run(train, net, x, y)
        assert isinstance(loss, grid.Pointer) and torch.allclose(await loss.get(), wanted, atol=1e-5)
        await check_same(net, here)  # what the function changes in its arguments is changed
        await check_same(trained, here)
        assert torch.allclose(await trained.eval()(x).get(), here.eval()(X), atol=1e-5)
        again, _ = await g.run(train, net.train(), x, y)
        wanted, _ = train(here.train(), X, Y)
        assert torch.allclose(await again.get(), wanted, atol=1e-4)


async def test_a_module_that_is_here_is_trained_where_the_data_are(peers: Folders) -> None:
    here, net = network(), network()
    wanted, _ = train(here, X, Y)
    async with grid.connect(folders=peers) as g:
        loss, trained = await g.run(train, net, await g["bob"].send(X), await g["bob"].send(Y))
        assert torch.allclose(await loss.get(), wanted, atol=1e-5)
        await check_same(net, here)
        await check_same(trained, here)


async def test_an_optimiser_goes_on_from_run_to_run(peers: Folders) -> None:
    def step(model: Any, optimizer: Any, x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    here = network()
    mine = torch.optim.SGD(here.parameters(), lr=0.1, momentum=0.9)
    async with grid.connect(folders=peers) as g:
        net = await g["alice"].send(copy.deepcopy(here))
        theirs = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        x, y = await g["alice"].send(X), await g["alice"].send(Y)
        for _ in range(3):
            loss = await g.run(step, net, theirs, x, y)
            assert torch.allclose(await loss.get(), step(here, mine, X, Y), atol=1e-5)
        await check_same(net, here)


async def test_a_plan_built_with_one_batch_and_found_by_tag_runs_on_others(peers: Folders) -> None:
    tag = fresh_tag()

    @grid.plan
    def normalised(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return ((x - x.mean(0)) / (x.std(0, unbiased=False) + 1) @ weight).softmax(-1) / x.shape[0]

    weight = torch.ones(4, 3).tril()
    normalised.build(torch.zeros(32, 4), weight)
    assert normalised.program.inputs[0].shape == ("batch", "weight_0")
    async with grid.connect(folders=peers) as g:
        await normalised.send(g["alice"], tags=tag)
        hit = (await g.search(f"#{tag} kind:plan")).one()
        w = await g["bob"].send(weight)
        for count in (1, 8, 100):
            x = torch.randn(count, 4)
            result = await g.run(hit, await g["bob"].send(x), w)
            assert torch.allclose(await result.get(), normalised(x, weight), atol=1e-6)
        with pytest.raises(grid.GridError, match="weight_0"):
            await g.run(hit, await g["bob"].send(torch.zeros(3, 5)), w)


async def test_dropout_in_a_plan_is_seeded_at_the_peer(peers: Folders) -> None:
    model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5))

    def dropped(model: Any, x: Any) -> Any:
        return model(x) + torch.randn(64)

    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(X)
        g["alice"].manual_seed(7)
        first = await (await g.run(dropped, model, x)).get()
        torch.manual_seed(7)
        assert torch.allclose(first, dropped(model, X), atol=1e-6)
        assert not torch.equal(first, await (await g.run(dropped, model, x)).get())


async def test_pointers_from_outside_the_function_are_inputs(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x, scale = await g["alice"].send(X), await g["alice"].send(torch.arange(4.0))
        net = await g["alice"].send(nn.Linear(4, 2))

        def function(x: Any) -> Any:
            return grid.repeat(2, lambda i, h: h * scale, x).sum(0), net(x)

        product, y = await g.run(function, x)
        assert torch.allclose(await product.get(), (X * torch.arange(4.0) ** 2).sum(0))
        assert torch.allclose(await y.get(), (await net.fetch())(X), atol=1e-6)


async def test_loops_run_on_pointers_too(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(X)
        doubled = grid.repeat(3, lambda i, h: h * 2 + i, x)
        assert torch.equal(await doubled.get(), grid.repeat(3, lambda i, h: h * 2 + i, X))
        last, sums = grid.scan(lambda c, row: (c + row, c.sum()), x[0], x)
        wanted = grid.scan(lambda c, row: (c + row, c.sum()), X[0], X)
        assert torch.allclose(await last.get(), wanted[0]) and torch.allclose(await sums.get(), wanted[1])
