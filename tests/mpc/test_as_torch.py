"""What torch does at the edges is done on shares too: odd arguments, whole numbers and bytes, truth values, nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from mpc.lowering import check_looks
from mpc.secret import Secret
from protocol.errors import BadRequest, InternalError, OperationNotAllowed
from tests.mpc.shares import lowered, on_shares

pytestmark = pytest.mark.usefixtures("one_thread")

Function = Callable[..., Any]

_REALS = torch.tensor([[0.5, -1.25, 2.0], [-3.0, 0.0, 1.5]])
_OTHERS = torch.tensor([[1.0, 2.5, -0.5], [0.25, -1.0, 3.0]])
_WHOLE = torch.tensor([[3, -5, 0], [1, 2, -1]], dtype=torch.int32)
_BYTES = torch.tensor([[3, 5, 0], [1, 2, 4]], dtype=torch.uint8)
_CUBE = torch.arange(24.0).reshape(2, 3, 4) / 8
_NOTHING = torch.zeros(0, 3)


def _same(function: Function, *values: torch.Tensor) -> None:
    names = ["x", "y", "z"][: len(values)]
    got = on_shares(function, dict(zip(names, values, strict=True)))
    want = function(*values)
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3)


def _strided(x: torch.Tensor) -> torch.Tensor:
    made = x.clone()
    made.as_strided((2,), (4,)).fill_(7.0)
    other = x.t().contiguous()
    other.as_strided((2, 2), (2, 1), 1).mul_(2)
    return made + other.t()


def _pow_in_place(x: torch.Tensor) -> torch.Tensor:
    made = x.clone()
    made.pow_(2)
    made[0].pow_(3)
    return made


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.rsub(x, x * 2 + 1, alpha=0.5),
        lambda x: torch.rsub(x, 3, alpha=2),
        lambda x: x.clamp(2, -1),  # the upper bound is the last word
        lambda x: x.clamp(0.5, 0.5),
        _pow_in_place,
        _strided,
        lambda x: 3**x,
        lambda x: 2**x + 1**x + 0.25**x,
        lambda x: x.sum(0, dtype=torch.float64),
        lambda x: x.prod(1, dtype=torch.float64),
        lambda x: x.mean(1, dtype=torch.float64),
        lambda x: x.cumprod(1, dtype=torch.float64),
        lambda x: x.flatten()[0:1].gather(0, torch.tensor(0)),
        lambda x: (x > 0) + (x > 1),
        lambda x: ((x > 0) + (x > 1)) ^ (x > 1),
        lambda x: torch.add(x > 0, x > 1, alpha=0),
        lambda x: functional.pad(x > 0, (1, 1), value=-0.5),
        lambda x: functional.pad(x.floor(), (1, 1), value=-0.25),
        lambda x: x.ceil().clamp(-0.25, 0.5),
        lambda x: (x > 0).masked_fill(x > 1, 0.5),
        lambda x: (x > 0).scatter(1, (x > 1).long(), 2.0).exp(),
        lambda x: (x > 0).index_add(0, torch.tensor([1, 1]), x > -5).long(),
        lambda x: (x > 0).scatter_add(1, (x > 1).long(), x > -5).long(),
        lambda x: (x > 0).index_put((torch.tensor([1, 1]),), x > -5, accumulate=True).long(),
        lambda x: (x > 0) ** 0,
        lambda x: torch.sinc(x * 2**-12) + torch.sinc(x),
    ],
)
def test_of_reals(function: Function) -> None:
    _same(function, _REALS)


@pytest.mark.parametrize("x", [_WHOLE, _BYTES], ids=["whole", "bytes"])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.square(),
        lambda x: x**3,
        lambda x: x.clamp(1, 3),
        lambda x: x.clamp(-3, 3),
        lambda x: x.clamp(1.5, 2.5),
        lambda x: x.clamp_min(2),
        lambda x: functional.relu6(x),
        lambda x: functional.hardtanh(x, 1, 2),
        lambda x: x.sum(0, dtype=torch.float32),
        lambda x: x.prod(0, dtype=torch.float64),
        lambda x: x.prod(0),
        lambda x: x.mean(0, dtype=torch.float32),
        lambda x: (x > 0).all(1),
        lambda x: x.any(1),
        lambda x: x.all(),
        lambda x: functional.pad(x, (1, 1), value=2),
        lambda x: torch.sinc(x),
    ],
)
def test_of_whole_numbers(function: Function, x: torch.Tensor) -> None:
    _same(function, x)


@pytest.mark.filterwarnings("ignore:The use of `x.T`")
@pytest.mark.parametrize(
    "function", [lambda x: x.T, lambda x: x.mT, lambda x: x.transpose(0, -1), lambda x: x.permute(1, -1, 0)]
)
def test_of_more_dimensions(function: Function) -> None:
    _same(function, _CUBE)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, at: x.scatter(1, at, 2.0),
        lambda x, at: x.scatter(1, at, x * 2 + 1),
        lambda x, at: x.scatter(1, at[:, :1], x),
        lambda x, at: x.scatter_add(1, at, x),
        lambda x, at: torch.zeros_like(x).scatter(0, at * 0, x),
    ],
)
def test_of_several_that_are_put_at_one_secret_place_the_last_stays(function: Function) -> None:
    def placed(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return function(x, (y > 0).long())  # type: ignore[no-any-return]

    _same(placed, _REALS, _OTHERS)


def test_of_several_that_are_put_at_one_place_that_all_know_the_last_stays() -> None:
    """Torch writes many side by side: which one stays must not be each party's own luck."""
    count = 40_000
    places = torch.arange(count) // 2
    x, values = torch.zeros(count), torch.arange(count) % 97 / 8

    def put(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        made = x.clone()
        made[places] = values
        return made

    got = on_shares(put, {"x": x, "values": values})
    assert torch.equal(got[: count // 2], values[1::2]) and not got[count // 2 :].any()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.softmax(0),
        lambda x: x.log_softmax(1),
        lambda x: x.sort(1)[0],
        lambda x: x.sum(),
        lambda x: x.prod(0),
        lambda x: x.cumsum(0),
        lambda x: torch.cat([x, x + 1]) * 2,
        lambda x: functional.pad(x, (0, 0, 1, 1), value=0.5),
        lambda x: x @ x.T,
        lambda x: x.T @ x,
    ],
)
def test_of_nothing(function: Function) -> None:
    _same(function, _NOTHING)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: x.sum(0, dtype=torch.int64), "does not become an integer"),
        (lambda x: x.cumsum(0, dtype=torch.int64), "does not become an integer"),
        (lambda x: x.prod(0, dtype=torch.int64), "does not become an integer"),
        (lambda x: x.clamp(min=float("nan")), "not a number"),
        (lambda x: x[:0].median(), "none"),
        (lambda x: (-2) ** x, "base above zero"),
        (lambda x: 2 ** (x > 0).long(), "reals as exponents"),
    ],
)
def test_what_would_be_something_else_is_refused(function: Function, says: str) -> None:
    with pytest.raises((BadRequest, OperationNotAllowed), match=says):
        on_shares(function, {"x": _REALS})


def test_what_would_look_otherwise_than_in_the_clear_is_not_shared() -> None:
    """Whatever form is wrong in it: a result is not taken for what it is not."""
    right = Secret(torch.zeros(2, 3, dtype=torch.int64), 16, torch.float32)
    made = lowered(lambda x: {"b": [x * 2], "a": (x > 0).sum()}, {"x": _REALS}).lowered
    count = Secret(torch.zeros((), dtype=torch.int64), 0, torch.int64)
    check_looks(made, {"b": [right], "a": count})
    for wrong in (replace(right, dtype=torch.float64), replace(right, share=right.share.mT)):
        with pytest.raises(InternalError, match="a defect of a secure form"):
            check_looks(made, {"b": [wrong], "a": count})
