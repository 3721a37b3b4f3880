"""Loops and branches of programs run: as Python runs them, and on shapes alone."""

import weakref
from typing import Any

import pytest
import torch

from compute.interpreter import execute, run
from compute.program import Body, Input, Node, Program
from compute.sharing import written_inputs
from compute.table import Entry
from protocol import limits
from protocol.errors import BadRequest, OperationFailed, TooLarge
from tests.compute.flows import aten, body, cond, each, loop, n, program, repeat, scan

X = torch.arange(12.0).reshape(3, 4)
BELOW = body("x", aten("lt.Scalar", n(0), 100.0), aten("all.default", n(1)))
DOUBLED = body("x", aten("mul.Tensor", n(0), 2.0))
TRIPLED = body("x", aten("mul.Tensor", n(0), 3.0))
ADDED = body("i x", aten("add.Tensor", n(1), n(0)))


# --- what they give ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("predicate", "factor"), [(True, 2), (False, 3)])
def test_a_branch_is_chosen_by_a_tensor(predicate: bool, factor: int) -> None:
    p = program("x p", cond(n(1), 0, 1, n(0)), bodies=(DOUBLED, TRIPLED))
    for shape in ((), (1,), (1, 1)):
        assert torch.equal(run(p, [X, torch.full(shape, predicate)]), X * factor)


def test_a_branch_is_chosen_by_a_truth_value() -> None:
    p = program("x", cond(False, 0, 1, n(0)), bodies=(DOUBLED, TRIPLED))
    assert torch.equal(run(p, [X]), X * 3)


def test_the_branch_that_is_not_chosen_does_not_run() -> None:
    seen: list[str] = []

    def watching(entry: Entry, args: Any, kwargs: Any) -> Any:
        seen.append(entry.name)
        return execute(entry, args, kwargs)

    halved = body("x", aten("div.Tensor", n(0), 2.0))
    run(program("x p", cond(n(1), 0, 1, n(0)), bodies=(DOUBLED, halved)), [X, torch.tensor(True)], watching)
    assert seen == ["aten.mul.Tensor"]


def test_a_while_goes_on_as_long_as_its_test_says() -> None:
    p = program("x", loop(0, 1, [n(0)]), bodies=(BELOW, DOUBLED))
    assert run(p, [torch.tensor([3.0])]).item() == 192.0
    assert run(p, [torch.tensor([100.0])]).item() == 100.0


def test_a_while_that_goes_on_beyond_its_limit_fails() -> None:
    p = program("x", loop(0, 1, [n(0)], limit=5), bodies=(BELOW, DOUBLED))
    assert run(p, [torch.tensor([4.0])]).item() == 128.0
    with pytest.raises(TooLarge, match="goes on after 5 iterations") as caught:
        run(p, [torch.tensor([3.0])])
    assert caught.value.fields["limit"] == "MAX_ITERATIONS"
    assert caught.value.operation == "flow.while"
    assert caught.value.fields["node"] == 0


def test_a_repeat_knows_which_iteration_it_is() -> None:
    p = program("x", repeat(0, 5, [n(0)]), bodies=(ADDED,))
    found = run(p, [torch.zeros(2, dtype=torch.int64)])
    assert found.tolist() == [10, 10]
    assert found.dtype == torch.int64


def test_a_repeat_of_nothing_gives_what_it_was_given() -> None:
    assert torch.equal(run(program("x", repeat(0, 0, [n(0)]), bodies=(ADDED,)), [X]), X)


def test_a_count_may_be_a_size() -> None:
    p = program("x y", aten("sym_size.int", n(0), 0), repeat(0, n(2), [n(1)]), bodies=(DOUBLED_OF_TWO,))
    for rows in (0, 1, 6):
        assert run(p, [torch.ones(rows, 2), torch.ones(1)]).item() == 2.0**rows


DOUBLED_OF_TWO = body("i x", aten("mul.Tensor", n(1), 2.0))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 3, 1030])
def test_a_scan_is_a_running_sum(reverse: bool, length: int) -> None:
    step = body("total part", aten("add.Tensor", n(0), n(1)), outputs=[n(2), n(2)])
    p = program("x start", scan(0, [n(1)], [n(0)], reverse=reverse), bodies=(step,), outputs=[n(2, 0), n(2, 1)])
    x = torch.randint(0, 9, (length, 2))
    total, sums = run(p, [x, torch.zeros(2, dtype=torch.int64)])
    assert torch.equal(total, x.sum(0))
    assert torch.equal(sums, x.flip(0).cumsum(0).flip(0) if reverse else x.cumsum(0))


