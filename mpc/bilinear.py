"""Operations that are linear in each of two arguments, on words: what one multiplication of secrets may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Multiply:
    """Element by element, broadcast."""

    def __call__(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return one * other


@dataclass(frozen=True, slots=True)
class MatrixProduct:
    """As torch.matmul: [..., n, k] and [..., k, m]."""

    def __call__(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        if one.dim() == other.dim() == 2 and one.shape[0] == 1:
            # A row alone: torch's product of integer matrices takes seven times as long.
            return torch.mv(other.mT, one[0]).unsqueeze(0)
        return torch.matmul(one, other)


@dataclass(frozen=True, slots=True)
class Convolve:
    """As aten.convolution without a bias: [n, c, *size] and [out, c / groups, *kernel], of any rank; one number a
    dimension in each setting. By unfolding: torch has no convolution of integers on a CPU."""

    stride: Sizes
    padding: Sizes
    dilation: Sizes
    groups: int = 1

    def __call__(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        columns, size = self._columns(one, tuple(other.shape[2:]))
        filters = other.reshape(self.groups, other.shape[0] // self.groups, -1)
        made = torch.matmul(filters, columns.view(one.shape[0], self.groups, filters.shape[2], -1))
        return made.view(one.shape[0], other.shape[0], *size)

    def _columns(self, images: torch.Tensor, kernel: Sizes) -> tuple[torch.Tensor, Sizes]:
        """[n, c * the kernel's size, the result's size]: the patches; and the result's size by dimension."""
        if any(self.padding):
            images = functional.pad(images, [each for each in reversed(self.padding) for _ in range(2)])
        n, c, *size = images.shape
        out = tuple(
            (size[at] - self.dilation[at] * (kernel[at] - 1) - 1) // self.stride[at] + 1 for at in range(len(kernel))
        )
        strides = images.stride()
        steps = [strides[2 + at] * self.dilation[at] for at in range(len(kernel))]
        jumps = [strides[2 + at] * self.stride[at] for at in range(len(kernel))]
        patches = images.as_strided((n, c, *kernel, *out), (strides[0], strides[1], *steps, *jumps))
        return patches.reshape(n, c * math.prod(kernel), math.prod(out)), out


def spread(
    images: torch.Tensor, stride: Sizes, padding: Sizes, dilation: Sizes, kernel: Sizes, extra: Sizes
) -> torch.Tensor:
    """What a plain convolution, with `turned` weights, makes a transposed one's result of: zeros between the elements
    and around them."""
    n, c, *size = images.shape
    wide = images.new_zeros(n, c, *((each - 1) * stride[at] + 1 for at, each in enumerate(size)))
    places: list[Any] = [..., *(slice(None, None, each) for each in stride)]
    wide[tuple(places)] = images
    edges: list[int] = []
    for at in reversed(range(len(size))):
        edge = dilation[at] * (kernel[at] - 1) - padding[at]
        edges += [edge, edge + extra[at]]
    return functional.pad(wide, edges)


def turned(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """[c, out / groups, *kernel], as transposed convolutions have them, as [out, c / groups, *kernel], reversed."""
    c, out, *kernel = weight.shape
    grouped = weight.view(groups, c // groups, out, *kernel).transpose(1, 2)
    return grouped.reshape(groups * out, c // groups, *kernel).flip(tuple(range(2, 2 + len(kernel))))


Bilinear = Multiply | MatrixProduct | Convolve
