"""What a program writes in place is, on shares, a new tensor by the old one's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import grid
from compute import interpreter
from compute.program import Input, Node, Program
from mpc.lowering import lower
from protocol.errors import OperationNotAllowed
from tests.mpc.shares import OnShares, lowered
from tests.mpc.test_listed_operations import check

IN_PLACE = [
    ("relu_.default", []),
    ("clamp_min_.default", [0.75]),
    ("mul_.Tensor", [{"node": 1}]),
    ("lt_.Tensor", [{"node": 1}]),
    ("ge_.Scalar", [0.75]),
    ("logical_and_.default", [{"node": 1}]),
]


@pytest.mark.parametrize(("name", "more"), IN_PLACE, ids=[name for name, _ in IN_PLACE])
def test_what_is_written_in_place_is_meant_by_both_names(name: str, more: list[Any]) -> None:
    given = {"x": torch.rand(4, 6) - 0.25, "y": torch.rand(4, 6)}
    inputs = tuple(Input(each, "float32", (4, 6)) for each in given)
    nodes = (
        Node("aten.mul.Tensor", [{"node": 0}, 1.5]),
        Node(f"aten.{name}", [{"node": 2}, *more]),
        Node("aten.add.Tensor", [{"node": 2}, {"node": 3}]),
    )
    program = Program(inputs, nodes, [{"node": 2}, {"node": 4}])
    want = interpreter.run(program, list(given.values()))
    check(OnShares(lower(program, list(given.values()), [True, True]), given).result(), want)


def test_secret_places_that_were_changed_in_place_are_places() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x.gather(1, (x.argmax(1, keepdim=True) - 6).relu_())

    x = torch.rand(4, 6)
    check(lowered(function, {"x": x}).result(), function(x))


def _written_under_a_view(x: torch.Tensor) -> list[torch.Tensor]:
    x = x * 1
    part, turned = x[1:], x.T
    powers = torch.exp(part)
    x.add_(1)
    part.mul_(0.5)
    return [x, part, turned, torch.log(powers)]


def _written_through_another_view(x: torch.Tensor) -> list[torch.Tensor]:
    x = x * 1
    flat = x.view(-1)
    x.relu_()
    flat.sub_(1)
    x.neg_()
    return [x, flat]


def _written_into_a_public_one(x: torch.Tensor) -> list[torch.Tensor]:
    made = torch.zeros(6, 6)
    rows, below = made.unbind(0), made[1:]
    made[0] = x[0]
    made[1] = rows[0] * 2
    rows[2].copy_(x[1])
    made[3] = x.sum()
    below.add_(1)
    return [made, *rows, below]


def _written_before_a_loop(x: torch.Tensor) -> torch.Tensor:
    x = x * 1
    part = x[1]
    x.add_(1)
    return grid.repeat(700, lambda at, made: made * 0.9 + part, x)


@pytest.mark.parametrize(
    "function",
    [
        _written_under_a_view,
        _written_through_another_view,
        _written_into_a_public_one,
        _written_before_a_loop,
    ],
)
def test_a_view_shows_what_was_written_to_what_it_is_of(function: Callable[[torch.Tensor], Any]) -> None:
    x = torch.rand(4, 6) - 0.5
    check(lowered(function, {"x": x}).result(), function(x))


def test_an_outdated_view_of_what_is_not_in_order_is_refused_and_only_where_it_is_used() -> None:
    def function(x: torch.Tensor, is_used: bool) -> torch.Tensor:
        turned = (x.T + 0).mul_(1.5)
        part = turned[1:]
        turned.add_(1)
        return turned + (part.sum() if is_used else 0)

    x = torch.rand(4, 6)
    check(lowered(lambda x: function(x, False), {"x": x}).result(), function(x, False))
    with pytest.raises(OperationNotAllowed, match="view of a transposed"):
        lowered(lambda x: function(x, True), {"x": x})
