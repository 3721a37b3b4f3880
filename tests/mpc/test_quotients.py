"""Quotients by secrets are right over all that they are said to hold for, at every precision, among all parties."""

from __future__ import annotations

import pytest
import torch

from mpc.ring import decode, encode
from tests.mpc.shares import lowered

_COUNT = 2_000
_MOST = 18  # quotients are below 2^18
_RELATIVE = 1.2e-4


def _powers(low: float, high: float) -> torch.Tensor:
    """Numbers of both signs, as many of each size."""
    sizes = 2.0 ** torch.empty(_COUNT, dtype=torch.float64).uniform_(low, high)
    return sizes * torch.randint(0, 2, (_COUNT,)).mul_(2).sub_(1)


def _encoded(values: torch.Tensor, precision: int) -> torch.Tensor:
    return decode(encode(values, precision), precision, torch.float64)


def _divisors(precision: int) -> torch.Tensor:
    """From two units, or 2^-15, to 2^20; all powers of two are among them, and their neighbours."""
    least = max(1 - precision, -15)
    edges = 2.0 ** torch.arange(least, 20, dtype=torch.float64)
    unit = 2.0**-precision
    found = torch.cat([_powers(least, 20), edges, -edges, edges * 2 - unit, unit - edges * 2])
    return _encoded(found.clamp(unit - 2.0**20, 2.0**20 - unit), precision)


def _check(got: torch.Tensor, want: torch.Tensor, precision: int) -> None:
    allowed = _RELATIVE * want.abs().clamp(min=1) + 2 * 2.0**-precision
    assert bool(((got - want).abs() <= allowed).all())
    if precision >= 16:
        assert bool(((got - want).abs() <= 1e-3 * want.abs().clamp(min=1)).all())


def _operands(precision: int) -> tuple[torch.Tensor, torch.Tensor]:
    y = _divisors(precision)
    wanted = 2.0 ** torch.empty(y.shape, dtype=torch.float64).uniform_(-12, _MOST - 0.01)
    x = (wanted * y).clamp(-(2.0 ** (61 - precision)), 2.0 ** (61 - precision))
    return _encoded(x, precision), y


@pytest.mark.parametrize("parties, has_dealer", [(2, True), (3, True), (5, True), (3, False)])
@pytest.mark.parametrize("precision", [10, 16, 24])
def test_a_quotient_is_near_over_the_whole_domain(precision: int, parties: int, has_dealer: bool) -> None:
    x, y = _operands(precision)
    made = lowered(lambda x, y: x / y, {"x": x, "y": y}, precision=precision)
    _check(made.result(parties, has_dealer=has_dealer), x / y, precision)


@pytest.mark.parametrize("precision", [10, 16, 24])
def test_an_inverse_is_near_over_the_whole_domain(precision: int) -> None:
    y = _divisors(precision)
    made = lowered(lambda y: 1 / y, {"y": y}, precision=precision)
    _check(made.result(), 1 / y, precision)


def test_what_is_multiplied_by_an_inverse_is_divided() -> None:
    """The inverse of what is large has no digits left: 1e5 / 1e5 was off by a third."""
    x, y = _encoded(_powers(14, 17), 16), _encoded(_powers(14, 19), 16)
    for function in (lambda x, y: x * (1 / y), lambda x, y: y.reciprocal() * x, lambda x, y: 2 / y * x * 0.5):
        _check(lowered(function, {"x": x, "y": y}).result(), x / y, 16)
    _check(lowered(lambda y: 3e4 / y, {"y": y}).result(), 3e4 / y, 16)


@pytest.mark.parametrize("parties, has_dealer", [(2, True), (3, False)])
@pytest.mark.parametrize("precision", [10, 13, 24])
def test_what_is_divided_by_a_root_is_as_near_with_few_bits(precision: int, parties: int, has_dealer: bool) -> None:
    """The root's inverse had those of the run alone: of 10 it was off by a thousandth."""
    y = _encoded(2.0 ** torch.empty(_COUNT, dtype=torch.float64).uniform_(max(-16, 1 - precision), 27.9), precision)
    wanted = 2.0 ** torch.empty(_COUNT, dtype=torch.float64).uniform_(-10, 13.9)
    x = _encoded((wanted * y.sqrt()).clamp(max=2.0**22 - 1), precision)
    made = lowered(lambda x, y: x / y.sqrt(), {"x": x, "y": y}, precision=precision)
    want = x / y.sqrt()
    off = (made.result(parties, has_dealer=has_dealer) - want).abs()
    assert bool((off <= _RELATIVE * want.clamp(min=1) + 2.0**-precision).all())


def test_shapes_are_broadcast_both_ways() -> None:
    x, y = torch.rand(5, 1, 3) + 1, torch.rand(4, 3) + 1
    _check(lowered(lambda x, y: x / y, {"x": x, "y": y}).result(), x / y, 16)
    _check(lowered(lambda x, y: x / y, {"x": y, "y": x}).result(), y / x, 16)


def test_whole_numbers_are_divided_too() -> None:
    x, y = torch.arange(-50, 50), torch.arange(1, 101)
    _check(lowered(lambda x, y: x / y, {"x": x, "y": y}).result(), x / y, 16)


def test_nothing_is_the_inverse_of_nothing() -> None:
    """By what is 0 no digit leads: 0 comes out, whatever was to be divided."""
    zeros = torch.zeros(16)
    assert bool((lowered(lambda y: 1 / y, {"y": zeros}).result() == 0).all())
    assert bool((lowered(lambda x, y: x / y, {"x": zeros + 3, "y": zeros}).result() == 0).all())


def test_beyond_their_domains_roots_and_quotients_are_nothing() -> None:
    """As docs/secure-operations.md says: no digit leads that is counted, and no number comes out that looks right."""
    x = torch.full((16,), 1.5 * 2.0**28, dtype=torch.float64)
    assert bool((lowered(torch.sqrt, {"x": x}).result() == 0).all())
    assert bool((lowered(lambda x, y: x / y, {"x": x / 64, "y": x / 128}).result() == 0).all())
