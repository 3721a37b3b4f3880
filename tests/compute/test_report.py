"""What a running program tells: how far it is, and what each node took."""

from typing import Any

import pytest
import torch

from compute import pulse
from compute.interpreter import run
from compute.program import Program
from compute.report import Report
from protocol import limits
from protocol.errors import GridError, NotFound
from tests.compute.flows import aten, body, loop, n, program, repeat

KIB = 1 << 10
STEP = body("i x", aten("mul.Tensor", n(1), 2.0), aten("add.Tensor", n(2), 1.0))


@pytest.fixture
def always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is later than the one before by more than limits.LOOK."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 2 * limits.LOOK
        return now

    from compute import interpreter

    monkeypatch.setattr(pulse, "clock", clock)
    monkeypatch.setattr(interpreter, "clock", clock)


def looped() -> Program:
    return program("x", aten("relu.default", n(0)), repeat(0, 3, [n(1)]), bodies=(STEP,))


def observed(p: Program, *inputs: Any) -> list[tuple[int, str, int, int | None]]:
    seen: list[tuple[int, str, int, int | None]] = []
    run(p, list(inputs), observe=lambda *at: seen.append(at))
    return seen


@pytest.mark.usefixtures("always_due")
@pytest.mark.parametrize("runs", [1, 2])
def test_who_watches_is_told_the_node_and_the_iteration(runs: int) -> None:
    p = looped()
    for _ in range(runs):
        seen = observed(p, torch.ones(3))
    assert seen[0] == (0, "aten.relu.default", 0, None)
    assert [at for at in dict.fromkeys(seen) if at[0] == 1][-3:] == [(1, "flow.repeat", done, 3) for done in range(3)]


@pytest.mark.usefixtures("always_due")
def test_of_loops_in_loops_the_outer_iterations_are_told() -> None:
    outer = body("i x", repeat(0, 5, [n(1)]), outputs=[n(2, 0)])
    p = program("x", repeat(1, 2, [n(0)]), bodies=(STEP, outer))
    assert {at[2:] for at in observed(p, torch.ones(1))} <= {(0, None), (0, 2), (1, 2)}


@pytest.mark.usefixtures("always_due")
def test_how_often_a_while_will_run_is_not_known() -> None:
    test = body("x", aten("lt.Scalar", n(0), 10.0), aten("all.default", n(1)))
    p = program("x", loop(0, 1, [n(0)]), bodies=(test, body("x", aten("add.Tensor", n(0), 4.0))))
    assert {at[2:] for at in observed(p, torch.zeros(1))} == {(0, None), (1, None), (2, None)}


def test_who_watches_is_not_told_all_the_time() -> None:
    assert observed(looped(), torch.ones(3)) == []


@pytest.mark.usefixtures("always_due")
def test_who_watches_may_end_it() -> None:
    def end(node: int, operation: str, done: int, total: int | None) -> None:
        if done == 2:
            raise NotFound("ended")

    with pytest.raises(NotFound, match="ended"):
        run(looped(), [torch.ones(3)], observe=end)


@pytest.mark.usefixtures("always_due")
def test_a_loop_of_nothing_may_be_ended_too() -> None:
    seen = observed(program("x", repeat(0, 100, [n(0)]), bodies=(body("i x", outputs=[n(1)]),)), torch.ones(1))
    assert (0, "flow.repeat", 99, 100) in seen


# --- reports ----------------------------------------------------------------------------------------------


def test_each_node_is_reported_with_its_runs_and_memory() -> None:
    report = Report()
    run(looped(), [torch.ones(256)], report=report)
    assert [(taken.body, taken.node, taken.operation, taken.runs) for taken in report.nodes] == [
        (None, 0, "aten.relu.default", 1),
        (None, 1, "flow.repeat", 1),
        (0, 0, "aten.mul.Tensor", 3),
        (0, 1, "aten.add.Tensor", 3),
    ]
    assert [taken.nbytes for taken in report.nodes] == [KIB, 0, 3 * KIB, 3 * KIB]
    assert report.peak == 2 * KIB
    assert all(taken.seconds > 0 for taken in report.nodes)
    assert report.nodes[1].seconds >= report.nodes[2].seconds + report.nodes[3].seconds
    assert report.seconds == report.nodes[0].seconds + report.nodes[1].seconds


def test_views_and_writes_take_no_memory() -> None:
    report = Report()
    p = program(
        "x",
        aten("view.default", n(0), [16, 16]),
        aten("clone.default", n(1)),
        aten("add_.Tensor", n(2), 1.0),
        aten("t.default", n(3)),
        outputs=n(4),
    )
    run(p, [torch.ones(256)], report=report)
    assert [taken.nbytes for taken in report.nodes] == [0, KIB, 0, 0]
    assert report.peak == KIB


def test_results_are_the_same_with_a_report() -> None:
    p, x = looped(), torch.randn(5)
    assert torch.equal(run(p, [x], report=Report()), run(p, [x]))


def test_a_report_of_a_run_that_fails_has_what_ran() -> None:
    report = Report()
    p = program("x", aten("relu.default", n(0)), aten("mm.default", n(1), n(1)), outputs=n(2))
    with pytest.raises(GridError):
        run(p, [torch.ones(3)], report=report)
    assert [taken.runs for taken in report.nodes] == [1, 0]
