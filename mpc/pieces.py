"""Work on long tensors, piece by piece: what a piece needs stays in the processor's cache, and its room is used again.

Fresh memory costs as much as the arithmetic on it: a step of a few dozen operations on a million words takes a third of
the time this way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch

BYTES: Final = 1 << 17
"""Of a piece of the widest tensor: a few dozen of these are in the second cache at once."""


def by_pieces(work: Callable[..., Sequence[torch.Tensor]], *given: torch.Tensor) -> Sequence[torch.Tensor]:
    """What `work(*given)` gives, computed on pieces of the last dimension, which all given tensors have in common.

    `work` goes element by element along that dimension, and what it gives has it too.
    """
    length = given[0].shape[-1]
    if given[0].is_meta:
        # Of one element, for the shapes: what torch does on its meta device takes a hundred times as long.
        parts = work(*(torch.zeros((*each.shape[:-1], 1), dtype=each.dtype) for each in given))
        return [part.new_empty((*part.shape[:-1], length), device="meta") for part in parts]
    size = BYTES // max(each.element_size() for each in given)
    if length < 2 * size:
        return work(*given)
    made: list[torch.Tensor] = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        parts = work(*(each[..., start:stop] for each in given))
        if not made:
            made = [part.new_empty((*part.shape[:-1], length)) for part in parts]
        for whole, part in zip(made, parts, strict=True):
            whole[..., start:stop] = part
    return made
