"""Training on shares: steps as programs, and what is learnt by them, against the same training in the clear."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import grid
from tests.full import FULL
from tests.mpc.shares import lowered, on_shares

pytestmark = pytest.mark.usefixtures("one_thread")

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def _momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)


def _step(loss_of: Loss, optimizer_of: Any = _sgd, count: int = 1) -> Callable[..., Any]:
    """So many steps, written out."""

    def step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Any:
        optimizer = optimizer_of(model.parameters())
        loss = torch.zeros(())
        for _ in range(count):
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return loss.detach(), model

    return step


def _seeded(make: Callable[[], Any]) -> Any:
    torch.manual_seed(5)
    return make()


_MODELS: dict[str, tuple[Callable[[], nn.Module], Loss, Any, Any]] = {
    "a perceptron": (
        lambda: nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 10)),
        functional.cross_entropy,
        lambda: torch.randn(4, 12),
        torch.tensor([1, 4, 9, 0]),
    ),
    "a line": (lambda: nn.Linear(5, 1), functional.mse_loss, lambda: torch.randn(6, 5), lambda: torch.randn(6, 1)),
    "a logistic regression": (
        lambda: nn.Linear(5, 1),
        functional.binary_cross_entropy_with_logits,
        lambda: torch.randn(6, 5),
        lambda: (torch.randn(6, 1) > 0).float(),
    ),
    "one with probabilities": (
        lambda: nn.Sequential(nn.Linear(5, 1), nn.Sigmoid()),
        functional.binary_cross_entropy,
        lambda: torch.randn(6, 5),
        lambda: (torch.randn(6, 1) > 0).float(),
    ),
    "smooth activations": (
        lambda: nn.Sequential(
            *(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3), nn.Sigmoid(), nn.LeakyReLU(), nn.GELU(), nn.SiLU()),
            nn.Softmax(1),
        ),
        functional.mse_loss,
        lambda: torch.randn(6, 5),
        lambda: torch.randn(6, 3),
    ),
    "norms": (
        lambda: nn.Sequential(
            nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Hardtanh(), nn.ELU()
        ),
        functional.smooth_l1_loss,
        lambda: torch.randn(6, 5),
        lambda: torch.randn(6, 4),
    ),
    "LeNet": (
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(2, 3, 2), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 4)),
        ),
        functional.cross_entropy,
        lambda: torch.randn(3, 1, 12, 12),
        torch.tensor([0, 3, 2]),
    ),
    "mean pools": (
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2), nn.AvgPool2d(3, 2, 1), nn.ReLU6()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        ),
        functional.mse_loss,
        lambda: torch.randn(3, 1, 8, 8),
        lambda: torch.randn(3, 8),
    ),
    "a transposed convolution": (
        lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.ConvTranspose2d(2, 4, (2, 3), stride=2, groups=2), nn.Flatten()),
        functional.l1_loss,
        lambda: torch.randn(2, 2, 3, 3),
        lambda: torch.randn(2, 168),
    ),
    "groups of one dimension": (
        lambda: nn.Sequential(nn.Conv1d(2, 2, 3, stride=2, groups=2), nn.MaxPool1d(2), nn.Flatten()),
        functional.huber_loss,
        lambda: torch.randn(2, 2, 10),
        lambda: torch.randn(2, 4),
    ),
    "an embedding": (
        lambda: nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Linear(8, 3)),
        functional.cross_entropy,
        torch.tensor([[0, 2], [5, 2]]),
        torch.tensor([0, 2]),
    ),
}


def _made(name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    make, _, x, y = _MODELS[name]
    model = _seeded(make)
    return model, x() if callable(x) else x, y() if callable(y) else y


@pytest.mark.parametrize("optimizer", [_sgd, _momentum])
@pytest.mark.parametrize("name", list(_MODELS))
def test_a_step_changes_a_model_as_it_does_in_the_clear(name: str, optimizer: Any) -> None:
    model, x, y = _made(name)
    step = _step(_MODELS[name][1], optimizer)
    before = copy.deepcopy(model.state_dict())
    got = on_shares(step, {"model": model, "x": x, "y": y})
    loss, after = step(copy.deepcopy(model), x, y)
    assert abs(float(got["result"][0] - loss)) < 1e-3
    for key, want in after.state_dict().items():
        change, had = want.double() - before[key].double(), got["state"][f"model.{key}"].double() - before[key].double()
        assert float((had - change).abs().max()) < 1e-3 + 1e-3 * float(change.abs().max())


@pytest.mark.parametrize("count", [2, 3])
def test_gradients_of_a_function(count: int) -> None:
    model, x, y = _made("a perceptron")

    def gradients(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Any:
        parameters = dict(model.named_parameters())
        return torch.func.grad(
            lambda given: functional.cross_entropy(torch.func.functional_call(model, given, (x,)), y)
        )(parameters)

    got, want = on_shares(gradients, {"model": model, "x": x, "y": y}, count), gradients(model, x, y)
    for key, value in want.items():
        assert torch.allclose(got[key], value, atol=2e-4)


def test_a_step_of_a_perceptron_takes_24_rounds() -> None:
    """784-128-10, batches of 64, cross-entropy, SGD; the loss is given too."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    x, y = torch.rand(64, 784), torch.arange(64) % 10
    script = lowered(_step(functional.cross_entropy), {"model": model, "x": x, "y": y}).script()
    assert script.rounds <= 24
    assert script.nbytes < 8_000_000


# --- loops --------------------------------------------------------------------------------------------------


