"""Functions as tutorials write them: captured, through bytes, run by the interpreter, equal to Python's own results."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from compute.capture import capture
from compute.interpreter import run
from compute.program import Program
from tests.compute.tutorial_functions import CASES


def tensors(value: Any) -> list[torch.Tensor]:
    leaves = [leaf for leaf in pytree.tree_leaves(value) if leaf is not None]
    found: list[torch.Tensor] = []
    for leaf in leaves:
        state = dict(sorted(leaf.state_dict().items())) if isinstance(leaf, torch.nn.Module) else {"": leaf}
        found += [torch.as_tensor(each).detach() for each in state.values()]
    return found


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_plan_gives_what_python_gives(name: str) -> None:
    function, make = CASES[name]
    torch.manual_seed(0)
    arguments = make()
    captured = capture(function, arguments)
    program = Program.from_bytes(captured.program.to_bytes())
    with torch.no_grad():
        outputs = run(program, [captured.given[path].detach() for path in captured.inputs])
    result = captured.result(outputs, lambda _, parts: dict(sorted(parts.items())))
    wanted = function(*copy.deepcopy(arguments))
    found, expected = tensors(result), tensors(wanted)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 40
