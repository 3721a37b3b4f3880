"""What Python does around the tensors of a captured function: what is counted, asked, copied, caught, known."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops import scan as torch_scan

import grid
from compute.capture import capture
from compute.interpreter import run
from compute.model import ModelSpec, ProgramModule, capture_model
from protocol.errors import CannotCapture
from tests.compute.test_capture_tutorials import tensors

X = torch.linspace(-1, 1, 12).view(4, 3)
Y = torch.linspace(0, 1, 8).view(4, 2)


def check(function: Callable[..., Any], *args: Any) -> None:
    """The program gives what the function gives here, in the same structure."""
    want = function(*copy.deepcopy(args))
    captured = capture(function, list(args))
    have = captured.result(run(captured.program, [captured.given[name] for name in captured.inputs]))
    assert torch.utils._pytree.tree_structure(have) == torch.utils._pytree.tree_structure(want)
    for one, other in zip(tensors(have), tensors(want), strict=True):
        assert one.dtype == other.dtype and torch.allclose(one, other, atol=1e-5)


def refused(function: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(CannotCapture) as caught:
        capture(function, list(args))
    assert __file__ in str(caught.value)
    return str(caught.value)


# --- numbers that Python changes in a loop ------------------------------------------------------------------


def scheduled(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.5)

    def step(i: Tensor, loss: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        scheduler.step()
        return loss.detach()

    return grid.repeat(8, step, torch.zeros(()))


def rated(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    def step(i: Tensor, loss: Tensor) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * 0.5 ** (i // 4)
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return grid.repeat(8, step, torch.zeros(()))


class Counter:
    def __init__(self) -> None:
        self.calls, self.kept = 0, list[Tensor]()

    def late(self, i: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return x + (1.0 if self.calls < 4 else 100.0)


LATE = functools.partial(Counter().late)


def test_a_scheduler_in_a_loop_is_refused_and_a_rate_of_the_iteration_is_not() -> None:
    assert "scheduler.last_epoch changes from one iteration to the next, 1 to 2" in refused(
        scheduled, nn.Linear(3, 2), X, Y
    )
    check(rated, nn.Linear(3, 2), X, Y)


def counted_by_dict(x: Tensor) -> Tensor:
    state = {"n": 0}

    def step(i: Tensor, x: Tensor) -> Tensor:
        state["n"] += 1
        return x + (1.0 if state["n"] < 4 else 100.0)

    return grid.repeat(6, step, x)  # type: ignore[no-any-return]


def counted_by_iterator(x: Tensor) -> Tensor:
    numbers = itertools.count()

    def step(x: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        return x + (1.0 if next(numbers) < 4 else 100.0), row

    return grid.scan(step, x[0], x)[0]  # type: ignore[no-any-return]


class Shared:
    calls = 0

    @classmethod
    def call(cls) -> int:
        cls.calls += 1
        return cls.calls


@dataclasses.dataclass(slots=True)
class Slotted:
    calls: int = 0

    def call(self) -> int:
        self.calls += 1
        return self.calls


def counted_by(call: Callable[[], Any]) -> Callable[[Tensor], Tensor]:
    return lambda x: grid.repeat(6, lambda i, x: x + (1.0 if call() < 4 else 100.0), x)  # type: ignore[no-any-return]


def counted_by_attribute(x: Tensor) -> Tensor:
    def step(i: Tensor, x: Tensor) -> Tensor:
        step.calls += 1  # type: ignore[attr-defined]
        return x + (1.0 if step.calls < 4 else 100.0)  # type: ignore[attr-defined]

    step.calls = 0  # type: ignore[attr-defined]
    return grid.repeat(6, step, x)  # type: ignore[no-any-return]


def counted_by_default(x: Tensor) -> Tensor:
    def step(i: Tensor, x: Tensor, calls: list[int] = [0]) -> Tensor:  # noqa: B006  # as people do
        calls[0] += 1
        return x + (1.0 if calls[0] < 4 else 100.0)

    return grid.repeat(6, step, x)  # type: ignore[no-any-return]


def counted_by_module(x: Tensor) -> Tensor:
    settings = types.ModuleType("settings")
    settings.calls = 0  # type: ignore[attr-defined]

    def step(i: Tensor, x: Tensor) -> Tensor:
        settings.calls += 1  # type: ignore[attr-defined]
        return x + (1.0 if settings.calls < 4 else 100.0)

    return grid.repeat(6, step, x)  # type: ignore[no-any-return]


def counted_by_array(x: Tensor) -> Tensor:
    calls = np.zeros(1)

    def step(i: Tensor, x: Tensor) -> Tensor:
        calls[0] += 1
        return x + (1.0 if calls[0] < 4 else 100.0)

    return grid.repeat(6, step, x)  # type: ignore[no-any-return]


def counted_in(state: Any, place: Callable[[Any], Any]) -> Callable[[Tensor], Tensor]:
    """A counter that is far from the variable by which the body has it."""

    def step(i: Tensor, x: Tensor) -> Tensor:
        place(state)[0] += 1
        return x + (1.0 if place(state)[0] < 4 else 100.0)

    return lambda x: grid.repeat(6, step, x)  # type: ignore[no-any-return]


def nested(depth: int) -> Any:
    return [0] if not depth else [nested(depth - 1)]


def deepest(value: Any) -> Any:
    while isinstance(value[0], list):
        value = value[0]
    return value


def of_objects() -> Any:
    made = np.empty(2, dtype=object)
    made[0], made[1] = [0], "other"
    return made


def drawn_from(numbers: Iterator[float]) -> Callable[[Tensor], Tensor]:
    return lambda x: grid.repeat(6, lambda i, x: x + next(numbers), x)  # type: ignore[no-any-return]


class Missing:
    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


LATE_NUMBERS = [1.0, 1.0, 1.0, 1.0, 100.0, 100.0]


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (counted_by(Shared.call), "cls.calls"),
        (counted_by(Slotted().call), "self.calls"),
        (counted_by_attribute, "calls"),
        (counted_by_default, "step[0][0]"),
        (counted_by_module, "settings.calls"),
        (counted_by_array, "calls"),
        (drawn_from(itertools.cycle(LATE_NUMBERS)), "numbers"),
        (drawn_from(n for n in LATE_NUMBERS), "changes from one"),
        (drawn_from(map(float, LATE_NUMBERS)), "numbers"),
        (drawn_from(itertools.chain(LATE_NUMBERS)), "numbers"),
        (lambda x: grid.repeat(6, Counter().late, x), "self.calls"),
        (lambda x: grid.repeat(6, LATE, x), "self.calls"),
        (counted_by_dict, "state['n']"),
        (counted_by_iterator, "numbers changes from one"),
        (counted_in([*([0] for _ in range(25_000)), [0]], lambda state: state[-1]), "state[25000][0] changes"),
        (counted_in([[] for _ in range(300_000)] + [[0]], lambda state: state[-1]), "more than 300,000 values"),
        (counted_in(nested(30), deepest), "changes from one"),
        (counted_in(nested(200), deepest), "deeper than 100 levels"),
        (counted_in(np.zeros(30_000), lambda state: state[29_999:]), "state changes"),
        (counted_in(of_objects(), lambda state: state[0]), "changes from one"),
    ],
)
def test_what_would_differ_in_a_later_iteration_is_named(function: Callable[..., Any], named: str) -> None:
    assert named in refused(function, X)


def test_what_changes_once_is_no_count() -> None:
    class Once:
        is_begun = False

        def step(self, i: Tensor, x: Tensor) -> Tensor:
            self.is_begun = True
            return x * 2

    check(lambda x: grid.repeat(3, Once().step, x), X)


def test_what_does_not_change_is_no_count() -> None:
    ones, weights, strange = itertools.repeat(1.0), np.ones(3), Missing()
    check(lambda x: grid.repeat(3, lambda i, x: x + next(ones) * float(weights[1]) + (strange is None), x), X)


# --- what it asks of tensors --------------------------------------------------------------------------------


def adapted(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    F.mse_loss(model(x), y).backward()
    optimizer.step()
    return [parameter.detach() for parameter in trained], sum(map(torch.Tensor.sum, trained)).detach()  # type: ignore[arg-type,union-attr]


def test_a_function_may_pick_what_requires_a_gradient() -> None:
    model = nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 2))
    check(adapted, model, X, Y)
    check(lambda m, x: x * len([p for p in m.parameters() if p.requires_grad]), model, X)
    check(lambda m, x: x * len([p for p in m.parameters() if isinstance(p, nn.Parameter)]), model, X)


class Cubed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * ctx.saved_tensors[0]  # not the cube's own


def test_a_users_own_gradient_counts_in_transforms_too() -> None:
    def slope(x: Tensor) -> Tensor:
        return torch.func.grad(lambda row: Cubed.apply(row).sum())(x)  # type: ignore[no-any-return,no-untyped-call]

    check(slope, X[0])
    check(torch.func.vmap(slope), X)


def averaged(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    target = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(model(x), y + target(x)).backward()
        optimizer.step()
        average.update_parameters(model)
    return [parameter.detach() for parameter in average.module.parameters()], target(x)


def test_modules_are_copied_within_a_function() -> None:
    check(averaged, nn.Linear(3, 2), X, Y)


# --- what it catches, draws and returns ---------------------------------------------------------------------


def caught(x: Tensor) -> Tensor:
    try:
        scale = float(x.sum())
    except Exception:
        scale = 0.0
    return x * scale


def test_a_refusal_that_is_caught_is_told_all_the_same() -> None:
    assert "scale = float(x.sum())" in refused(caught, X)


def test_a_seed_is_refused_at_its_line_and_undone() -> None:
    def seeded(x: Tensor) -> Tensor:
        torch.manual_seed(12345)
        return x + torch.randn_like(x)

    before = torch.get_rng_state()
    assert "torch.manual_seed(12345)" in refused(seeded, X).splitlines()[-1]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_result_that_is_none_is_told_at_the_function() -> None:
    def gives_a_set(x: Tensor) -> Any:
        return {x}

    assert f"{__file__}:{gives_a_set.__code__.co_firstlineno}: " in refused(gives_a_set, X)


# --- what is known though there are no values ---------------------------------------------------------------

MASK = torch.tensor([True, False, True])


def decided(x: Tensor) -> Any:
    sizes = torch.tensor([3, 1])
    if (sizes > 2).any():
        x = x.repeat(int(sizes.max()), 1)
    return x, torch.linspace(0, 1, sizes[0].item()), [x * size for size in sizes.tolist()]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "function",
    [
        decided,
        lambda x: x[:, MASK],
        lambda x: torch.tensor([0, 1, 1]).nonzero() + x[0, 0],
        lambda x: (x.repeat_interleave(torch.tensor([1, 2, 0, 3]), 0), x.repeat_interleave(torch.ones(12).long())),
        lambda x: x.clone().index_put((torch.tensor([True, False, False, True]),), torch.zeros(3)),
    ],
)
def test_what_a_function_wrote_out_itself_is_known(function: Callable[..., Any]) -> None:
    check(function, X)


def test_a_number_that_a_loop_changes_is_not_known() -> None:
    def counted(x: Tensor) -> Any:
        count = torch.tensor(0)

        def step(i: Tensor, x: Tensor) -> Tensor:
            x = x + (1.0 if int(count) < 3 else 100.0)
            count.add_(1)
            return x

        return grid.repeat(6, step, x)

    assert "keep it a tensor" in refused(counted, X)


def packed(x: Tensor, net: nn.Module) -> Any:
    sequences = nn.utils.rnn.pack_padded_sequence(x, torch.full((3,), 4) - torch.arange(3), batch_first=True)
    out, (hidden, _) = net(sequences)
    padded, lengths = nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=5)
    (padded.sum() + hidden.square().sum()).backward()
    return [parameter.grad for parameter in net.parameters()], lengths, padded.detach()


def test_sequences_of_known_lengths_are_packed() -> None:
    torch.manual_seed(0)
    check(packed, torch.randn(3, 5, 3), nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True))
    unsorted = torch.tensor([2, 5, 3])
    rnn = nn.utils.rnn
    x, net = torch.randn(5, 3, 3), nn.GRU(3, 4)
    check(lambda x, net: net(rnn.pack_padded_sequence(x, unsorted, enforce_sorted=False))[1], x, net)
    check(lambda x: rnn.unpack_sequence(rnn.pack_sequence([x, x[:2]])), X)


def test_lengths_that_are_data_say_what_to_write() -> None:
    net = nn.GRU(3, 4)

    def function(x: Tensor, lengths: Tensor) -> Any:
        return net(nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False))[1]

    assert "by lengths that are known" in refused(function, torch.randn(5, 3, 3), torch.tensor([2, 5, 3]))


def test_an_alignment_of_known_lengths() -> None:
    scores, targets = torch.randn(10, 2, 6).log_softmax(-1), torch.randint(1, 6, (2, 4))
    check(lambda s, t: F.ctc_loss(s, t, torch.tensor([10, 8]), torch.tensor([4, 3])), scores, targets)


# --- operations ---------------------------------------------------------------------------------------------


def quantised(x: Tensor) -> Any:
    x = (x * 40).requires_grad_()
    made = torch.fake_quantize_per_tensor_affine(x, 0.1, 3, -128, 127)
    made.square().sum().backward()
    scales, zeros = torch.tensor([0.1, 0.3, 0.07]), torch.tensor([0, 3, -5], dtype=torch.int32)
    return made.detach(), x.grad, torch.fake_quantize_per_channel_affine(x.detach(), scales, zeros, 1, -128, 127)


@pytest.mark.parametrize(
    "function",
    [
        quantised,
        lambda x: (x * 1).transpose_(0, 1),
        lambda x: torch.while_loop(
            lambda i, d: i < 3, lambda i, d: (i + 1, {"a": d["a"] * 2}), (torch.tensor(0), {"a": x})
        ),
        lambda x: torch_scan(lambda c, row: (c + row, c * row), torch.zeros(3), x),
    ],
)
def test_operations_give_what_they_give_here(function: Callable[..., Any]) -> None:
    check(function, X)


def test_a_branch_by_many_values_is_told_at_its_line() -> None:
    assert "one truth value" in refused(lambda x: grid.cond(x > 0, lambda: x, lambda: -x), X)


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 2, 3, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        low = torch.einsum("bix,iox->box", torch.fft.rfft(x)[:, :, :3], self.weight)
        return torch.fft.irfft(low, n=x.shape[-1])


def test_a_model_of_transforms_and_complex_weights() -> None:
    torch.manual_seed(0)
    module = Spectral()
    spec = capture_model(module, torch.randn(2, 2, 8))
    program, x = ProgramModule(ModelSpec.from_wire(spec.to_wire()), spec.tensors(module)), torch.randn(5, 2, 8)
    with torch.no_grad():
        assert torch.allclose(program(x), module(x), atol=1e-5)
