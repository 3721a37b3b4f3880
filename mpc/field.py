"""Arithmetic modulo the prime 2^61 - 1, on int64 tensors: for authenticated shares, whose MACs need a field.

Elements are in [0, P). 2^61 is 1, so that multiplying by a power of two turns the bits round. Products of matrices are
made of products of limbs, which int64 holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch

from mpc.bilinear import Bilinear, Convolve, MatrixProduct, Multiply
from mpc.ring import shift_logical

BITS: Final = 61
P: Final = (1 << BITS) - 1

_HALF: Final = 31
_LIMB: Final = 21
_LIMBS: Final = (0, _LIMB, 2 * _LIMB)
_SHORT: Final = 1 << 10
"""Sums of so many products of 31 and 21 bits fit; longer ones are made of 21 and 21."""


def reduced(words: torch.Tensor) -> torch.Tensor:
    """Any words, read as unsigned, modulo P."""
    if words.is_meta:  # here and below: scripts ask for shapes alone, of which one operation tells as much
        return words
    folded = (words & P) + shift_logical(words, BITS)
    return torch.where(folded >= P, folded - P, folded)


def from_words(words: torch.Tensor) -> torch.Tensor:
    """Signed words of less than 60 bits."""
    return torch.where(words < 0, words + P, words)


def to_words(elements: torch.Tensor) -> torch.Tensor:
    """Elements as signed words: those above P / 2 are negative."""
    return torch.where(elements > P >> 1, elements - P, elements)


def add(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return reduced(one + other)


def sub(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return reduced(one + (P - other))


def turned(elements: torch.Tensor, by: int) -> torch.Tensor:
    """Elements times 2^by."""
    by %= BITS
    return ((elements << by) & P) | (elements >> (BITS - by)) if by else elements


def times(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Element by element, broadcast."""
    if one.is_meta or other.is_meta:
        return one * other
    low = (1 << _HALF) - 1
    a, b, c, d = one >> _HALF, one & low, other >> _HALF, other & low
    middle = turned(reduced(a * d + b * c), _HALF)
    return reduced(reduced(b * d) + middle + turned(a * c, 2 * _HALF))


def opposite(elements: torch.Tensor) -> torch.Tensor:
    return reduced(P - elements)


def total(elements: torch.Tensor) -> torch.Tensor:
    """The sum of all of up to 2^31 elements, [1]."""
    return summed(elements, lambda part: part.sum().reshape(1))


def summed(elements: torch.Tensor, add_up: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Sums of up to 2^31 elements each, which `add_up` would give where they are small."""
    low, high = add_up(elements & ((1 << _HALF) - 1)), add_up(elements >> _HALF)
    return reduced(reduced(low) + turned(reduced(high), _HALF))


def apply(operation: Bilinear, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """operation(one, other)."""
    if one.is_meta or other.is_meta:
        return operation(one, other)
    if isinstance(operation, Multiply):
        return times(one, other)
    places = (0, _HALF) if _inner(operation, one, other) <= _SHORT else _LIMBS
    made: torch.Tensor | None = None
    for i in places:
        for j in _LIMBS:
            part = turned(reduced(operation(_limb(one, i, places[1]), _limb(other, j, _LIMB))), i + j)
            made = part if made is None else add(made, part)
    assert made is not None
    return made


def _limb(elements: torch.Tensor, place: int, width: int) -> torch.Tensor:
    return (elements >> place) & ((1 << width) - 1)


def _inner(operation: MatrixProduct | Convolve, one: torch.Tensor, other: torch.Tensor) -> int:
    """How many products are summed."""
    return int(one.shape[-1]) if isinstance(operation, MatrixProduct) else math.prod(other.shape[1:])
