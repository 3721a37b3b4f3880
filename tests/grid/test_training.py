"""Training at a peer: optimisers and what they keep, schedules, modules that move while they are trained."""

from __future__ import annotations

import asyncio
import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

import grid
from grid.remote import RemotePeer
from peer.folders import Folders

Make = Callable[[Any], optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgd, maximize": lambda p: optim.SGD(p, lr=0.01, momentum=0.9, dampening=0.5, maximize=True),
    "sgd, foreach": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "sgd, fused": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.2, fused=True),
    "adam": lambda p: optim.Adam(p, lr=0.01, amsgrad=True, weight_decay=0.01),
    "adam, foreach": lambda p: optim.Adam(p, lr=0.01, foreach=True),
    "adam, fused": lambda p: optim.Adam(p, lr=0.01, fused=True, amsgrad=True),
    "adam, lr here": lambda p: optim.Adam(p, lr=torch.tensor(0.01)),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, maximize=True),
    "adamw, fused": lambda p: optim.AdamW(p, lr=0.01, fused=True),
    "adamax, foreach": lambda p: optim.Adamax(p, lr=0.01, foreach=True),
    "adamax": lambda p: optim.Adamax(p, lr=0.01),
    "nadam": lambda p: optim.NAdam(p, lr=0.01, decoupled_weight_decay=True, weight_decay=0.01),
    "radam": lambda p: optim.RAdam(p, lr=0.01),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "rmsprop, foreach": lambda p: optim.RMSprop(p, lr=0.01, foreach=True),
    "rprop": lambda p: optim.Rprop(p, lr=0.01),
    "asgd": lambda p: optim.ASGD(p, lr=0.01),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.1, lr_decay=0.1),
    "adagrad, fused": lambda p: optim.Adagrad(p, lr=0.1, fused=True),
    "adadelta": lambda p: optim.Adadelta(p, lr=1.0),
    "adafactor": lambda p: optim.Adafactor(p, lr=0.01),
}


def small() -> nn.Sequential:
    """Without a bias before the normalisation: its gradient is rounding alone, which adaptive steps make large."""
    return nn.Sequential(nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 5), torch.randint(0, 3, (8,))


def step(net: nn.Module, optimizer: optim.Optimizer, x: Any, y: Any) -> Any:
    def closure() -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss

    return optimizer.step(closure).detach()  # type: ignore[attr-defined]


async def held(peer: RemotePeer) -> set[bytes]:
    """The ids of what this client, and others of its identity, have there."""
    return {record["id"] for record in await peer.objects()}


