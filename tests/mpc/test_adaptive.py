"""Optimisers that divide by roots of squared gradients: as in the clear, over many steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.mpc.shares import lowered, on_shares

pytestmark = pytest.mark.usefixtures("one_thread")

_OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adam": lambda given: torch.optim.Adam(given, lr=0.01),
    "AdamW": lambda given: torch.optim.AdamW(given, lr=0.01),
    "Adam with weight decay and amsgrad": lambda given: torch.optim.Adam(
        given, lr=0.01, weight_decay=0.01, amsgrad=True
    ),
    "Adam with a larger eps": lambda given: torch.optim.Adam(given, lr=0.01, eps=1e-3),
    "NAdam": lambda given: torch.optim.NAdam(given, lr=0.01),
    "RMSprop": lambda given: torch.optim.RMSprop(given, lr=0.003),
    "RMSprop with momentum": lambda given: torch.optim.RMSprop(given, lr=0.001, momentum=0.9),
    "Adagrad": lambda given: torch.optim.Adagrad(given, lr=0.01),
}
_LONGER: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adadelta": torch.optim.Adadelta,
    "Adamax": lambda given: torch.optim.Adamax(given, lr=0.01),
    "RMSprop, centred": lambda given: torch.optim.RMSprop(given, lr=0.003, centered=True),
}


def _training(optimizer_of: Callable[[Any], torch.optim.Optimizer], count: int, scale: float = 1.0) -> Any:
    def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Any:
        optimizer = optimizer_of(model.parameters())
        for _ in range(count):
            optimizer.zero_grad()
            loss = functional.mse_loss(model(x), y) * scale
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return model

    return train


def _data() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(5)
    return nn.Linear(5, 1), torch.randn(16, 5), torch.randn(16, 1)


def _errors(train: Any, given: tuple[nn.Module, torch.Tensor, torch.Tensor], **settings: Any) -> tuple[float, float]:
    """How far the trained parameters are from those in the clear, in doubles; and how far these have moved."""
    model, x, y = given
    got = on_shares(train, {"model": model, "x": x, "y": y}, **settings)["state"]
    clear = copy.deepcopy(model).double()
    train(clear, x.double(), y.double())
    off = [float((got[f"model.{key}"].double() - value).abs().max()) for key, value in clear.state_dict().items()]
    moved = [float((value - model.state_dict()[key]).abs().max()) for key, value in clear.state_dict().items()]
    return max(off), max(moved)


def test_fifty_steps_of_adam() -> None:
    off, moved = _errors(_training(_OPTIMIZERS["Adam"], 50), _data())
    assert moved > 0.3
    assert off < 5e-4


@pytest.mark.parametrize("name", list(_OPTIMIZERS))
def test_steps_are_those_in_the_clear(name: str) -> None:
    off, moved = _errors(_training(_OPTIMIZERS[name], 4), _data())
    assert moved > 0.005
    assert off < 2e-4


@pytest.mark.parametrize("name", list(_LONGER))
def test_a_dozen_steps_are_those_in_the_clear(name: str) -> None:
    off, moved = _errors(_training(_LONGER[name], 12), _data())
    assert moved > 0.03
    assert off < 1e-3


def test_small_gradients_count_as_large_ones_do() -> None:
    """A loss of a hundredth: gradients down to 1e-4, squares down to 1e-8; Adam's steps are the same."""
    train = _training(_OPTIMIZERS["Adam"], 4, scale=0.01)
    off, moved = _errors(train, _data())
    assert moved > 0.03
    assert off < 3e-3
    assert _errors(train, _data(), precision=22)[0] < 1e-4


def test_what_has_no_gradient_stays() -> None:
    model, x, y = _data()
    x[:, 2] = 0
    got = on_shares(_training(_OPTIMIZERS["Adam"], 3), {"model": model, "x": x, "y": y})["state"]
    assert abs(float(got["model.weight"][0, 2]) - float(model.state_dict()["weight"][0, 2])) < 2**-15


def test_five_parties() -> None:
    assert _errors(_training(_OPTIMIZERS["Adam"], 2), _data(), count=5)[0] < 2e-4


def test_squares_that_are_given_are_given_as_finely_as_squares_are_kept() -> None:
    def step(v: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        v = v * 0.999 + g * g * 0.001
        return g / (v.sqrt() + 1e-8)

    g = torch.tensor([1.0, 1e-2, 2e-3, -1e-3], dtype=torch.float64)
    v = g * g * torch.tensor([1.0, 0.5, 2.0, 3.0], dtype=torch.float64)
    whole = lowered(step, {"v": v, "g": g})
    assert whole.lowered.bits(0, v.dtype) >= whole.lowered.precision + 20
    assert torch.allclose(on_shares(step, {"v": v, "g": g}), step(v, g), atol=2**-17 / 1e-3)  # what a gradient is off


@pytest.mark.parametrize("count", [2, 3])
def test_a_quotient_by_a_root_is_as_exact_for_tiny_and_large_ones(count: int) -> None:
    x = torch.tensor([1e-3, 2e-3, 0.1, 3.0, 100.0, 3000.0], dtype=torch.float64)
    x = (x * 65536).round() / 65536
    got = on_shares(lambda x: x / (2 * (x * x).sqrt() + 1e-9), {"x": x}, count)
    assert torch.allclose(got[:4], torch.full((4,), 0.5, dtype=torch.float64), atol=2e-3)
    plain = on_shares(lambda x: x / (x * x).sqrt(), {"x": x[3:]}, count)
    assert torch.allclose(plain, torch.ones(3, dtype=torch.float64), atol=2e-4)


def test_what_is_changed_in_place_is_not_what_a_choice_came_from() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        same = torch.where(torch.tensor(True), x, -x)
        same += 1
        return x + same

    x = torch.tensor([0.5, -2.0])
    assert torch.allclose(on_shares(function, {"x": x}), 2 * x + 1, atol=1e-4)


def test_a_public_choice_of_values_of_different_scales() -> None:
    x = torch.tensor([0.5, -2.0])
    pick = torch.tensor([True, False])
    got = on_shares(lambda x, pick: torch.where(pick, x * x, x), {"x": x, "pick": pick}, public=["pick"])
    assert torch.allclose(got, torch.where(pick, x * x, x), atol=1e-4)


def test_by_the_root_of_a_given_variance_of_any_size() -> None:
    def standardised(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return x / (v.sqrt() + 1e-8)

    x, v = torch.tensor([1.0, -30.0, 200.0, 7.0]), torch.tensor([1.0, 100.0, 6400.0, 1e5])
    assert torch.allclose(on_shares(standardised, {"x": x, "v": v}), standardised(x, v), rtol=1e-3, atol=1e-3)
