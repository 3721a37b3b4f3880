"""Python functions captured as programs."""

import inspect
import io
import logging
import random
from collections import namedtuple
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import grid
from compute.capture import Captured, capture, load
from compute.interpreter import run
from compute.model import ProgramModule, capture_model
from compute.program import Program
from protocol.errors import BadRequest, CannotCapture, GridError, TooLarge

X, Y = torch.randn(6, 4), torch.randint(0, 3, (6,))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)).eval()


def run_captured(captured: Captured, values: Mapping[str, Any]) -> Any:
    """The program's result, after a trip over the wire."""
    program = Program.from_bytes(captured.program.to_bytes())
    found = {**values, **captured.constants}
    return run(program, [found[name].detach() for name in captured.inputs])


def named(prefix: str, module: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in [*module.named_parameters(), *module.named_buffers()]}


def accuracy(images: torch.Tensor, labels: torch.Tensor, model: nn.Module) -> torch.Tensor:
    return (model(images).argmax(1) == labels).float().mean()


def test_a_plan_over_a_module_gives_what_python_gives() -> None:
    model = network()
    captured = capture(accuracy, {"images": X, "labels": Y, "model": model})
    assert captured.inputs[:3] == ("images", "labels", "model.0.weight")
    result = run_captured(captured, {"images": X, "labels": Y, **named("model", model)})
    assert torch.equal(result, accuracy(X, Y, model))


def test_composite_operations_stay_whole() -> None:
    captured = capture(accuracy, {"images": X, "labels": Y, "model": network()})
    assert {"aten.linear.default", "aten.batch_norm.default", "aten.relu.default"} <= captured.program.operations


def test_the_module_is_left_as_it_was() -> None:
    model = network()
    before = {name: (tensor, tensor._version) for name, tensor in named("m", model).items()}
    capture(accuracy, {"images": X, "labels": Y, "model": model})
    after = named("m", model)
    assert all(after[name] is tensor and tensor._version == version for name, (tensor, version) in before.items())


def test_a_failed_capture_leaves_the_module_as_it_was() -> None:
    model = network()
    before = dict(model.named_parameters())
    with pytest.raises(CannotCapture):
        capture(lambda x, m: m(x).sum().item(), {"x": X, "m": model})
    assert all(before[name] is tensor for name, tensor in model.named_parameters())


