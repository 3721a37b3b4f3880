"""Normalisation of rows of any variance, as torch has it in double precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from protocol.errors import BadRequest
from tests.mpc.shares import on_shares

pytestmark = pytest.mark.usefixtures("one_thread")

Function = Callable[[torch.Tensor], torch.Tensor]


def _encoded(x: torch.Tensor) -> torch.Tensor:
    return torch.round(x.double() * 65536) / 65536


def _check(function: Function, x: torch.Tensor) -> None:
    got = on_shares(function, {"x": x})
    torch.testing.assert_close(got.double(), function(_encoded(x)), atol=1e-3, rtol=1e-5)


def _weighed(x: torch.Tensor) -> torch.Tensor:
    weight, bias = torch.linspace(0.5, 1, 16, dtype=x.dtype), torch.linspace(-1, 1, 16, dtype=x.dtype)
    return functional.layer_norm(x, (16,), weight, bias)


def _with_statistics(x: torch.Tensor) -> torch.Tensor:
    mean, var = torch.zeros(4, dtype=x.dtype), torch.ones(4, dtype=x.dtype)
    made = functional.batch_norm(x, mean, var, training=True, momentum=0.3)
    return torch.cat([made.flatten(), mean, var])


_NORMS: dict[str, Function] = {
    "layer": lambda x: functional.layer_norm(x, (16,)),
    "layers of two": lambda x: functional.layer_norm(x, (4, 16)),
    "weighed": _weighed,
    "group": lambda x: functional.group_norm(x, 2),
    "batch": lambda x: functional.batch_norm(x, None, None, training=True),
    "statistics": _with_statistics,
    "instance": lambda x: functional.instance_norm(x),
}


@pytest.mark.parametrize("deviation", [100.0, 1.0, 0.1, 0.01, 0.002])
@pytest.mark.parametrize("norm", _NORMS)
def test_rows_of_any_variance(norm: str, deviation: float) -> None:
    torch.manual_seed(0)
    _check(_NORMS[norm], torch.randn(3, 4, 16) * deviation + 0.5)


def test_rows_that_are_all_the_same_are_nothing() -> None:
    assert torch.equal(on_shares(_NORMS["layer"], {"x": torch.full((2, 16), 0.3)}), torch.zeros(2, 16))


@pytest.mark.parametrize(("count", "deviation", "mean"), [(1, 1.0, 5.0), (2, 300.0, 0.0), (784, 80.0, 120.0)])
def test_short_and_long_rows(count: int, deviation: float, mean: float) -> None:
    torch.manual_seed(0)
    _check(lambda x: functional.layer_norm(x, (count,)), torch.randn(3, count) * deviation + mean)


def test_the_mean_and_what_it_was_divided_by() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 16) * 0.05 + 2

    def both(x: torch.Tensor) -> torch.Tensor:
        _, mean, scale = torch.native_layer_norm(x, (16,), None, None, 1e-5)
        return torch.cat([mean, scale])

    torch.testing.assert_close(on_shares(both, {"x": x}).double(), both(_encoded(x)), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("precision", [10, 20, 24])
def test_other_precisions(precision: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 16) * 0.5
    encoded = torch.round(x.double() * (1 << precision)) / (1 << precision)
    got = on_shares(_NORMS["layer"], {"x": x}, precision=precision)
    torch.testing.assert_close(got.double(), _NORMS["layer"](encoded), atol=max(1e-4, 2.0**-precision * 8), rtol=0)


@pytest.mark.parametrize("precision", [10, 12, 18])
def test_large_variances_have_their_digits_at_other_precisions_too(precision: int) -> None:
    torch.manual_seed(0)
    x = torch.round(torch.randn(3, 16).double() * 400 * (1 << precision)) / (1 << precision)
    got = on_shares(_NORMS["layer"], {"x": x}, precision=precision)
    torch.testing.assert_close(got.double(), _NORMS["layer"](x), atol=1e-4 + 2.0**-precision * 8, rtol=0)


def test_tiny_variances_have_more_digits_than_they_need() -> None:
    """Of 26 fractional bits those of this variance and eps have 10 that count: one row in some hundreds was off by
    more than 1e-3."""
    torch.manual_seed(0)
    x = torch.randn(1000, 48) * 0.002 + 0.5
    got = on_shares(lambda x: functional.layer_norm(x, (48,)), {"x": x}).double()
    assert float((got - functional.layer_norm(_encoded(x), (48,))).abs().max()) < 7e-4


@pytest.mark.parametrize("eps", [-1e-5, 2.0**17, float("inf"), float("nan")])
def test_an_eps_that_does_not_fit_is_refused(eps: float) -> None:
    with pytest.raises(BadRequest, match="eps is from 0 to"):
        on_shares(lambda x: functional.layer_norm(x, (16,), eps=eps), {"x": torch.randn(2, 16)})


@pytest.mark.parametrize("norm", ["layer", "batch", "group"])
def test_gradients(norm: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 16) * 0.5

    def gradient(x: torch.Tensor) -> torch.Tensor:
        made = torch.func.grad(lambda x: (_NORMS[norm](x) ** 3).sum())(x)
        assert isinstance(made, torch.Tensor)
        return made

    torch.testing.assert_close(on_shares(gradient, {"x": x}).double(), gradient(_encoded(x)), atol=5e-3, rtol=1e-3)
