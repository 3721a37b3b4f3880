"""Whole numbers, truth values, numbers without a dimension, and nothing at all: operations take them as torch does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from protocol.errors import BadRequest, OperationNotAllowed
from tests.mpc.shares import on_shares

_WHOLE = torch.tensor([0, 1, 2, 3, 5, 7, -4, 9])
_TRUE = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0]).bool()
_REAL = torch.tensor([0.25, 1.75, 2.5, -3.125, 5.5, 0.0625, -4.0, 8.5])

_LEAST = torch.iinfo(torch.int64).min

_OF_ALL: dict[str, Callable[[torch.Tensor], Any]] = {
    "waves": lambda x: torch.stack([x.sin(), x.cos(), x.tanh(), x.sigmoid(), x.erf(), x.erfc()]),
    "powers": lambda x: torch.stack([x.clamp(max=3).exp(), x.clamp(max=3).exp2(), x.clamp(max=3).expm1()]),
    "logarithms": lambda x: torch.stack([f(x * x + 1) for f in (torch.log, torch.log2, torch.log10, torch.log1p)]),
    "softmax in another dtype": lambda x: (x.softmax(0, torch.float64), x.log_softmax(0, torch.float64)),
    "logsumexp": lambda x: x.logsumexp(0),
    "roots": lambda x: ((x * x + 1) ** 1.5, (x * x + 1) ** 0.5, (x * x + 1) ** -1.0),
    "spread": lambda x: (x.float().var(), x.float().std(), functional.layer_norm(x.float(), (8,))),
    "spread of signs": lambda x: (x > 1).float().var(),
    "bounds": lambda x: (x.clamp(0.5, 2.5), x.clamp(0, 2), x.clamp(min=1, max=float("inf"))),
    "products": lambda x: (x.prod(), x.cumprod(0), x.square(), x**3),
    "truth": lambda x: (x.bool(), x.logical_not(), x.logical_and(x > 1), x.any(), x.all(), torch.logical_xor(x, x > 2)),
    "nothing below": lambda x: torch.where(x > 0, x, float("-inf")).amax(),
    "one of two numbers": lambda x: (torch.where(x > 0, 1.5, 0.0), torch.where(x > 0, 0.0, float("-inf")).amax()),
    "no number, not chosen": lambda x: x.float().nan_to_num(),
}


@pytest.mark.parametrize("name", list(_OF_ALL))
@pytest.mark.parametrize("x", [_WHOLE, _TRUE, _REAL], ids=["whole", "truth", "real"])
def test_any_kind_of_number_goes_in(name: str, x: torch.Tensor) -> None:
    _agree(on_shares(_OF_ALL[name], {"x": x}), _OF_ALL[name](x))


def test_the_least_integer_is_below_all() -> None:
    def largest(x: torch.Tensor) -> Any:
        seen = torch.where(x > 1, x, _LEAST)
        return seen.amax(), seen.argmax()

    _agree(on_shares(largest, {"x": _WHOLE}), largest(_WHOLE))


_X = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1)) * 2
_LABELS = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0, 1.0])
_PLACES = torch.tensor([[3], [0]])

_PLAINER: dict[str, Callable[[torch.Tensor], Any]] = {
    "one image": lambda x: functional.conv2d(x, x.view(3, 2, 2, 4), stride=2),
    "one row of samples": lambda x: functional.conv1d(x[0], x.view(3, 4, 4), padding=1),
    "group norm": lambda x: functional.group_norm(x, 2, x[0, :, 0], x[0, :, 1]),
    "group norm of images": lambda x: functional.group_norm(x.view(2, 4, 2, 3), 4),
    "std_mean": lambda x: (torch.std_mean(x, 1, unbiased=True, keepdim=True), torch.std_mean(x)),
    "margin ranking": lambda x: [
        functional.margin_ranking_loss(x[0, 0], x[1, 0], _LABELS, 0.5, reduction=each)
        for each in ("none", "sum", "mean")
    ],
    "hinge": lambda x: [
        functional.hinge_embedding_loss(x[0, 0], _LABELS, 0.5, reduction=each) for each in ("none", "sum", "mean")
    ],
    "soft margin, far away": lambda x: functional.soft_margin_loss(x[0, 0] * 10, _LABELS, reduction="none"),
    "softplus, far away": lambda x: (functional.softplus(x * 30), functional.softplus(x, 3, 0.25)),
    "addbmm": lambda x: torch.addbmm(x[0, :, :4], x, x.mT, beta=0.5, alpha=2),
    "hypot": lambda x: torch.hypot(x[0], x[1]),
    "bilinear": lambda x: functional.bilinear(x[0], x[1, :, :3], x.flatten()[:36].view(2, 6, 3), x[0, 0, :2]),
    "adaptive pool": lambda x: functional.adaptive_avg_pool3d(x.view(1, 2, 2, 2, 6), (2, 1, 4)),
    "strides": lambda x: x.as_strided((3, 2), (5, 7), 2),
    "along a dimension": lambda x: (torch.take_along_dim(x[0], _PLACES[:1], 1), torch.take_along_dim(x, _PLACES)),
    "of no dimension": lambda x: (x[0, 0, 0].prod(0), x[0, 0, 0].cumprod(0), x[0, 0, 0].logsumexp(0)),
    "of nothing": lambda x: (
        x[:0].prod(0),
        x[:0].sum(0),
        x[:0].mean(1),
        functional.layer_norm(x[:0], (6,)),
        x[:0] @ x[0].T,
    ),
}


@pytest.mark.parametrize("name", list(_PLAINER))
def test_it_is_what_torch_gives(name: str) -> None:
    with torch.no_grad():
        want = _PLAINER[name](_X)
    _agree(on_shares(_PLAINER[name], {"x": _X}), want)


def test_secret_places_are_broadcast() -> None:
    def picked(x: torch.Tensor, at: torch.Tensor) -> Any:
        return torch.take_along_dim(x, at, 1), torch.take_along_dim(x, at[0])

    _agree(on_shares(picked, {"x": _X[0], "at": _PLACES[:1]}), picked(_X[0], _PLACES[:1]))
    number = {"x": torch.tensor(2.5), "at": torch.tensor(0)}
    _agree(on_shares(lambda x, at: x.gather(0, at), number), torch.tensor(2.5))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x.float()[:0].mean(), "it is not a number"),
        (lambda x: x.float()[:1].var(), "it is not a number"),
        (lambda x: torch.addmv(x, x.outer(x), x, alpha=0.5), r"compute with x\.float\(\)"),
        (lambda x: functional.avg_pool1d(x[None], 3), r"compute with x\.float\(\)"),
    ],
)
def test_what_is_no_number_is_refused(function: Callable[..., Any], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        on_shares(function, {"x": _WHOLE})


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x // 3, r"//, % and quotients that are rounded have no secure form.*\[aten\.floor_divide\]"),
        (lambda x: torch.complex(x.float(), x.float()).real, "complex numbers cannot be secrets"),
        (lambda x: x ** x.abs(), r"compute with x\.float\(\)"),
    ],
)
def test_what_has_no_form_is_named_as_it_was_written(function: Callable[..., Any], said: str) -> None:
    with pytest.raises(OperationNotAllowed, match=said):
        on_shares(function, {"x": _WHOLE})


def _agree(got: Any, want: Any) -> None:
    if not isinstance(want, torch.Tensor):
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            _agree(one, other)
        return
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    gap = (got.double() - want.double()).abs() / want.double().abs().clamp(min=1)
    assert gap.numel() == 0 or float(gap.max()) < (1e-3 if want.is_floating_point() else 1e-9)
