"""Functions f with f(c - r) = a sum of products of functions of c and of r: one opening of x + r, and no polynomial.

The dealer knows r and deals shares of what of r is needed; the parties know c. What is opened is uniform modulo 2^m,
so that it tells nothing.

    series   sums of sines and cosines of multiples of x: the addition theorems, modulo one turn
             1 round, 8 bytes an element; 16 dealt bytes for each multiple
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
from typing import Final

import torch

from mpc.correlations import Correlation, Words
from mpc.exact import CIRCLE_BITS, POWER_BITS, TURN_BITS, cosine_sine, power
from mpc.party import Party
from mpc.ring import PRECISION
from mpc.rounds import Opening, Protocol
from mpc.secret import Secret

_COEFFICIENT_BITS: Final = 24
_TURN: Final = 1 << TURN_BITS


@dataclass(frozen=True, slots=True)
class Angles(Correlation):
    """A uniform angle r, [count], and the cosines and sines of its multiples, [2 * multiples, count]."""

    count: int
    multiples: tuple[int, ...]

    @property
    def free(self) -> Sequence[Words]:
        return (Words((self.count,), width=TURN_BITS),)

    @property
    def derived(self) -> Sequence[Words]:
        return (Words((2 * len(self.multiples), self.count)),)

    def derive(self, free: Sequence[torch.Tensor], kept: torch.Tensor | None) -> Sequence[torch.Tensor]:
        return [torch.stack([part for multiple in self.multiples for part in cosine_sine(free[0] * multiple)])]


@dataclass(frozen=True, slots=True)
class Series:
    """constant + sum over k of cosines[k] cos(2 pi multiples[k] x / period) + sines[k] sin(...)."""

    period: float
    multiples: tuple[int, ...]
    sines: tuple[float, ...]
    cosines: tuple[float, ...] = ()
    constant: float = 0.0

    def per_unit(self, bits: int) -> int:
        """What a word with so many fractional bits is multiplied by, to be an angle."""
        return round(_TURN / (1 << bits) / self.period)


def series(party: Party, x: Secret, *wanted: Series, precision: int = _COEFFICIENT_BITS) -> Protocol[list[Secret]]:
    """The values of series of one period and the same multiples, of x modulo that period. One round for all of them.

    Args:
        precision: fractional bits of the coefficients; those of the values are CIRCLE_BITS more.

    |x| is below 2^15: beyond, the rounding of the period shows, unless that is a power of two.
    """
    first, rest = wanted[0], CIRCLE_BITS + _COEFFICIENT_BITS - precision
    dealt = party.take(Angles(x.share.numel(), first.multiples))
    angle = x.share.reshape(-1) * first.per_unit(x.bits)
    opened = yield Opening(sums=[(angle + dealt.free[0]) & (_TURN - 1)])
    totals = [torch.zeros_like(angle) for _ in wanted]
    for index, multiple in enumerate(first.multiples):
        cos_c, sin_c = cosine_sine(opened.sums[0] * multiple)
        cos_r, sin_r = dealt.derived[0][2 * index], dealt.derived[0][2 * index + 1]
        for total, each in zip(totals, wanted, strict=True):
            a = _coefficient(each.cosines[index]) if each.cosines else 0
            b = _coefficient(each.sines[index]) if each.sines else 0
            total += ((a * cos_c + b * sin_c) >> rest) * cos_r
            total += ((a * sin_c - b * cos_c) >> rest) * sin_r
    bits = CIRCLE_BITS + precision
    made = []
    for total, each in zip(totals, wanted, strict=True):
        if party.is_first and each.constant:
            total += round(each.constant * (1 << bits))
        made.append(Secret(total.view(x.shape), bits, x.dtype))
    return made


def _coefficient(value: float) -> int:
    return round(value * (1 << _COEFFICIENT_BITS))


_COSINE: Final = Series(2 * math.pi, (1,), (0.0,), (1.0,))
_SINE: Final = Series(2 * math.pi, (1,), (1.0,))


def cos_sin(party: Party, x: Secret) -> Protocol[list[Secret]]:
    """Cosine and sine of x in radians, for |x| < 2^15. One round, 8 bytes an element."""
    return (yield from series(party, x, _COSINE, _SINE))


# --- exp ----------------------------------------------------------------------------------------------------

_CELLS: Final = 16
_CELL_BITS: Final = 1  # a cell is 2 wide
LOWEST: Final = -16
"""exp takes LOWEST <= x < LARGEST."""
LARGEST: Final = 14
_WIDTH: Final = 5 + PRECISION
_ALL: Final = (1 << _WIDTH) - 1
_LOW_WIDTH: Final = PRECISION + _CELL_BITS
_TABLE_BITS: Final = 20


@dataclass(frozen=True, slots=True)
class Powers(Correlation):
    """A uniform r in [0, 32), [count], and for each cell j the power e^(2 ((j - high r) mod 16) - 16 - low r)."""

    count: int

    @property
    def free(self) -> Sequence[Words]:
        return (Words((self.count,), torch.int32, width=_WIDTH),)

    @property
    def derived(self) -> Sequence[Words]:
        return (Words((_CELLS, self.count)),)

    def derive(self, free: Sequence[torch.Tensor], kept: torch.Tensor | None) -> Sequence[torch.Tensor]:
        high, low = _digits(free[0])
        cells = torch.arange(_CELLS, device=high.device).unsqueeze(1)
        exponent = (
            ((cells - high) % _CELLS) * float(1 << _CELL_BITS) + LOWEST - low.to(torch.float64) / (1 << PRECISION)
        )
        return [torch.round(torch.exp(exponent) * (1 << _TABLE_BITS)).to(torch.int64)]


def _digits(words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    words = words.to(torch.int64)
    return words >> _LOW_WIDTH, words & ((1 << _LOW_WIDTH) - 1)


def exp(party: Party, x: Secret) -> Protocol[Secret]:
    """e^x for LOWEST <= x < LARGEST, which is for the caller to see to. One round, 4 bytes an element. The error is
    below 3e-5 of the larger of 1 and the value.

    The low digits may borrow: then the high digit is one too many, and the low ones make up for it.
    """
    assert x.bits == PRECISION
    dealt = party.take(Powers(x.share.numel()))
    moved = x.share.reshape(-1) - (LOWEST << PRECISION) if party.is_first else x.share.reshape(-1)
    opened = yield Opening(sums=[((moved & _ALL).to(torch.int32) + dealt.free[0]) & _ALL])
    high, low = _digits(opened.sums[0] & _ALL)
    rotated = dealt.derived[0].gather(0, high.unsqueeze(0)).squeeze(0)
    share = rotated * power(low, PRECISION, _LOW_WIDTH)
    return Secret(share.view(x.shape), _TABLE_BITS + POWER_BITS, x.dtype)