def test_a_map_is_stacked() -> None:
    step = body("a b w", aten("mv.default", n(2), n(0)), aten("add.Tensor", n(3), n(1)))
    p = program("a b w", each(0, [n(0), n(1)], n(2)), bodies=(step,))
    a, b, w = torch.randn(5, 4), torch.randn(5, 3), torch.randn(3, 4)
    assert torch.allclose(run(p, [a, b, w]), a @ w.T + b, atol=1e-6)


def test_loops_stand_in_loops() -> None:
    inner = body("i x", aten("add.Tensor", n(1), 1.0))
    outer = body("i x", repeat(0, 7, [n(1)]), outputs=[n(2, 0)])
    halved = body("x", aten("mul.Tensor", n(0), 0.5))
    most = body("i x", repeat(1, 5, [n(1)]), cond(True, 2, 2, n(2, 0)), outputs=[n(3, 0)])
    p = program("x", repeat(3, 3, [n(0)]), bodies=(inner, outer, halved, most))
    assert run(p, [torch.zeros(1)]).item() == ((35 / 2 + 35) / 2 + 35) / 2


def test_constants_are_those_of_the_program() -> None:
    data = {"dtype": "float32", "shape": [2], "data": torch.tensor([1.0, 2.0]).numpy().tobytes()}
    other = {**data, "data": torch.tensor([5.0, 7.0]).numpy().tobytes()}
    step = body("i x", aten("add.Tensor", n(1), {"constant": 1}))
    p = Program(step.inputs[1:], (repeat(0, 2, [n(0)]),), n(1, 0), (data, other), (step,))
    assert run(p, [torch.zeros(2)]).tolist() == [10.0, 14.0]


def test_gradients_flow_through_loops() -> None:
    x = torch.tensor(1.5, requires_grad=True)
    step = body("i x w", aten("mul.Tensor", n(1), n(2)))
    run(program("x", repeat(0, 4, [n(0)], n(0)), bodies=(step,)), [x]).backward()
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(5 * 1.5**4)


