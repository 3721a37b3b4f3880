"""The largest, the smallest, their places, bounds and pools: as torch has them, first of equal ones included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from mpc.operations import largest
from tests.mpc.test_interpreter import secure

_X = (torch.arange(48) * 37 % 29 - 14).reshape(4, 3, 4) / 4.0  # with many that are equal

_CASES: dict[str, Callable[[Any], Any]] = {
    "max": lambda x: x.max(),
    "min": lambda x: x.min(),
    "amax": lambda x: x.amax((0, 2), keepdim=True),
    "amin": lambda x: x.amin(1),
    "argmax of all": lambda x: x.argmax(),
    "argmax": lambda x: x.argmax(2),
    "argmin": lambda x: x.argmin(0, keepdim=True),
    "values": lambda x: x.max(0).values + x.min(2, keepdim=True).values.sum(),
    "places": lambda x: x.max(2).indices * 10 + x.min(2).indices,
    "maximum": lambda x: torch.maximum(x, x.flip(0)) + torch.minimum(x, torch.tensor(0.5)),
    "abs": lambda x: x.abs() + x.sign(),
    "clamp": lambda x: x.clamp(-1.25, 2) + x.clamp(min=0.5) + x.clamp(max=-0.25),
    "hardtanh": lambda x: functional.hardtanh(x) + functional.relu6(x * 3),
    "leaky_relu": lambda x: functional.leaky_relu(x, 0.2),
    "max_pool2d": lambda x: functional.max_pool2d(x.unsqueeze(0) * 2, 2, 1, 1),
    "avg_pool2d": lambda x: functional.avg_pool2d(x.unsqueeze(0), 2, stride=1),
}


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", list(_CASES))
def test_it_is_as_torch_has_it(name: str, count: int) -> None:
    got, want = secure(_CASES[name], {"x": _X}, count), _CASES[name](_X)
    assert torch.equal(got, want) if want.dtype == torch.int64 else torch.allclose(got, want, atol=2e-3)


@pytest.mark.parametrize("name", ["values", "places", "argmax", "argmin"])
def test_a_tournament_gives_the_same_as_all_pairs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(largest, "_PAIRS", 0)
    got, want = secure(_CASES[name], {"x": _X}), _CASES[name](_X)
    assert torch.allclose(got.double(), want.double(), atol=2e-3)
