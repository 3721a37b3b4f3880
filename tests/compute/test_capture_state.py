"""Modules and optimisers that a captured function is given, changes and returns; and sizes that are left open."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import grid
from compute.capture import Captured, Returned, capture
from compute.given import Given
from compute.interpreter import run
from compute.program import Program
from protocol.errors import CannotCapture
from tests.compute.test_capture_tutorials import tensors


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


def batch(count: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(count, 4), "y": torch.randint(0, 3, (count,))}


def outputs_of(captured: Captured, arguments: dict[str, Any]) -> Any:
    given = {**captured.constants, **Given(arguments, {}, "load:").tensors}
    program = Program.from_bytes(captured.program.to_bytes())
    with torch.no_grad():
        return run(program, [given[path].detach() for path in captured.inputs])


def check_equal(found: Any, wanted: Any) -> None:
    one, other = tensors(found), tensors(wanted)
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def train(x: torch.Tensor, y: torch.Tensor, model: nn.Module) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    return loss, model


# --- what changes is an output --------------------------------------------------------------------------------


def test_what_a_function_changes_in_a_module_comes_out_and_the_module_here_stays() -> None:
    model = network()
    arguments: dict[str, Any] = {**batch(8), "model": model}
    before = copy.deepcopy(model.state_dict())
    captured = capture(train, arguments)
    check_equal(model.state_dict(), before)
    outputs = outputs_of(captured, arguments)
    wanted, trained = train(**copy.deepcopy(arguments))
    loss, found = captured.result(outputs)
    check_equal(loss, wanted)
    check_equal(dict(sorted(found.items())), trained)
    assert set(captured.changes(outputs)) == {f"model.{name}" for name in before} == set(captured.state)
    check_equal([outputs["state"][f"model.{name}"] for name in before], list(trained.state_dict().values()))


def test_a_module_that_is_only_used_is_no_output() -> None:
    captured = capture(lambda x, m: m(x), {"x": batch(8)["x"], "m": network().eval()})
    assert captured.state == () and captured.program.outputs == {
        "node": len(captured.inputs) + len(captured.program.nodes) - 1
    }


def test_running_statistics_come_out() -> None:
    model = network().train()
    arguments: dict[str, Any] = {"x": batch(8)["x"], "m": model}
    captured = capture(lambda x, m: m(x), arguments)
    assert captured.state == ("m.1.num_batches_tracked", "m.1.running_mean", "m.1.running_var")
    outputs = outputs_of(captured, arguments)
    theirs = copy.deepcopy(model)
    check_equal(captured.result(outputs), theirs(arguments["x"]))
    check_equal(outputs["state"]["m.1.running_var"], theirs[1].running_var)


def test_a_module_made_in_the_function_is_returned_with_its_tensors() -> None:
    def made(x: torch.Tensor) -> Any:
        model = nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            model.weight.fill_(0.5)
        return model, model(x)

    captured = capture(made, {"x": batch(3)["x"]})
    found, y = captured.result(outputs_of(captured, batch(3)), lambda one, parts: (one, parts))
    assert isinstance(found[0], Returned) and found[0].path is None
    check_equal(found[1]["weight"], torch.full((2, 4), 0.5))
    assert tuple(y.shape) == (3, 2)


def test_an_optimiser_is_given_with_what_it_keeps() -> None:
    def step(x: torch.Tensor, y: torch.Tensor, model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    arguments: dict[str, Any] = {**batch(8), "model": model, "optimizer": optimizer}
    first = capture(step, arguments)
    assert "optimizer.state.0.momentum_buffer" in first.state and not optimizer.state
    step(**arguments)
    captured = capture(step, arguments)
    assert "optimizer.state.0.momentum_buffer" in captured.inputs
    outputs = outputs_of(captured, arguments)
    wanted = step(**arguments)
    check_equal(captured.result(outputs), wanted)
    kept = optimizer.state[model[0].weight]["momentum_buffer"]
    check_equal(outputs["state"]["optimizer.state.0.momentum_buffer"], kept)
    check_equal(outputs["state"]["model.3.bias"], model[3].bias)


def test_what_the_function_leaves_in_a_module_goes_away_again() -> None:
    class Remembering(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.last = x * 2
            return self.last

    model = Remembering()
    capture(lambda x, m: m(x), {"x": batch(2)["x"], "m": model})
    assert not hasattr(model, "last")


def test_randomness_is_drawn_where_the_program_runs_in_the_same_order() -> None:
    model = nn.Sequential(nn.Dropout(0.4), nn.Linear(4, 4), nn.Dropout(0.4)).train()

    def function(x: torch.Tensor, m: nn.Module) -> Any:
        loss = m(x).pow(2).mean() + torch.randn(3).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), m[1].weight.grad  # type: ignore[index,union-attr]

    arguments: dict[str, Any] = {"x": batch(8)["x"], "m": model}
    captured = capture(function, arguments)
    torch.manual_seed(5)
    found = captured.result(outputs_of(captured, arguments))
    torch.manual_seed(5)
    check_equal(found, function(**arguments))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "adamax": lambda p: torch.optim.Adamax(p),
    "nadam": lambda p: torch.optim.NAdam(p),
    "radam": lambda p: torch.optim.RAdam(p),
    "asgd": lambda p: torch.optim.ASGD(p),
    "rprop": lambda p: torch.optim.Rprop(p),
    "foreach": lambda p: torch.optim.Adam(p, lr=0.05, foreach=True),
}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("in_loop", [False, True])
def test_optimisers_step_as_here(name: str, in_loop: bool) -> None:
    def function(x: torch.Tensor, y: torch.Tensor, model: nn.Module) -> Any:
        optimizer = OPTIMIZERS[name](model.parameters())

        def step(i: Any, loss: torch.Tensor) -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss.detach()

        if in_loop:
            return grid.repeat(6, step, torch.zeros(())), dict(model.state_dict())
        return [step(i, torch.zeros(())) for i in range(2)], dict(model.state_dict())

    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    arguments: dict[str, Any] = {**batch(8), "model": model}
    captured = capture(function, arguments)
    found = captured.result(outputs_of(captured, arguments))
    check_equal(found, function(**copy.deepcopy(arguments)))


# --- sizes that are left open -----------------------------------------------------------------------------------


def shapes(captured: Captured) -> dict[str, Any]:
    return {given.name: given.shape for given in captured.program.inputs if "." not in given.name}


@pytest.mark.parametrize("built_with", [32, 2, 1])
def test_a_batch_of_any_size(built_with: int) -> None:
    model = network().eval()

    def function(x: torch.Tensor, y: torch.Tensor, model: nn.Module) -> Any:
        out = model(x)
        return (out.argmax(1) == y).float().mean(), out / x.shape[0] ** 0.5, out.flatten()[: x.shape[0] // 2]

    captured = capture(function, {**batch(built_with), "model": model}, dynamic=None)
    assert shapes(captured) == {"x": ("batch", 4), "y": ("batch",)}
    for count in (1, 2, 32, 100):
        arguments: dict[str, Any] = {**batch(count), "model": model}
        check_equal(captured.result(outputs_of(captured, arguments)), function(**arguments))


def test_training_and_loops_on_a_batch_of_any_size() -> None:
    def function(x: torch.Tensor, y: torch.Tensor, model: nn.Module) -> Any:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)

        def step(i: Any, loss: torch.Tensor) -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x.view(x.shape[0], -1)), y)
            loss.backward()
            optimizer.step()
            return loss.detach()

        rows = grid.repeat(x.shape[0], lambda i, total: total + x[0], torch.zeros(4))
        return grid.repeat(3, step, torch.zeros(())), dict(model.state_dict()), rows

    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    captured = capture(function, {**batch(32), "model": model}, dynamic=None)
    assert shapes(captured) == {"x": ("batch", 4), "y": ("batch",)}
    for count in (1, 7, 100):
        arguments: dict[str, Any] = {**batch(count), "model": model}
        found = captured.result(outputs_of(captured, arguments))
        check_equal(found, function(**copy.deepcopy(arguments)))


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda a, b: a @ b, {"a": ("batch", "b_0"), "b": ("b_0", "b_1")}),
        (lambda a, b: a.sum() + b.sum(), {"a": ("batch", "a_1"), "b": ("b_0", "b_1")}),
        (lambda a, b: (a * 2 if a.shape[0] > 3 else a, b), {"a": (6, "a_1"), "b": ("batch", "b_1")}),
        (lambda a, b: (sum(row for row in a), b), {"a": (6, "a_1"), "b": ("batch", "b_1")}),
        (lambda a, b: F.linear(a, torch.ones(2, 3)) @ b[:2], {"a": ("batch", 3), "b": ("b_0", "b_1")}),
    ],
)
def test_sizes_are_open_but_those_that_decide(function: Callable[..., Any], wanted: dict[str, Any]) -> None:
    captured = capture(function, {"a": torch.randn(6, 3), "b": torch.randn(3, 7)}, dynamic=None)
    assert shapes(captured) == wanted
    is_all_open = all(isinstance(size, str) for shape in wanted.values() for size in shape)
    assert bool(captured.notes) is not is_all_open


def test_what_is_to_be_open_can_be_said_and_is_refused_where_it_cannot_be() -> None:
    a = torch.randn(6, 3)
    assert shapes(capture(lambda a: a * 2, {"a": a}, dynamic={"a": [1]})) == {"a": (6, "a_1")}
    assert shapes(capture(lambda a: a * 2, {"a": a}, dynamic=False)) == {"a": (6, 3)}
    assert shapes(capture(lambda a: a * 2, {"a": a}, dynamic=True)) == {"a": ("batch", "a_1")}
    with pytest.raises(CannotCapture, match="dimension 0"):
        capture(lambda a: a if a.shape[0] > 3 else -a, {"a": a}, dynamic={"a": [0]})
    with pytest.raises(CannotCapture, match="left open"):
        capture(lambda a: a if a.shape[0] > 3 else -a, {"a": a}, dynamic=True)
    with pytest.raises(CannotCapture, match="'b' is no tensor"):
        capture(lambda a: a, {"a": a}, dynamic={"b": [0]})


def test_an_error_of_the_function_is_told_with_sizes_open_too() -> None:
    with pytest.raises(CannotCapture, match=r"torch\.where"):
        capture(lambda a: a if a.sum() > 3 else -a, {"a": torch.randn(6, 3)}, dynamic=None)
