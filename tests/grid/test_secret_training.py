"""Models of secret tensors: modules, gradients and optimisers, eagerly, as the same lines in the clear."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from grid.secret.modules import SecretModule, share_module
from grid.secret.team import Secrets
from grid.secret.tensor import SecretTensor
from tests.grid.secret_stand_in import secret, secrets


def shared(of: Secrets, module: nn.Module) -> nn.Module:
    return share_module(module, lambda tensor: secret(of, tensor, tensor.requires_grad))


def _near(got: Any, want: Any, atol: float = 2e-3) -> None:
    torch.testing.assert_close(got, want, atol=atol, rtol=2e-3)


_LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
_MODELS: dict[str, Callable[[], nn.Module]] = {
    "a perceptron": lambda: nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)),
    "normalised": lambda: nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5), nn.Sigmoid(), nn.Linear(5, 3)),
    "a small LeNet": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 4)), nn.Conv2d(1, 3, 2), nn.ReLU(), nn.MaxPool2d((1, 3)), nn.Flatten(), nn.Linear(3, 3)
    ),
}
_OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
}


@pytest.mark.parametrize("optimizer", list(_OPTIMIZERS))
@pytest.mark.parametrize("model", list(_MODELS))
async def test_a_training_loop_is_the_one_in_the_clear(model: str, optimizer: str) -> None:
    torch.manual_seed(2)
    of, plain, x = secrets(), _MODELS[model](), torch.randn(6, 8)
    net = shared(of, plain)
    s, y = secret(of, x), secret(of, _LABELS)
    both: list[tuple[nn.Module, Any, Any, Any]] = [(net, _OPTIMIZERS[optimizer](net.parameters()), s, y)]
    both.append((plain, _OPTIMIZERS[optimizer](plain.parameters()), x, _LABELS))
    for _ in range(3):
        losses = []
        for module, steps, given, labels in both:
            steps.zero_grad()
            loss = functional.cross_entropy(module(given), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            steps.step()
            losses.append(loss)
        _near(await losses[0].get(), losses[1].detach())  # type: ignore[attr-defined]
    assert isinstance(net, SecretModule)
    made = await net.get()
    assert type(made) is type(plain)
    for name, value in plain.state_dict().items():
        _near(made.state_dict()[name], value)
    for got, want in zip(made.parameters(), plain.parameters(), strict=True):
        _near(got.grad, want.grad)


async def test_a_step_is_one_run_of_one_program() -> None:
    of = secrets()
    engine: Any = of._engine
    net = shared(of, nn.Linear(4, 2))
    assert isinstance(net, SecretModule)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = secret(of, torch.randn(5, 4)), secret(of, torch.randn(5, 2))
    await net
    engine.programs.clear()
    for _ in range(3):
        optimizer.zero_grad()
        functional.mse_loss(net(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        await net
    assert len(engine.programs) == 3 and len({id(made) for made in engine.programs[1:]}) == 1
    assert engine.revealed == 0


async def test_gradients_are_secret_and_come_along_with_a_leaf() -> None:
    of, x = secrets(), torch.randn(3, requires_grad=True)
    s = secret(of, x, requires_grad=True)
    (s.exp() * s).sum().backward()  # type: ignore[no-untyped-call]
    (x.exp() * x).sum().backward()  # type: ignore[no-untyped-call]
    assert isinstance(s.grad, SecretTensor)
    got = await s.get()
    assert got.requires_grad and got.is_leaf
    _near(got.grad, x.grad)
    (again,) = torch.autograd.grad((s**2).sum(), s)
    assert isinstance(again, SecretTensor)
    _near(await again.get(), 2 * x.detach())


async def test_dropout_draws_once_for_a_step_and_its_gradient() -> None:
    of, x = secrets(), torch.ones(200)
    s = secret(of, x, requires_grad=True)
    dropped = functional.dropout(s, 0.5)
    dropped.sum().backward()  # type: ignore[no-untyped-call]
    value, grad = await dropped.get(), (await s.get()).grad
    _near(value, grad)
    assert 0 < int((value == 0).sum()) < 200
    for drop in (functional.dropout, lambda s, p: torch.native_dropout(s, p, True)[0]):
        first, second = [await drop(s.detach(), 0.5).get() for _ in range(3)][1:]
        assert not torch.equal(first, second)  # the same program, and drawn anew


async def test_a_module_keeps_its_class_its_mode_and_what_it_ties_together() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 3)
            self.other = nn.Linear(3, 3)
            self.other.weight = self.one.weight
            self.register_buffer("count", torch.tensor(3))

        def forward(self, x: Any) -> Any:
            return self.other(self.one(x)) * self.count

    of, plain = secrets(), Tied().eval()
    net = shared(of, plain)
    assert isinstance(net, Tied) and isinstance(net, SecretModule) and not net.training and plain is not net
    assert net.one.weight is net.other.weight and isinstance(net.one.weight, nn.Parameter)
    x = torch.randn(2, 3)
    _near(await net(secret(of, x)).get(), plain(x).detach(), atol=5e-3)
    _near(await net(x).get(), plain(x).detach(), atol=5e-3)  # public inputs
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.one.weight.zero_()
    _near((await net.get()).one.weight.detach(), plain.one.weight.detach())
    assert type(await net.get()) is Tied


async def test_a_state_dict_goes_into_a_secret_module() -> None:
    of, plain, other = secrets(), nn.Linear(3, 2), nn.Linear(3, 2)
    net = shared(of, plain)
    net.load_state_dict(other.state_dict())
    _near(await net.weight.get(), other.weight)  # type: ignore[operator]
    net.load_state_dict(shared(of, plain).state_dict())
    _near(await net.bias.get(), plain.bias)  # type: ignore[operator]


async def test_a_reveal_without_gradients_follows_nothing() -> None:
    of = secrets()
    net = shared(of, nn.Linear(3, 2))
    with torch.no_grad():
        made = net(secret(of, torch.randn(1, 3)))
    assert not made.requires_grad and not (await made.get()).requires_grad