@pytest.mark.parametrize("make", [lambda x: x, lambda x: x.to("meta"), lambda x: x.t().contiguous().t()])
def test_examples_count_by_shape_and_dtype_alone(make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    ids = {capture(lambda x: x.relu().sum(0), {"x": make(x)}).program.id for x in (X, X + 1)}
    assert ids == {capture(lambda x: x.relu().sum(0), {"x": X}).program.id}


def test_fake_tensors_are_examples_too() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.ones(6, 4)
    assert capture(lambda x: x + 1, [fake]).program == capture(lambda x: x + 1, [X]).program


Point = namedtuple("Point", "x y")


def test_inputs_and_outputs_may_be_nested() -> None:
    def function(pair: Any, point: Point, options: Any) -> Any:
        return {"sum": (pair[0] + point.y, [options["scale"] * pair[1]["b"]]), "n": len(pair), "none": None}

    inputs = {"pair": (X, {"b": Y}), "point": Point(1, X), "options": {"scale": 2, "name": "x"}}
    captured = capture(function, inputs)
    assert captured.inputs == ("pair.0", "pair.1.b", "point.1")
    result = run_captured(captured, {"pair.0": X, "pair.1.b": Y, "point.1": X})
    wanted = function(**inputs)  # type: ignore[arg-type]
    assert torch.equal(result["sum"][0], wanted["sum"][0])
    assert torch.equal(result["sum"][1][0], wanted["sum"][1][0])
    assert (result["n"], result["none"]) == (2, None)
    assert isinstance(result["sum"], tuple)


def test_inputs_may_be_positional() -> None:
    assert capture(lambda a, b: a + b, [X, X]).inputs == ("0", "1")


def test_an_input_may_be_an_output() -> None:
    captured = capture(lambda x: (x, x + 1), {"x": X})
    assert torch.equal(run_captured(captured, {"x": X})[0], X)


def test_python_is_gone_from_the_program() -> None:
    def function(x: torch.Tensor, steps: int, is_double: bool) -> torch.Tensor:
        for _ in range(steps):
            x = x + 1 if x.shape[0] > 3 else x - 1
        return x * 2 if is_double else x

    captured = capture(function, {"x": X, "steps": 3, "is_double": True})
    assert [node.operation for node in captured.program.nodes] == ["aten.add.Tensor"] * 3 + ["aten.mul.Tensor"]


def test_small_tensors_from_outside_are_constants() -> None:
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    captured = capture(lambda x: x * weights + torch.tensor([0.5]), {"x": X})
    assert captured.constants == {}
    assert len(captured.program.constants) == 2
    assert torch.equal(run_captured(captured, {"x": X}), X * weights + 0.5)


def test_large_tensors_from_outside_are_inputs() -> None:
    weights = torch.randn(4, 1000)
    captured = capture(lambda x: x @ weights + (x @ weights), {"x": X})
    assert captured.inputs == ("x", "constant")
    assert captured.constants["constant"].data_ptr() == weights.data_ptr()
    assert torch.equal(run_captured(captured, {"x": X}), X @ weights * 2)


def test_a_module_from_outside_is_captured_with_its_values() -> None:
    model = network()
    captured = capture(lambda x: model(x), {"x": X})
    assert torch.equal(run_captured(captured, {"x": X}), model(X).detach())


def test_random_operations_stay_random() -> None:
    captured = capture(lambda x: x + torch.randn(6, 4), {"x": X})
    assert not torch.equal(run_captured(captured, {"x": X}), run_captured(captured, {"x": X}))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_said_aloud_is_the_same_program(mode: Any) -> None:
    model = network()

    def function(x: torch.Tensor, m: nn.Module) -> Any:
        with mode():
            return m(x)

    captured = capture(function, {"x": X, "m": model})
    assert captured.program == capture(lambda x, m: m(x), {"x": X, "m": model}).program


def test_in_place_on_what_the_function_made_works() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(4)
        for row in x:
            total += row
        total[0] = -1.0
        return total

    captured = capture(function, {"x": X})
    assert torch.allclose(run_captured(captured, {"x": X}), function(X))


@pytest.mark.parametrize("name", ["dropout", "alpha_dropout", "feature_alpha_dropout"])
def test_dropout_that_drops_nothing_gives_what_it_was_given(name: str) -> None:
    dropped = getattr(nn.functional, name)

    def function(x: torch.Tensor) -> torch.Tensor:
        made = x * 1
        dropped(made, 0.5, training=False).neg_()
        return made

    assert torch.equal(run_captured(capture(function, {"x": X}), {"x": X}), function(X))


def test_tied_parameters_are_one_input() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    captured = capture(lambda x, m: m(x), {"x": X, "m": model})
    assert captured.inputs == ("x", "m.0.weight", "m.0.bias", "m.1.bias")
    assert torch.allclose(run_captured(captured, {"x": X, **named("m", model)}), model(X))


def test_a_program_module_is_inlined() -> None:
    model = network()
    spec = capture_model(model)
    meta = {
        slot.name: torch.empty(slot.header.shape, dtype=getattr(torch, slot.header.dtype), device="meta")
        for slot in spec.slots
    }
    captured = capture(accuracy, {"images": X, "labels": Y, "model": ProgramModule(spec, meta)})
    result = run_captured(captured, {"images": X, "labels": Y, **named("model", model)})
    assert torch.equal(result, accuracy(X, Y, model))
    assert "aten.linear.default" in captured.program.operations


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (nn.LSTM(4, 5, batch_first=True), torch.randn(2, 3, 4)),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(2, 3, 8)),
        (nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(2, 3, 8)),
    ],
)
def test_recurrent_and_attention_layers_are_captured(model: nn.Module, example: torch.Tensor) -> None:
    def function(x: torch.Tensor, m: nn.Module) -> Any:
        return m(x, x, x)[0] if isinstance(m, nn.MultiheadAttention) else m(x)

    captured = capture(function, {"x": example, "m": model})
    result, wanted = run_captured(captured, {"x": example, **named("m", model)}), function(example, model)
    result, wanted = (value[0] if isinstance(value, tuple) else value for value in (result, wanted))
    assert torch.allclose(result, wanted, atol=1e-6)


# --- gradients --------------------------------------------------------------------------------------------


def test_functional_gradients_are_captured() -> None:
    def gradients(x: torch.Tensor, y: torch.Tensor, model: nn.Module) -> Any:
        def loss(parameters: Any) -> torch.Tensor:
            return nn.functional.cross_entropy(torch.func.functional_call(model, parameters, (x,)), y)

        return torch.func.grad(loss)(dict(model.named_parameters()))

    model = network()
    captured = capture(gradients, {"x": X, "y": Y, "model": model})
    found = run_captured(captured, {"x": X, "y": Y, **named("model", model)})
    wanted = gradients(X, Y, model)
    assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in wanted)


