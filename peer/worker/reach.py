"""Which part of its memory a strided view can touch, from its sizes and strides alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence


def reach(offset: int, sizes: Sequence[int], strides: Sequence[int], gap: int) -> Iterator[tuple[int, int]]:
    """Ranges (start, stop) in elements, in order and apart, that hold every element of the view.

    What lies between two elements is counted in where it is no more than `gap` elements, so that there are at most
    as many ranges as there are such gaps in the memory. None for a view without elements.
    """
    if 0 in sizes:
        return
    extent, jumps = 1, list[tuple[int, int]]()  # elements close together, and (stride, size) of leaps over a gap
    whole = 1  # elements from the first to the last
    for stride, size in sorted(zip(strides, sizes, strict=True)):
        if size == 1 or stride == 0:
            continue
        if jumps and stride <= whole + gap:  # the leaps interlock, or nearly: take all of it
            jumps, extent = [], whole
        if jumps or stride > extent + gap:
            jumps.append((stride, size))
        else:
            extent += (size - 1) * stride
        whole += (size - 1) * stride
    leaps = [range(0, stride * size, stride) for stride, size in reversed(jumps)]
    for leap in itertools.product(*leaps):
        start = offset + sum(leap)
        yield start, start + extent
