"""Kernels for 16-bit numbers that count in them, or write nothing: what would show foreign memory is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compute.interpreter import execute
from compute.table import lookup
from protocol.errors import BadRequest

SHORT = (torch.bfloat16, torch.float16)


def sampled(size: tuple[int, int], dtype: torch.dtype, **how: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """An image, and where it is looked at."""
    return torch.rand(1, 1, *size).to(dtype, **how), (torch.rand(1, 4, 4, 2) * 2 - 1).to(dtype)


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("size", [(182, 182), (1, 300), (300, 1)])
def test_an_image_whose_pixels_they_do_not_count_is_refused(size: tuple[int, int], dtype: torch.dtype) -> None:
    image, grid = sampled(size, dtype)
    for name in ("grid_sampler", "grid_sampler_2d"):
        with pytest.raises(BadRequest, match=r"sides of at most 256 here, and 32768 pixels: use \.float\(\)"):
            execute(lookup(f"aten.{name}.default"), [image, grid, 0, 1, False], {})
    with pytest.raises(BadRequest, match="32768 pixels"):
        backward = [torch.ones(1, 1, 4, 4, dtype=dtype), image, grid, 0, 1, False, [True, True]]
        execute(lookup("aten.grid_sampler_2d_backward.default"), backward, {})


def test_one_that_lies_far_apart_is_refused_too() -> None:
    image, grid = sampled((170, 170), torch.bfloat16)
    apart = torch.zeros(1, 1, 170, 340, dtype=torch.bfloat16)[..., ::2].copy_(image)
    with pytest.raises(BadRequest, match="32768 pixels"):
        execute(lookup("aten.grid_sampler_2d.default"), [apart, grid, 0, 1, False], {})


@pytest.mark.parametrize("dtype", [*SHORT, torch.float32])
def test_others_are_sampled_as_plain_torch_samples_them(dtype: torch.dtype) -> None:
    entry = lookup("aten.grid_sampler_2d.default")
    for size in ((128, 256), (170, 170), *[(182, 182)] * (dtype is torch.float32)):
        args = [*sampled(size, dtype), 0, 1, True]
        assert torch.equal(execute(entry, args, {}), entry.overload(*args))


@pytest.mark.parametrize("dtype", SHORT)
def test_a_sum_of_nothing_is_refused(dtype: torch.dtype) -> None:
    """Of bfloat16 it was what had been in memory."""
    args = [torch.ones(5, dtype=dtype), torch.ones(8, 17, 8, dtype=dtype), torch.ones(8, 8, 5, dtype=dtype)]
    entry = lookup("aten.baddbmm.default")
    with pytest.raises(BadRequest, match="write zeros instead"):
        execute(entry, args, {"alpha": 0, "beta": 0.0})
    for factors in ({"alpha": 0}, {"beta": 0}, {}):
        assert torch.equal(execute(entry, args, dict(factors)), entry.overload(*args, **factors))
