"""Autograd on pointers: gradients, hooks, graphs and modes, as in local torch."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import grid
from peer.folders import Folders
from tests.grid.forms import Lines, differences


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return gradient * 3 * x**2


def _leaf(x: torch.Tensor) -> torch.Tensor:
    return x.clone().requires_grad_()


def _accumulated(x: Any, y: Any) -> Any:
    x = _leaf(x)
    (x * y).sum().backward()
    (x * x).sum().backward()
    first = x.grad.clone()
    x.grad.zero_()
    (x + y).sum().backward()
    return first, x.grad, x.grad.shape


def _written_through_data(x: Any, y: Any) -> Any:
    """As updates by hand, targets that follow, and torch's own gradcheck write."""
    x = _leaf(x)
    loss = (x**2 * y).sum()
    x.data.mul_(2)
    x.data[0] = 1
    loss.backward()
    x.grad.data.zero_()
    return x, x.grad, x._version


def _retained(x: Any, y: Any) -> Any:
    x = _leaf(x)
    z = (x * y).exp()
    z.retain_grad()
    loss = z.sum()
    loss.backward(retain_graph=True)
    loss.backward()
    return x.grad, z.grad, x.is_leaf, z.is_leaf, z.requires_grad


def _twice(x: Any, y: Any) -> Any:
    x = _leaf(x)
    (gradient,) = torch.autograd.grad((x**3 * y).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    return gradient.detach(), x.grad


def _hooked(x: Any, y: Any) -> Any:
    x, seen = _leaf(x), []
    x.register_hook(lambda gradient: seen.append(gradient) or gradient * 2)
    middle = x * y
    handle = middle.register_hook(lambda gradient: gradient + 1)
    x.register_post_accumulate_grad_hook(lambda leaf: seen.append(leaf.grad))
    middle.sum().backward()
    handle.remove()
    return x.grad, seen


def _of_some(x: Any, y: Any) -> Any:
    x, z = _leaf(x), _leaf(y)
    given = torch.autograd.grad((x * y).sum(), [x, z], allow_unused=True)
    outputs = torch.autograd.grad([x * 2, z * 3], [x, z], grad_outputs=[y, x.detach()])
    return given[0], given[1] is None, outputs


def _modes(x: Any, y: Any) -> Any:
    x = _leaf(x)
    with torch.no_grad():
        off = x * 2
        with torch.enable_grad():
            on = x * 2
    with torch.inference_mode():
        fast = x * 2
    with torch.set_grad_enabled(False):
        also = x + 1
    found = off.requires_grad, on.requires_grad, fast.requires_grad, fast.is_inference(), also.requires_grad
    return *found, x.detach().requires_grad, off, on.detach(), fast.clone()


def _updated(x: Any, y: Any) -> Any:
    weight = _leaf(x)
    for _ in range(3):
        loss = F.mse_loss(weight * 2, y)
        loss.backward()
        with torch.no_grad():
            weight -= 0.1 * weight.grad
            weight.grad = None
    return weight.detach(), weight.grad is None, weight.requires_grad


def _in_place(x: Any, y: Any) -> Any:
    x = _leaf(x)
    z = x * y
    z[0] = 0
    z[:, 1] *= 2
    z.view(-1)[3:5].mul_(-3)
    z.relu_()
    z.sum().backward()
    return x.grad


def _own_function(x: Any, y: Any) -> Any:
    x = _leaf(x)
    (Cube.apply(x) * y).sum().backward()
    return x.grad


def _checkpointed(x: Any, y: Any) -> Any:
    x = _leaf(x)
    checkpoint(lambda a: (a * y).sin().exp(), x, use_reentrant=False).sum().backward()
    reentrant = _leaf(y)
    checkpoint(lambda a: a.sin().exp(), reentrant, use_reentrant=True).sum().backward()
    return x.grad, reentrant.grad


def _packed(x: Any, y: Any) -> Any:
    x, packed = _leaf(x), []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: packed.append(1) or saved * 1, lambda saved: saved):
        z = (x * y).exp().sum()
    z.backward()
    return x.grad, len(packed)


def _jacobians(x: Any, y: Any) -> Any:
    row = x[0]
    jacobian = torch.autograd.functional.jacobian(lambda a: (a**2).cumsum(0), row)
    hessian = torch.autograd.functional.hessian(lambda a: (a**3).sum(), row)
    return jacobian, hessian, torch.autograd.functional.vjp(lambda a: a.sin(), row, y[0])


