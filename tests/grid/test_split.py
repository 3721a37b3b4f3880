"""Split learning: layers at several peers; activations and gradients go directly between them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import grid
from peer.folders import Folders


def client_bytes(g: grid.Grid) -> int:
    """Tensor bytes that came to or went from this client so far."""
    return sum(traffic.payload_sent + traffic.payload_received for traffic in g.traffic())


async def test_a_network_at_two_peers_trains_as_one_here(peers: Folders) -> None:
    """As the tutorial of split neural networks has it: models, optimisers, and activations that are moved."""
    layers = [nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Sequential(nn.Linear(8, 3), nn.LogSoftmax(dim=1))]
    images, labels = torch.randn(16, 6), torch.randint(0, 3, (16,))
    here = nn.Sequential(*copy.deepcopy(layers))
    local = torch.optim.SGD(here.parameters(), lr=0.1, momentum=0.9)
    async with grid.connect(folders=peers) as g:
        homes = [g["alice"], g["bob"]]
        models = [await home.send(layer) for home, layer in zip(homes, layers, strict=True)]
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in models]
        data, target = await homes[0].send(images), await homes[1].send(labels)
        await g.settle()
        before = client_bytes(g)
        losses = []
        for _ in range(3):
            for optimizer in optimizers:
                optimizer.zero_grad()
            activation = models[0](data)
            moved = await activation.move(homes[1])
            assert moved.location is homes[1] and moved.requires_grad
            loss = F.nll_loss(models[1](moved), target)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            losses.append(loss.detach())
        await g.settle()
        assert client_bytes(g) == before
        assert all(parameter.grad.location is homes[0] for parameter in models[0].parameters())
        for far in losses:
            local.zero_grad()
            loss = F.nll_loss(here(images), labels)
            loss.backward()
            local.step()
            assert torch.allclose(await far.get(), loss, atol=1e-5)
        for model, part in zip(models, here, strict=True):
            for wanted, got in zip(part.parameters(), (await model.fetch()).parameters(), strict=True):
                assert torch.allclose(wanted, got, atol=1e-5)


async def test_gradients_go_back_over_three_peers_and_to_one_twice(peers: Folders) -> None:
    x = torch.randn(5, requires_grad=True)
    w, v = torch.randn(5, requires_grad=True), torch.randn(5, requires_grad=True)
    ((x * w).tanh() * v).sin().mul(x).sum().backward()
    async with grid.connect(folders=peers) as g:
        alice, bob, carol = g["alice"], g["bob"], g["carol"]
        far = [
            await home.send(each.detach().clone().requires_grad_()) for home, each in ((alice, x), (bob, w), (carol, v))
        ]
        at_bob = (await (far[0] * 1).move(bob) * far[1]).tanh()
        at_carol = (await at_bob.move(carol) * far[2]).sin()
        back = await at_carol.move(alice)
        (back * far[0]).sum().backward()
        for one, other in zip((x, w, v), far, strict=True):
            assert isinstance(other.grad, grid.Pointer) and other.grad.location is other.location
            assert torch.allclose(await other.grad.fetch(), one.grad, atol=1e-5)  # type: ignore[arg-type]


async def test_what_is_used_at_two_peers_gets_the_sum_of_both_gradients(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        w = await g["alice"].send(torch.ones(3, requires_grad=True))
        h = w * 2
        there, too = await h.move(g["bob"]), await h.copy(g["carol"])
        (there.sum() * 3).backward(retain_graph=True)
        (too * too).sum().backward(retain_graph=True)
        (h * 0.5).sum().backward()
        assert torch.equal(await w.grad.fetch(), torch.full((3,), 2 * (3 + 4 + 0.5)))


async def test_the_activation_stays_where_it_was_made_for_backward_needs_it(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        w = await g["alice"].send(torch.ones(3, requires_grad=True))
        h = w.exp()  # its own result is what its gradient is computed from
        there = await h.move(g["bob"])
        assert torch.equal(await h.fetch(), await there.fetch())
        there.sum().backward()
        assert torch.allclose(await w.grad.fetch(), torch.ones(3).exp())
        with torch.no_grad():  # without history a move is a move
            away = await (w * 2).move(g["bob"])
        assert away.grad_fn is None and not away.requires_grad


async def test_operations_after_a_gradient_wait_for_it_in_their_order(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        alice, bob = g["alice"], g["bob"]
        w = await alice.send(torch.ones(400, 400, requires_grad=True))
        counter = await alice.send(torch.zeros(()))
        there = await (w * 1).move(bob)
        (there * 2).sum().backward()
        with torch.no_grad():
            counter += w.sum()  # before the step, and queued after its gradient set out
            w -= w.grad  # type: ignore[operator, arg-type]
            counter += w.sum() * 10
        assert (await counter.get()).item() == 160_000 * (1 - 10)


async def test_a_gradient_that_is_written_to_afterwards_arrives_as_it_was(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        w = await g["alice"].send(torch.ones(3, requires_grad=True))
        there = await (w * 1).move(g["bob"])
        there.retain_grad()
        (there * 2).sum().backward()
        there.grad.zero_()
        assert torch.equal(await w.grad.fetch(), torch.full((3,), 2.0))
        assert torch.equal(await there.grad.fetch(), torch.zeros(3))


async def test_gradients_of_gradients_cross_too(peers: Folders) -> None:
    x = torch.tensor([0.5, 1.5], requires_grad=True)
    (slope,) = torch.autograd.grad((x * x).sin().sum(), x, create_graph=True)
    slope.pow(2).sum().backward()
    async with grid.connect(folders=peers) as g:
        far = await g["alice"].send(x.detach().clone().requires_grad_())
        there = await (far * far).move(g["bob"])
        (slope,) = torch.autograd.grad(there.sin().sum(), far, create_graph=True)
        assert slope.location is g["alice"]
        slope.pow(2).sum().backward()
        assert torch.allclose(await far.grad.fetch(), x.grad, atol=1e-5)  # type: ignore[arg-type]


async def test_what_fails_at_one_peer_is_told_where_the_gradient_was_to_go_and_the_rest_goes_on(
    peers: Folders,
) -> None:
    async with grid.connect(folders=peers) as g:
        alice, bob = g["alice"], g["bob"]
        w, other = await alice.send(torch.ones(3, requires_grad=True)), await alice.send(torch.ones(3))
        there = await (w * 1).move(bob)
        far = torch.tensor([7])
        index = await bob.send(far)
        there.gather(0, index).sum().backward()  # out of bounds, which only bob can see
        later = w.grad * 2
        free = other + 1
        with pytest.raises(grid.GridError, match="out of bounds"):
            await later.get()
        assert torch.equal(await free.get(), torch.full((3,), 2.0))
        with pytest.raises(grid.GridError, match="out of bounds"):
            await w.grad.fetch()


async def test_what_was_detached_from_an_activation_moves_without_it(peers: Folders) -> None:
    """As old programs split a network: the gradient is taken over the gap by hand."""
    w = torch.randn(5, requires_grad=True)
    ((w * 2).tanh() * 3).exp().sum().backward()
    async with grid.connect(folders=peers) as g:
        far = await g["alice"].send(w.detach().clone().requires_grad_())
        hidden = (far * 2).tanh()
        there = (await hidden.detach().move(g["bob"])).requires_grad_()
        (there * 3).exp().sum().backward()
        assert there.grad is not None
        hidden.backward(await there.grad.clone().move(g["alice"]))  # type: ignore[operator]
        assert torch.allclose(await far.grad.fetch(), w.grad, atol=1e-5)  # type: ignore[union-attr, arg-type, operator]
        other = far * 3
        data = await other.data.move(g["carol"])
        assert torch.equal(await data.get(), await other.fetch())
        plain = (far * 2).detach()
        assert (await plain.move(g["bob"])).location is g["bob"] and not plain.requires_grad


class _Recurrent(nn.LSTM):
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        out: torch.Tensor = super().forward(x)[0]
        return out


class _Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return found


class _Reading(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.norm(self.out(x.mean(1)))
        return found


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD], ids=["adam", "momentum"])
async def test_layers_of_all_kinds_train_at_three_peers_and_move_between_them(peers: Folders, kind: Any) -> None:
    options: dict[str, Any] = {"lr": 0.05, "momentum": 0.9} if kind is torch.optim.SGD else {"lr": 0.01}
    x, y = torch.randn(8, 5, 4).double(), torch.randint(0, 3, (8,))
    here = [_Recurrent(4, 6, num_layers=2, batch_first=True).double(), _Attending().double(), _Reading().double()]
    async with grid.connect(folders=peers) as g:
        homes = [g["alice"], g["bob"], g["carol"]]
        there = [await home.send(copy.deepcopy(part)) for home, part in zip(homes, here, strict=True)]
        optimizers = [kind(part.parameters(), **options) for part in (*here, *there)]
        far_x, far_y = await homes[0].send(x), await homes[2].send(y)
        for step in range(4):
            for optimizer in optimizers:
                optimizer.zero_grad()
            hidden, far = x, far_x
            for part, other, home in zip(here, there, homes, strict=True):
                hidden, far = part(hidden), other(far if far.location is home else await far.copy(home))
            loss = F.cross_entropy(hidden, y)
            loss.backward()  # type: ignore[no-untyped-call]
            far_loss = F.cross_entropy(far, far_y if far.location is homes[2] else await far_y.copy(far.location))
            far_loss.backward()  # type: ignore[no-untyped-call]
            for part in (*here, *there):
                nn.utils.clip_grad_norm_(part.parameters(), 0.5)
            for optimizer in optimizers:
                optimizer.step()
            assert torch.allclose(await far_loss.fetch(), loss)  # type: ignore[attr-defined]
            if step == 1:  # the optimisers' states go along
                await there[1].move(homes[0])
                await there[0].move(homes[1])
                homes[:2] = homes[1::-1]
        for part, other in zip(here, there, strict=True):
            back = (await other.fetch()).state_dict()
            assert all(torch.allclose(value, back[name]) for name, value in part.state_dict().items())


async def test_what_torch_takes_together_from_two_peers_says_what_it_is_about(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        weights = [await g[name].send(torch.ones(2, requires_grad=True)) for name in ("alice", "bob")]
        for weight in weights:
            (weight * 2).sum().backward()
        with pytest.raises(grid.NotCollocated, match="clip the parameters at each peer by themselves"):
            nn.utils.clip_grad_norm_(weights, 1.0)
        with pytest.raises(grid.NotCollocated, match="one optimiser for the parameters at each peer"):
            torch.optim.Adam(weights, foreach=True).step()