def test_a_whole_regression_is_one_node() -> None:
    def step(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return w - 0.1 * (x.T @ (x @ w - y)) / len(x)

    its = body(
        "i w x y",
        aten("mm.default", n(2), n(1)),
        aten("sub.Tensor", n(4), n(3)),
        aten("t.default", n(2)),
        aten("mm.default", n(6), n(5)),
        aten("mul.Tensor", n(7), 0.1),
        aten("div.Tensor", n(8), 50),
        aten("sub.Tensor", n(1), n(9)),
    )
    p = program("x y w", repeat(0, 200, [n(2)], n(0), n(1)), bodies=(its,))
    x, y, w = torch.randn(50, 3), torch.randn(50, 1), torch.zeros(3, 1)
    expected = w
    for _ in range(200):
        expected = step(x, y, expected)
    assert torch.allclose(run(p, [x, y, w]), expected, atol=1e-5)


# --- by value ---------------------------------------------------------------------------------------------


def test_a_body_that_writes_what_it_was_given_writes_a_copy() -> None:
    step = body("i x", aten("view.default", n(1), [12]), aten("add_.Tensor", n(2), 1.0), outputs=[n(1)])
    p = program("x", repeat(0, 3, [n(0)]), bodies=(step,))
    x = X.clone()
    for _ in range(2):
        assert torch.equal(run(p, [x]), X + 3)
    assert torch.equal(x, X)
    assert written_inputs(p) == ()


def test_a_body_that_writes_a_constant_writes_a_copy() -> None:
    data = {"dtype": "float32", "shape": [1], "data": bytes(4)}
    step = body("i x", aten("add_.Tensor", {"constant": 0}, 1.0), aten("add.Tensor", n(1), n(2)))
    p = Program(step.inputs[1:], (repeat(0, 3, [n(0)]),), n(1, 0), (data,), (step,))
    for _ in range(2):
        assert run(p, [torch.zeros(1)]).item() == 3.0


def test_what_is_stacked_is_not_changed_by_later_iterations() -> None:
    step = body("x part", aten("add_.Tensor", n(0), n(1)), outputs=[n(2), n(0)])
    p = program("x start", scan(0, [n(1)], [n(0)]), bodies=(step,), outputs=n(2, 1))
    assert run(p, [torch.ones(4), torch.tensor(0.0)]).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("written", [n(1, 0), n(1, 1), n(0)])
def test_what_a_branch_gave_is_by_value(written: Any) -> None:
    same = body("x", outputs=[n(0), n(0)])
    write = aten("add_.Tensor", written, 1.0)
    p = program("x", cond(True, 0, 0, n(0)), write, bodies=(same,), outputs=[n(0), n(1, 0), n(1, 1)])
    x = torch.zeros(1)
    found = [value.item() for value in run(p, [x])]
    assert found == [float(written == value) for value in (n(0), n(1, 0), n(1, 1))]
    assert written_inputs(p) == ((0,) if written == n(0) else ())


def test_what_was_made_before_a_branch_is_given_by_value_too() -> None:
    same = body("x", outputs=[n(0)])
    p = program(
        "x",
        aten("relu.default", n(0)),
        cond(True, 0, 0, n(1)),
        aten("unsqueeze_.default", n(1), 0),
        bodies=(same,),
        outputs=n(2, 0),
    )
    assert run(p, [X]).shape == (3, 4)


def test_what_nobody_writes_is_not_copied() -> None:
    same = body("x", outputs=[n(0)])
    assert run(program("x", cond(True, 0, 0, n(0)), bodies=(same,)), [X]) is X


# --- memory -----------------------------------------------------------------------------------------------


def test_what_is_carried_is_let_go_of() -> None:
    references: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def watching(entry: Entry, args: Any, kwargs: Any) -> Any:
        value = execute(entry, args, kwargs)
        references.append(weakref.ref(value))
        alive.append(sum(reference() is not None for reference in references))
        return value

    step = body("i x", aten("add.Tensor", n(1), 1.0), aten("mul.Tensor", n(2), 2.0), aten("sub.Tensor", n(3), 1.0))
    run(program("x", aten("relu.default", n(0)), repeat(0, 5, [n(1)]), bodies=(step,)), [X], watching)
    assert max(alive) <= 2


# --- on shapes --------------------------------------------------------------------------------------------

SUMMED = body("total part", aten("add.Tensor", n(0), n(1)), outputs=[n(2), n(2)])
ON_SHAPES = [
    (program("x p", cond(n(1), 0, 1, n(0)), bodies=(DOUBLED, TRIPLED)), [X, torch.tensor(True)]),
    (program("x", loop(0, 1, [n(0)]), bodies=(BELOW, DOUBLED)), [X]),
    (program("x", repeat(0, 1000, [n(0)]), bodies=(DOUBLED_OF_TWO,)), [X]),
    (program("x s", scan(0, [n(1)], [n(0)]), bodies=(SUMMED,), outputs=n(2, 1)), [torch.ones(500, 3), torch.ones(3)]),
    (program("x", each(0, [n(0)]), bodies=(DOUBLED,)), [torch.ones(500, 3)]),
]


@pytest.mark.parametrize("at", range(len(ON_SHAPES)))
def test_shapes_alone_are_enough_for_shapes(at: int) -> None:
    p, given = ON_SHAPES[at]
    calls = 0

    def counting(entry: Entry, args: Any, kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return execute(entry, args, kwargs)

    expected = run(p, given)
    found = run(p, [torch.empty_like(x, device="meta") for x in given], counting)
    assert found.is_meta
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert calls <= 4
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        fake = run(p, [mode.from_tensor(x) for x in given])
    assert (fake.dtype, fake.shape) == (expected.dtype, expected.shape)


# --- on other kinds of values -------------------------------------------------------------------------------


class Share:
    """A value that is no tensor, as those of secure computation."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value
        self.shape = value.shape


def on_shares(entry: Entry, args: Any, kwargs: Any) -> Any:
    def opened(value: Any) -> Any:
        if isinstance(value, list):
            return [opened(item) for item in value]
        return value.value if isinstance(value, Share) else value

    return Share(execute(entry, opened(list(args)), {key: opened(value) for key, value in kwargs.items()}))


def test_loops_run_on_values_that_are_no_tensors() -> None:
    p = program("x s", scan(0, [n(1)], [n(0)]), bodies=(SUMMED,), outputs=n(2, 1))
    found = run(p, [Share(torch.ones(3)), Share(torch.tensor(0.0))], on_shares)
    assert found.value.tolist() == [1, 2, 3]
    found = run(program("x", repeat(0, 3, [n(0)]), bodies=(ADDED,)), [Share(torch.tensor(1))], on_shares)
    assert found.value.item() == 4


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predicate", "words"),
    [
        (torch.tensor(1.0), "float32 \\[\\]"),
        (torch.tensor([True, True]), "bool \\[2\\]"),
        (torch.zeros(0, dtype=torch.bool), "bool \\[0\\]"),
    ],
)
def test_a_predicate_is_one_truth_value(predicate: torch.Tensor, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        run(program("x p", cond(n(1), 0, 1, n(0)), bodies=(DOUBLED, TRIPLED)), [X, predicate])


def test_a_count_is_no_tensor_and_not_negative() -> None:
    p = program("x c", repeat(0, n(1), [n(0)]), bodies=(ADDED,))
    with pytest.raises(BadRequest, match="a count is an integer"):
        run(p, [X, torch.tensor(3)])
    negative = program("x", Node("int.neg", [3]), repeat(0, n(1), [n(0)]), bodies=(ADDED,))
    with pytest.raises(BadRequest, match="not -3"):
        run(negative, [X])
    absurd = program("x", Node("int.mul", [10**6, 2]), repeat(0, n(1), [n(0)]), bodies=(ADDED,))
    with pytest.raises(TooLarge) as caught:
        run(absurd, [X])
    assert caught.value.fields["limit"] == "MAX_ITERATIONS"


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (
            aten("unsqueeze.default", n(1), 0),
            r"carried value 0 is float32 \[3, 4\] before .* float32 \[1, 3, 4\] after",
        ),
        (aten("to.dtype", n(1), {"dtype": "float64"}), r"float32 \[3, 4\] before an iteration and float64 \[3, 4\]"),
        (aten("sym_size.int", n(1), 0), "and int after"),
        (aten("split.Tensor", n(1), 1), "is a list: name one item"),
    ],
)
def test_what_is_carried_keeps_dtype_and_shape(step: Node, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        run(program("x", repeat(0, 2, [n(0)]), bodies=(body("i x", step),)), [X])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([torch.tensor(1.0), torch.ones(3)], "first dimension"),
        ([torch.ones(2), torch.ones(3)], r"of one length, not of \[2, 3\]"),
        ([torch.ones(0), torch.ones(0)], "through nothing"),
    ],
)
def test_what_is_gone_through_has_one_length(given: list[torch.Tensor], words: str) -> None:
    p = program("a b", each(0, [n(0), n(1)]), bodies=(body("a b", aten("add.Tensor", n(0), n(1))),))
    with pytest.raises(BadRequest, match=words):
        run(p, given)


def test_a_failing_node_of_a_body_is_named_with_the_body() -> None:
    step = body("i x", aten("relu.default", n(1)), aten("mm.default", n(2), n(2)))
    with pytest.raises(OperationFailed) as caught:
        run(program("x", repeat(0, 2, [n(0)]), bodies=(DOUBLED, step)[1:]), [X])
    assert caught.value.fields == {"type": "RuntimeError", "node": 1, "body": 0}
    assert caught.value.operation == "aten.mm.default"


def test_the_inputs_of_a_body_are_checked() -> None:
    strict = Body((Input("i"), Input("x", "int64", ("n", "n"))), (), [n(1)])
    p = program("x", repeat(0, 2, [n(0)]), bodies=(strict,))
    assert run(p, [torch.ones(2, 2, dtype=torch.int64)]).shape == (2, 2)
    for given, words in ((X, "'x' is int64"), (torch.ones(2, 3, dtype=torch.int64), "n is 2, the size that it has")):
        with pytest.raises(BadRequest, match=words):
            run(p, [given])


def test_more_iterations_than_any_loop_has_are_refused_before_the_first() -> None:
    p = program("x", each(0, [n(0)]), bodies=(DOUBLED,))
    with pytest.raises(TooLarge) as caught:
        run(p, [torch.zeros(1).expand(limits.MAX_ITERATIONS + 1)])
    assert caught.value.fields["limit"] == "MAX_ITERATIONS"
