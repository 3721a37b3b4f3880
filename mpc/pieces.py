"""Work on the words of tensors, by numpy, which adds and multiplies whole words in half of torch's time, and calls in a
third; on long ones piece by piece: what a piece needs stays in the processor's cache, and its room is used again.

Fresh memory costs as much as the arithmetic on it: a step of a few dozen operations on a million words takes a third of
the time this way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]

BYTES: Final = 1 << 17
"""Of a piece of the widest tensor: a few dozen of these are in the second cache at once."""


def by_pieces(work: Callable[..., Sequence[Array]], *given: torch.Tensor) -> list[torch.Tensor]:
    """What `work` gives of the arrays of these tensors, computed on pieces of the last dimension, which all given
    tensors have in common.

    `work` goes element by element along that dimension, and what it gives has it too. It does not change what it is
    given.
    """
    length = given[0].shape[-1]
    if given[0].is_meta:
        return _shapes(work, given, 1)
    size = BYTES // max(each.element_size() for each in given)
    arrays = [each.numpy() for each in given]
    if length < 2 * size:
        return [torch.from_numpy(each) for each in work(*arrays)]
    made: list[Array] = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        parts = work(*[each[..., start:stop] for each in arrays])
        if not made:
            made = [np.empty((*part.shape[:-1], length), part.dtype) for part in parts]
        for whole, part in zip(made, parts, strict=True):
            whole[..., start:stop] = part
    return [torch.from_numpy(each) for each in made]


def at_once(work: Callable[..., Sequence[Array]], unit: int, *given: torch.Tensor) -> list[torch.Tensor]:
    """The same on whole tensors, for work that packs elements: the last dimension of the first of them is a multiple of
    `unit`, and `work` does with any multiple as with another."""
    if given[0].is_meta:
        return _shapes(work, given, unit)
    return [torch.from_numpy(each) for each in work(*[each.numpy() for each in given])]


def _shapes(work: Callable[..., Sequence[Array]], given: Sequence[torch.Tensor], unit: int) -> list[torch.Tensor]:
    """What it gives on the meta device: of one unit, since what torch does there takes a hundred times as long."""
    times = given[0].shape[-1] // unit
    small = [
        torch.zeros((*each.shape[:-1], each.shape[-1] // times if times else 0), dtype=each.dtype) for each in given
    ]
    parts = [torch.from_numpy(part) for part in work(*[each.numpy() for each in small])]
    return [part.new_empty((*part.shape[:-1], part.shape[-1] * times), device="meta") for part in parts]


def upper(words: Array, by: int) -> Array:
    """Words of any size shifted right as unsigned ones, in a place of their own."""
    shifted: Array = (words.view(f"u{words.itemsize}") >> by).view(words.dtype)
    return shifted
