"""Every operation that runs on shares does so eagerly too, on secret tensors, and gives what plain torch gives."""

from __future__ import annotations

import pytest
import torch

from grid.secret.tensor import SecretTensor
from tests.grid.secret_stand_in import secret, secrets
from tests.mpc.test_operations import _CASES, _X, _Y, Function

_IN_INFERENCE_MODE = ("conv2d", "bn train w", "layer_norm", "views", "chunk", "ce secret", "attention", "einsum")


async def _agrees(function: Function) -> None:
    of, want = secrets(), function(_X, _Y)
    made = function(secret(of, _X), secret(of, _Y))
    assert isinstance(made, SecretTensor) and made.dtype == want.dtype and made.stride() == want.stride()
    got = await made.get()
    assert got.dtype == want.dtype and got.shape == want.shape
    gap = (got.double() - want.double()).abs() / want.double().abs().clamp(min=1)
    assert float(gap.max()) < (1e-3 if want.is_floating_point() else 0.5)


_ELSEWHERE = {"bn train"}  # it keeps statistics in tensors that are here: refused


@pytest.mark.parametrize("name", [name for name in _CASES if name not in _ELSEWHERE])
async def test_it_gives_eagerly_what_it_gives_in_the_clear(name: str) -> None:
    await _agrees(_CASES[name])


@pytest.mark.parametrize("name", _IN_INFERENCE_MODE)
async def test_composite_operations_that_come_whole_are_as_well(name: str) -> None:
    with torch.inference_mode():
        await _agrees(_CASES[name])