async def check_same(far: Any, here: nn.Module) -> None:
    values = (await far.fetch()).state_dict()
    for name, wanted in here.state_dict().items():
        assert torch.allclose(values[name], wanted, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("names", [sorted(OPTIMIZERS)[::2], sorted(OPTIMIZERS)[1::2]])
async def test_optimisers_step_as_here_also_after_their_state_was_loaded(peers: Folders, names: list[str]) -> None:
    x, y = data()
    async with grid.connect(folders=peers) as g:
        far_x, far_y = await g["alice"].send(x), await g["alice"].send(y)
        for name in names:
            here = small()
            far = await g["alice"].send(copy.deepcopy(here))
            optimizer, theirs = OPTIMIZERS[name](here.parameters()), OPTIMIZERS[name](far.parameters())

            def train(far: Any, here: Any, optimizer: Any, theirs: Any) -> None:
                for _ in range(2):
                    step(here, optimizer, x, y)
                    step(far, theirs, far_x, far_y)

            # In a thread: some read a value of their state (adafactor).
            await asyncio.to_thread(train, far, here, optimizer, theirs)
            again = OPTIMIZERS[name](far.parameters())
            again.load_state_dict(theirs.state_dict())
            await asyncio.to_thread(train, far, here, optimizer, again)
            try:
                await check_same(far, here)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from error


SCHEDULES: list[Callable[[Any], Any]] = [
    lambda o: optim.lr_scheduler.StepLR(o, 1, 0.5),
    lambda o: optim.lr_scheduler.OneCycleLR(o, 0.5, total_steps=6),
    lambda o: optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    lambda o: optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    lambda o: optim.lr_scheduler.SequentialLR(
        o, [optim.lr_scheduler.LinearLR(o), optim.lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
]


async def test_schedules_change_the_steps_as_here(peers: Folders) -> None:
    x, y = data()
    async with grid.connect(folders=peers) as g:
        far_x, far_y = await g["alice"].send(x), await g["alice"].send(y)
        for make in SCHEDULES:
            here = small()
            far = await g["alice"].send(copy.deepcopy(here))
            for net, inputs in ((here, (x, y)), (far, (far_x, far_y))):
                optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
                schedule = make(optimizer)
                for _ in range(4):
                    step(net, optimizer, *inputs)
                    schedule.step()
            await check_same(far, here)


# --- moving -------------------------------------------------------------------------------------------------

MOVED: dict[str, Make] = {
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: optim.Adam(p, lr=0.05, amsgrad=True),
    "lbfgs": lambda p: optim.LBFGS(p, lr=0.5, max_iter=3),
}


@pytest.mark.parametrize("name", sorted(MOVED))
async def test_training_goes_on_where_the_module_was_moved_with_what_its_optimiser_keeps(
    peers: Folders, name: str
) -> None:
    here, (x, y) = small(), data()
    async with grid.connect(folders=peers) as g:
        net = await g["alice"].send(copy.deepcopy(here))
        optimizer, theirs = MOVED[name](here.parameters()), MOVED[name](net.parameters())
        names = ["alice", "bob", "carol", "alice"]
        inputs = {each: (await g[each].send(x), await g[each].send(y)) for each in set(names)}
        payload = sum(traffic.payload_sent for traffic in g.traffic())
        for each in names:
            parameters = list(net.parameters())
            assert await net.move(g[each]) is net and net.location is g[each]
            assert all(one is other for one, other in zip(parameters, net.parameters(), strict=True))
            tensors = [*net.parameters(), *net.buffers()]
            assert all(tensor.location is g[each] for tensor in tensors)
            assert all(p.grad.location is g[each] for p in parameters if p.grad is not None)
            wanted = step(here, optimizer, x, y)
            got = await asyncio.to_thread(step, net, theirs, *inputs[each])
            assert torch.allclose(await got.get(), wanted, rtol=1e-4, atol=1e-5)
        assert sum(traffic.payload_sent for traffic in g.traffic()) == payload  # from peer to peer
        await check_same(net, here)


async def test_a_move_leaves_nothing_behind_and_says_where_the_rest_went(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        net = await g["alice"].send(nn.Linear(3, 2))
        old, ids = net.weight.detach(), {parameter._handle.id for parameter in net.parameters()}
        assert len(ids) == 2 and ids <= await held(g["alice"])
        await net.move(g["bob"])
        await g.settle()
        assert ids.isdisjoint(await held(g["alice"]))
        assert {parameter._handle.id for parameter in net.parameters()} <= await held(g["bob"])
        with pytest.raises(grid.GridError, match="the module was moved to bob"):
            await old.fetch()


async def test_a_move_that_fails_leaves_the_module_whole_where_it_was(
    peers: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, (x, y) = small(), data()
    async with grid.connect(folders=peers) as g:
        net = await g["alice"].send(copy.deepcopy(here))
        far_x, far_y = await g["alice"].send(x), await g["alice"].send(y)
        optimizer, theirs = optim.Adam(here.parameters()), optim.Adam(net.parameters())
        assert torch.allclose(await step(net, theirs, far_x, far_y).get(), step(here, optimizer, x, y), atol=1e-5)
        calls, before = [0], await held(g["bob"])
        hand_over = RemotePeer.hand_over

        async def failing(self: RemotePeer, *args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == 5:
                raise grid.PeerLost("bob went away", peer="bob")
            return await hand_over(self, *args, **kwargs)

        monkeypatch.setattr(RemotePeer, "hand_over", failing)
        with pytest.raises(grid.PeerLost, match="went away"):
            await net.move(g["bob"])
        assert net.location is g["alice"] and all(p.location is g["alice"] for p in net.parameters())
        await g.settle()
        assert await held(g["bob"]) <= before
        assert torch.allclose(await step(net, theirs, far_x, far_y).get(), step(here, optimizer, x, y), atol=1e-5)
        monkeypatch.undo()
        await net.move(g["bob"])
        await check_same(net, here)


async def test_an_optimiser_that_made_no_step_is_moved_when_it_is_given(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        net = await g["alice"].send(nn.Linear(3, 2))
        optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        net(await g["alice"].send(torch.ones(1, 3))).sum().backward()
        optimizer.step()
        state, loaded = optimizer.state_dict(), optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        loaded.load_state_dict(state)
        await net.move(g["bob"], loaded)
        net(await g["bob"].send(torch.ones(1, 3))).sum().backward()
        loaded.step()
        await net.fetch()


async def test_tied_weights_stay_tied_and_buffers_that_are_not_saved_come_along(peers: Folders) -> None:
    class Tied(nn.Module):
        mask: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.out.weight = self.embed.weight
            self.register_buffer("mask", torch.ones(5), persistent=False)
            self.kept = nn.ModuleDict({"list": nn.ModuleList([nn.Linear(2, 2)])})
            nn.utils.parametrizations.weight_norm(self.kept["list"][0])  # type: ignore[index]

    async with grid.connect(folders=peers) as g:
        net = await g["alice"].send(Tied())
        for target in ("bob", "carol"):
            await net.move(g[target])
            assert net.out.weight is net.embed.weight
            tensors = [*net.parameters(), *net.buffers()]
            assert len({tensor._handle.id for tensor in tensors} & await held(g[target])) == len(tensors) == 5
            assert all(tensor.location is g[target] for tensor in tensors)
            await net.kept["list"][0].weight.fetch()  # type: ignore[index]
        copied = await net.copy(g["alice"])
        assert copied.out.weight is copied.embed.weight and net.location is g["carol"]
        back = await net.get()
        assert back.out.weight is back.embed.weight and not isinstance(back.mask, grid.Pointer)


async def test_a_stored_model_moves_and_keeps_its_tags(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        net = await g["alice"].send(nn.Linear(3, 2), tags=["#moved-in-training"])
        try:
            assert await net.move(g["bob"]) is net
            found = (await g.search("#moved-in-training")).one()
            assert found.location.name == "bob" and net.weight.location is g["bob"]
            await net(await g["bob"].send(torch.ones(1, 3))).get()
        finally:
            await g["bob"].clear()


# --- state dicts --------------------------------------------------------------------------------------------


async def test_state_dicts_go_from_pointers_to_pointers_and_to_files_and_back(peers: Folders) -> None:
    here, (x, y) = small(), data()
    async with grid.connect(folders=peers) as g:
        alice = g["alice"]
        far_x, far_y = await alice.send(x), await alice.send(y)
        net, other = await alice.send(copy.deepcopy(here)), await alice.send(small())
        theirs = optim.Adam(net.parameters(), lr=0.01)
        step(net, theirs, far_x, far_y)
        other.load_state_dict(net.state_dict())
        await check_same(other, await net.fetch())
        with pytest.raises(grid.GridError, match=r"g\.fetch"):
            torch.save(net.state_dict(), io.BytesIO())
        file = io.BytesIO()
        torch.save(await g.fetch({"net": net.state_dict(), "optimizer": theirs.state_dict()}), file)
        expected = [await step(net, theirs, far_x, far_y).get(), await step(net, theirs, far_x, far_y).get()]
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        fresh = await alice.send(small())
        with pytest.raises(grid.NotCollocated, match="send"):
            fresh.load_state_dict(saved["net"])
        fresh.load_state_dict(await alice.send(saved["net"]))
        again = optim.Adam(fresh.parameters(), lr=0.01)
        again.load_state_dict(await alice.send(saved["optimizer"]))
        for wanted in expected:
            assert torch.allclose(await step(fresh, again, far_x, far_y).get(), wanted, atol=1e-6)


async def test_in_a_thread_values_from_here_are_loaded_as_they_are(peers: Folders) -> None:
    here = small()
    async with grid.connect(folders=peers) as g:
        net = await g["alice"].send(small())
        await asyncio.to_thread(net.load_state_dict, here.state_dict())
        await check_same(net, here)


async def test_initial_values_are_drawn_at_the_peer(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        weight = (await g["alice"].send(nn.Linear(30, 20))).weight
        for init, check in (
            (nn.init.zeros_, lambda w: bool((w == 0).all())),
            (lambda w: nn.init.constant_(w, 3.0), lambda w: bool((w == 3).all())),
            (nn.init.xavier_uniform_, lambda w: w.abs().max() <= (6 / 50) ** 0.5 and w.std() > 0.1),
            (nn.init.kaiming_normal_, lambda w: 0.2 < w.std() < 0.32),
            (lambda w: nn.init.trunc_normal_(w, std=0.02), lambda w: w.std() < 0.03),
            (nn.init.orthogonal_, lambda w: torch.allclose(w @ w.T, torch.eye(20), atol=1e-4)),
        ):
            await asyncio.to_thread(init, weight)  # type: ignore[arg-type]  # of one kind each
            assert check((await weight.fetch()).detach())


async def test_scaled_gradients_are_looked_at_before_a_step(peers: Folders) -> None:
    """Mixed precision: a step whose gradients are not finite is left out, and the scale halved."""

    def train(net: Any, x: Any) -> float:
        optimizer = optim.SGD(net.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for factor in (1.0, float("inf"), 2.0):
            optimizer.zero_grad()
            scaler.scale(net(x).pow(2).mean() * factor).backward()  # type: ignore[no-untyped-call]
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        return scaler.get_scale()

    net, x = nn.Linear(3, 2), torch.randn(4, 3)
    async with grid.connect(folders=peers) as g:
        there, remote = await g["alice"].send(copy.deepcopy(net)), await g["alice"].send(x)
        assert await asyncio.to_thread(train, there, remote) == train(net, x) == 4.0
        assert torch.allclose(await there.weight.fetch(), net.weight)
