"""What a captured function leaves in its arguments besides their tensors, and what it goes by of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compute.capture import Captured, capture
from compute.given import Given
from compute.interpreter import run
from compute.left import put
from compute.model import capture_model
from compute.program_module import ProgramModule
from protocol.errors import CannotCapture

X, Y = torch.randn(6, 4), torch.arange(6) % 3
SGD = torch.optim.SGD


def network() -> Any:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def ran(function: Callable[..., Any], **arguments: Any) -> tuple[Captured, Any]:
    """Captured and run: what the function gives."""
    captured = capture(function, arguments)
    given = {**captured.constants, **Given(arguments, {}, "load:").tensors}
    with torch.no_grad():
        outputs = run(captured.program, [given[path].detach() for path in captured.inputs])
    for path, value in captured.changes(outputs).items():
        with torch.no_grad():
            given[path].copy_(value)
    for left in captured.left:
        put(left, arguments[left.path])
    return captured, captured.result(outputs)


def step(model: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


# --- schedulers and settings ------------------------------------------------------------------------------


def _step_lr(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)


def _several(optimizer: Any) -> Any:
    both = [torch.optim.lr_scheduler.LinearLR(optimizer, 0.1), torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)]
    return torch.optim.lr_scheduler.SequentialLR(optimizer, both, milestones=[2])


def _one_cycle(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=8, cycle_momentum=False)


@pytest.mark.parametrize("make", [_step_lr, _several, _one_cycle])
def test_a_scheduler_among_the_arguments_steps_once_a_run(make: Callable[[Any], Any]) -> None:
    def scheduled(model: Any, optimizer: Any, scheduler: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
        loss = step(model, optimizer, x, y)
        scheduler.step()
        return loss

    def made() -> dict[str, Any]:
        torch.manual_seed(0)
        model = network()
        optimizer = SGD(model.parameters(), lr=0.5)
        return {"model": model, "optimizer": optimizer, "scheduler": make(optimizer), "x": X, "y": Y}

    ours, theirs = made(), made()
    for _ in range(4):
        _, loss = ran(scheduled, **ours)
        assert torch.allclose(loss, scheduled(**theirs), atol=1e-5)
        assert ours["optimizer"].param_groups[0]["lr"] == theirs["optimizer"].param_groups[0]["lr"]
        assert ours["scheduler"].last_epoch == theirs["scheduler"].last_epoch
    assert torch.allclose(ours["model"][2].weight, theirs["model"][2].weight, atol=1e-5)


def test_a_scheduler_that_would_step_for_nothing_is_refused() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.5)
    scheduler = _step_lr(optimizer)

    def stepping() -> None:
        scheduler.step()

    def outside(model: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
        loss = step(model, optimizer, x, y)
        stepping()
        return loss

    with pytest.raises(CannotCapture, match="take it as an argument"):
        capture(outside, {"model": model, "optimizer": optimizer, "x": X, "y": Y})
    with pytest.raises(CannotCapture, match="give that too"):
        capture(lambda scheduler, x: x, {"scheduler": scheduler, "x": X})
    assert scheduler.last_epoch == 0 and optimizer.param_groups[0]["lr"] == 0.5

    def inside(model: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
        own = SGD(model.parameters(), lr=0.5)
        plan = _step_lr(own)
        losses = []
        for _ in range(2):
            losses.append(step(model, own, x, y))
            plan.step()
        return losses

    other = copy.deepcopy(model)
    _, losses = ran(inside, model=model, x=X, y=Y)
    assert torch.allclose(torch.stack(losses), torch.stack(inside(other, X, Y)), atol=1e-5)


def test_a_rate_that_the_function_sets_stays_and_a_group_that_it_adds_is_refused() -> None:
    model = network()
    optimizer = SGD(model[0].parameters(), lr=0.5)

    def slower(optimizer: Any, x: torch.Tensor) -> torch.Tensor:
        optimizer.param_groups[0]["lr"] *= 0.5
        return x

    for wanted in (0.25, 0.125):
        ran(slower, optimizer=optimizer, x=X)
        assert optimizer.param_groups[0]["lr"] == wanted

    def more(model: Any, optimizer: Any, x: torch.Tensor) -> torch.Tensor:
        optimizer.add_param_group({"params": list(model[2].parameters())})
        return x

    with pytest.raises(CannotCapture, match="adds parameters"):
        capture(more, {"model": model, "optimizer": optimizer, "x": X})
    assert len(optimizer.param_groups) == 1

    def tensor(optimizer: Any, x: torch.Tensor) -> torch.Tensor:
        optimizer.param_groups[0]["lr"] = x.mean()
        return x

    with pytest.raises(CannotCapture, match="a number can be kept"):
        capture(tensor, {"optimizer": optimizer, "x": X})


# --- attributes of modules --------------------------------------------------------------------------------


class Keeping(nn.Module):
    """Keeps what `keep` says, in plain attributes."""

    def __init__(self, keep: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.keep, self.calls = keep, 0
        self.last: Any = None
        self.seen: list[Any] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.keep(self, x)


def _counting(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.calls += 1
    return x * self.calls


def _with_last(self: Any, x: torch.Tensor) -> torch.Tensor:
    made = x if self.last is None else x + self.last
    self.last = made
    return made


def _with_all(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.seen.append(x * 2)
    return sum(self.seen)  # type: ignore[return-value]


def _to_look_at(self: Any, x: torch.Tensor) -> torch.Tensor:
    self.last, self.seen = x.exp(), []
    self.seen.append(x.cos())
    return self.last * self.seen[0]


def test_plain_attributes_are_left_as_python_leaves_them() -> None:
    model, other = Keeping(_counting), Keeping(_counting)
    for _ in range(3):
        _, found = ran(lambda m, x: m(x), m=model, x=X)
        assert torch.equal(found, other(X)) and model.calls == other.calls
    captured, _ = ran(lambda m, x: m.eval()(x), m=nn.Sequential(model), x=X)
    assert not model.training and {left.name for left in captured.left} == {"training", "calls"}


def _with_noise(self: Any, x: torch.Tensor) -> torch.Tensor:
    if self.last is None:
        self.last = torch.zeros_like(x)
        self.last.add_(torch.rand(1))
    return x + self.last


def _with_a_table(self: Any, x: torch.Tensor) -> torch.Tensor:
    if self.last is None or self.last.shape[0] < x.shape[0]:
        self.last = torch.arange(x.shape[0]).mul(0.1).cos()
    return x * self.last[: x.shape[0], None]


KEPT = [(_with_last, "last"), (_with_all, "seen"), (_with_noise, "last")]


@pytest.mark.parametrize(("keep", "name"), KEPT)
def test_a_tensor_that_a_module_keeps_for_its_next_call_is_refused(keep: Any, name: str) -> None:
    model = Keeping(keep)
    with pytest.raises(CannotCapture, match=f"keeps a tensor in '{name}' for its next call"):
        capture(lambda m, x: m(x), {"m": model, "x": X})
    assert model.last is None and model.seen == []


@pytest.mark.parametrize("keep", [_to_look_at, _with_a_table])
def test_a_tensor_that_comes_out_the_same_again_is_let_go(keep: Any) -> None:
    model = Keeping(keep)
    kept, wanted = model.seen, Keeping(keep)(X)
    for _ in range(2):
        _, found = ran(lambda m, x: m(x), m=model, x=X)
        assert torch.allclose(found, wanted)
        assert model.last is None and model.seen is kept


# --- gradients --------------------------------------------------------------------------------------------


def test_gradients_that_a_run_would_lose_or_lack_are_refused() -> None:
    def left(model: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss.detach()

    model = network()
    optimizer = SGD(model.parameters(), lr=0.5)
    with pytest.raises(CannotCapture, match="leaves gradients"):
        capture(left, {"model": model, "x": X, "y": Y})

    def returned(model: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
        left(model, x, y)
        return [parameter.grad for parameter in model.parameters()]

    _, gradients = ran(returned, model=model, x=X, y=Y)
    left(model, X, Y)
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        assert parameter.grad is not None and torch.allclose(gradient, parameter.grad, atol=1e-6)
    for function in (
        lambda optimizer: optimizer.step(),
        lambda model, optimizer, x, y: (left(model, x, y), optimizer.step()),
    ):
        given = {"model": model, "optimizer": optimizer, "x": X, "y": Y}
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        with pytest.raises(CannotCapture, match="gradient"):
            capture(function, {name: given[name] for name in names})
    other = copy.deepcopy(model)
    _, loss = ran(step, model=model, optimizer=optimizer, x=X, y=Y)  # clears them first
    assert torch.allclose(loss, step(other, SGD(other.parameters(), lr=0.5), X, Y), atol=1e-6)
    assert torch.allclose(model[0].weight, other[0].weight, atol=1e-6)


# --- what arguments and results are -----------------------------------------------------------------------


class Pair(NamedTuple):
    one: Any
    other: Any


def test_results_keep_their_classes_and_keys() -> None:
    _, found = ran(lambda x: {0: Pair(Pair(x, 1), [x]), "b": Pair({"c": x}, ())}, x=X)
    assert list(found) == [0, "b"] and isinstance(found[0].one, Pair) and torch.equal(found[0].one.one, X)
    assert torch.equal(found["b"].one["c"], X) and found["b"].other == ()
    with pytest.raises(CannotCapture, match="written alike"):
        capture(lambda x: {1: x, "1": x + 1}, {"x": X})

    class Giving(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return {1: x, "1": x + 1}

    with pytest.raises(CannotCapture, match="written alike"):
        capture_model(Giving(), X)


@pytest.mark.parametrize("given", [{"a": {"b": X}, "a.b": X + 1}, {1: X, "1": X + 1}])
def test_two_arguments_of_one_path_are_refused(given: Any) -> None:
    with pytest.raises(CannotCapture, match="have the path"):
        capture(lambda given: list(given.values()), {"given": given})


def test_a_parameter_is_one_and_is_the_modules_where_it_is() -> None:
    def kind(w: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if isinstance(w, nn.Parameter) else x * 3

    assert torch.equal(ran(kind, w=nn.Parameter(X), x=X)[1], X * 2)
    assert torch.equal(ran(kind, w=X + 1, x=X)[1], X * 3)
    model = network()

    def gradients(parameters: Any, model: Any, x: torch.Tensor) -> Any:
        return torch.autograd.grad(model(x).sum(), parameters, allow_unused=True)

    _, found = ran(gradients, parameters=list(model.parameters()), model=model, x=X)
    for one, other in zip(found, gradients(list(model.parameters()), model, X), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_data_that_are_replaced_come_out() -> None:
    def doubled(model: Any, x: torch.Tensor) -> Any:
        model[0].weight.data = model[0].weight.data * 2
        return model(x)

    model = network()
    other = copy.deepcopy(model)
    _, found = ran(doubled, model=model, x=X)
    assert torch.allclose(found, doubled(other, X), atol=1e-6)
    assert torch.allclose(model[0].weight, other[0].weight)


# --- models that torch.export refuses ---------------------------------------------------------------------


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 5, bidirectional=True, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        packed = nn.utils.rnn.pack_padded_sequence(x, [5, 3, 2], batch_first=True)
        made, (state, _) = self.rnn(packed)
        return (*nn.utils.rnn.pad_packed_sequence(made, batch_first=True), state)


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 5, num_layers=2)

    def forward(self, *sequences: torch.Tensor) -> Any:
        packed = nn.utils.rnn.pack_sequence(list(sequences), enforce_sorted=False)
        made, state = self.rnn(packed)
        return (*nn.utils.rnn.pad_packed_sequence(made), state)


class Force(nn.Module):
    """The slope of an energy."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = network()

    def forward(self, x: torch.Tensor) -> Any:
        return torch.func.grad(lambda at: self.energy(at).sum())(x)


REFUSED: list[tuple[Callable[[], nn.Module], tuple[torch.Tensor, ...]]] = [
    (Packed, (torch.randn(3, 5, 4),)),
    (Sequences, (torch.randn(2, 4), torch.randn(5, 4), torch.randn(3, 4))),
    (Force, (torch.randn(3, 4),)),
]


@pytest.mark.parametrize(("make", "example"), REFUSED)
def test_a_model_that_torch_export_refuses_goes_as_a_plan_does(
    make: Callable[[], nn.Module], example: tuple[torch.Tensor, ...]
) -> None:
    module = make().eval()
    spec = capture_model(module, example)
    with torch.no_grad():
        found, wanted = ProgramModule(spec, spec.tensors(module))(*example), module(*example)
    found, wanted = (value if isinstance(value, tuple) else (value,) for value in (found, wanted))
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_an_optimiser_alone_changes_its_parameters() -> None:
    def shrunk(optimizer: Any, x: torch.Tensor) -> Any:
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = parameter.detach().clone()
        optimizer.step()
        return x

    model = network()
    before = model[0].weight.detach().clone()
    ran(shrunk, optimizer=SGD(model.parameters(), lr=0.25), x=X)
    assert torch.allclose(model[0].weight, before * 0.75)
