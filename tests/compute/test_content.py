"""Inputs that name the contents they are to have."""

import pytest
import torch

from compute.content import bind, free
from compute.interpreter import run
from compute.program import Input, Program
from compute.program_types import check_types
from protocol.errors import BadRequest, NotFound
from tests.compute.flows import aten, n

NAME = "0f" * 32
INPUTS = (Input("x", "float32", ("rows", 2)), Input("w", "float32", (2, 2), NAME), Input("b"))
PROGRAM = Program(INPUTS, (aten("mm.default", n(0), n(1)), aten("add.Tensor", n(3), n(2))), n(4))


def test_what_is_named_by_contents_is_not_given() -> None:
    assert [given.name for given in free(INPUTS)] == ["x", "b"]
    held = {NAME: torch.eye(2) * 3}
    given = bind(INPUTS, [torch.ones(1, 2), torch.zeros(2)], held.get)
    assert run(PROGRAM, given).tolist() == [[3.0, 3.0]]


def test_contents_that_are_not_here_are_named() -> None:
    with pytest.raises(NotFound, match=f"'w' has the contents {NAME}") as caught:
        bind(INPUTS, [1, 2], lambda content: None)
    assert caught.value.fields == {"content": NAME}


@pytest.mark.parametrize("count", [0, 1, 3])
def test_only_the_others_are_given(count: int) -> None:
    with pytest.raises(BadRequest, match=r"takes 2 inputs \(x, b\)"):
        bind(INPUTS, [0] * count, lambda content: 1)


def test_what_it_names_is_part_of_its_id() -> None:
    other = Program((INPUTS[0], Input("w", "float32", (2, 2), "f0" * 32), INPUTS[2]), PROGRAM.nodes, PROGRAM.outputs)
    assert other.id != PROGRAM.id
    for program in (other, PROGRAM):
        assert Program.from_bytes(program.to_bytes()) == program
        assert Program.from_text(str(program)) == program
        check_types(program)
