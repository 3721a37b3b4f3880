"""Indices that a pooling made are not looked at again by its gradient; all others are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compute import value_guards
from compute.interpreter import run
from compute.program import Program
from compute.proven import Call, proven
from protocol.errors import BadRequest
from tests.compute.flows import aten, n, program

POOL, BACK = "aten.max_pool2d_with_indices.default", "aten.max_pool2d_with_indices_backward.default"
GIVEN = frozenset({"x", "y"})


def pool(x: str = "x", gives: str = "i", *more: Any) -> Call:
    return Call(POOL, [x, [2, 2], *more], True, ("o", gives), [])


def back(x: str = "x", indices: Any = "i") -> Call:
    return Call(BACK, ["g", x, [2, 2], [2, 2], [0, 0], [1, 1], False, indices], True, ("d",), [])


def other(*writes: str) -> Call:
    return Call("aten.add_.Tensor", [*writes, "y"], True, ("z",), writes)


@pytest.mark.parametrize(
    "calls",
    [
        [pool(), back()],
        [pool(), other(), back()],
        [pool(), other("y"), back()],
        [other("z"), pool(), back()],
        [pool("x", "i", [2, 2], [0, 0], [1, 1]), back()],
        [pool("x", "i", 2, 0, 1), back()],
        [
            Call("aten.adaptive_max_pool2d.default", ["x", [2, 2]], True, ("o", "i"), []),
            Call("aten.adaptive_max_pool2d_backward.default", ["g", "x", "i"], True, ("d",), []),
        ],
    ],
)
def test_proven(calls: list[Call]) -> None:
    assert proven(calls, GIVEN) == [len(calls) - 1]


@pytest.mark.parametrize(
    "calls",
    [
        [back()],  # they are given
        [pool(), back("y")],  # of another input
        [pool(), back(indices="o")],
        [pool(), back(indices=[1])],
        [pool(), other("z"), back()],  # it may be a view of the indices
        [pool(), other("x"), back()],  # it may be of another shape now
        [pool(), Call("aten.linear.default", [], True, (), None), back()],
        [pool("x", "i", [2, 2], [0, 0], [2, 2]), back()],  # a window beside the input has an index beside it
        [pool("x", "i", [2, 2], [0, 0], 3), back()],
        [pool("x", "i", [2, 2], [0, 0], "v"), back()],
        [Call(POOL, ["x", [2, 2]], False, ("o", "i"), []), back()],
        [Call("aten.max_pool3d_with_indices.default", ["x", [2, 2]], True, ("o", "i"), []), back()],
    ],
)
def test_not_proven(calls: list[Call]) -> None:
    assert proven(calls, GIVEN) == []


def trained(*between: Any, back_to: int = 0) -> Program:
    """A pooling of the first input, and its gradient with the second."""
    count = 3 + len(between)
    gradient = aten(BACK.removeprefix("aten."), n(1), n(back_to), [2, 2], [2, 2], [0, 0], [1, 1], False, n(2, 1))
    pooled = aten(POOL.removeprefix("aten."), n(0), [2, 2], [2, 2])
    return program("x g", pooled, *between, gradient, outputs=n(count))


def looks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The tensors of which the range is looked at from now on."""
    seen: list[Any] = []
    whole = value_guards._range

    def counted(tensor: torch.Tensor) -> Any:
        seen.append(tensor)
        return whole(tensor)

    monkeypatch.setattr(value_guards, "_range", counted)
    return seen


def test_a_program_looks_at_them_in_its_first_run_only(monkeypatch: pytest.MonkeyPatch) -> None:
    p, seen = trained(), looks(monkeypatch)
    x, g = torch.randn(1, 4, 4), torch.ones(1, 2, 2)
    first = run(p, [x, g])
    assert len(seen) == 1
    assert torch.equal(run(p, [x, g]), first)
    assert len(seen) == 1
    assert torch.equal(run(p, [-x, g]).sum(), g.sum())


def test_a_program_that_may_write_to_them_looks_each_time() -> None:
    p = trained(aten("view.default", n(2, 1), [1]), aten("mul_.Tensor", n(3), n(3)))
    g = torch.ones(1, 1, 1)
    assert run(p, [torch.tensor([[[1.0, 0], [0, 0]]]), g]).sum() == 1
    for _ in range(2):
        with pytest.raises(BadRequest, match="indices must lie"):
            run(p, [torch.tensor([[[0.0, 0], [0, 1]]]), g])  # the square of 3
