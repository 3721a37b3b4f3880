"""Where fixed-point libraries are known to go wrong: far from one, odd powers, negative values, large logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mpc.ring import PRECISION, decode, encode
from tests.mpc.shares import on_shares

_CASES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], list[float]]] = {
    "odd powers": (lambda x: torch.stack([x**5, x**7, x**9, x**11]), [-1.5, -1.0, -0.5, 0.5, 1.25, 2.0]),
    "erf beyond one": (torch.erf, [-30.0, -4.0, -2.5, -1.5, 1.5, 2.5, 4.0, 30.0]),
    "reciprocal above 64": (torch.reciprocal, [65.0, 100.0, 1000.0, 100_000.0, -65.0, -1000.0]),
    "sqrt above 64": (torch.sqrt, [65.0, 1000.0, 12_345.0, 500_000.0, 2e8]),
    "rsqrt far from one": (torch.rsqrt, [0.001, 0.01, 70.0, 12_345.0, 2e8]),
    "sqrt below 0.1": (torch.sqrt, [0.0, 0.001, 0.01, 0.05, 0.099]),
    "log above 250": (torch.log, [251.0, 1000.0, 65_000.0, 1e6, 2e8]),
    "exp": (torch.exp, [-20.0, -8.0, -1.0, 0.0, 1.0, 2.0, 4.5, 8.0, 11.0]),
    "softmax of large logits": (lambda x: x.softmax(0), [-900.0, 600.0, 599.0, 0.0, 601.5]),
    "log_softmax of large logits": (lambda x: x.log_softmax(0), [-900.0, 600.0, 599.0, 0.0, 601.5]),
    "sine and cosine of many turns": (lambda x: x.sin() + x.cos(), [-100_000.0, 40_000.5, 123_456.75, 1e6]),
    "softmax of many large logits": (lambda x: x.softmax(0), [700.0 - 3 * at for at in range(14)]),
}


@pytest.mark.parametrize("name", list(_CASES))
def test_it_holds_there_too(name: str) -> None:
    function, values = _CASES[name]
    x = decode(encode(torch.tensor(values, dtype=torch.float64)), PRECISION, torch.float64)
    got, want = on_shares(function, {"x": x}), function(x)
    assert bool(((got - want).abs() <= 1e-3 * want.abs().clamp(min=1)).all())


def test_negative_values_are_decoded_as_exactly_as_positive_ones() -> None:
    words = torch.arange(-200_000, 200_001, 37)
    got = decode(words, PRECISION, torch.float64)
    assert torch.equal(got, words.double() / 65536)
    assert torch.equal(decode(-words, PRECISION, torch.float64), -got)


def test_no_product_is_off_by_a_wrap() -> None:
    """Of 2e4 products of size 30,000, each is off by no more than rounding."""
    x = torch.full((20_000,), 173.2, dtype=torch.float64)
    got = on_shares(lambda x: (x * x) * 1.0, {"x": x})
    assert float((got - 173.2**2).abs().max()) < 0.01
