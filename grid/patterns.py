"""Tensors that tell no more than their size and a number or two: `0 1 2 ...`, identities, triangles (causal masks).

A square of two numbers is made at a peer from its size, where its band lies, and the numbers: no mask or identity is
too large to go along with a call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from compute.dtypes import NAME_OF


@dataclass(frozen=True, slots=True)
class Band:
    """`inside` from diagonal `first` to diagonal `last` (0 is the main one, those above it are positive), and `outside`
    elsewhere; the same for each sample, if there are dimensions before the two."""

    size: int
    first: int
    last: int
    inside: Any
    outside: Any
    is_plain: bool  # the last two dimensions are the square

    def make(self, dtype: torch.dtype, post: Callable[[str, Sequence[Any], dict[str, Any]], Any]) -> Any:
        """Makes one square with operations: `post` queues one, and gives what its result is called."""
        shape = [self.size, self.size]
        where = post("aten.full.default", [shape, True], {"dtype": {"dtype": "bool"}})
        where = post("aten.triu.default", [where, self.first], {})
        where = post("aten.tril.default", [where, self.last], {})
        made = post("aten.full.default", [shape, self.outside], {"dtype": {"dtype": NAME_OF[dtype]}})
        return post("aten.masked_fill.Scalar", [made, where, self.inside], {})


def is_ramp(tensor: torch.Tensor) -> bool:
    """Whether it is `0 1 2 ...` or `1 2 3 ...`, times a number, along some dimensions, the same along the others."""
    if not is_comparable(tensor) or tensor.dtype == torch.bool:
        return False
    steps = _without_repeats(tensor).flatten()
    if len(steps) < 2:
        return False
    step, places = steps[1] - steps[0], torch.arange(len(steps))
    if steps[0] != 0 and steps[0] != step:
        return False
    wanted = (places + int(steps[0] != 0)) * step
    is_exact = not tensor.is_floating_point() and not tensor.is_complex()
    return torch.equal(steps, wanted) if is_exact else torch.allclose(steps, wanted)


def is_one_number(tensor: torch.Tensor) -> bool:
    """Whether all its elements are the same, zeros by their sign as well; where there are none they are."""
    return is_comparable(tensor) and (not tensor.numel() or bool(alike(tensor, tensor.flatten()[0]).all()))


def is_comparable(tensor: torch.Tensor) -> bool:
    """Whether torch compares and adds numbers of its dtype; of others nothing is found out."""
    return tensor.dtype in _CALCULATED


_CALCULATED: Final = frozenset(
    {
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex64,
        torch.complex128,
    }
)


def alike(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Where they are the same; -0.0 is not 0.0."""
    if one.is_complex():
        return alike(one.real, other.real) & alike(one.imag, other.imag)
    same = one == other
    return same & (one.signbit() == other.signbit()) if one.is_floating_point() else same


def _without_repeats(tensor: torch.Tensor) -> torch.Tensor:
    """One of all that are the same along a dimension."""
    for dimension, size in enumerate(tensor.shape):
        first = tensor.narrow(dimension, 0, 1)
        if size > 1 and bool(alike(tensor, first).all()):
            tensor = first
    return tensor


def band(tensor: torch.Tensor) -> Band | None:
    """What it is; None where it is another tensor, one of integers, or the same everywhere."""
    is_whole = not (tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex())
    if not is_comparable(tensor) or is_whole:
        return None
    once = _without_repeats(tensor)
    square = once.squeeze()
    size = len(square) if square.dim() else 0
    if size < 2 or square.shape != (size, size):
        return None
    along = torch.cat([square[1:, 0].flip(0), square[0]])  # each diagonal's number, from the lowest to the highest
    changes = ((~alike(along[1:], along[:-1])).nonzero().flatten() + 1).tolist()
    if not 1 <= len(changes) <= 2 or (len(changes) == 2 and not alike(along[0], along[-1])):
        return None
    rows = torch.arange(size)
    if not bool(alike(square, along[rows - rows[:, None] + size - 1]).all()):
        return None
    first, last = (changes[0], changes[1] - 1) if len(changes) == 2 else (changes[0], 2 * size - 2)
    is_plain = once.shape[-2:] == square.shape
    return Band(size, first - size + 1, last - size + 1, along[first].item(), along[0].item(), is_plain)
