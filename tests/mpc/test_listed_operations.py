"""The operations of CrypTen's public test-suite, on its shapes and domains, against plain torch.

Its tolerance is a relative error of 5 % (of |got| + |want|) or an absolute one of 0.005; here it is 1e-3, relative or
absolute, whichever is larger, unless a case says more. Values are on the grid of fixed point: what encoding does to
others is not an operation's error.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils import _pytree as pytree

from mpc.ring import PRECISION
from tests.mpc.shares import on_shares

Values = dict[str, torch.Tensor]
Case = tuple[Callable[..., Any], Callable[[], Values]]


def _random(*size: int, largest: float = 6.0) -> torch.Tensor:
    return _grid((torch.rand(size) * 2 - 1) * largest)


def _grid(x: torch.Tensor) -> torch.Tensor:
    return (x * 2**PRECISION).round() / 2**PRECISION


def _steps(low: int, high: int) -> torch.Tensor:
    """0.01 apart."""
    return _grid(torch.arange(low, high + 1) / 100)


def _nonzero(*size: int) -> torch.Tensor:
    x = _random(*size)
    return torch.where(x.abs() < 0.5, x.sign() + 1.25, x)


def _two(*size: int) -> Callable[[], Values]:
    return lambda: {"x": _random(*size), "y": _random(*size)}


def _one(*size: int, largest: float = 6.0) -> Callable[[], Values]:
    return lambda: {"x": _random(*size, largest=largest)}


_INDEX = torch.tensor([1, 2, 3, 4, 4, 2, 1, 3])
_PLACES = torch.tensor([[[1, 2], [3, 4]], [[4, 2], [1, 3]]])


def _written(x: torch.Tensor, y: torch.Tensor) -> Any:
    one, other = x.clone(), x.clone()
    one[:, 0] = y[0]
    other[0, :] = y[1]
    return one, other, x


def _in_place(x: torch.Tensor, y: torch.Tensor) -> Any:
    return [getattr(x.clone(), name)(y) for name in ("add_", "sub_", "mul_", "div_")], x.clone().neg_(), x


def _matmuls(x: torch.Tensor, y: torch.Tensor) -> Any:
    """Of all pairs of batches that fit."""
    batches = [(), (1,), (5,), (1, 1), (1, 5)]
    sizes = [(1, 5), (5, 5)]
    return [
        x.flatten()[: math.prod((*one, *size))].view(*one, *size)
        @ y.flatten()[: math.prod((*other, *size))].view(*other, *size).mT
        for size in sizes
        for one, other in itertools.combinations(batches, 2)
    ]


def _broadcast(x: torch.Tensor, y: torch.Tensor) -> Any:
    sizes = [(), (1,), (2,), (1, 2), (2, 1), (2, 2), (1, 2, 1), (2, 2, 2)]
    of = [(x.flatten()[: math.prod(size)].view(size), y.flatten()[: math.prod(size)].view(size)) for size in sizes]
    return [
        operation(one, other)
        for (one, _), (_, other) in itertools.combinations(of, 2)
        for operation in (torch.add, torch.sub, torch.mul, torch.div)
    ]


def _convolutions(x: torch.Tensor, y: torch.Tensor) -> Any:
    made: list[torch.Tensor] = []
    for kernel, padding, stride, dilation, groups in (
        (1, 0, 1, 1, 1),
        (2, 1, 2, 1, 2),
        (3, 1, 1, 2, 1),
        (3, 2, 2, 1, 2),
    ):
        told: dict[str, Any] = {"padding": padding, "stride": stride, "groups": groups}
        narrow = y.flatten()[: 4 * (2 // groups) * kernel].view(4, 2 // groups, kernel)
        wide = y.flatten()[: 4 * (2 // groups) * kernel**2].view(4, 2 // groups, kernel, kernel)
        back = y.flatten()[: 2 * 2 * kernel].view(2, 2, kernel), y.flatten()[: 4 * kernel**2].view(2, 2, kernel, kernel)
        made += [
            functional.conv1d(x[:, :, 0], narrow, dilation=dilation, **told),
            functional.conv2d(x, wide, dilation=dilation, **told),
            functional.conv_transpose1d(x[:, :, 0], back[0], **told),
            functional.conv_transpose2d(x, back[1], **told),
        ]
    return made


def _pools(x: torch.Tensor) -> Any:
    made: list[Any] = []
    for kernel, stride, padding in ((1, 1, 0), (2, 1, 1), (2, 2, 0), (3, 2, 1)):
        average = functional.avg_pool2d(x, kernel, stride, padding)
        made += [
            average,
            average * kernel * kernel,
            functional.max_pool2d(x, kernel, stride, padding),
            functional.max_pool2d(x, kernel, stride, padding, return_indices=True)[1],
        ]
    return [*made, functional.adaptive_avg_pool2d(x, (2, 3)), functional.adaptive_max_pool2d(x, (2, 3))]


def _max_pool_gradient(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    (functional.max_pool2d(x, 2, 2) * y).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return x.grad


def _largest(x: torch.Tensor) -> Any:
    made: list[Any] = [x.max(), x.min(), x.argmax(), x.argmin()]
    for dim, keeps in itertools.product(range(x.dim()), (False, True)):
        made += [*x.max(dim, keeps), *x.min(dim, keeps), x.argmax(dim, keeps), x.argmin(dim, keeps)]
    return [*made, functional.one_hot(x.argmax(-1), x.shape[-1])]


_CASES: dict[str, Case] = {
    "add, sub, mul, square, neg": (lambda x, y: (x + y, x - y, x * y, x.square(), -x, 2 + x, 2 - x, 2 * x), _two(5, 5)),
    "in place": (_in_place, lambda: {"x": _random(2, 2), "y": _nonzero(2, 2)}),
    "broadcasting": (_broadcast, lambda: {"x": _random(2, 2, 2), "y": _nonzero(2, 2, 2)}),
    "sum": (lambda x: (x.sum(), x.sum(0), x.sum(1)), _one(100, 100)),
    "mean": (lambda x: (x.mean(), x.mean(0), x.mean(1), x.mean(2)), _one(5, 10, 15)),
    "var": (lambda x: (x.var(), x.var(0), x.var(1), x.var(2)), _one(5, 10, 15)),
    "prod": (lambda x: (x.prod(), x.prod(0), x.prod(1)), _one(3, 3, largest=2.0)),
    "div": (
        lambda x, y: (x / 2, x / 2.0, x / y, x / torch.tensor([10.0, 30.0, -20.0, 45.0, 7.0])),
        lambda: {"x": _random(5, 5), "y": _nonzero(5, 5) * 10},
    ),
    "matmul": (lambda x, y: [x @ y[:, :width] for width in range(2, 5)], _two(5, 5)),
    "matmul, broadcasting": (_matmuls, _two(1, 5, 5, 5)),
    "dot, ger": (lambda x, y: (x.dot(y), torch.ger(x, y), torch.outer(x, y)), _two(5)),
    "squeeze": (lambda x: (x.unsqueeze(0), x.unsqueeze(1), x.unsqueeze(2).squeeze(), x[None].squeeze(0)), _one(4, 5)),
    "transpose, permute": (lambda x: (x.transpose(0, 3), x[0, 0].t(), x.permute(3, 1, 0, 2)), _one(2, 3, 4, 5)),
    "conv1d, conv2d, and transposed": (_convolutions, lambda: {"x": _random(2, 2, 5, 4), "y": _random(100)}),
    "avg_pool2d, sum_pool2d, max_pool2d, adaptive": (_pools, _one(1, 4, 5, 4)),
    "max_pool2d, backward": (_max_pool_gradient, lambda: {"x": _random(1, 4, 4, 4), "y": _random(1, 4, 2, 2)}),
    "take": (lambda x: ([x.take(_PLACES * 5), *(x[(slice(None),) * d + (_PLACES,)] for d in range(3))]), _one(5, 5, 5)),
    "relu, relu6, hardtanh": (
        lambda x: (x.relu(), functional.relu6(x), functional.hardtanh(x), functional.hardtanh(x, -3, 2)),
        _one(5, 40, largest=10.0),
    ),
    "gt, ge, lt, le, eq, ne": (
        lambda x, y: [
            compare(x, other)
            for compare in (torch.gt, torch.ge, torch.lt, torch.le, torch.eq, torch.ne)
            for other in (y, 3.0, torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
        ],
        lambda: {"x": _random(5, 5).round(), "y": _random(5, 5).round()},
    ),
    "max, min, argmax, argmin": (_largest, _one(3, 4, 5)),
    "max, min, argmax, argmin: ties": (_largest, lambda: {"x": torch.tensor([[1.0, 1, 2, 1, 4, 1, 4, 4]])}),
    "max of one": (lambda x: (x.max(), x.argmax(0), x.min()), _one()),
    "abs, sign": (lambda x: (x.abs(), x.sign()), _one(5, 5)),
    "exp": (torch.exp, lambda: {"x": _steps(-1000, 1000)}),
    "reciprocal": (torch.reciprocal, lambda: {"x": torch.cat([_steps(-1000, -1), _steps(1, 1000)])}),
    "log, sqrt, inv_sqrt": (lambda x: (x.log(), x.sqrt(), x.rsqrt()), lambda: {"x": _steps(1, 1000)}),
    "pos_pow": (lambda x: [x**p for p in (-3, -2, -1, 0, 1, 2, 3)], lambda: {"x": _steps(25, 1000)}),
    "pos_pow, secret exponents": (
        lambda x, y: (x**y, x ** torch.linspace(-2, 2, len(x))),
        lambda: {"x": _steps(25, 1000), "y": _random(976, largest=2.0)},
    ),
    "pow": (lambda x: [x**p for p in (-3, -2, -1, 0, 1, 2, 3)], lambda: {"x": _nonzero(5, 5)}),
    "polynomial": (lambda x: 2 * x + 3 * x**2 - x**3 + 0.5, _one(5, 5, largest=2.0)),
    "norm": (
        lambda x: [
            x.norm(p) if dim is None else x.norm(p, dim=dim)
            for p in (1, 1.5, 2, 3, math.inf, "fro")
            for dim in (None, 0, 1, 2)
        ],
        _one(3, 3, 3, largest=1.2),
    ),
    "sigmoid, tanh": (lambda x: (x.sigmoid(), x.tanh()), lambda: {"x": _steps(-1000, 1000)}),
    "erf": (torch.erf, lambda: {"x": _steps(-300, 300)}),
    "cos, sin": (lambda x: (x.cos(), x.sin()), lambda: {"x": _steps(-1000, 1000)}),
    "softmax": (lambda x: [x.softmax(d) for d in range(3)], _one(5, 5, 5, largest=1.2)),
    "log_softmax": (lambda x: [x.log_softmax(d) for d in range(3)], _one(5, 5, 5, largest=1.2)),
    "softmax of one": (lambda x: (x.softmax(0), x.view(1).log_softmax(0)), _one()),
    "get and set": (_written, _two(4, 4)),
    "pad": (
        lambda x, y: [
            functional.pad(x, pads, value=v)
            for pads in ((0, 0, 0, 0), (1, 0, 0, 1), (2, 2, 1, 1))
            for v in (0.0, 1.0, 10.0)
        ],
        _two(5, 3),
    ),
    "index_add": (
        lambda x, y: [x.index_add(d, _INDEX[:4], y) for d in (0,)] + [x.clone().index_add_(1, _INDEX[:4], y.mT)],
        lambda: {"x": _random(5, 5), "y": _random(4, 5)},
    ),
    "scatter, scatter_add": (
        lambda x, y: [
            getattr(x.clone(), name)(d, torch.arange(25).view(5, 5) * 7 % 5, y)
            for name in ("scatter", "scatter_", "scatter_add", "scatter_add_")
            for d in (0, 1)
        ],
        _two(5, 5),
    ),
    "gather, index_select": (
        lambda x: (x.gather(1, _PLACES[0]), x.index_select(0, _INDEX), x.index_select(1, _INDEX[:2])),
        _one(5, 5),
    ),
    "narrow": (lambda x: (x.narrow(0, 1, 3), x.narrow(1, 2, 2)), _one(5, 6)),
    "repeat, expand": (lambda x: (x.repeat(4, 2, 1), x.expand(4, 5, 8)), _one(1, 8)),
    "view, flatten, reshape": (lambda x: (x.view(-1, 10), x.flatten(1), x.reshape(5, 20)), _one(2, 5, 10)),
    "roll, flip": (lambda x: (x.roll(1, 0), x.roll((2, 1), (0, 1)), x.flip((0, 1))), _one(5, 10)),
    "unfold": (lambda x: [x.unfold(d, 3, step) for d in (0, 1) for step in (1, 2)], _one(8, 5)),
    "cumsum, trace": (lambda x: (x.cumsum(0), x.cumsum(1), x.trace()), _one(5, 10)),
    "where": (
        lambda x, y: (torch.where(torch.eye(5) > 0, x, y), torch.where(x > y, x, y), torch.where(x > 0, x, 3.0)),
        _two(5, 5),
    ),
    "unbind, split, stack, cat": (
        lambda x, y: (*x.unbind(0), *x.split(2, 1), *x.split([1, 4]), torch.stack([x, y]), torch.cat([x, y], 1)),
        _two(5, 5),
    ),
    "tril, triu, diagonal": (lambda x: (x.tril(), x.triu(1), x.diagonal()), _one(5, 5)),
    "and, or, xor, not": (lambda x, y: [(x > 0) & (y > 0), (x > 0) | (y > 0), (x > 0) ^ (y > 0), ~(x > 0)], _two(5, 5)),
    "batchnorm": (
        lambda x, y: [
            functional.batch_norm(x, y[0], y[1].abs() + 1, y[2], y[3]),
            functional.batch_norm(x, None, None, y[2], y[3], training=True),
        ],
        lambda: {"x": _random(8, 3, 4), "y": _random(4, 3)},
    ),
    "cosine_similarity": (
        lambda x, y: (functional.cosine_similarity(x, y, 0), functional.cosine_similarity(x, y, 1)),
        _two(5, 5),
    ),
    "binary_cross_entropy": (
        lambda x, y: (
            functional.binary_cross_entropy(x.sigmoid(), (y > 0).float()),
            functional.binary_cross_entropy_with_logits(x, (y > 0).float()),
        ),
        _two(5, 4),
    ),
    "cross_entropy": (
        lambda x, y: (functional.cross_entropy(x, y.softmax(1)), functional.cross_entropy(x, y.argmax(1))),
        _two(5, 4),
    ),
    "mse, l1": (lambda x, y: (functional.mse_loss(x, y), functional.l1_loss(x, y)), _two(5, 4)),
    "linear": (lambda x, y: functional.linear(x, y, y[:, 0]), _two(5, 5)),
    "sort, topk": (lambda x: (*x.sort(1), *x.topk(2, 0)), _one(5, 5)),
}


def check(got: Any, want: Any, tolerance: float = 1e-3) -> None:
    ours, plain = pytree.tree_leaves(got), pytree.tree_leaves(want)
    assert len(ours) == len(plain)
    for one, other in zip(ours, plain, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        gap = (one.double() - other.double()).abs()
        assert bool((gap <= tolerance * other.double().abs().clamp(min=1)).all()), float(gap.max())


@pytest.mark.parametrize("name", list(_CASES))
def test_it_is_what_plain_torch_gives(name: str) -> None:
    function, values = _CASES[name]
    inputs = values()
    check(on_shares(function, inputs), function(**inputs))