def _epoch(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Any:
    """Four batches, once each, in a loop."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.5)
    size = x.shape[0] // 4

    def step(i: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(size) + i * size
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return grid.repeat(4, step, torch.zeros(())), model


def test_an_epoch_in_a_loop() -> None:
    model, x, y = _seeded(lambda: (nn.Linear(5, 3), torch.randn(12, 5), torch.arange(12) % 3))
    got = on_shares(_epoch, {"model": model, "x": x, "y": y})
    trained = copy.deepcopy(model)
    loss, _ = _epoch(trained, x, y)
    assert abs(float(got["result"][0] - loss)) < 1e-3
    assert torch.allclose(got["state"]["model.weight"], trained.weight, atol=1e-3)
    assert torch.allclose(got["state"]["model.bias"], trained.bias, atol=1e-3)


def _scanned(x: torch.Tensor) -> torch.Tensor:
    def step(carried: torch.Tensor, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        carried = torch.tanh(carried + row)
        return carried, carried * 2

    last, kept = grid.scan(step, torch.zeros(5), x, reverse=True)
    return last.sum() + kept.sum(1)


_LOOPS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "scan": _scanned,
    "map": lambda x: grid.map(lambda row: row * row.sum(), x),
    "cond": lambda x: grid.cond(x.sum() > 0, lambda a: a * 2, lambda a: a - 1, (x,)),
    "cond otherwise": lambda x: grid.cond(x.sum() > 1000, lambda a: a * 2, lambda a: a - 1, (x,)),
    "a public cond": lambda x: grid.cond(torch.ones(()) > 0, lambda a: a * 2, lambda a: a - 1, (x,)),
    "while": lambda x: grid.while_loop(lambda i, a: i < 3, lambda i, a: (i + 1, a * 1.5), (torch.tensor(0), x))[1],
    "the index": lambda x: grid.repeat(3, lambda i, a: a + x[0] * i, torch.zeros(5)),
}


@pytest.mark.parametrize("name", list(_LOOPS))
def test_loops_and_branches(name: str) -> None:
    x = _seeded(lambda: torch.randn(4, 5))
    assert torch.allclose(on_shares(_LOOPS[name], {"x": x}), _LOOPS[name](x), atol=1e-3)


# --- what is learnt -----------------------------------------------------------------------------------------


def test_a_linear_regression_gives_the_coefficients_of_the_closed_form() -> None:
    x = torch.randn(200, 5, dtype=torch.float64)
    y = x @ torch.tensor([1.5, -2.0, 0.25, 3.0, -0.75], dtype=torch.float64) + 0.1 * torch.randn(200)

    def fitted(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        count = x.shape[0]
        return torch.linalg.solve(x.T @ x / count, x.T @ y / count)

    assert torch.allclose(on_shares(fitted, {"x": x, "y": y}), fitted(x, y), atol=1e-3)


def _trained(step: Callable[..., Any], model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> nn.Module:
    """A copy of the model, trained on shares batch by batch."""
    model = copy.deepcopy(model)
    made = lowered(step, {"model": model, "x": batches[0][0], "y": batches[0][1]})
    state: dict[str, torch.Tensor] = {f"model.{key}": value for key, value in model.state_dict().items()}
    for x, y in batches:
        state = made.of({**state, "x": x, "y": y}).result()["state"]
    model.load_state_dict({key.removeprefix("model."): value for key, value in state.items()})
    return model


def _accuracy(labels: torch.Tensor, y: torch.Tensor) -> float:
    return float((labels == y).double().mean())


def test_a_logistic_regression_is_as_good_as_in_the_clear() -> None:
    """Two classes of 30 measurements each, that overlap a little, as those of the breast-cancer data do."""
    y = (torch.arange(300) % 2).float().unsqueeze(1)
    x = torch.randn(300, 30) + (y - 0.5) * torch.linspace(0, 1.2, 30)
    model = nn.Linear(30, 1)
    step = _step(functional.binary_cross_entropy_with_logits, lambda given: torch.optim.SGD(given, lr=0.5), count=4)
    on_shares_model = _trained(step, model, [(x[:200], y[:200])] * 2)
    clear = copy.deepcopy(model)
    for _ in range(2):
        step(clear, x[:200], y[:200])
    scores = [_accuracy((each(x[200:]) > 0).float(), y[200:]) for each in (on_shares_model, clear)]
    assert scores[1] > 0.9
    assert abs(scores[0] - scores[1]) <= 0.01


def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images of 8 x 8 with ten labels: those of scikit-learn where it is installed, else made ones."""
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        patterns, labels = (torch.rand(10, 64) > 0.5).float(), torch.arange(1600) % 10
        return patterns[labels] + 0.4 * torch.randn(1600, 64), labels
    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32) * (3 / 16) - 1, torch.tensor(data.target)


def test_a_perceptron_learns_digits_as_well_as_in_the_clear() -> None:
    x, y = _digits()
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    step = _step(functional.cross_entropy, lambda given: torch.optim.SGD(given, lr=0.2))
    batches = [(x[at : at + 50], y[at : at + 50]) for _ in range(20 if FULL else 3) for at in range(0, 1000, 50)]
    clear = copy.deepcopy(model)
    for batch in batches:
        step(clear, *batch)
    on_shares_model = _trained(step, model, batches)
    scores = [_accuracy(each(x[1000:]).argmax(1), y[1000:]) for each in (on_shares_model, clear)]
    assert scores[1] > (0.9 if FULL else 0.8)
    assert abs(scores[0] - scores[1]) <= 0.01
