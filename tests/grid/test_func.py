"""torch.func on pointers: the same values as on local tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, grad_and_value, hessian, jacfwd, jacrev, jvp, vjp, vmap

import grid
from peer.folders import Folders
from tests.grid.forms import Lines, differences, is_same, value_of


def _loss(weight: Any, x: Any) -> Any:
    return (x @ weight).sigmoid().square().mean()


FORMS: dict[str, Lines] = {
    "grad": lambda x, v: grad(_loss)(v, x),
    "grad_and_value": lambda x, v: grad_and_value(_loss)(v, x),
    "grad of grad": lambda v: grad(lambda a: grad(lambda b: (b**3).sum())(a).sum())(v),
    "vjp": lambda x, v: [(lambda made, pull: (made, pull(made)[0]))(*vjp(lambda a: (x @ a).sin(), v))],
    "jvp": lambda x, v: jvp(lambda a: (x @ a).sin(), (v,), (v * 2,)),
    "jacrev": lambda x, v: jacrev(lambda a: (x @ a).tanh())(v),
    "jacfwd": lambda x, v: jacfwd(lambda a: (x @ a).tanh())(v),
    "hessian": lambda v: hessian(lambda a: (a**3).sum())(v),
    "vmap": lambda x: vmap(lambda row: row * row.sum())(x),
    "vmap of a function": lambda x, v: vmap(torch.dot, in_dims=(0, None))(x, v),
    "vmap, out_dims": lambda x, y: vmap(torch.add, in_dims=1, out_dims=1)(x, y),
    "vmap of vmap": lambda t: vmap(vmap(lambda row: row.softmax(0)))(t),
    "vmap of matmul": lambda t, w: vmap(lambda a: a @ w)(t),
    "per sample": lambda x, v: vmap(grad(_loss), in_dims=(None, 0))(v, x),
    "vmap with chunks": lambda x: vmap(lambda row: row.cumsum(0), chunk_size=2)(x),
    "vmap of where": lambda x: vmap(lambda row: torch.where(row > 0, row, 0.0))(x),
    "vmap of index": lambda x: vmap(lambda row: row[[0, 2]].max())(x),
    "vmap of conv": lambda t: vmap(lambda a: nn.functional.avg_pool1d(a[None], 2))(t),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own
async def test_transforms_give_what_torch_gives(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        assert await differences(g, FORMS) == []


async def test_functional_call_with_pointers_for_parameters(peers: Folders) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    x, y = torch.randn(5, 4), torch.randn(5, 1)

    def loss(parameters: Any, x: Any, y: Any) -> Any:
        return nn.functional.mse_loss(functional_call(net, parameters, (x,)), y)

    def per_sample(parameters: Any, x: Any, y: Any) -> Any:
        return vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x[:, None], y[:, None])

    here = {name: value.detach() for name, value in net.named_parameters()}
    async with grid.connect(folders=peers) as g:
        there = {name: await g["bob"].send(value) for name, value in here.items()}
        remote = await g["bob"].send(x), await g["bob"].send(y)
        for transform in (grad(loss), per_sample):
            made, expected = transform(there, *remote), transform(here, x, y)
            for name in here:
                assert isinstance(made[name], grid.Pointer)
                assert is_same(await value_of(made[name]), expected[name]), name
