"""What of tensors that are here goes along with a call: what is no data, and what torch's own library made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import grid
from grid.pointer import Pointer
from peer.folders import Folders
from protocol import limits

ONES = torch.ones(4, 4)

DATA: dict[str, Callable[[Any], Any]] = {
    "ones": lambda x: x + ONES,
    "integers": lambda x: x + torch.tensor([1, 1, 1, 1]),
    "a target": lambda x: F.mse_loss(x, ONES),
    "a view of a target": lambda x: F.smooth_l1_loss(x, ONES.t()),
    "a target of a loss that is a module": lambda x: nn.MSELoss()(x, ONES),
    "probabilities": lambda x: F.binary_cross_entropy(x.sigmoid(), ONES / 2),
    "labels": lambda x: F.cross_entropy(x, torch.tensor([0, 2, 1, 3])),
    "weights of a module that is here": lambda x: nn.Linear(4, 4)(x),
    "some numbers": lambda x: x + torch.tensor([0.0, 1.0, 2.0, 4.0]),
    "years": lambda x: x[0] - torch.arange(2000, 2004),
    "a triangle of rows": lambda x: x[:3] * torch.ones(3, 4).tril(),
    "two labels": lambda x: x[:2, :2] + torch.eye(2).long(),
    "a triangle that is weighted": lambda x: x * torch.ones(4, 4).tril().cumsum(0),
    "numbers on the diagonals": lambda x: x + (torch.ones(4, 4).tril() - torch.ones(4, 4).triu() * 2),
    "without gradients": lambda x: _without_gradients(nn.Linear(4, 4), x),
    "weights of attention": lambda x: nn.MultiheadAttention(4, 2)(x, x, x),
    "statistics": lambda x: nn.BatchNorm1d(4, affine=False).eval()(x),
    "of a distribution": lambda x: torch.distributions.Normal(ONES, 2 * ONES, validate_args=False).log_prob(x),
    "in a transformed function": lambda x: torch.func.vmap(lambda row: F.mse_loss(row, ONES[0]))(x),
}


def _without_gradients(module: nn.Module, x: Any) -> Any:
    with torch.no_grad():
        return module(x)


OWN: dict[str, Callable[[Any], Any]] = {
    "zeros": lambda x: torch.zeros(4) + x,
    "places": lambda x: torch.arange(4) < x,
    "places in floats": lambda x: torch.outer(torch.arange(4).type_as(x), x[0]) + torch.arange(4.0),
    "a number": lambda x: x + torch.tensor([[2.0]]),
    "a mask": lambda x: x.masked_fill(torch.tensor([True, False, False, True]), 0),
    "a variance": lambda x: torch.masked.var(x, 1, mask=x > -9),
    "positions": lambda x: torch.stack(torch.unravel_index(x.argmax(1), (2, 8))),
    "identity": lambda x: torch.linalg.matrix_power(x, 0),
    "zeros without memory": lambda x: torch.func.jvp(torch.logdet, (x @ x.T + torch.eye(4),), (x @ x.T,))[1],
    "identity, times a number": lambda x: x @ x.T + 1e-4 * torch.eye(4),
    "places of samples": lambda x: x.argmax(1) + torch.arange(4).view(-1, 1, 1) * 20,
    "places, counted from one": lambda x: x[0].cumsum(0) / torch.arange(1, 5),
    "steps": lambda x: x * torch.arange(0, 1, 0.25),
    "coordinates": lambda x: x * torch.meshgrid(torch.arange(4), torch.arange(4) * 2, indexing="ij")[1],
    "identities": lambda x: torch.stack([x, x]) + torch.eye(4)[None],
    "an identity for each": lambda x: x @ torch.eye(4).repeat(3, 1, 1),
    "an identity, rearranged": lambda x: torch.kron(torch.eye(2), x),
    "all but the diagonal": lambda x: x * (1 - torch.eye(4)),
    "a triangle": lambda x: (x > 0) & torch.ones(4, 4).tril().bool()[None],
    "a triangle of numbers": lambda x: x * torch.ones(4, 4).triu(1) + (1 - torch.ones(4, 4).tril()) * -1e10,
    "a band": lambda x: x * torch.ones(4, 4).tril(1).triu(-1),
    "a number, expanded": lambda x: F.binary_cross_entropy(x.sigmoid(), x.sigmoid(), weight=torch.tensor(2.0)),
    "lengths": lambda x: F.ctc_loss(
        x[:, None].log_softmax(2), torch.ones_like(x[:1, :2]).long(), torch.tensor([4]), torch.tensor([1])
    ),
    "edges of bins": lambda x: torch.histogram(x, torch.tensor([-1.0, 0.0, 1.0])).hist,
    "what is sorted": lambda x: torch.searchsorted(torch.tensor([-1.0, 0.0, 1.0]), x),
    "powers": lambda x: torch.vander(x[0], 3) + torch.vander(x[0], 3, increasing=True),
    "forward mode": lambda x: torch.func.linearize(lambda y: y.sin() * y, x)[1](2 * x),
    "an affine grid": lambda x: F.affine_grid(x[None, :2, :3], [1, 1, 3, 3], align_corners=False),
}


async def test_what_is_data_is_to_be_sent(folders: Folders) -> None:
    async with grid.local("alice", folders=folders) as g:
        x = await g["alice"].send(torch.rand(4, 4))
        for name, mix in DATA.items():
            with pytest.raises(grid.NotCollocated, match="send"):
                pytest.fail(f"{name} gave {mix(x)!r}")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's forward mode uses it itself
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # as linearize does
async def test_what_belongs_to_the_call_goes_along(folders: Folders) -> None:
    value = torch.randn(4, 4)
    async with grid.local("alice", folders=folders) as g:
        x = await g["alice"].send(value)
        for name, form in OWN.items():
            found = form(x)
            assert isinstance(found, Pointer), name
            torch.testing.assert_close(await found.fetch(), form(value), msg=lambda text, name=name: f"{name}: {text}")


async def test_identities_and_masks_of_any_size_are_made_at_the_peer(folders: Folders) -> None:
    size = 300
    value, full = torch.randn(2, size, size), torch.ones(size, size)
    async with grid.local("alice", folders=folders) as g:
        x = await g["alice"].send(value)
        sent = g["alice"].statistics().sent_bytes
        for form in (
            lambda x: x + 0.1 * torch.eye(size),
            lambda x: (x > 0) & full.triu(-3).bool(),
            lambda x: x * (2 + full.double().tril(1)),
            lambda x: (x + 1j * torch.eye(size)).real + (x + torch.zeros(size, size, dtype=torch.complex64)).real,
            lambda x: F.scaled_dot_product_attention(x, x, x, nn.Transformer.generate_square_subsequent_mask(size)),
            lambda x: x.masked_fill(full.tril().expand(2, size, size) == 0, float("-inf")),
            lambda x: x + (1 - full.tril().repeat(2, 1, 1)) * -1e10,
        ):
            found, wanted = await form(x).fetch(), form(value)
            torch.testing.assert_close(found, wanted)
        assert g["alice"].statistics().sent_bytes - sent < limits.INLINE_PAYLOAD
        with pytest.raises(grid.NotCollocated, match="bytes is here"):
            x.masked_fill(torch.rand(size, size) > 0.5, 0)
        with pytest.raises(grid.NotCollocated, match="bytes is here"):
            x[0].expand(size, size, size) * full.triu()[:, :, None]
        with pytest.raises(grid.NotCollocated):
            x[0] + torch.zeros(size, size).to(torch.float8_e5m2)


async def test_what_torch_draws_goes_along(folders: Folders) -> None:
    value = torch.randn(20, 3) @ torch.randn(3, 10)
    async with grid.local("alice", folders=folders) as g:
        x = await g["alice"].send(value)
        u, s, v = torch.svd_lowrank(x, 4)
        torch.testing.assert_close(await (u @ s.diag() @ v.T).fetch(), value, atol=1e-4, rtol=1e-4)
        same = await torch.func.vmap(lambda row: F.dropout(row), randomness="same")(torch.ones_like(x)).fetch()  # type: ignore[attr-defined]
        assert torch.equal(same, same[:1].expand_as(same)) and set(same.unique().tolist()) <= {0.0, 2.0}
        drawn = [torch.poisson(x.abs(), torch.Generator().manual_seed(5)) for _ in range(2)]
        assert torch.equal(await drawn[0].fetch(), await drawn[1].fetch())  # type: ignore[attr-defined]


WRITTEN: dict[str, Callable[[Any, Any], Any]] = {
    "computed": lambda x, out: torch.add(x, 1, out=out),
    "made": lambda x, out: torch.eye(3, 4, out=out),
    "a row": lambda x, out: torch.linspace(0, 1, 4, out=out[1]),
    "drawn": lambda x, out: torch.rand(3, 4, out=out) * 0,
    "resized": lambda x, out: torch.add(x, 1, out=x.new_zeros(0)),
    "values and places": lambda x, out: torch.sort(x, 1, out=(out, (out * 0).long())),
    "initialised": lambda x, out: nn.init.eye_(out),
    "orthogonal": lambda x, out: (lambda made: made @ made.T)(nn.init.orthogonal_(out)),
    "bytes": lambda x, out: x.view(torch.int32),
}


async def test_results_are_written_where_the_call_says(folders: Folders) -> None:
    value = torch.randn(3, 4)
    async with grid.local("alice", folders=folders) as g:
        x = await g["alice"].send(value)
        for name, form in WRITTEN.items():
            there, here = await g["alice"].send(torch.zeros(3, 4)), torch.zeros(3, 4)
            for found, wanted in zip(_listed(form(x, there)), _listed(form(value, here)), strict=True):
                torch.testing.assert_close(await found.fetch(), wanted, msg=lambda text, name=name: f"{name}: {text}")
            if name != "orthogonal":
                drawn = name == "drawn"
                assert drawn or torch.equal(await there.fetch(), here), name


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple) else [value]
