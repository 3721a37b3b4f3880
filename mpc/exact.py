"""Functions of public words, the same at all parties bit by bit.

What all parties multiply their shares by has to be the same bit by bit: where one had a unit more, the result would be
off by its share, which is anything. The mathematical functions of processors and libraries differ in their last bits;
integer arithmetic does not, and neither do single sums and products of doubles (IEEE 754). So there is nothing else
here, and constants are written out or computed exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Final

import numpy as np
import torch

from mpc.pieces import Array

TURN_BITS: Final = 32
"""Angles are words modulo one turn, in units of 2^-32 turns: all of an int32."""

CIRCLE_BITS: Final = 30
"""Fractional bits of the cosines and sines that are given."""

Circle = tuple[Array, Array]
"""Cosines and sines of angles."""

_QUARTER: Final = TURN_BITS - 2
# sin(pi x / 2) = x (k0 + k1 x^2 + ...) on [0, 1], to within 2e-11; in units of 2^-30.
_SINE: Final = (1686629713, -693598663, 85569264, -5026852, 172032, -3670)


def cosine_sine(turns: Array) -> tuple[Array, Array]:
    """Cosine and sine of angles, int32 words, as int64 with 30 fractional bits; errors below 2^-28."""
    angle = turns.view(np.uint32).astype(np.int64)
    quarter, within = angle >> _QUARTER, angle & ((1 << _QUARTER) - 1)
    sine, cosine = _sine(within), _sine((1 << _QUARTER) - within)
    # In the second and fourth quarter they change places; then the signs. Without a branch: -1 is all bits.
    changed = (sine ^ cosine) & -(quarter & 1)
    sine ^= changed
    cosine ^= changed
    below, left = -(quarter >> 1), -((quarter ^ (quarter >> 1)) & 1)
    return (cosine ^ left) - left, (sine ^ below) - below


def _sine(x: Array) -> Array:
    """sin(pi x / 2) for x in [0, 1], in units of 2^-30."""
    square = (x * x) >> CIRCLE_BITS
    total = square * _SINE[-1]
    for coefficient in reversed(_SINE[1:-1]):
        total >>= CIRCLE_BITS
        total += coefficient
        total *= square
    total >>= CIRCLE_BITS
    total += _SINE[0]
    total *= x
    total += 1 << (CIRCLE_BITS - 1)
    total >>= CIRCLE_BITS
    return total


def circles(turns: Array, multiples: Sequence[int]) -> Iterator[Circle]:
    """Cosine and sine of multiples of angles, one after the other, as doubles in units of 2^-30; errors below 2^-27.

    Each is turned on by the first from the one before. Sums, differences and products of doubles are exact to the last
    bit everywhere (IEEE 754), as long as each is an operation of its own.

    Args:
        multiples: 1, 2, 3 and so on, or 1, 3, 5 and so on.
    """
    cosine, sine = (each.astype(np.float64) for each in cosine_sine(turns))
    step = (cosine * _UNIT, sine * _UNIT)
    distance = multiples[1] - 1 if len(multiples) > 1 else 1
    assert distance in (1, 2) and list(multiples) == [1 + at * distance for at in range(len(multiples))]
    if distance == 2:
        step = _turned(step, step)
    for at in range(len(multiples)):
        if at:
            cosine, sine = _turned((cosine, sine), step)
        yield cosine, sine


_UNIT: Final = 2.0**-CIRCLE_BITS


def _turned(one: Circle, other: Circle) -> Circle:
    """Cosine and sine of the sum of two angles."""
    cosine = one[0] * other[0]
    cosine -= one[1] * other[1]
    sine = one[1] * other[0]
    sine += one[0] * other[1]
    return cosine, sine


_HALF_PI: Final = 1.5707963267948966
_ROUGH_SINE: Final = (1.0, -1 / 6, 1 / 120, -1 / 5040)
_ROUGH_COSINE: Final = (1.0, -1 / 2, 1 / 24, -1 / 720, 1 / 40320)


def rough_circles(turns: Array, count: int, bits: int) -> Iterator[Circle]:
    """Cosine and sine of 1 to `count` times angles, int32 words, one after the other, as floats in units of 2^-bits:
    errors below count^2 * 2^-22. Each operation on its own is exact to the last bit everywhere, as in `circles`."""
    quarter = (turns + (1 << (_QUARTER - 1))) >> _QUARTER  # the nearest one
    angle = (turns - (quarter << _QUARTER)).astype(np.float32)
    angle *= _HALF_PI / (1 << _QUARTER)
    square = angle * angle
    sine, cosine = _even(square, _ROUGH_SINE), _even(square, _ROUGH_COSINE)
    sine *= angle
    # In odd quarters they change places; then the signs, which are the highest bits.
    words, others = sine.view(np.int32), cosine.view(np.int32)
    changed = (words ^ others) & -(quarter & 1)
    words ^= changed
    others ^= changed
    words ^= (quarter & 2) << (TURN_BITS - 2)
    others ^= ((quarter + 1) & 2) << (TURN_BITS - 2)
    twice, unit = 2 * cosine, float(1 << bits)
    cosine *= unit
    sine *= unit
    before, here = (np.full_like(cosine, unit), np.zeros_like(sine)), (cosine, sine)
    for at in range(count):
        yield here
        if at + 1 < count:  # cos (k + 1) a = 2 cos a cos k a - cos (k - 1) a
            cosine, sine = twice * here[0], twice * here[1]
            cosine -= before[0]
            sine -= before[1]
            before, here = here, (cosine, sine)


def _even(square: Array, coefficients: Sequence[float]) -> Array:
    total = square * coefficients[-1]
    for coefficient in reversed(coefficients[1:-1]):
        total += coefficient
        total *= square
    total += coefficients[0]
    return total


POWER_BITS: Final = 18
"""Fractional bits of the powers that are given."""

_SMALL: Final = 9  # a table for these low bits of the exponent, and one for those above


def power(exponents: torch.Tensor, bits: int, width: int) -> torch.Tensor:
    """e^x for x = exponents / 2^bits, where 0 <= exponents < 2^width; with 18 fractional bits."""
    high, low = _table(bits - _SMALL, width - _SMALL), _table(bits, _SMALL)
    at_high, at_low = exponents >> _SMALL, exponents & ((1 << _SMALL) - 1)
    made = high.to(exponents.device)[at_high] * low.to(exponents.device)[at_low]
    return (made + (1 << (2 * _TABLE_BITS - POWER_BITS - 1))) >> (2 * _TABLE_BITS - POWER_BITS)


_TABLE_BITS: Final = 28
_tables: Final[dict[tuple[int, int], torch.Tensor]] = {}


def _table(bits: int, width: int) -> torch.Tensor:
    """e^(i / 2^bits) for all i of so many bits, in units of 2^-28, rounded exactly."""
    found = _tables.get((bits, width))
    if found is None:
        step, fine = _exact_power(Fraction(1, 1 << bits)), 1 << 120
        values, current = [], fine
        for _ in range(1 << width):
            values.append((current + (1 << (119 - _TABLE_BITS))) >> (120 - _TABLE_BITS))
            current = current * step >> 120
        found = _tables[bits, width] = torch.tensor(values, dtype=torch.int64)
    return found


def _exact_power(exponent: Fraction) -> int:
    """e^exponent in units of 2^-120, by its series."""
    total, term, at = Fraction(0), Fraction(1), 0
    while term > Fraction(1, 1 << 140):
        total, at = total + term, at + 1
        term = term * exponent / at
    return int(total * (1 << 120))
