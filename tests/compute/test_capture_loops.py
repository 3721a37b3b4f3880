"""Loops and branches: one node each in a program, as Python elsewhere."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._higher_order_ops import map as torch_map
from torch._higher_order_ops import scan as torch_scan

import grid
from compute.capture import capture
from compute.interpreter import run
from compute.program import Program
from protocol.errors import BadRequest, CannotCapture, OperationFailed
from tests.compute.test_capture_tutorials import tensors

X = torch.linspace(-1, 1, 15).view(5, 3)
W = torch.linspace(-0.5, 0.5, 9).view(3, 3)


def check(function: Callable[..., Any], *arguments: Any) -> Program:
    """Captures it, and compares what its program gives with what Python gives."""
    before = copy.deepcopy(arguments)
    captured = capture(function, arguments)
    program = Program.from_bytes(captured.program.to_bytes())
    with torch.no_grad():
        outputs = run(program, [captured.given[path].detach() for path in captured.inputs])
    found, wanted = tensors(captured.result(outputs)), tensors(function(*before))
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    return program


def operations(program: Program) -> list[str]:
    return [node.operation for node in program.nodes]


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda x: grid.repeat(9, lambda i, h: torch.tanh(h @ W + i), x), "flow.repeat"),
        (lambda x: grid.repeat(4, lambda i, a, b: (b, a + b), x, x * 2), "flow.repeat"),
        (lambda x: grid.repeat(4, lambda i, total: total + i, 0), "flow.repeat"),
        (lambda x: grid.scan(lambda c, row: (c + row, {"both": c * row}), torch.zeros(3), x), "flow.scan"),
        (lambda x: grid.scan(lambda c, row: (c * 0.5 + row, c), torch.zeros(3), x, reverse=True), "flow.scan"),
        (lambda x: grid.map(lambda row: (row.softmax(0), row.sum()), x), "flow.map"),
        (lambda x: grid.map(lambda row, w: row @ w, x, W), "flow.map"),
        (lambda x: grid.cond(x.sum() > 1, lambda a: a.sin(), lambda a: a.cos(), (x,)), "flow.cond"),
        (lambda x: grid.cond(x.sum() <= 1, lambda: x.sin(), lambda: x.cos()), "flow.cond"),
        (lambda x: grid.while_loop(lambda v, n: v.norm() > 1e-2, lambda v, n: (v / 2, n + 1), (x, 0)), "flow.while"),
        (lambda x: torch.cond(x.sum() > 1, lambda a: a.sin(), lambda a: a.cos(), (x,)), "flow.cond"),
        (
            lambda x: torch.while_loop(lambda i, v: i < 5, lambda i, v: (i + 1, v * 2), (torch.tensor(0), x)),
            "flow.while",
        ),
        (lambda x: torch_scan(lambda c, row: (c + row, c * row), torch.zeros(3), x), "flow.scan"),
        (lambda x: torch_map(lambda row: row.softmax(0), x), "flow.map"),  # type: ignore[arg-type]
    ],
)
def test_each_is_one_node_and_gives_what_python_gives(function: Callable[..., Any], operation: str) -> None:
    assert operations(check(function, X)).count(operation) == 1


def test_a_thousand_iterations_are_as_long_as_ten() -> None:
    sizes = {len(check(lambda x, n=n: grid.repeat(n, lambda i, h: h * 0.9 + i, x), X).to_bytes()) for n in (100, 999)}
    assert max(sizes) - min(sizes) <= 2


def test_loops_nest_and_see_what_is_around_them() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().max()
        return grid.repeat(3, lambda i, a: a + grid.repeat(2, lambda j, b: b * a / scale + i + j, a), x)

    assert len(check(function, X).bodies) == 2


def test_no_iteration_gives_what_was_carried() -> None:
    assert operations(check(lambda x: grid.repeat(0, lambda i, h: h * 2, x), X)) == []


# --- what bodies change -----------------------------------------------------------------------------------------


def test_what_a_body_changes_in_place_is_carried() -> None:
    def function(x: torch.Tensor) -> Any:
        total = torch.zeros(3)
        last = grid.repeat(4, lambda i, h: total.add_(h.sum(0)).mul(1.0) + h * 0.5, x)
        return total, last

    check(function, X)


def test_what_a_module_replaces_each_time_is_carried() -> None:
    class Average(nn.Module):
        seen: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen = 0.9 * self.seen + 0.1 * x.mean(0)
            return x - self.seen

    def function(module: Any, x: torch.Tensor) -> Any:
        return grid.repeat(5, lambda i, h: module(h), x), module.seen

    program = check(function, Average(), X)
    assert "flow.repeat" in operations(program)


def test_a_branch_changes_what_is_around_it_only_where_it_runs() -> None:
    def function(x: torch.Tensor) -> Any:
        total = torch.zeros(3)
        grid.cond(x.sum() > 100, lambda: total.add_(1).sum(), lambda: total.sub_(2).sum())
        return total

    check(function, X)


@pytest.mark.parametrize("reverse", [False, True])
def test_an_optimiser_that_makes_its_state_in_the_first_iteration(reverse: bool) -> None:
    def function(model: nn.Module, xs: torch.Tensor) -> Any:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

        def step(count: torch.Tensor, x: torch.Tensor) -> Any:
            optimizer.zero_grad()
            loss = model(x).pow(2).mean()
            loss.backward()
            optimizer.step()
            return count + 1, loss.detach()

        return grid.scan(step, torch.tensor(0), xs, reverse=reverse), dict(model.state_dict())

    program = check(function, nn.Linear(3, 2), X.view(5, 1, 3))
    assert operations(program).count("flow.scan") == 1


# --- gradients through them -------------------------------------------------------------------------------------


def _repeat(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return grid.repeat(4, lambda i, h: torch.tanh(h @ w + i), x).sum()  # type: ignore[no-any-return]


def _scan(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    h, ys = grid.scan(lambda h, row: (torch.tanh(h @ w + row),) * 2, torch.ones(3), x)
    return h.sum() + ys.pow(2).mean()  # type: ignore[no-any-return]


def _reverse(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    h, ys = grid.scan(lambda h, row: (h * 0.9 + row @ w, h.sin()), x[0], x[1:], reverse=True)
    return (h * ys[1]).sum()  # type: ignore[no-any-return]


def _map(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return grid.map(lambda row: torch.tanh(row @ w), x).pow(2).sum()  # type: ignore[no-any-return]


def _cond(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return grid.cond(x.sum() > 1, lambda: (x @ w).sin().sum(), lambda: (x @ w * 3 + w.sum()).sum())  # type: ignore[no-any-return]


@pytest.mark.parametrize("function", [_repeat, _scan, _reverse, _map, _cond])
def test_gradients_go_through(function: Callable[..., torch.Tensor]) -> None:
    def gradients(w: torch.Tensor, x: torch.Tensor) -> Any:
        w, x = w.clone().requires_grad_(), x.clone().requires_grad_()
        function(w, x).backward()  # type: ignore[no-untyped-call]
        return w.grad, x.grad

    check(gradients, W, X)
    check(gradients, W, X + 1)


def test_no_gradient_goes_through_a_while_loop() -> None:
    def function(w: torch.Tensor) -> Any:
        w = w.clone().requires_grad_()
        found, _ = grid.while_loop(lambda v, n: n < 3, lambda v, n: (v * w, n + 1), (w, 0))
        found.sum().backward()
        return w.grad

    with pytest.raises(CannotCapture, match="no gradient goes through a while loop"):
        capture(function, [W])


def _linearized(x: torch.Tensor) -> Any:
    pairs, derivative = torch.func.linearize(lambda v: {"sin": v.sin() * x, "sum": v.sum()}, 2 * x)
    slope = torch.func.linearize(torch.func.grad(lambda w: (w**3).sum()), x)[1]
    return pairs, derivative(x), derivative(torch.ones_like(x)), slope(x)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # as torch's linearize does
@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.vmap(lambda row: grid.repeat(3, lambda i, h: h * 2 + i, row))(x),
        lambda x: torch.func.grad(lambda v: grid.scan(lambda c, r: (c + r.sin(), r), v[0], v)[0].sum())(x),
        lambda x: torch.func.jvp(lambda v: v.sin() * v, (x,), (torch.ones_like(x),)),
        lambda x: _linearized(x),
        lambda x: torch.vmap(torch.func.linearize(lambda v: (v @ v.T).tanh(), x)[1])(torch.stack([x, 2 * x])),
        lambda x: grid.repeat(3, lambda i, c: torch.func.linearize(torch.sin, c)[1](x), x),
        lambda x: torch.func.jacrev(lambda v: v.sin() * v.sum())(x[0]),
        lambda x: grid.repeat(3, lambda i, w: w - 0.1 * torch.func.grad(lambda u: ((x @ u) ** 2).sum())(w), x[0]),
    ],
)
def test_transforms_of_functions_around_and_inside(function: Callable[..., Any]) -> None:
    check(function, X)


# --- programs that are called -------------------------------------------------------------------------------------


def test_a_program_with_a_loop_is_called_in_a_loop() -> None:
    halved = capture(lambda x: grid.while_loop(lambda v: v.norm() > 1, lambda v: (v / 2,), (x,))[0], [X]).program

    def function(x: torch.Tensor) -> Any:
        return grid.repeat(3, lambda i, h: run(halved, [h * 3]), x)

    program = check(function, X)
    assert [node.operation for body in program.bodies for node in body.nodes].count("flow.while") == 1


# --- what does not go ---------------------------------------------------------------------------------------------


def _counting() -> Callable[[torch.Tensor], Any]:
    def function(x: torch.Tensor) -> Any:
        rates = [0.1]

        def step(i: Any, h: torch.Tensor) -> torch.Tensor:
            rates[0] *= 0.9
            return h * rates[0]

        return grid.repeat(3, step, x)

    return function


def _keeping(x: torch.Tensor) -> Any:
    seen: list[torch.Tensor] = []
    grid.repeat(3, lambda i, h: seen.append(h * 2) or h + 1, x)
    return seen[-1]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (_counting(), "something else each time"),
        (_keeping, "return it from the body"),
        (lambda x: grid.repeat(3, lambda i, h: h.sum(), x), r"float32 \[\].*float32 \[5, 3\]"),
        (lambda x: grid.repeat(3, lambda i, h: h.double(), x), "float64"),
        (lambda x: grid.repeat(3, lambda i, h: (h, h), x), "carries comes back as"),
        (lambda x: grid.scan(lambda c, row: c + row, x[0], x), "gives two things"),
        (lambda x: grid.cond(x.sum() > 0, lambda: x, lambda: x[0]), "both have to give the same"),
        (lambda x: grid.map(lambda row: x.add_(row), x), "in place"),
        (lambda x: grid.while_loop(lambda v: v, lambda v: (v,), (x,)), "one truth value"),
        (lambda x: grid.repeat(3, lambda i, h: h if h.sum() > 0 else -h, x), r"torch\.where"),
    ],
)
def test_what_does_not_go_says_so_with_its_line(function: Callable[..., Any], words: str) -> None:
    with pytest.raises(CannotCapture, match=words) as caught:
        capture(function, [X])
    assert str(caught.value).startswith(f"{__file__}:")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: grid.repeat(-1, lambda i: None), BadRequest),
        (lambda: grid.repeat(1.5, lambda i: None), BadRequest),  # type: ignore[arg-type]
        (lambda: grid.scan(lambda c, r: (c, r), X, []), BadRequest),
        (lambda: grid.map(lambda r: r, (X, X[:2])), BadRequest),
        (lambda: grid.while_loop(lambda v: v < 9, lambda v: (v,), (torch.tensor(0),), limit=3), OperationFailed),
    ],
)
def test_mistakes_elsewhere_are_told(call: Callable[[], Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        call()


def test_training_in_a_loop_is_training() -> None:
    def function(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Any:
        optimizer = torch.optim.RMSprop(model.parameters(), lr=0.01, momentum=0.9)

        def step(i: Any, loss: torch.Tensor) -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return grid.repeat(20, step, torch.zeros(())), dict(model.state_dict())

    program = check(function, nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), X, torch.ones(5, 2))
    assert "flow.repeat" in operations(program)


def test_a_number_in_a_tensor_is_an_index() -> None:
    """torch reads such a number; a function that is captured has none."""

    def indexed(x: torch.Tensor) -> Any:
        def step(i: torch.Tensor, total: torch.Tensor, kept: torch.Tensor) -> Any:
            changed = x.clone()
            changed[i, 1:3] = total[0]
            changed[..., i] = 7
            kept = kept.clone()
            kept[i] = x[i].sum()
            picked = x[i] + x[i, :, 2][:, None] + x[-1 - i, None, ..., i].reshape(-1)[:1] + x[:, i][i]
            return total + picked + changed.mean(), kept

        return grid.repeat(3, step, torch.zeros(4, 3), torch.zeros(6))

    program = grid.plan(indexed).build(torch.randn(5, 4, 3)).program
    for rows in (5, 3, 8):
        x = torch.randn(rows, 4, 3)
        assert all(map(torch.allclose, run(program, [x]), indexed(x)))
    with pytest.raises(OperationFailed, match="out of bounds"):
        run(program, [torch.randn(2, 4, 3)])


# --- values in bodies -------------------------------------------------------------------------------------

USES: dict[str, Callable[[Any], Any]] = {
    "int": int,
    "float": float,
    "bool": lambda t: 2 if t > 1 else 3,
    "item": lambda t: t.item(),
    "range": lambda t: sum(range(t)),
    "an index": lambda t: [5, 6, 7][t],
    "a slice": lambda t: W[:t].sum(),
    "a size": lambda t: torch.ones(t).sum(),
    "math": lambda t: math.sqrt(t),
    "numpy": lambda t: t.numpy().sum(),
    "an array": lambda t: np.array(t).sum(),
    "a text": lambda t: len(f"{t}"),
    "a list": lambda t: t.tolist(),
}
LOOPS: dict[str, Callable[[Any, Any], Any]] = {
    "repeat": lambda step, x: grid.repeat(2, lambda i, c: step(c), x),
    "scan": lambda step, x: grid.scan(lambda c, row: (step(c), row), x, torch.ones(3)),
    "map": lambda step, x: grid.map(step, x),
    "cond": lambda step, x: grid.cond(x.sum() > 0, step, lambda x: x * 1, (x,)),
    "while_loop": lambda step, x: grid.while_loop(lambda c: c.sum() < 10, lambda c: (step(c),), (x,)),
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", USES)
def test_a_value_in_a_body_is_refused_at_its_line_where_it_is_data(name: str, loop: str) -> None:
    def step(row: torch.Tensor) -> Any:
        number = row.abs().sum().long()
        return row + USES[name](number)

    with pytest.raises(CannotCapture, match=r"a plan has no values|a plan's shapes are fixed") as caught:
        capture(lambda x: LOOPS[loop](step, x), [torch.ones(3, 2)])
    assert f"{__file__}:" in str(caught.value) and "shouldn't be called" not in str(caught.value)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", ["int", "float", "bool", "item", "range", "an index", "a size", "math", "a list"])
def test_a_number_that_the_body_wrote_out_is_known(name: str, loop: str) -> None:
    check(lambda x: LOOPS[loop](lambda row: row + 1 + USES[name](torch.tensor(2)), x), torch.ones(3, 2))