def test_backward_and_a_step_are_captured() -> None:
    def step(x: torch.Tensor, y: torch.Tensor, model: nn.Module) -> Any:
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        with torch.no_grad():
            return loss, [parameter - 0.1 * parameter.grad for parameter in model.parameters()]  # type: ignore[operator]

    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    captured = capture(step, {"x": X, "y": Y, "model": model})
    assert all(parameter.grad is None for parameter in model.parameters())
    loss, updated = run_captured(captured, {"x": X, "y": Y, **named("model", model)})
    wanted_loss, wanted = step(X, Y, model)
    assert torch.allclose(loss, wanted_loss)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(updated, wanted, strict=True))


# --- load -------------------------------------------------------------------------------------------------


def test_load_stands_for_an_input() -> None:
    captured = capture(lambda x: x + load("#other"), {"x": X}, {"#other": X})
    assert captured.inputs == ("x", "load:#other")
    assert torch.equal(run_captured(captured, {"x": X, "load:#other": X}), X + X)


def test_a_query_that_was_not_redrawn_is_named() -> None:
    with pytest.raises(CannotCapture) as caught:
        capture(lambda x: x + load("#a") + load("#b"), {"x": X}, {"#a": X})
    assert caught.value.fields["load"] == "#b"


def test_load_outside_a_plan_says_what_to_do() -> None:
    with pytest.raises(BadRequest, match="inside a plan"):
        load("#a")


# --- what cannot be captured ------------------------------------------------------------------------------


def branch(x: torch.Tensor) -> torch.Tensor:
    if x.sum() > 0:
        return x
    return -x


