"""What a program will cost and need, known before it runs: loops multiplied out, memory as it is let go of."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from compute import forecast, interpreter
from compute.cost import ALLOWED
from compute.following import STEP
from compute.forecast import check_program, foresee
from compute.interpreter import run
from compute.program import Program
from compute.report import Report
from protocol import limits
from protocol.errors import BadProgram, OperationFailed, TooLarge
from tests.compute.flows import aten, body, cond, each, loop, n, program, repeat, scan

KIB = 1 << 10
X = torch.ones(256)  # 1 KiB


@pytest.fixture(autouse=True)
def unlimited() -> Iterator[None]:
    yield
    ALLOWED.limit(None, None)


@pytest.fixture(autouse=True)
def nothing_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(*_: Any) -> Any:
        raise AssertionError("an operation ran")

    monkeypatch.setattr(interpreter, "call", call)


DOUBLED = body("i x", aten("mul.Tensor", n(1), 2.0))
ADDED = aten("add.Tensor", n(0), 1.0)


def chain(length: int) -> Program:
    return program("x", *(aten("add.Tensor", n(at), 1.0) for at in range(length)), outputs=n(length))


# --- memory -----------------------------------------------------------------------------------------------

TEMPORARIES = body(
    "i x", aten("cat.default", [n(1)] * 8), aten("slice.Tensor", n(2), 0, 0, 256), aten("clone.default", n(3))
)

PEAKS: list[tuple[Program, int]] = [
    (chain(1), KIB),
    (chain(50), 2 * KIB),
    (program("x", *[ADDED] * 50, outputs=[n(at) for at in range(1, 51)]), 50 * KIB),
    (program("x", *[ADDED] * 50, outputs=n(50)), KIB),
    (program("x", ADDED, *(aten("add_.Tensor", n(at), 1.0) for at in range(1, 50)), outputs=n(50)), KIB),
    (program("x", ADDED, aten("view.default", n(1), [16, 16]), aten("t.default", n(2)), outputs=n(3)), KIB),
    (program("x", aten("view.default", n(0), [16, 16]), outputs=n(1)), 0),
    (program("x", repeat(0, 1000, [n(0)]), bodies=(DOUBLED,)), 2 * KIB + 8),
    (program("x", aten("relu.default", n(0)), repeat(0, 1000, [n(1)]), bodies=(DOUBLED,)), 2 * KIB + 8),
    (program("x", repeat(0, 1000, [n(0)]), bodies=(TEMPORARIES,)), 9 * KIB + 8),
    (program("x", cond(True, 0, 1, n(0)), bodies=(body("x", ADDED), body("x", *[ADDED] * 3, outputs=[n(1)]))), 2 * KIB),
]


@pytest.mark.parametrize("at", range(len(PEAKS)))
def test_the_most_memory_is_foreseen(at: int) -> None:
    p, peak = PEAKS[at]
    assert foresee(p, [X]).peak == peak


@pytest.mark.parametrize("at", range(len(PEAKS)))
def test_no_more_is_used_than_was_foreseen(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    p, peak = PEAKS[at]
    report = Report()
    run(p, [X], report=report)
    assert peak / 2 <= report.peak <= peak


def test_what_a_scan_stacks_counts() -> None:
    step = body("total part", aten("add.Tensor", n(0), n(1)), outputs=[n(2), n(2)])
    p = program("x s", scan(0, [n(1)], [n(0)]), bodies=(step,), outputs=n(2, 1))
    found = foresee(p, [torch.ones(100, 256), torch.ones(256)]).peak
    assert 200 * KIB <= found <= 310 * KIB


def test_a_program_that_needs_more_than_is_left_is_refused() -> None:
    p = program("x", *[ADDED] * 50, outputs=[n(at) for at in range(1, 51)])
    ALLOWED.limit(60 * KIB, None)
    check_program(p, [X])
    ALLOWED.held = 20 * KIB
    with pytest.raises(TooLarge) as caught:
        check_program(p, [X])
    assert caught.value.fields["limit"] == "worker_memory"


def test_growth_is_refused_at_the_first_result_that_no_operation_may_give() -> None:
    nodes = [aten("cat.default", [n(at), n(at)]) for at in range(60)]
    with pytest.raises(TooLarge) as caught:
        foresee(program("x", *nodes, outputs=n(60)), [torch.ones(1)])
    assert caught.value.fields["limit"] == "MAX_RESULT"
    assert caught.value.fields["node"] < 40


# --- time -------------------------------------------------------------------------------------------------


def test_iterations_are_multiplied_out() -> None:
    one, many = (program("x", repeat(0, times, [n(0)]), bodies=(DOUBLED,)) for times in (1, 1000))
    once, all_ = foresee(one, [X]).cost, foresee(many, [X]).cost
    assert all_.work == 1000 * once.work
    assert all_.seconds == pytest.approx(1000 * once.seconds, rel=0.01)
    assert once.seconds > 2 * STEP


@pytest.mark.parametrize("kind", ["scan", "map"])
def test_so_are_slices(kind: str) -> None:
    step = body("part", aten("exp.default", n(0)))
    node = each(0, [n(0)]) if kind == "map" else scan(0, [], [n(0)])
    p = program("x", node, bodies=(step,))
    assert foresee(p, [torch.ones(100, 50)]).cost.work == 100 * foresee(p, [torch.ones(1, 50)]).cost.work


def test_a_loop_of_nothing_still_takes_time() -> None:
    p = program("x", repeat(0, limits.MAX_ITERATIONS, [n(0)]), bodies=(body("i x", outputs=[n(1)]),))
    assert foresee(p, [X]).cost.seconds >= limits.MAX_ITERATIONS * STEP


def test_of_two_branches_the_cheaper_one_counts() -> None:
    bodies = (body("x", ADDED), body("x", *[ADDED] * 10, outputs=[n(1)]))
    for order in (bodies, bodies[::-1]):
        p = program("x", cond(True, 0, 1, n(0)), bodies=order)
        assert foresee(p, [X]).cost.work == 512


def test_a_while_is_at_least_its_first_test() -> None:
    test = body("x", aten("isnan.default", n(0)), aten("all.default", n(1)))
    p = program("x", loop(0, 1, [n(0)]), bodies=(test, body("x", *[ADDED] * 99, outputs=[n(1)])))
    assert foresee(p, [X]).cost.seconds < 10 * STEP


def test_an_absurd_loop_is_refused_without_running_it() -> None:
    product = body("i x", aten("mm.default", n(1), n(1)))
    p = program("x", repeat(0, 10**6, [n(0)]), bodies=(product,))
    with pytest.raises(TooLarge) as caught:
        check_program(p, [torch.ones(3000, 3000)])
    assert caught.value.fields["limit"] == "MAX_OPERATION"
    ALLOWED.limit(None, 1.0)
    with pytest.raises(TooLarge) as caught:
        check_program(program("x", repeat(0, 10**4, [n(0)]), bodies=(product,)), [torch.ones(500, 500)])
    assert caught.value.fields["limit"] == "worker_seconds"


def test_a_body_is_looked_at_once_for_each_set_of_shapes() -> None:
    count = 0

    def inferred(entry: Any, args: Any, kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return estimate(entry, args, kwargs)

    estimate, forecast._inferred = forecast._inferred, inferred
    try:
        bodies = [DOUBLED]
        for at in range(12):
            bodies.append(body("i x", *[repeat(at, 2, [n(1)])] * 3, outputs=[n(2, 0)]))
        foresee(program("x", repeat(12, 3, [n(0)]), bodies=tuple(bodies)), [torch.ones(7)])
    finally:
        forecast._inferred = estimate
    assert count == 1


def test_ever_other_shapes_are_given_up_on() -> None:
    step = aten("cat.default", [n(0), n(0)])
    bodies = [body("x", *[aten("relu.default", n(0))] * 500)]
    for at in range(15):
        halves = (aten("slice.Tensor", n(0), 0, 0, 2**62 >> (40 - at)), aten("slice.Tensor", n(0), 0, at + 1))
        bodies.append(body("x", *halves, cond(True, at, at, n(1)), cond(True, at, at, n(2)), outputs=[n(3, 0)]))
    del step
    with pytest.raises((TooLarge, BadProgram)):
        foresee(program("x", cond(True, 15, 15, n(0)), bodies=tuple(bodies)), [torch.ones(5000)])


# --- what is wrong ----------------------------------------------------------------------------------------


def test_branches_that_differ_are_refused_whichever_would_run() -> None:
    p = program("x", cond(True, 0, 1, n(0)), bodies=(body("x", ADDED), body("x", aten("sum.default", n(0)))))
    with pytest.raises(BadProgram, match="different things"):
        foresee(p, [X])


def test_what_the_run_would_say_is_said_before() -> None:
    with pytest.raises(OperationFailed) as caught:
        foresee(program("x", ADDED, aten("mm.default", n(1), n(1)), outputs=n(2)), [X])
    assert (caught.value.fields["node"], caught.value.operation) == (1, "aten.mm.default")


def test_what_hangs_on_data_is_left_to_the_run() -> None:
    p = program("x", aten("nonzero.default", n(0)), aten("mm.default", n(1), n(1)), outputs=n(2))
    assert foresee(p, [X]).cost.work > 0


def test_forecasts_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    p = chain(3)
    first = foresee(p, [X])
    monkeypatch.setattr(forecast, "follow", None)
    assert foresee(p, [torch.zeros(256)]) == first
