"""`precision=`: how many fractional bits secrets have, and what that does to errors and ranges."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from mpc.party import Party
from mpc.ring import MOST_PRECISION, check_precision, encode
from protocol.errors import BadRequest
from tests.mpc.shares import lowered, on_shares

_FUNCTIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], float, float, float, float]] = {
    # from, to, error of the function itself, and units of the last place
    "a sum": (lambda x: x + 0.1234567, -1000, 1000, 0, 1),
    "a square": (lambda x: x * x * 1.0, -10, 10, 0, 2),
    "a third": (lambda x: x / 3, -10, 10, 0, 3),
    "a product of matrices": (lambda x: x[:100].view(10, 10) @ x[:100].view(10, 10), -3, 3, 0, 2),
    "relu": (torch.relu, -50, 50, 0, 0),
    "leaky_relu": (lambda x: functional.leaky_relu(x), -50, 50, 0, 60),
    "clamp": (lambda x: x.clamp(-1.5, 2.25), -40, 40, 0, 0),
    "argmax": (lambda x: x[:200].view(20, 10).argmax(1), -40, 40, 0, 0),
    "sigmoid": (torch.sigmoid, -40, 40, 1e-4, 4),
    "tanh": (torch.tanh, -30, 30, 2e-4, 4),
    "erf": (torch.erf, -20, 20, 1e-5, 4),
    "exp": (torch.exp, -40, 0, 3e-5, 4),
    "sin": (torch.sin, -300, 300, 1e-5, 4),
    "reciprocal": (torch.reciprocal, 1, 1000, 1.2e-4, 4),
    "reciprocal below zero": (torch.reciprocal, -100, -1, 1.2e-4, 4),
    "sqrt": (torch.sqrt, 0.1, 1000, 1e-4, 4),
    "rsqrt": (torch.rsqrt, 0.5, 1000, 2e-5, 4),
    "log": (torch.log, 0.5, 1000, 5e-5, 4),
    "a cube": (lambda x: x**3, -3, 3, 0, 8),
    "softmax": (lambda x: x[:200].view(20, 10).softmax(1), -40, 40, 1e-4, 4),
    "softmax of many": (lambda x: x[:200].view(2, 100).softmax(1), -40, 40, 3e-4, 4),
    "log_softmax": (lambda x: x[:200].view(20, 10).log_softmax(1), -40, 40, 1e-4, 4),
    "a mean": (lambda x: x.mean(), -8, 8, 0, 3),
}


def _points(low: float, high: float, precision: int) -> torch.Tensor:
    line = torch.linspace(low, high, 301, dtype=torch.float64)
    shuffled = line[torch.randperm(301, generator=torch.Generator().manual_seed(precision))]
    return torch.round(shuffled * 2.0**precision) / 2.0**precision


@pytest.mark.parametrize("precision", [10, 13, 20, 24])
@pytest.mark.parametrize("name", list(_FUNCTIONS))
def test_errors_are_those_of_the_function_and_units_of_the_last_place(name: str, precision: int) -> None:
    function, low, high, own, units = _FUNCTIONS[name]
    x = _points(low, high, precision)
    got = on_shares(function, {"x": x}, 2, (), precision)
    assert float((got.double() - function(x).double()).abs().max()) <= own + units * 2.0**-precision


@pytest.mark.parametrize("precision", [11, 16, 17, 23, 24])
@pytest.mark.parametrize(("function", "own"), [(torch.sqrt, 3e-6), (torch.rsqrt, 2e-5)])
def test_roots_of_all_sizes_are_as_exact_at_an_odd_number_of_bits(
    function: Callable[[torch.Tensor], torch.Tensor], own: float, precision: int
) -> None:
    """Where half of the bits is no whole number, a power of two is no word: the error was 1e-4 of the value."""
    exact = torch.exp2(torch.linspace(-10, 27.9, 500, dtype=torch.float64))
    x = torch.round(exact * 2.0**precision) / 2.0**precision
    off = (on_shares(function, {"x": x}, 2, (), precision).double() - function(x)).abs()
    assert bool((off <= own * function(x) + 1.5 * 2.0**-precision).all())


@pytest.mark.parametrize("count", [3, 5])
def test_more_parties_have_it_too(count: int) -> None:
    x = _points(-3, 3, 22)
    got = on_shares(lambda x: torch.sigmoid(x) * x, {"x": x}, count, (), 22)
    assert float((got - torch.sigmoid(x) * x).abs().max()) < 4e-4


def test_products_are_as_exact_as_it_says() -> None:
    """What 16 bits cannot tell apart, 24 can."""
    x = torch.full((8,), 3 * 2.0**-10, dtype=torch.float64)
    coarse, fine = (on_shares(lambda x: torch.relu(x * x), {"x": x}, 2, (), precision) for precision in (16, 24))
    assert float((fine - x * x).abs().max()) <= 2.0**-24
    assert float((coarse - x * x).abs().min()) > 2.0**-18


@pytest.mark.parametrize("precision", [9, 25, 16.0, True, "16"])
def test_what_no_precision_can_be_is_refused(precision: object) -> None:
    for use in (check_precision, lambda given: Party(0, 2, lambda *_: None, given)):  # type: ignore[arg-type,return-value]
        with pytest.raises(BadRequest, match="fractional bits"):
            use(precision)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="fractional bits"):
        lowered(lambda x: x + 1, {"x": torch.ones(2)}, (), precision)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", [10, MOST_PRECISION])
def test_a_value_that_does_not_fit_is_refused(precision: int) -> None:
    largest = 2.0 ** (62 - precision)
    assert int(encode(torch.tensor(largest / 2, dtype=torch.float64), precision)) == 1 << 61
    with pytest.raises(BadRequest, match="does not fit"):
        encode(torch.tensor(largest, dtype=torch.float64), precision)
