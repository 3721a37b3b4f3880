"""Modules whose loops and branches stay such in their programs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import grid
from compute.model import ModelSpec, ProgramModule, capture_model
from protocol.errors import CannotCapture

TABLE = torch.randn(2000, 3)


class Looped(nn.Module):
    """Nested arguments, settings, tied weights, a buffer, a part that is not used, a table from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.norm, self.unused = nn.BatchNorm1d(3), nn.Linear(7, 7)
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, pair: dict[str, Any], *more: Tensor, times: int = 3, mode: str = "sum") -> dict[str, Any]:
        def step(i: Tensor, x: Tensor) -> Tensor:
            return torch.tanh(self.second(self.first(x)) * self.scale + pair["y"][0] + TABLE[i])

        x = grid.repeat(times, step, self.norm(pair["x"]))
        return {"x": x, "more": [getattr(x + each, mode)() for each in more], "note": mode}


class Branched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: self.large(x), lambda x: self.small(x), (x,))  # type: ignore[no-any-return]


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen: Tensor = self.seen + grid.repeat(3, lambda i, s: s + x.sum(), torch.zeros(()))
        return x + self.seen


def sent(module: nn.Module, example: Any) -> ProgramModule:
    spec = capture_model(module, example)
    return ProgramModule(ModelSpec.from_wire(spec.to_wire()), spec.tensors(module))


def test_a_module_with_a_loop_is_a_program_with_a_loop() -> None:
    module = Looped().eval()

    def given(rows: int) -> tuple[Any, ...]:
        return {"x": torch.randn(rows, 3), "y": (torch.randn(rows, 3), 2)}, torch.randn(3), torch.randn(rows, 1)

    model = sent(module, given(5))
    operations = [node.operation for node in model.spec.program.nodes]
    assert operations.count("flow.repeat") == 1 and "aten.tanh.default" not in operations
    assert [slot.same_as for slot in model.spec.slots if slot.same_as] == ["first.weight"]
    assert set(model.state_dict()) == set(module.state_dict())
    for rows in (5, 2, 9):
        example = given(rows)
        have, want = model(*example), module(*example)
        assert have["note"] == "sum" and torch.allclose(have["x"], want["x"], atol=1e-6)
        assert all(map(torch.allclose, have["more"], want["more"]))


def test_a_module_that_branches_by_values_does_so_in_its_program() -> None:
    module = Branched().eval()
    model = sent(module, torch.ones(3, 4))
    assert "flow.cond" in [node.operation for node in model.spec.program.nodes]
    for sign in (1, -1):
        x = torch.rand(6, 4) * sign
        assert torch.allclose(model(x), module(x))


def test_a_module_is_left_as_it_was_and_one_that_changes_itself_is_refused() -> None:
    module = Counting()
    with pytest.raises(CannotCapture, match="changes seen when it runs"):
        capture_model(module, torch.ones(2))
    assert module.seen == 0 and module.training
