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

import torch

TURN_BITS: Final = 32
"""Angles are words modulo one turn, in units of 2^-32 turns: all of an int32."""

CIRCLE_BITS: Final = 30
"""Fractional bits of the cosines and sines that are given."""

_QUARTER: Final = TURN_BITS - 2
# sin(pi x / 2) = x (k0 + k1 x^2 + ...) on [0, 1], to within 2e-11; in units of 2^-30.
_SINE: Final = (1686629713, -693598663, 85569264, -5026852, 172032, -3670)


def cosine_sine(turns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of angles, int32 words, as int64 with 30 fractional bits; errors below 2^-28."""
    angle = turns.to(torch.int64) & ((1 << TURN_BITS) - 1)
    quarter, within = angle >> _QUARTER, angle & ((1 << _QUARTER) - 1)
    sine, cosine = _sine(within), _sine((1 << _QUARTER) - within)
    # In the second and fourth quarter they change places; then the signs. Without a branch: -1 is all bits.
    changed = (sine ^ cosine) & -(quarter & 1)
    sine, cosine = sine ^ changed, cosine ^ changed
    below, left = -(quarter >> 1), -((quarter ^ (quarter >> 1)) & 1)
    return (cosine ^ left) - left, (sine ^ below) - below


def _sine(x: torch.Tensor) -> torch.Tensor:
    """sin(pi x / 2) for x in [0, 1], in units of 2^-30."""
    square = (x * x) >> CIRCLE_BITS
    total = square * _SINE[-1]
    for coefficient in reversed(_SINE[1:-1]):
        total = (total >> CIRCLE_BITS).add_(coefficient).mul_(square)
    return (total >> CIRCLE_BITS).add_(_SINE[0]).mul_(x).add_(1 << (CIRCLE_BITS - 1)) >> CIRCLE_BITS


def circles(turns: torch.Tensor, multiples: Sequence[int]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Cosine and sine of multiples of angles, one after the other, as doubles in units of 2^-30; errors below 2^-27.

    Each is turned on by the first from the one before. Sums, differences and products of doubles are exact to the last
    bit everywhere (IEEE 754), as long as each is an operation of its own.

    Args:
        multiples: 1, 2, 3 and so on, or 1, 3, 5 and so on.
    """
    cosine, sine = (each.to(torch.float64) for each in cosine_sine(turns))
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
Circle = tuple[torch.Tensor, torch.Tensor]


def _turned(one: Circle, other: Circle) -> Circle:
    """Cosine and sine of the sum of two angles."""
    cosine = (one[0] * other[0]).sub_(one[1] * other[1])
    sine = (one[1] * other[0]).add_(one[0] * other[1])
    return cosine, sine


_HALF_PI: Final = 1.5707963267948966
_ROUGH_SINE: Final = (1.0, -1 / 6, 1 / 120, -1 / 5040)
_ROUGH_COSINE: Final = (1.0, -1 / 2, 1 / 24, -1 / 720, 1 / 40320)


def rough_circles(turns: torch.Tensor, count: int, bits: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Cosine and sine of 1 to `count` times angles, int32 words, one after the other, as floats in units of 2^-bits:
    errors below count^2 * 2^-22. Each operation on its own is exact to the last bit everywhere, as in `circles`."""
    quarter = (turns + (1 << (_QUARTER - 1))) >> _QUARTER  # the nearest one
    angle = (turns - (quarter << _QUARTER)).to(torch.float32).mul_(_HALF_PI / (1 << _QUARTER))
    square = angle * angle
    sine, cosine = _even(square, _ROUGH_SINE).mul_(angle), _even(square, _ROUGH_COSINE)
    is_odd = (quarter & 1).to(torch.bool)
    sine, cosine = torch.where(is_odd, cosine, sine), torch.where(is_odd, sine, cosine)
    sine.mul_(1 - (quarter & 2))
    cosine.mul_(1 - ((quarter + 1) & 2))
    twice, unit = 2 * cosine, float(1 << bits)
    before, here = (torch.full_like(cosine, unit), torch.zeros_like(sine)), (cosine.mul_(unit), sine.mul_(unit))
    for at in range(count):
        yield here
        if at + 1 < count:  # cos (k + 1) a = 2 cos a cos k a - cos (k - 1) a
            before, here = here, ((twice * here[0]).sub_(before[0]), (twice * here[1]).sub_(before[1]))


def _even(square: torch.Tensor, coefficients: Sequence[float]) -> torch.Tensor:
    total = square * coefficients[-1]
    for coefficient in reversed(coefficients[1:-1]):
        total.add_(coefficient).mul_(square)
    return total.add_(coefficients[0])


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
