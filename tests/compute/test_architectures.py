"""Any architecture as a program: those of public tutorials, at sizes that it was not captured with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from compute.model import ModelSpec, ProgramModule, capture_model
from protocol.errors import BadProgram, BadRequest
from tests.compute.architectures import GPT, ZOO, Options, Recurrent, Seq2Seq, words

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, of its transformers


def same(have: Any, want: Any) -> bool:
    """Whether two results are equal within 1e-5; an object of a class of its own and the dict of its fields are."""
    if dataclasses.is_dataclass(want) and not isinstance(want, type):
        want = {field.name: getattr(want, field.name) for field in dataclasses.fields(want)}
    if isinstance(want, torch.Tensor):
        return (
            have.dtype == want.dtype and have.shape == want.shape and torch.allclose(have, want, atol=1e-5, rtol=1e-5)
        )
    if isinstance(want, Mapping):
        return have.keys() == want.keys() and all(same(have[key], want[key]) for key in want)
    if isinstance(want, list | tuple):
        return type(have) is type(want) and len(have) == len(want) and all(map(same, have, want))
    return type(have) is type(want) and bool(have == want)


def called(module: Any, call: Any) -> Any:
    with torch.no_grad():
        return module(**call) if isinstance(call, dict) else module(*call)


@pytest.mark.parametrize("name", ZOO)
def test_an_architecture_is_a_program_that_gives_the_same(name: str) -> None:
    torch.manual_seed(0)
    case = ZOO[name]
    module = case.make()
    captured = capture_model(module, case.example())
    program = ProgramModule(ModelSpec.from_wire(captured.to_wire()), captured.tensors(module))
    module.eval()
    for call in case.calls():
        assert same(called(program, call), called(module, call))


def test_gpt_decodes_with_its_cache() -> None:
    torch.manual_seed(0)
    module = GPT().eval()
    spec = capture_model(module, ZOO["gpt"].example())
    program = ProgramModule(spec, spec.tensors(module))
    tokens, found = words(3, 4), [words(3, 0)]
    step, cache = tokens, module.empty(3)
    for _ in range(8):
        logits, cache = called(program, (step, cache))
        step = logits[:, -1:].argmax(-1)
        found.append(step)
    whole = tokens
    for _ in range(8):
        whole = torch.cat([whole, called(module, (whole, module.empty(3)))[0][:, -1:].argmax(-1)], 1)
    assert torch.equal(torch.cat([tokens, *found], 1), whole)


# --- arguments --------------------------------------------------------------------------------------------


def options(**example: Any) -> ProgramModule:
    module = Options()
    spec = capture_model(module, example)
    return ProgramModule(ModelSpec.from_wire(spec.to_wire()), spec.tensors(module))


def test_settings_are_part_of_the_program_and_may_be_given_again() -> None:
    model = options(x=torch.zeros(2, 4), scale=2.0)
    x = torch.randn(3, 4)
    assert torch.equal(model(x), model(x=x, mask=None, scale=2.0, residual=False, times=1))
    assert str(model.spec.signature) == "x, mask=None, scale=2.0, residual=False, times=1"


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"scale": 3.0}, r"captured with scale=2.0, which is part of its program"),
        ({"residual": 0}, r"captured with residual=False"),
        ({"mask": torch.zeros(2, 4)}, r"captured with mask=None"),
        ({"other": 1}, r"the model takes x, mask=None, scale=2.0"),
    ],
)
def test_other_settings_are_refused_with_what_they_were(kwargs: dict[str, Any], said: str) -> None:
    model = options(x=torch.zeros(2, 4), scale=2.0)
    with pytest.raises(BadRequest, match=said):
        model(torch.zeros(2, 4), **kwargs)


@pytest.mark.parametrize(
    ("hidden", "said"),
    [
        ((torch.zeros(2, 2, 10),), "hidden is a tuple of 2"),
        (torch.zeros(2, 2, 10), "hidden is a tuple of 2"),
        ((torch.zeros(2, 2, 10), None), r"needs hidden\[1\] too"),
    ],
)
def test_nested_arguments_that_do_not_fit_say_where(hidden: Any, said: str) -> None:
    case = ZOO["language model"]
    module = case.make()
    spec = capture_model(module, case.example())
    with pytest.raises(BadRequest, match=said):
        ProgramModule(spec, spec.tensors(module))(words(6, 2), hidden)


class Lists(nn.Module):
    """Takes any number of tensors, and settings and a dict of tensors by name."""

    def forward(self, *parts: torch.Tensor, **named: Any) -> torch.Tensor:
        return torch.cat([*parts, *named.get("last", {}).values()]) * named.get("factor", 1)


def test_any_number_of_arguments() -> None:
    spec = capture_model(Lists(), (torch.zeros(2), torch.zeros(3)))
    x, y = torch.randn(4), torch.randn(5)
    assert torch.equal(ProgramModule(spec, {})(x, y), torch.cat([x, y]))
    with pytest.raises(BadRequest, match="takes parts_0, parts_1"):
        ProgramModule(spec, {})(x, y, x)
    spec = capture_model(Lists(), {"last": {"one": x}, "factor": 2})
    assert torch.equal(ProgramModule(spec, {})(last={"one": y}), y * 2)
    with pytest.raises(BadRequest, match="last is a dict of one"):
        ProgramModule(spec, {})(last={"two": y})


@pytest.mark.parametrize(
    "arguments",
    [
        None,
        [["x", {"input": "x"}]],
        [["x", {"input": "y"}, False]],
        [["x", {"input": "input"}, False], ["x", None, False]],
        [["x", {"input": "input"}, False], ["y", {"input": "input"}, False]],
        [["x", {"input": "input"}, 1]],
        [["", {"input": "input"}, False]],
        [["x", {"input": "input", "map": {}}, False]],
        [["x", {"code": "input"}, False]],
        [["x", {"map": [{"input": "input"}]}, False]],
        [["x", {"tuple": {"input": "input"}}, False]],
        [["x", b"", False]],
        [["x", [[[[[[[[[[[[[[[[[[{"input": "input"}]]]]]]]]]]]]]]]]]], False]],
    ],
)
def test_hostile_arguments_are_refused(arguments: Any) -> None:
    wire = capture_model(nn.Linear(3, 2)).to_wire()
    with pytest.raises(BadProgram):
        ModelSpec.from_wire({**wire, "arguments": arguments})


# --- sizes ------------------------------------------------------------------------------------------------


def test_the_length_of_a_sequence_is_open_though_a_kernel_loops_over_it() -> None:
    module = Recurrent(nn.GRU)
    spec = capture_model(module, words(2, 6))
    assert spec.program.inputs[-1].shape == (None, None)


def test_a_length_that_the_program_is_made_for_stays() -> None:
    module = Seq2Seq()
    spec = capture_model(module, (words(2, 6), words(2, 4)))
    assert [given.shape for given in spec.program.inputs[-2:]] == [(None, None), (None, 4)]


class Loop(nn.Module):
    """Its program has as many steps as the input that it was captured with."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = x.new_zeros(x.shape[0], 4)
        for step in range(x.shape[1]):
            hidden = self.cell(x[:, step], hidden)
        return hidden


def test_a_model_whose_input_was_worked_out_refuses_a_length_that_it_was_not_made_for() -> None:
    module = nn.Sequential(nn.Linear(3, 3), Loop())
    spec = capture_model(module)
    length = (spec.program.inputs[-1].shape or ())[1]
    assert isinstance(length, int)
    program = ProgramModule(spec, spec.tensors(module))
    x = torch.randn(5, length, 3)
    assert same(called(program, (x,)), called(module.eval(), (x,)))
    with pytest.raises(BadRequest, match="was given as"):
        program(torch.randn(5, length + 2, 3))


def test_what_the_table_does_not_have_is_written_out() -> None:
    module = ZOO["tcn"].make()
    spec = capture_model(module)
    assert "aten._weight_norm.default" not in spec.program.operations
    assert "aten.linalg_vector_norm.default" in spec.program.operations
