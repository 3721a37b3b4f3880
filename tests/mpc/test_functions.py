"""Functions on shares keep to the error that they state, over their whole domain and beyond its ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from tests.mpc.test_interpreter import secure

_CASES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], float, float, float]] = {
    "sigmoid": (torch.sigmoid, -40, 40, 1e-4),
    "tanh": (torch.tanh, -30, 30, 2e-4),
    "erf": (torch.erf, -20, 20, 1e-4),
    "exp": (torch.exp, -40, 6, 0.02),
    "exp of what is negative": (torch.exp, -40, 0, 6e-5),
    "silu": (lambda x: functional.silu(x), -12, 12, 1e-3),
    "gelu": (functional.gelu, -12, 12, 1e-3),
    "sin": (torch.sin, -300, 300, 1e-4),
    "cos": (torch.cos, -300, 300, 1e-4),
    "reciprocal": (torch.reciprocal, 0.25, 1000, 6e-4),
    "reciprocal of what is negative": (torch.reciprocal, -100, -0.5, 3e-4),
    "sqrt": (torch.sqrt, 0, 1000, 1e-4),
    "rsqrt": (torch.rsqrt, 0.1, 1000, 1e-4),
    "log": (torch.log, 0.01, 900_000, 8e-5),
    "a cube": (lambda x: x**3, -10, 10, 0.01),
    "a seventh power": (lambda x: x**7, -2, 2, 0.01),
    "a power": (lambda x: x**1.3, 0.05, 20, 0.01),
    "softmax": (lambda x: (x[:1600].reshape(160, 10) * 1.0).softmax(1), -40, 40, 3e-4),
    "log_softmax": (lambda x: (x[:1600].reshape(10, 160)).log_softmax(0), -40, 40, 3e-4),
    "a quotient": (lambda x: (3 - x) / (x * x + 1), -8, 8, 6e-4),
}


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("name", list(_CASES))
def test_the_error_is_as_stated(name: str, count: int) -> None:
    function, low, high, bound = _CASES[name]
    x = torch.linspace(low, high, 1601, dtype=torch.float64)
    x = torch.round(x * 65536) / 65536
    assert float((secure(function, {"x": x}, count) - function(x)).abs().max()) < bound