def _selected(x: Any, y: Any) -> Any:
    x = _leaf(x)
    top = x.max(1).values.sum() + x.topk(2).values.prod() + x.sort(0).values[1].sum()
    (top + x[[0, 2]].sum() + x.gather(1, x.argmax(1, keepdim=True)).sum() + x.std()).backward()
    return x.grad


def _broadcast(x: Any, y: Any) -> Any:
    bias, scale = _leaf(x[0]), _leaf(y[0, 0])
    F.cross_entropy((x + bias) * scale, torch.ones_like(x[:, 0]).long()).backward()
    return bias.grad, scale.grad


def _gradients_given(x: Any, y: Any) -> Any:
    x = _leaf(x)
    (x * 3).backward(y)
    before = x.grad.clone()
    x.grad = y * 2
    torch.nn.utils.clip_grad_norm_([x], 0.5)
    torch.nn.utils.clip_grad_value_([x], 0.2)
    return before, x.grad


FORMS: dict[str, Lines] = {
    "accumulated": _accumulated,
    "retained": _retained,
    "written through data": _written_through_data,
    "twice": _twice,
    "hooked": _hooked,
    "of some": _of_some,
    "modes": _modes,
    "updated": _updated,
    "in place": _in_place,
    "a function of one's own": _own_function,
    "checkpointed": _checkpointed,
    "packed": _packed,
    "jacobians": _jacobians,
    "selected": _selected,
    "broadcast": _broadcast,
    "gradients given": _gradients_given,
}


async def test_gradients_are_those_of_torch(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        assert await differences(g, FORMS) == []


async def test_gradients_are_pointers_at_the_same_peer(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = (await g["bob"].send(torch.ones(3))).requires_grad_()
        (x * 2).sum().backward()
        assert isinstance(x.grad, grid.Pointer) and x.grad.location is g["bob"] and x.grad.dtype == x.dtype


async def test_a_leaf_that_was_sent_requires_what_it_required(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["bob"].send(torch.ones(3, requires_grad=True))
        (x * 2).sum().backward()
        back = await x.get()
        assert back.requires_grad and back.grad is not None and torch.equal(back.grad, torch.full((3,), 2.0))


async def test_wrong_graphs_fail_as_they_do_in_torch(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = (await g["alice"].send(torch.ones(3))).requires_grad_()
        loss = (x * x).sum()
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()
        with pytest.raises(RuntimeError, match="leaf Variable"):
            x += 1
        y = x.exp()
        y.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
        with pytest.raises(RuntimeError, match="scalar outputs"):
            (x * 2).backward()


async def test_anomalies_are_looked_for_in_a_thread(peers: Folders) -> None:
    def lines(x: Any) -> None:
        with pytest.warns(UserWarning, match="Anomaly Detection|Error detected"), torch.autograd.detect_anomaly():
            (x - 1).sqrt().mul(0).sum().backward()

    async with grid.connect(folders=peers) as g:
        x = (await g["alice"].send(torch.ones(3))).requires_grad_()
        with pytest.raises(RuntimeError, match="nan values"):
            await asyncio.to_thread(lines, x)


async def test_a_gradient_may_begin_with_ones_that_are_here(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x: Any = (await g["alice"].send(torch.tensor([1.0, 2.0, 3.0]))).requires_grad_()
        (grad,) = torch.autograd.grad((x * x).sigmoid(), x, grad_outputs=torch.ones(3), create_graph=True)
        here = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
        (wanted,) = torch.autograd.grad((here * here).sigmoid(), here, grad_outputs=torch.ones(3))
        torch.testing.assert_close(await grad.detach().get(), wanted)


def _of_the_pictures(x: Any) -> Any:
    """Warped by a fixed field: the gradient of the field is not asked for."""
    pictures = x.reshape(1, 1, 3, 4).clone().requires_grad_()
    F.grid_sample(pictures, x.new_zeros(1, 2, 2, 2), align_corners=False).pow(2).sum().backward()
    return pictures.grad


def _of_the_bias(x: Any) -> Any:
    """Of a convolution whose weights are frozen: only some of torch's kernels leave those of the weights away."""
    pictures = x.reshape(1, 1, 3, 4).clone().requires_grad_()
    bias = x.new_zeros(2, requires_grad=True)
    for _ in range(2):
        F.conv2d(pictures, x.new_ones(2, 1, 2, 2), bias).pow(2).sum().backward()
        F.conv2d(x.reshape(1, 1, 3, 4), x.new_ones(2, 1, 2, 2), bias).pow(2).sum().backward()
    return pictures.grad, bias.grad


async def test_gradients_that_are_not_asked_for_may_come_all_the_same(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        assert await differences(g, {"pictures": _of_the_pictures, "bias": _of_the_bias}) == []
