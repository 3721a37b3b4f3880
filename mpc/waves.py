"""Functions f with f(c - r) = a sum of products of functions of c and of r: one opening of x + r, and no polynomial.

The dealer knows r and deals shares of what of r is needed; the parties know c. What is opened is uniform modulo 2^m,
so that it tells nothing.

    series   sums of sines and cosines of multiples of x: the addition theorems, modulo one turn
             1 round, 4 bytes an element; 16 dealt bytes for each multiple
    exp      e^(c - r) = e^(low c) * [e^(-low r) * e^(high c - high r)], the bracket from a dealt table that is
             rotated by the high digit of r
             1 round, 4 bytes an element; 128 dealt bytes

Adversary: semi-honest, all parties but one may collude, but not with the dealer. The idea of Fourier series on shares:
Zheng, Zhang, Xu and others, ACSAC 2023; of rotated tables: Ishai and others, TCC 2013.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch

from mpc.correlations import Correlation, Words
from mpc.exact import CIRCLE_BITS, POWER_BITS, TURN_BITS, circles, power
from mpc.party import Party
from mpc.pieces import Array, by_pieces
from mpc.ring import WIDTH, signed
from mpc.rounds import Opening, Protocol
from mpc.secret import Secret

_COEFFICIENT_BITS: Final = 24
DEALT_BITS: Final = 24  # of the cosines and sines that are dealt


@dataclass(frozen=True, slots=True)
class Angles(Correlation):
    """A uniform angle r, [count], and the cosines and sines of its multiples, [2 * multiples, count]."""

    count: int
    multiples: tuple[int, ...]

    @property
    def free(self) -> Sequence[Words]:
        return (Words((self.count,), torch.int32),)

    @property
    def derived(self) -> Sequence[Words]:
        return (Words((2 * len(self.multiples), self.count)),)

    def derive(self, free: Sequence[torch.Tensor], kept: torch.Tensor | None) -> Sequence[torch.Tensor]:
        return by_pieces(self._circles, free[0])

    def _circles(self, angle: Array) -> Sequence[Array]:
        made = np.empty((2 * len(self.multiples), *angle.shape), np.int64)
        for at, (cosine, sine) in enumerate(circles(angle, self.multiples)):
            made[2 * at] = np.rint(cosine * 2.0 ** (DEALT_BITS - CIRCLE_BITS))
            made[2 * at + 1] = np.rint(sine * 2.0 ** (DEALT_BITS - CIRCLE_BITS))
        return [made]


@dataclass(frozen=True, slots=True)
class Series:
    """constant + sum over k of cosines[k] cos(2 pi multiples[k] x / period) + sines[k] sin(...)."""

    period: float
    multiples: tuple[int, ...]
    sines: tuple[float, ...]
    cosines: tuple[float, ...] = ()
    constant: float = 0.0

    def per_unit(self, bits: int) -> int:
        """What a word with so many fractional bits is multiplied by, to be an angle in units of 2^-64 turns."""
        return signed(round((1 << WIDTH) / (1 << bits) / self.period) % (1 << WIDTH))


def series(party: Party, x: Secret, *wanted: Series, precision: int = _COEFFICIENT_BITS) -> Protocol[list[Secret]]:
    """The values of series of one period and the same multiples, of x modulo that period. One round for all of them.

    Args:
        precision: fractional bits of the coefficients; the values have 24 more.

    Each party cuts off the low bits of its share of the angle, which moves x by less than a 2^-30th of the period.
    |x| is below 2^28: beyond, the rounding of the period shows, unless that is a power of two.
    """
    first = wanted[0]
    dealt = party.take(Angles(x.share.numel(), first.multiples))
    angle = (x.share.reshape(-1) * first.per_unit(x.bits)) >> (WIDTH - TURN_BITS)
    opened = yield Opening(sums=[angle.to(torch.int32).add_(dealt.free[0])])
    totals = by_pieces(partial(_sums, wanted, precision), opened.sums[0], dealt.derived[0])
    made, bits = [], DEALT_BITS + precision
    for total, each in zip(totals, wanted, strict=True):
        if party.is_first and each.constant:
            total += round(each.constant * (1 << bits))
        made.append(Secret(total.view(x.shape), bits, x.dtype))
    return made


def _sums(wanted: Sequence[Series], precision: int, angle: Array, dealt: Array) -> Sequence[Array]:
    """A share of each series but for its constant.

    Sums and products of doubles are rounded the same way everywhere (IEEE 754), where each is an operation of its own.
    """
    totals = [np.zeros_like(dealt[0]) for _ in wanted]
    unit = 2.0 ** (precision - CIRCLE_BITS)
    for at, (cosine, sine) in enumerate(circles(angle, wanted[0].multiples)):
        for total, each in zip(totals, wanted, strict=True):
            a, b = (part[at] * unit if part else 0.0 for part in (each.cosines, each.sines))
            # a cos(c - r) + b sin(c - r)
            of_cosine, of_sine = sine * b, cosine * -b
            if a:
                of_cosine += cosine * a
                of_sine += sine * a
            for part, factor in zip((of_cosine, of_sine), dealt[2 * at : 2 * at + 2], strict=True):
                words = part.astype(np.int64)
                words *= factor
                total += words
    return totals


_COSINE: Final = Series(2 * math.pi, (1,), (0.0,), (1.0,))
_SINE: Final = Series(2 * math.pi, (1,), (1.0,))


def cos_sin(party: Party, x: Secret) -> Protocol[list[Secret]]:
    """Cosine and sine of x in radians, for |x| < 2^28. One round, 4 bytes an element."""
    return (yield from series(party, x, _COSINE, _SINE))


# --- exp ----------------------------------------------------------------------------------------------------

CELLS: Final = 16
CELL_BITS: Final = 1  # a cell is 2 wide
LOWEST: Final = -16
"""exp takes LOWEST <= x < LARGEST."""
LARGEST: Final = 14
_WIDTH: Final = 5  # and the fractional bits: a word is opened modulo 32
TABLE_BITS: Final = 20


@dataclass(frozen=True, slots=True)
class Powers(Correlation):
    """A uniform r in [0, 32), [count], and for each cell j the power e^(2 ((j - high r) mod 16) - 16 - low r),
    [count, 16]."""

    count: int
    bits: int
    """Fractional bits of r."""

    @property
    def free(self) -> Sequence[Words]:
        return (Words((self.count,), torch.int32, width=_WIDTH + self.bits),)

    @property
    def derived(self) -> Sequence[Words]:
        return (Words((self.count, CELLS)),)

    def derive(self, free: Sequence[torch.Tensor], kept: torch.Tensor | None) -> Sequence[torch.Tensor]:
        high, low = _digits(free[0], self.bits)
        cells = torch.arange(CELLS, device=high.device)
        turned = ((cells - cells.unsqueeze(1)) % CELLS).double() * (1 << CELL_BITS) + LOWEST
        small = torch.exp(low.to(torch.float64) / -(1 << self.bits)) * (1 << TABLE_BITS)
        return [torch.round(torch.exp(turned)[high] * small.unsqueeze(1)).to(torch.int64)]


def _digits(words: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    words = words.to(torch.int64)
    width = bits + CELL_BITS
    return words >> width, words & ((1 << width) - 1)


def exp(party: Party, x: Secret) -> Protocol[Secret]:
    """e^x for LOWEST <= x < LARGEST, which is for the caller to see to; x < LARGEST - 2 where three parties deal for
    themselves (halves.py). One round, 4 bytes an element. The error is below 3e-5 of the larger of 1 and the value.

    The low digits may borrow: then the high digit is one too many, and the low ones make up for it.
    """
    places, every = x.bits, (1 << (_WIDTH + x.bits)) - 1
    dealt = party.take(Powers(x.share.numel(), places))
    moved = x.share.reshape(-1) - (LOWEST << places) if party.is_first else x.share.reshape(-1)
    opened = yield Opening(sums=[((moved & every).to(torch.int32) + dealt.free[0]) & every])
    high, low = _digits(opened.sums[0] & every, places)
    rotated = dealt.derived[0].gather(1, high.unsqueeze(1)).squeeze(1)
    share = rotated * power(low, places, places + CELL_BITS)
    return Secret(share.view(x.shape), TABLE_BITS + POWER_BITS, x.dtype)
