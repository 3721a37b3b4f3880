"""Every operation that is to run on shares gives on them what plain torch gives, to within 1e-3."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from tests.mpc.shares import lowered

Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_GENERATOR = torch.Generator().manual_seed(0)
_X = torch.randn(4, 6, generator=_GENERATOR) * 2
_Y = torch.randn(4, 6, generator=_GENERATOR)
_LABELS = torch.tensor([1, 0, 3, 5])

_CASES: dict[str, Function] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "neg": lambda x, y: -x,
    "mul": lambda x, y: x * y,
    "square": lambda x, y: x.square(),
    "matmul": lambda x, y: x @ y.T,
    "addmm": lambda x, y: torch.addmm(x[:, :4], x, y.T),
    "addmm beta": lambda x, y: torch.addmm(x[:, :4], x, y.T, beta=0.5, alpha=2),
    "bmm": lambda x, y: torch.bmm(x.view(2, 2, 6), y.view(2, 6, 2)),
    "baddbmm": lambda x, y: torch.baddbmm(x.view(2, 2, 6)[..., :2], x.view(2, 2, 6), y.view(2, 6, 2)),
    "conv1d": lambda x, y: functional.conv1d(x.view(1, 4, 6), y.view(2, 4, 3), padding=1, stride=2),
    "conv2d": lambda x, y: functional.conv2d(x.view(1, 1, 4, 6), y[:, :4].reshape(4, 1, 2, 2)),
    "convT1d": lambda x, y: functional.conv_transpose1d(x.view(1, 4, 6), y.view(4, 2, 3), stride=2),
    "convT2d": lambda x, y: functional.conv_transpose2d(x.view(1, 4, 2, 3), y.view(4, 1, 2, 3), stride=2, padding=1),
    "sum": lambda x, y: x.sum() + x.sum(0).sum() + x.sum((0, 1)),
    "mean": lambda x, y: x.mean() + x.mean(1),
    "var": lambda x, y: x.var(1) + x.var(),
    "std": lambda x, y: x.std(1),
    "var_mean": lambda x, y: torch.stack(torch.var_mean(x, 1)),
    "lt": lambda x, y: (x < y) * 1.0 + (x <= y) * 2.0 + (x > y) * 4 + (x >= y) * 8 + (x == y) * 16 + (x != y) * 32,
    "lt scalar": lambda x, y: (
        (x < 0.3) * 1.0 + (x <= 1) * 2.0 + (x > 0) * 4 + (x >= 0) * 8 + (x == 0) * 16 + (x != 0) * 32
    ),
    "logical": lambda x, y: (
        ((x < 0) & (y < 0)).float()
        + ((x < 0) | (y < 0)).float() * 2
        + (~(x < 0)).float() * 4
        + ((x < 0) ^ (y < 0)).float() * 8
        + torch.logical_and(x < 0, y < 0) * 16.0
        + torch.logical_or(x < 0, y < 0) * 32.0
        + torch.logical_not(x < 0) * 64.0
        + torch.logical_xor(x < 0, y < 0) * 128.0
    ),
    "relu": lambda x, y: functional.relu(x),
    "leaky_relu": lambda x, y: functional.leaky_relu(x),
    "hardtanh": lambda x, y: functional.hardtanh(x),
    "relu6": lambda x, y: functional.relu6(x * 5),
    "clamp": lambda x, y: x.clamp(-1, 1),
    "clamp_tensor": lambda x, y: torch.clamp(x, min=y, max=y + 1),
    "abs": lambda x, y: x.abs(),
    "sign": lambda x, y: x.sign(),
    "where": lambda x, y: torch.where(x > y, x, y * 2),
    "max": lambda x, y: x.max(),
    "min": lambda x, y: x.min(),
    "maxdim": lambda x, y: x.max(1)[0],
    "argmax": lambda x, y: x.argmax(),
    "argmaxd": lambda x, y: x.argmax(1),
    "argmin": lambda x, y: x.argmin(0),
    "any/all": lambda x, y: (x > 0).any(1) * 1.0 + (x > -1).all(0).sum() * 2.0,
    "max_pool1d": lambda x, y: functional.max_pool1d(x.view(1, 4, 6), 2),
    "max_pool2d odd": lambda x, y: functional.max_pool2d(x.view(1, 1, 4, 6)[..., :5], 3, 2, 1),
    "max_pool ceil": lambda x, y: functional.max_pool2d(x.view(1, 1, 4, 6)[..., :5], 2, 2, ceil_mode=True),
    "max_pool idx": lambda x, y: functional.max_pool2d(x.view(1, 1, 4, 6), 2, return_indices=True)[1],
    "avg_pool1d": lambda x, y: functional.avg_pool1d(x.view(1, 4, 6), 2),
    "avg_pool2d": lambda x, y: functional.avg_pool2d(x.view(1, 1, 4, 6), 2),
    "adaptive_avg1": lambda x, y: functional.adaptive_avg_pool1d(x.view(1, 4, 6), 4),
    "adaptive_avg2": lambda x, y: functional.adaptive_avg_pool2d(x.view(1, 1, 4, 6), (3, 4)),
    "adaptive_avg2 1": lambda x, y: functional.adaptive_avg_pool2d(x.view(1, 1, 4, 6), 1),
    "adaptive_max1": lambda x, y: functional.adaptive_max_pool1d(x.view(1, 4, 6), 4),
    "adaptive_max2": lambda x, y: functional.adaptive_max_pool2d(x.view(1, 1, 4, 6), (3, 4)),
    "max_pool3d": lambda x, y: functional.max_pool3d(x.view(1, 1, 2, 2, 6), 2),
    "avg_pool3d": lambda x, y: functional.avg_pool3d(x.view(1, 1, 2, 2, 6), 2),
    "bn train": lambda x, y: functional.batch_norm(x, torch.zeros(6), torch.ones(6), training=True),
    "bn train w": lambda x, y: functional.batch_norm(x, None, None, y[0], y[1], training=True),
    "bn eval": lambda x, y: functional.batch_norm(x, y[0], y[1].abs() + 0.1, y[2], y[3]),
    "layer_norm": lambda x, y: functional.layer_norm(x, (6,), y[0], y[1]),
    "dropout": lambda x, y: functional.dropout(x, 0.0, training=True),
    "dropout eval": lambda x, y: functional.dropout(x, 0.5, training=False),
    "exp": lambda x, y: x.exp(),
    "log": lambda x, y: x.abs().add(0.3).log(),
    "log2": lambda x, y: x.abs().add(0.3).log2(),
    "log10": lambda x, y: x.abs().add(0.3).log10(),
    "log1p": lambda x, y: x.abs().log1p(),
    "exp2": lambda x, y: x.exp2(),
    "expm1": lambda x, y: x.expm1(),
    "reciprocal": lambda x, y: 1 / (x.abs() + 0.3),
    "div": lambda x, y: x / (y.abs() + 0.5),
    "sqrt": lambda x, y: x.abs().sqrt(),
    "rsqrt": lambda x, y: (x.abs() + 0.3).rsqrt(),
    "sin": lambda x, y: x.sin() + x.cos(),
    "tanh": lambda x, y: x.tanh(),
    "sigmoid": lambda x, y: x.sigmoid(),
    "erf": lambda x, y: x.erf(),
    "erfc": lambda x, y: x.erfc(),
    "gelu": lambda x, y: functional.gelu(x),
    "gelu tanh": lambda x, y: functional.gelu(x, approximate="tanh"),
    "silu": lambda x, y: functional.silu(x),
    "softmax": lambda x, y: x.softmax(1),
    "log_softmax": lambda x, y: x.log_softmax(1),
    "logsumexp": lambda x, y: x.logsumexp(1),
    "softplus": lambda x, y: functional.softplus(x),
    "elu": lambda x, y: functional.elu(x),
    "pow2": lambda x, y: x**2,
    "pow3": lambda x, y: x**3,
    "pow5": lambda x, y: (x / 2) ** 5,
    "pow-1": lambda x, y: (x.abs() + 0.5) ** (-1),
    "pow.5": lambda x, y: (x.abs() + 0.5) ** 0.5,
    "pow1.5": lambda x, y: (x.abs() + 0.5) ** 1.5,
    "2**x": lambda x, y: 2**x,
    "x**y": lambda x, y: (x.abs() + 0.5) ** y,
    "norm": lambda x, y: x.norm(),
    "norm1": lambda x, y: x.norm(1, dim=1),
    "norminf": lambda x, y: x.norm(math.inf, dim=1),
    "norm3": lambda x, y: x.norm(3, dim=1),
    "normfro": lambda x, y: torch.linalg.matrix_norm(x),
    "vecnorm": lambda x, y: torch.linalg.vector_norm(x, dim=1),
    "normalize": lambda x, y: functional.normalize(x, dim=1),
    "cumsum": lambda x, y: x.cumsum(1),
    "cumprod": lambda x, y: (x / 2).cumprod(1),
    "prod": lambda x, y: (x / 2).prod(1),
    "prodall": lambda x, y: (x[:2] / 1.5).prod(),
    "dot": lambda x, y: x[0].dot(y[0]),
    "outer": lambda x, y: torch.outer(x[0], y[0]),
    "mv": lambda x, y: x.mv(y[0]),
    "addmv": lambda x, y: torch.addmv(x[:, 0], x, y[0]),
    "addr": lambda x, y: torch.addr(x, x[:, 0], y[0]),
    "einsum": lambda x, y: torch.einsum("ij,kj->ik", x, y),
    "cross": lambda x, y: torch.linalg.cross(x[:, :3], y[:, :3]),
    "sort": lambda x, y: x.sort(1)[0],
    "sort desc": lambda x, y: x.sort(0, descending=True)[0],
    "sort idx": lambda x, y: x.sort(1)[1],
    "argsort": lambda x, y: x.argsort(1),
    "topk": lambda x, y: x.topk(3, 1)[0],
    "topk idx": lambda x, y: x.topk(3, 1)[1],
    "topk small": lambda x, y: x.topk(2, 0, largest=False)[0],
    "kthvalue": lambda x, y: x.kthvalue(2, 1)[0],
    "median": lambda x, y: x.median(),
    "median d": lambda x, y: x.median(1)[0],
    "sort stable": lambda x, y: x.sort(dim=1, stable=True)[0],
    "gather": lambda x, y: x.gather(1, torch.tensor([[0, 2], [1, 1], [5, 0], [3, 4]])),
    "index": lambda x, y: x[torch.tensor([0, 2]), torch.tensor([1, 5])],
    "index_select": lambda x, y: x.index_select(1, torch.tensor([3, 1])),
    "take": lambda x, y: x.take(torch.tensor([3, 7])),
    "scatter": lambda x, y: x.scatter(1, torch.tensor([[0], [1], [2], [3]]), y),
    "scatter_add": lambda x, y: x.scatter_add(1, torch.tensor([[0], [1], [2], [3]]), y),
    "index_add": lambda x, y: x.index_add(0, torch.tensor([1, 1]), y[:2]),
    "index_put": lambda x, y: x.index_put((torch.tensor([1]),), y[0]),
    "masked_fill": lambda x, y: x.masked_fill(torch.eye(4, 6).bool(), 3.0),
    "masked_fill secret": lambda x, y: x.masked_fill(y > 0, 3.0),
    "take_along": lambda x, y: x.take_along_dim(torch.tensor([[1], [2], [0], [3]]), 1),
    "cat": lambda x, y: torch.cat([x, y], 1),
    "stack": lambda x, y: torch.stack([x, y]),
    "split": lambda x, y: x.split(2, 1)[1],
    "chunk": lambda x, y: x.chunk(3, 1)[2],
    "unbind": lambda x, y: x.unbind(0)[1],
    "pad": lambda x, y: functional.pad(x, (1, 2), value=3.0),
    "pad reflect": lambda x, y: functional.pad(x.view(1, 4, 6), (1, 2), mode="reflect"),
    "pad replicate": lambda x, y: functional.pad(x.view(1, 4, 6), (1, 2), mode="replicate"),
    "pad circular": lambda x, y: functional.pad(x.view(1, 4, 6), (1, 2), mode="circular"),
    "pad2 reflect": lambda x, y: functional.pad(x.view(1, 1, 4, 6), (1, 2, 1, 1), mode="reflect"),
    "views": lambda x, y: (
        x.view(2, 12)
        .T.reshape(3, 8)
        .flip(0)
        .roll(1, 1)
        .unsqueeze(0)
        .squeeze(0)
        .permute(1, 0)
        .contiguous()
        .repeat(1, 2)
        .tril()
        .diagonal()
    ),
    "expand": lambda x, y: x[:, :1].expand(4, 3) + x[0, :1].expand_as(y[:, :3]),
    "pixel_shuffle": lambda x, y: functional.pixel_shuffle(x.view(1, 4, 2, 3), 2),
    "unfold": lambda x, y: functional.unfold(x.view(1, 1, 4, 6), 2),
    "fold": lambda x, y: functional.fold(functional.unfold(x.view(1, 1, 4, 6), 2), (4, 6), 2),
    "upsample": lambda x, y: functional.interpolate(x.view(1, 1, 4, 6), scale_factor=2),
    "cdist": lambda x, y: torch.cdist(x, y),
    "cdist1": lambda x, y: torch.cdist(x, y, p=1),
    "pdist": lambda x, y: functional.pdist(x),
    "pairwise": lambda x, y: functional.pairwise_distance(x, y),
    "cosine": lambda x, y: functional.cosine_similarity(x, y),
    "ce": lambda x, y: functional.cross_entropy(x, _LABELS),
    "ce smooth": lambda x, y: functional.cross_entropy(x, _LABELS, label_smoothing=0.1),
    "ce prob": lambda x, y: functional.cross_entropy(x, y.softmax(1)),
    "nll": lambda x, y: functional.nll_loss(x.log_softmax(1), _LABELS),
    "mse": lambda x, y: functional.mse_loss(x, y),
    "l1": lambda x, y: functional.l1_loss(x, y),
    "smooth": lambda x, y: functional.smooth_l1_loss(x, y),
    "huber": lambda x, y: functional.huber_loss(x, y, delta=0.5),
    "bcel": lambda x, y: functional.binary_cross_entropy_with_logits(x, (y > 0).float()),
    "bce": lambda x, y: functional.binary_cross_entropy(x.sigmoid() * 0.9 + 0.05, (y > 0).float()),
    "kl": lambda x, y: functional.kl_div(x.log_softmax(1), y.softmax(1), reduction="batchmean"),
    "one_hot": lambda x, y: functional.one_hot(x.argmax(1), 6).float(),
    "embedding secret": lambda x, y: functional.embedding(x.argmax(1), y.T),
    "index secret": lambda x, y: y.T[x.argmax(1)],
    "gather secret": lambda x, y: y.gather(1, x.argmax(1, keepdim=True)),
    "ce secret": lambda x, y: functional.cross_entropy(x, y.argmax(1)),
    "nll secret": lambda x, y: functional.nll_loss(x.log_softmax(1), y.argmax(1)),
    "eq count": lambda x, y: (x.argmax(1) == y.argmax(1)).sum(),
    "acc": lambda x, y: (x.argmax(1) == y.argmax(1)).float().mean(),
    "inverse": lambda x, y: torch.linalg.inv(torch.eye(3) * 3 + x[:3, :3] / 8),
    "solve": lambda x, y: torch.linalg.solve(torch.eye(3) * 3 + x[:3, :3] / 8, y[:3]),
    "attention": lambda x, y: functional.scaled_dot_product_attention(
        x.view(1, 4, 6), y.view(1, 4, 6), x.view(1, 4, 6)
    ),
}


@pytest.mark.parametrize("name", list(_CASES))
def test_it_gives_on_shares_what_it_gives_in_the_clear(name: str) -> None:
    function = _CASES[name]
    made, want = lowered(function, {"x": _X, "y": _Y}), function(_X, _Y)
    for count in (2, 3):
        got = made.result(count)
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        gap = (got.double() - want.double()).abs() / want.double().abs().clamp(min=1)
        assert float(gap.max()) < (1e-3 if want.is_floating_point() else 0.5)


def test_sums_of_many_small_parts_are_as_near_as_those_of_few() -> None:
    x = torch.rand(3000, 1) + 1
    assert lowered(lambda x: x.mean(), {"x": x}).result().item() == pytest.approx(float(x.mean()), rel=2e-4)
    assert lowered(lambda x: x * torch.full((1,), 1 / 3000.0), {"x": x}).result().sum().item() == pytest.approx(
        float(x.mean()), rel=1e-2
    )


def test_masks_of_dropout_are_drawn_once_and_are_public() -> None:
    made = lowered(lambda x: functional.dropout(x, 0.25, training=True), {"x": _X})
    assert made.script().rounds == 0
    first, second = made.result(), made.result()
    kept = first.abs() > 1e-6
    assert torch.equal(kept, second.abs() > 1e-6)
    assert 0 < int(kept.sum()) < kept.numel()
    assert torch.allclose(first[kept], _X[kept] / 0.75, atol=1e-3)


def test_what_is_written_to_a_view_is_seen_in_all_views() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        row, column = y[1], y[:, 2]
        row.add_(1)
        column.mul_(3)
        return y + row.sum() + column.sum()

    assert torch.allclose(lowered(function, {"x": _X}).result(), function(_X), atol=1e-3)


_ROUNDS: dict[str, tuple[Function, int]] = {
    "relu": (lambda x, y: functional.relu(x * y), 6),
    "argmax": (lambda x, y: x.argmax(1), 7),
    "softmax": (lambda x, y: x.softmax(1), 11),
    "log_softmax": (lambda x, y: x.log_softmax(1), 10),
    "sort": (lambda x, y: x.sort(1)[0], 11),
    "a row at a secret place": (lambda x, y: y.T[x.argmax(1)], 8),
    "a norm": (lambda x, y: functional.layer_norm(x, (6,)), 21),
}


@pytest.mark.parametrize("name", list(_ROUNDS))
def test_rounds_are_no_more_than_stated(name: str) -> None:
    function, most = _ROUNDS[name]
    assert lowered(function, {"x": _X, "y": _Y}).script().rounds <= most
