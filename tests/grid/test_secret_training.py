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
_OTHERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "amsgrad": lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True),
    "a rate that is a tensor": lambda parameters: torch.optim.Adam(parameters, lr=torch.tensor(0.01)),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.05),
    "nadam": lambda parameters: torch.optim.NAdam(parameters, lr=0.01),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, momentum=0.5),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.02),
    "rprop": lambda parameters: torch.optim.Rprop(parameters, lr=0.01),
}
Loop = tuple[nn.Module, torch.optim.Optimizer, Any, Any]


def _both(of: Secrets, plain: nn.Module, optimizer: Callable[[Any], torch.optim.Optimizer]) -> list[Loop]:
    """The same training on shares and in the clear: module, optimiser, batch and labels."""
    net, x = shared(of, plain), torch.randn(6, 8)
    secrets_of_ours = secret(of, x), secret(of, _LABELS)
    return [
        (net, optimizer(net.parameters()), *secrets_of_ours),
        (plain, optimizer(plain.parameters()), x, _LABELS),
    ]


def _step(loop: Loop, clip: Callable[[Any], Any] | None = None) -> tuple[Any, Any]:
    """The loss, and what clipping gave."""
    module, optimizer, x, y = loop
    optimizer.zero_grad()
    loss = functional.cross_entropy(module(x), y)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = None if clip is None else clip(module.parameters())
    optimizer.step()
    return loss, norm


@pytest.mark.parametrize("optimizer", list(_OPTIMIZERS))
@pytest.mark.parametrize("model", list(_MODELS))
async def test_a_training_loop_is_the_one_in_the_clear(model: str, optimizer: str) -> None:
    torch.manual_seed(2)
    of, plain = secrets(), _MODELS[model]()
    both = _both(of, plain, _OPTIMIZERS[optimizer])
    for _ in range(3):
        losses = [_step(each)[0] for each in both]
        _near(await losses[0].get(), losses[1].detach())
    net = both[0][0]
    assert isinstance(net, SecretModule)
    made = await net.get()
    assert type(made) is type(plain)
    for name, value in plain.state_dict().items():
        _near(made.state_dict()[name], value)
    for got, want in zip(made.parameters(), plain.parameters(), strict=True):
        _near(got.grad, want.grad)


@pytest.mark.parametrize("optimizer", list(_OTHERS))
async def test_optimisers_step_by_step_are_those_in_the_clear(optimizer: str) -> None:
    """Each step is computed before the next: squares of gradients lie at the parties meanwhile, with all digits."""
    torch.manual_seed(2)  # so that no gradient is nearly 0: what is rounded off would be much of the step
    of, plain = secrets(), nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
    before = copy.deepcopy(plain)
    both = _both(of, plain, _OTHERS[optimizer])
    for _ in range(4):
        for each in both:
            _step(each)
        await both[0][0]  # type: ignore[misc]
    made = await both[0][0].get()  # type: ignore[operator]
    for got, want, old in zip(made.parameters(), plain.parameters(), before.parameters(), strict=True):
        moved = float((want - old).detach().abs().max())
        assert moved > 5e-3
        torch.testing.assert_close(got, want, atol=0.01 * moved, rtol=0)
    for state, theirs in zip(both[0][1].state.values(), both[1][1].state.values(), strict=True):
        if "exp_avg_sq" in state:
            got = (await state["exp_avg_sq"].get()).double()
            assert float((got - theirs["exp_avg_sq"]).abs().max()) < 2**-21


async def test_what_an_optimiser_kept_in_the_clear_is_shared_with_all_its_digits() -> None:
    """Squares of gradients are given with more fractional bits than other reals."""
    torch.manual_seed(1)
    of, plain = secrets(), nn.Linear(8, 3)
    x = torch.randn(6, 8)
    theirs = torch.optim.Adam(plain.parameters(), lr=0.01)
    for _ in range(3):
        _step((plain, theirs, x, _LABELS))
    net = shared(of, plain)
    ours = torch.optim.Adam(net.parameters(), lr=0.01)
    for one, other in zip(net.parameters(), plain.parameters(), strict=True):
        kept = {key: value if key == "step" else secret(of, value) for key, value in theirs.state[other].items()}
        ours.state[one] = {**kept, "step": kept["step"].clone()}
    before = copy.deepcopy(plain)
    _step((net, ours, secret(of, x), secret(of, _LABELS)))
    _step((plain, theirs, x, _LABELS))
    made = await net.get()  # type: ignore[operator]
    for got, want, old in zip(made.parameters(), plain.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(got, want, atol=0.02 * float((want - old).detach().abs().max()), rtol=0)


_CLIPS: dict[str, Callable[[Any], Any]] = {
    "the norm": lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.2),
    "the largest": lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.1, norm_type=float("inf")),
    "sums": lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.5, norm_type=1.0),
    "each": lambda parameters: nn.utils.clip_grad_value_(parameters, 0.05),
}
_SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "steps": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2),
    "a cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4),
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=8),
}


@pytest.mark.parametrize("clip", list(_CLIPS))
@pytest.mark.parametrize("schedule", list(_SCHEDULES))
async def test_gradients_are_clipped_and_rates_scheduled_as_in_the_clear(clip: str, schedule: str) -> None:
    torch.manual_seed(3)
    plain = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    both = _both(secrets(), plain, lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9))
    schedules = [_SCHEDULES[schedule](optimizer) for _, optimizer, _, _ in both]
    for _ in range(3):
        norms = []
        for each, rate in zip(both, schedules, strict=True):
            norms.append(_step(each, _CLIPS[clip])[1])
            rate.step()
        if norms[0] is not None:
            _near(await norms[0].get(), norms[1])
        await both[0][0]  # type: ignore[misc]
    made = await both[0][0].get()  # type: ignore[operator]
    for got, want in zip(made.parameters(), plain.parameters(), strict=True):
        _near(got, want)


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
