"""What was lowered, or what a run takes, is found once for each program, shapes and public values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compute.capture import capture
from mpc import lowering, remembered
from mpc.interpreter import run
from mpc.lowering import Lowered
from mpc.script import Script, script_of
from mpc.secret import Secret


def _counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[int]:
    calls: list[int] = []
    whole = getattr(module, name)

    def noting(*args: Any) -> Any:
        calls.append(1)
        return whole(*args)

    monkeypatch.setattr(module, name, noting)
    return calls


def _lowered(function: Any, size: int = 4, weight: float = 2.0, precision: int = 16) -> Lowered:
    inputs = {"x": torch.ones(size), "w": torch.full((size,), weight)}
    captured = capture(function, inputs)
    values = [inputs[name] for name in captured.inputs]
    return remembered.lower(captured.program, values, [name == "x" for name in captured.inputs], precision)


def test_a_program_is_lowered_once_for_its_shapes_and_public_values(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _counted(monkeypatch, lowering, "lower")

    def weighted(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.relu(x * w) + 41

    first = _lowered(weighted)
    assert _lowered(weighted) is first
    assert len(calls) == 1
    others = [_lowered(weighted, size=5), _lowered(weighted, weight=3.0), _lowered(weighted, precision=20)]
    assert len(calls) == 4
    assert all(each is not first for each in others)


def test_what_is_drawn_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _counted(monkeypatch, lowering, "lower")

    def dropped(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(x * w, 0.5, True)

    one, other = _lowered(dropped, 64), _lowered(dropped, 64)
    assert len(calls) == 2
    assert one is not other


def test_a_script_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _counted(monkeypatch, remembered, "script_of")
    lowered = _lowered(lambda x, w: torch.sigmoid(x) * w)

    def found(size: int, count: int, purpose: str = "") -> Script:
        secrets = [Secret(torch.empty(size, dtype=torch.int64, device="meta"), 16, torch.float32)]
        return remembered.script(
            purpose, lowered, secrets, lambda party: run(party, lowered.program, [*secrets, *lowered.public]), count
        )

    first = found(4, 2)
    assert found(4, 2) is first
    assert found(4, 3) == first  # the same, but not known to be
    assert found(4, 2, "another") is not first
    assert len(calls) == 3
    secrets = [Secret(torch.empty(4, dtype=torch.int64, device="meta"), 16, torch.float32)]
    assert first == script_of(lambda party: run(party, lowered.program, [*secrets, *lowered.public]), 2)


def test_few_are_kept() -> None:
    recent = remembered._Recent[int](3)
    for at in range(5):
        recent.put(at, at)
        recent.get(0)
    assert (len(recent), recent.get(0), recent.get(2), recent.get(4)) == (3, 0, None, 4)