def resized(x: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten.resize_(x.clone(), [2])


COUNT, SEEN, OUTSIDE, MODEL = 0, list[Any](), torch.zeros(3), nn.Linear(4, 2)
BIG = torch.zeros(300_000)


def counting(x: torch.Tensor) -> torch.Tensor:
    global COUNT
    COUNT += 1
    return x


def yielding(x: torch.Tensor) -> Any:
    yield x


async def awaited(x: torch.Tensor) -> Any:
    return x


def first_line(function: Callable[..., Any]) -> int:
    return inspect.getsourcelines(function)[1]


def test_a_refusal_points_at_the_line() -> None:
    with pytest.raises(CannotCapture) as caught:
        capture(branch, {"x": X})
    assert str(caught.value).startswith(f"{__file__}:{first_line(branch) + 1}: ")


def test_an_unknown_operation_is_named_with_its_line() -> None:
    with pytest.raises(CannotCapture, match=r"aten\.resize_\.default is not in the table") as caught:
        capture(resized, {"x": X})
    assert str(caught.value).startswith(f"{__file__}:{first_line(resized) + 1}: ")


def test_a_refusal_shows_the_line() -> None:
    with pytest.raises(CannotCapture, match=r"\n    if x\.sum\(\) > 0:"):
        capture(branch, {"x": X})


def test_the_users_own_mistake_is_told_with_its_line() -> None:
    with pytest.raises(CannotCapture, match=r"test_capture\.py:\d+: RuntimeError: .*reduction dim"):
        capture(lambda x: x @ x, {"x": X})


@pytest.mark.parametrize(
    ("function", "advice"),
    [
        (branch, "torch.where"),
        (lambda x: bool(x.any()), "torch.where"),
        (lambda x: 3.0 in x, "torch.where"),
        (lambda x: x.sum().item(), "keep it a tensor"),
        (lambda x: float(x.sum()), "keep it a tensor"),
        (lambda x: int(x.sum()), "keep it a tensor"),
        (lambda x: list(range(x.sum().long())), "keep it a tensor"),
        (lambda x: x.tolist(), "keep it a tensor"),
        (lambda x: x.numpy(), "torch operations"),
        (lambda x: __import__("numpy").asarray(x), "torch operations"),
        (lambda x: np.mean(x), "torch operations"),
        (lambda x: np.concatenate([x, x]), "torch operations"),
        (lambda x: grid.repeat(x.sum(), lambda i, y: y, x), "while_loop"),
        (lambda x: print(x), "print it after await"),
        (lambda x: f"{x.sum()}", "print it after await"),
        (lambda x: repr(x), "print it after await"),
        (lambda x: torch.equal(x, x), r"\(a == b\)\.all\(\)"),
        (lambda x: torch.allclose(x, x), r"\(a == b\)\.all\(\)"),
        (lambda x: x[x > 0], r"torch\.where\(mask"),
        (lambda x: x.nonzero(), r"torch\.where\(mask"),
        (lambda x: x.unique(), "compare neighbours"),
        (lambda x: x.add_(1), "in place"),
        (lambda x: x[0].mul_(2), "in place"),
        (lambda x: x.to_sparse(), "not in the table|sparse"),
        (lambda x: torch.empty(3).set_(x), "set_"),
        (lambda x: object(), "returns object"),
        (lambda x: x.data_ptr(), "C extensions"),
        (lambda x: torch.save(x, io.BytesIO()), "save its value|C extensions"),
        (lambda x: x * random.random(), "Python's or numpy's"),
        (lambda x: x * np.random.rand(), "Python's or numpy's"),
        (lambda x: (torch.manual_seed(0), x)[1], "seed them there"),
        (lambda x: torch.rand(3, generator=torch.Generator()), "seed the peer"),
        (lambda x: SEEN.append(x * 2), "'SEEN'.*return it instead"),
        (yielding, "yields: return a list"),
        (awaited, "is awaited"),
        (counting, "'COUNT', a variable from outside"),
        (lambda x: MODEL(x).sum().backward() or torch.optim.SGD(MODEL.parameters(), 0.1).step(), "as an argument"),
        (lambda x: OUTSIDE.add_(1), "from outside in place"),
        (lambda x: (OUTSIDE[0].add_(1), x * OUTSIDE)[1], "from outside in place"),
        (lambda x: (OUTSIDE.view(-1).mul_(2), x * OUTSIDE.sum())[1], "from outside in place"),
        (lambda x: (BIG[:1].add_(1), x * BIG[0])[1], "from outside in place"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_what_cannot_be_captured_says_what_to_write(function: Callable[..., Any], advice: str) -> None:
    with pytest.raises(CannotCapture, match=advice) as caught:
        capture(function, {"x": X})
    assert len(str(caught.value)) < 800


def test_what_peers_would_refuse_is_refused_when_it_is_built() -> None:
    with pytest.raises(CannotCapture, match=r"no program: node 0 \(aten\.stack\.default\).*70000 items"):
        capture(lambda x: torch.stack([x] * 70_000), {"x": torch.zeros(1)})
    with pytest.raises(TooLarge, match=r"aten\.mul\.Tensor.*TiB"):
        capture(lambda x: x[:, None] * x, {"x": torch.empty(2_000_000, device="meta")})


def test_our_own_errors_pass_through() -> None:
    def function(x: torch.Tensor) -> None:
        raise GridError("mine")

    with pytest.raises(GridError, match="mine"):
        capture(function, {"x": X})


def test_an_example_that_is_sparse_is_refused() -> None:
    with pytest.raises(CannotCapture, match="dense"):
        capture(lambda x: x, {"x": torch.eye(3).to_sparse()})


def test_torch_says_nothing_meanwhile_and_its_settings_stay(caplog: pytest.LogCaptureFixture) -> None:
    before = logging.getLogger("torch._subclasses.fake_tensor").level, torch.backends.mha.get_fastpath_enabled()
    with caplog.at_level(logging.DEBUG), pytest.raises(CannotCapture):
        capture(lambda x: x @ x, {"x": X})
    assert [record for record in caplog.records if record.name.startswith("torch")] == []
    after = logging.getLogger("torch._subclasses.fake_tensor").level, torch.backends.mha.get_fastpath_enabled()
    assert before == after
    assert torch.is_grad_enabled()


def _by_default(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    whole = x.long()
    made = (torch.ones(3), torch.arange(0, 1, 0.25), torch.linspace(0, 1, 3), torch.eye(2), torch.full((2,), 1.5))
    computed = (whole / 3, whole.sqrt(), whole * 1.5, whole * 2j, whole.mean(dtype=torch.get_default_dtype()))
    return (
        *made,
        *computed,
        x + torch.ones(3),
        torch.fft.fft(whole),
        torch.tensor(0.1),
        torch.zeros(2, dtype=torch.half),
    )


def test_numbers_are_of_the_default_dtype_of_whoever_captures() -> None:
    """Peers have torch's own."""

    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.double() + torch.arange(x.shape[0])[:, None] / 3 * torch.linspace(0, 1, 3)

    x, scaled = torch.tensor([1.5, 2.5, 3.5]), torch.zeros(4, 3)
    capture_before = capture(lambda x: x.long() / 3 + torch.ones(3), [x]).program  # of somebody who has torch's own
    torch.set_default_dtype(torch.float64)
    try:
        program, model = capture(_by_default, [x]).program, capture_model(Scaled(), scaled)
        want, wanted = _by_default(x), Scaled()(scaled)
        there = run(program, [x])
        made = run(capture_before, [x])
    finally:
        torch.set_default_dtype(torch.float32)
    assert made.dtype is torch.float32
    for found in (there, run(program, [x])):
        for one, other in zip(found, want, strict=True):
            assert one.dtype == other.dtype and torch.equal(one, other)
    assert torch.equal(run(model.program, [scaled]), wanted)
