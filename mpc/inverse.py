"""1 / z for 1/16 <= z <= 1, and 0 for 0 where that is multiplied by 0: a coarse wave, and a step of Newton's.

A wave (waves.py) that is right to within a hundredth takes half the multiples of one that is right to within 1e-4, and
words of 32 bits: a quarter of what is dealt and computed. What comes out of it, modulo 2^32, is opened under a mask of
32 bits, of which are dealt what truncation needs, and that times two masks of whole words (`Start`): so it is a factor
of two products from then on, none of which opens it again. y (2 - z y) has the square of its error.

    4 rounds, 32 bytes an element from each party to each other; 144 dealt bytes

Adversary: semi-honest, all parties but one may collude, but not with the dealer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch

from mpc.comparison import truncate, truncate_and_choose
from mpc.correlations import Correlation, Words
from mpc.exact import TURN_BITS, rough_circles
from mpc.party import Party
from mpc.pieces import Array, by_pieces, upper
from mpc.ring import WIDTH, signed
from mpc.rounds import Opening, Protocol, together

HALF: Final = 32  # bits of the wave's words
_CIRCLE_BITS: Final = 14  # of the cosines and sines of what is open
WAVE_BITS: Final = 11  # of what is dealt of the mask
_RAISED: Final = 1 << (HALF - 2)  # makes the wave's value non-negative while it is truncated
_START_BITS: Final = 10  # fractional bits of what Newton's step begins with
CUT: Final = _CIRCLE_BITS + WAVE_BITS - _START_BITS
_MOST: Final = 36  # fractional bits that z may have: with the square of the start, and 16, it fits a word
_KEPT: Final = 30  # that it gets where it has more

# 1 / z = constant + sum of COSINES[k] cos(k a) + SINES[k] sin(k a), a = pi z 23 / 16, for z from 1/16 to 1. A
# least-squares fit, reweighted towards the smallest largest relative error: 4.6e-3.
_HALF_TURNS: Final = (23, 4)  # a / pi for z = 1, and by how many bits too large that is
_CONSTANT: Final = 16.64104
COSINES: Final = (24.46642, 11.45976, 0.06978, -4.92909, -4.40514, -2.08215, -0.52590, -0.04477)
SINES: Final = (-11.73850, -17.70388, -14.71250, -7.59694, -1.92020, 0.35751, 0.47758, 0.14006)


@dataclass(frozen=True, slots=True)
class Wave(Correlation):
    """A uniform angle r, [count], and what multiplies the cosines and sines of multiples of an angle c so that the sum
    is the wave of c - r: [2 * multiples, count], of 32 bits."""

    count: int

    @property
    def free(self) -> Sequence[Words]:
        return (Words((self.count,), torch.int32),)

    @property
    def derived(self) -> Sequence[Words]:
        return (Words((2 * len(COSINES), self.count), torch.int32),)

    def derive(self, free: Sequence[torch.Tensor], kept: torch.Tensor | None) -> Sequence[torch.Tensor]:
        return by_pieces(self._factors, free[0])

    def _factors(self, angle: Array) -> Sequence[Array]:
        made = np.empty((2 * len(COSINES), *angle.shape), np.int32)
        for at, (cosine, sine) in enumerate(rough_circles(angle, len(COSINES), WAVE_BITS)):
            a, b = COSINES[at], SINES[at]
            # a cos(c - r) + b sin(c - r) = cos c (a cos r - b sin r) + sin c (a sin r + b cos r)
            made[2 * at] = np.rint(cosine * a - sine * b)
            made[2 * at + 1] = np.rint(sine * a + cosine * b)
        return [made]


@dataclass(frozen=True, slots=True)
class Start(Correlation):
    """A uniform r of 32 bits, and two words a, [count] each. Derived, [2, count] each: r's upper bits (r >> CUT) and
    its highest one; and these times the first a; and times the second."""

    count: int

    @property
    def free(self) -> Sequence[Words]:
        return Words((self.count,), torch.int32), Words((2, self.count))

    @property
    def derived(self) -> Sequence[Words]:
        return [Words((2, self.count))] * 3

    def derive(self, free: Sequence[torch.Tensor], kept: torch.Tensor | None) -> Sequence[torch.Tensor]:
        return by_pieces(self._products, *free)

    @staticmethod
    def _products(r: Array, factors: Array) -> Sequence[Array]:
        digits = np.stack([_upper(r, CUT), _upper(r, HALF - 1)])
        return [digits, digits * factors[0], digits * factors[1]]


def _upper(words: Array, cut: int) -> Array:
    """32-bit words shifted right as unsigned ones, in 64 bits."""
    return upper(words, cut).astype(np.int64)


def inverse(
    party: Party, z: torch.Tensor, bits: int, wanted: int, sign: torch.Tensor | None = None
) -> Protocol[torch.Tensor]:
    """A share of 1 / z with `wanted` fractional bits: relative error below 1e-4, and 2^-wanted. Four rounds.

    Args:
        z: this party's share, [n], n a multiple of bits.GROUP.
        bits: fractional bits of it.
        sign: packed XOR shares of where the result is to be negative.
    """
    most = _MOST if bits <= _MOST else _KEPT
    wave, z = yield from together(_wave(party, z, bits), truncate(party, z, max(0, bits - most)))
    bits = min(bits, most)
    dealt = party.take(Start(z.shape[0]))
    r, (one, other) = dealt.free[0], dealt.free[1]
    wave += r
    if party.is_first:
        wave += _RAISED
    c, masked = (yield Opening(sums=[wave, z - one])).sums
    own, first, second = dealt.derived
    y, w = by_pieces(partial(_once, party.is_first), c, z, masked, own, first)
    masked = (yield Opening(sums=[w - other])).sums[0]
    (made,) = by_pieces(partial(_twice, party.is_first, bits + _START_BITS + 1), c, y, w, masked, own, second)
    cut = bits + 2 * _START_BITS - wanted
    if sign is None:
        return (yield from truncate(party, made, cut))
    size, of_negative = yield from truncate_and_choose(party, made, cut, sign)
    return size.sub_(of_negative, alpha=2)


def _known(c: Array) -> tuple[Array, Array]:
    """What follows of the open c = x + 2^30 + r, modulo 2^32: scale and constant of x >> CUT, which is scale * (r's
    highest bit) - (r >> CUT) + constant. (As in comparison.mask.)"""
    scale = _upper(~c, HALF - 1)
    scale <<= HALF - CUT
    constant = _upper(c, CUT)
    constant -= _RAISED >> CUT
    return scale, constant


def _once(is_first: bool, c: Array, z: Array, masked: Array, own: Array, of_a: Array) -> Sequence[Array]:
    """Shares of y, the start, and of z * y, for the open z - a."""
    scale, constant = _known(c)
    y = scale * own[1]
    y -= own[0]
    w = scale * of_a[1]
    w -= of_a[0]
    w += y * masked
    w += constant * z
    if is_first:
        y += constant
    return [y, w]


def _twice(
    is_first: bool, shift: int, c: Array, y: Array, w: Array, masked: Array, own: Array, of_a: Array
) -> Sequence[Array]:
    """A share of 2 y - w y, for the open w - a; 2 y has `shift` fractional bits less."""
    scale, constant = _known(c)
    product = scale * of_a[1]
    product -= of_a[0]
    product += constant * w
    made = y << shift
    made -= product
    made -= (y - constant if is_first else y) * masked
    return [made]


def _wave(party: Party, z: torch.Tensor, bits: int) -> Protocol[torch.Tensor]:
    """A share modulo 2^32 of the wave's value. One round, 4 bytes an element."""
    dealt = party.take(Wave(z.shape[0]))
    turns, too_large = _HALF_TURNS
    angle = (z * signed(turns << (WIDTH - 1 - too_large - bits))) >> (WIDTH - TURN_BITS)
    opened = yield Opening(sums=[angle.to(torch.int32).add_(dealt.free[0])])
    (total,) = by_pieces(partial(_sum, party.is_first), opened.sums[0], dealt.derived[0])
    return total


def _sum(is_first: bool, angle: Array, dealt: Array) -> Sequence[Array]:
    total = np.full_like(dealt[0], round(_CONSTANT * (1 << (_CIRCLE_BITS + WAVE_BITS))) if is_first else 0)
    for at, circle in enumerate(rough_circles(angle, len(COSINES), _CIRCLE_BITS)):
        for each, factor in zip(circle, dealt[2 * at : 2 * at + 2], strict=True):
            words = np.rint(each).astype(np.int32)
            words *= factor
            total += words
    return [total]
