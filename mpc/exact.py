"""Functions of public words, in integers alone.

What all parties multiply their shares by has to be the same bit by bit: where one had a unit more, the result would be
off by its share, which is anything. The mathematical functions of processors and libraries differ in their last bits;
integer arithmetic does not. So everything here is int64, with constants that are written out or computed exactly.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Final

import torch

TURN_BITS: Final = 46
"""Angles are words modulo one turn, in units of 2^-46 turns."""

CIRCLE_BITS: Final = 24
"""Fractional bits of the cosines and sines that are given."""

_FINE: Final = 30  # bits of the arithmetic inside
# sin(pi x / 2) = x (k0 + k1 x^2 + ...) on [0, 1], to within 2e-11; in units of 2^-30.
_SINE: Final = (1686629713, -693598663, 85569264, -5026852, 172032, -3670)


def cosine_sine(turns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of angles, int64 words modulo 2^46, with 24 fractional bits; errors below 2^-24."""
    angle = (turns & ((1 << TURN_BITS) - 1)) >> (TURN_BITS - _FINE)
    quarter = angle >> (_FINE - 2)
    within = (angle & ((1 << (_FINE - 2)) - 1)) << 2  # 2^30 is a quarter of a turn
    rising, falling = _sine(within), _sine((1 << _FINE) - within)
    is_odd = (quarter & 1).bool()
    sine = torch.where(is_odd, falling, rising)
    cosine = torch.where(is_odd, rising, falling)
    return torch.where((quarter == 1) | (quarter == 2), -cosine, cosine), torch.where(quarter >= 2, -sine, sine)


def _sine(x: torch.Tensor) -> torch.Tensor:
    """sin(pi x / 2) for x in [0, 1], in units of 2^-30; rounded to 24 bits."""
    square = (x * x) >> _FINE
    total = torch.full_like(x, _SINE[-1])
    for coefficient in reversed(_SINE[:-1]):
        total = coefficient + ((total * square) >> _FINE)
    return (((total * x) >> _FINE) + (1 << (_FINE - CIRCLE_BITS - 1))) >> (_FINE - CIRCLE_BITS)


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
