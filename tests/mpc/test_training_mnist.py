"""Networks that learn handwritten digits on shares, as well as in the clear: the model, the images, the labels, the
gradients and the momentum are secret. With PEERGRID_FULL=1 on MNIST itself, else on small digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.mnist import Digits, lenet, logistic_regression, perceptron
from tests.full import minutes_long
from tests.mpc.trained import accuracy, both_ways

pytestmark = pytest.mark.usefixtures("one_thread")

# Of each its rate, the size of its batches, how many there are, and what plain torch reaches by them.
_NETWORKS: dict[str, tuple[Callable[[], nn.Module], float, int, int, float]] = {
    "a logistic regression": (logistic_regression, 0.02, 64, 938, 0.91),
    "a perceptron": (lambda: perceptron(128), 0.05, 64, 938, 0.955),
    "LeNet": (lenet, 0.02, 32, 300, 0.93),
}


@minutes_long
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("name", list(_NETWORKS))
def test_it_learns_mnist_on_shares_as_well_as_in_the_clear(name: str, mnist: Digits) -> None:
    make, rate, size, count, least = _NETWORKS[name]
    torch.manual_seed(1)
    shared, clear = both_ways(make(), rate, functional.cross_entropy, mnist.batches(size, count, seed=1))
    scores = [accuracy(each, mnist.test_images, mnist.test_labels) for each in (shared, clear)]
    print(f"{name}: {scores[0]:.4f} on shares, {scores[1]:.4f} in the clear, on {len(mnist.test_labels)} images")
    assert scores[1] > least
    assert abs(scores[0] - scores[1]) <= 0.01


def _small_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images of 12 x 12: ten patterns, with noise."""
    patterns, labels = torch.randn(10, 1, 12, 12), torch.arange(1200) % 10
    return patterns[labels] + 0.3 * torch.randn(1200, 1, 12, 12), labels


_SMALL: dict[str, tuple[Callable[[], nn.Module], float, int]] = {
    "a perceptron": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, 10)),
        0.1,
        16,
    ),
    "LeNet": (
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        ),
        0.1,
        24,
    ),
}


@pytest.mark.parametrize("name", list(_SMALL))
def test_it_learns_small_digits_on_shares_as_well_as_in_the_clear(name: str) -> None:
    make, rate, count = _SMALL[name]
    torch.manual_seed(3)
    x, y = _small_digits()
    batches: list[Any] = [(x[at : at + 32], y[at : at + 32]) for at in range(0, 32 * count, 32)]
    shared, clear = both_ways(make(), rate, functional.cross_entropy, batches)
    scores = [accuracy(each, x[800:], y[800:]) for each in (shared, clear)]
    assert scores[1] > 0.9
    assert abs(scores[0] - scores[1]) <= 0.01
