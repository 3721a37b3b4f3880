"""Functions of a mask that three parties make by themselves: sines and cosines of its multiples, and tables of powers.

A mask is r = u + v: the first party knows u, the sum of two pieces, and both others know v, the third (trio.py). So a
function of r that is a sum of products of functions of u and of v is a sum of products x * y, where the first party
alone computed x and both others computed the same y. The first party tells x under a mask of two parts of which each
other one knows one, and how often the sum of these wraps: x = low + 2^width * wraps, where each of the others has a
summand of both. low * y / 2^shift each rounds off by itself: its result is off by less than a unit, always.

    angles, wave    1 round, 24 bytes for each multiple of an element from each party to each other
    powers          1 round, 256 bytes an element

Adversary: semi-honest, one of the three. What is opened is x under a sum of masks, uniform to whoever lacks one of
them; a party that has both is the first, and knows x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import numpy as np
import torch

from mpc.correlations import SUM, Words
from mpc.exact import CIRCLE_BITS, POWER_BITS, circles, power
from mpc.inverse import COSINES, SINES, WAVE_BITS, Wave
from mpc.pieces import Array, by_pieces
from mpc.rounds import Opening, Protocol
from mpc.trio import PARTIES, Pieces, Trio
from mpc.waves import CELL_BITS, CELLS, DEALT_BITS, LOWEST, TABLE_BITS, Angles, Powers

_CIRCLE: Final = 28  # fractional bits of the factors of a sine or cosine
_RAISED: Final = 1 << _CIRCLE  # makes them non-negative while they are masked
_FACTOR: Final = 20  # of those of a wave with coefficients, which are below 2^7
_TURNS: Final = 32  # bits that they are masked in
_COLUMN: Final = 22  # fractional bits of the first party's part of a power
_COLUMN_WIDTH: Final = 40  # it is below e^12


def angles(trio: Trio, r: Pieces, correlation: Angles) -> Protocol[list[torch.Tensor]]:
    """What Angles deals of r. cos k(u + v) = cos ku cos kv - sin ku sin kv, and so on. One round."""
    u, v = _halves(trio, r)
    first = u.new_zeros((2, len(correlation.multiples), correlation.count), dtype=torch.int64)
    if not trio.rank:
        first = _circle(u, correlation.multiples, _CIRCLE)
    other = partial(_circle, v, correlation.multiples, _CIRCLE)
    return [(yield from _turned(trio, first, other, _RAISED, 2 * _CIRCLE - DEALT_BITS))]


def wave(trio: Trio, r: Pieces, correlation: Wave) -> Protocol[list[torch.Tensor]]:
    """What Wave deals of r: the same, where the first party's factors have the coefficients in them. One round."""
    u, v = _halves(trio, r)
    multiples = tuple(range(1, len(COSINES) + 1))
    first = u.new_zeros((2, len(multiples), correlation.count), dtype=torch.int64)
    if not trio.rank:
        (first,) = by_pieces(_weighted, u)
    other = _TURNS + WAVE_BITS - _FACTOR
    made = yield from _turned(trio, first, partial(_circle, v, multiples, other), _RAISED, _TURNS)
    return [made.to(torch.int32)]  # modulo 2^32


def _turned(
    trio: Trio, first: torch.Tensor, other: Callable[[], torch.Tensor], raised: int, shift: int
) -> Protocol[torch.Tensor]:
    """A share of the cosines and sines of the first party's angles and the others' together, [2 * multiples, n], with
    `shift` bits less than both have; of what both parts give is [2, multiples, n]. One round.

    Args:
        raised: makes the first party's non-negative: it is twice as large as they are at most.
    """
    assert shift == _TURNS  # so that what wraps is cut off along with it
    low, wraps = yield from _told(trio, first + raised, _TURNS, torch.int32)
    made = torch.zeros_like(first)
    if trio.rank:
        if trio.rank == PARTIES - 1:
            low = low - raised
        cosine, sine = other()
        made[0] = _rounded(low[0] * cosine - low[1] * sine, shift) + wraps[0] * cosine - wraps[1] * sine
        made[1] = _rounded(low[1] * cosine + low[0] * sine, shift) + wraps[1] * cosine + wraps[0] * sine
    share = made.transpose(0, 1).reshape(2 * first.shape[1], -1)
    return share + trio.zero(share, SUM)


def _circle(angle: torch.Tensor, multiples: Sequence[int], bits: int) -> torch.Tensor:
    """Cosines and sines of multiples of angles, [2, multiples, n]: the same words for whoever computes them."""
    scale = 2.0 ** (bits - CIRCLE_BITS)

    def work(angle: Array) -> list[Array]:
        made = np.empty((2, len(multiples), *angle.shape), np.int64)
        for at, (cosine, sine) in enumerate(circles(angle, multiples)):
            made[0, at], made[1, at] = np.rint(cosine * scale), np.rint(sine * scale)
        return [made]

    return by_pieces(work, angle)[0]


def _weighted(angle: Array) -> list[Array]:
    """Those of a wave, with its coefficients."""
    made = np.empty((2, len(COSINES), *angle.shape), np.int64)
    for at, (cosine, sine) in enumerate(circles(angle, range(1, len(COSINES) + 1))):
        a, b = (each * 2.0 ** (_FACTOR - CIRCLE_BITS) for each in (COSINES[at], SINES[at]))
        made[0, at], made[1, at] = np.rint(cosine * a - sine * b), np.rint(sine * a + cosine * b)
    return [made]


def powers(trio: Trio, r: Pieces, correlation: Powers) -> Protocol[list[torch.Tensor]]:
    """What Powers deals of r, for its digits h (high) and l (low): of those of u the first party makes a table, the
    others turn it by their high digit and multiply it by the power of their low one. One round.

    Whether the low digits of u and v carry is not known to anybody: cell h(u) + h(v) is made as if they did not. It is
    asked for if they did only where x is at least LARGEST - 2.
    """
    width = correlation.bits + CELL_BITS
    whole = (1 << width) - 1
    u, v = (half.to(torch.int64) for half in _halves(trio, r))
    cells = torch.arange(CELLS)
    if trio.rank:
        table = torch.zeros((correlation.count, CELLS), dtype=torch.int64)
    else:
        # What the others' factor has too much, so that it is a power of what is not negative, is taken off here.
        small = ((u & whole) + whole).to(torch.float64).neg_().mul_(2.0**-correlation.bits)
        turned = ((cells - (u >> width).unsqueeze(1)) % CELLS).to(torch.float64) * (1 << CELL_BITS) + LOWEST
        table = ((turned + small.unsqueeze(1)).exp_() * (1 << _COLUMN)).round_().to(torch.int64)
    low, wraps = yield from _told(trio, table, _COLUMN_WIDTH, torch.int64)
    if not trio.rank:
        share = torch.zeros_like(table)
    else:
        factor = power(whole - (v & whole), correlation.bits, width).unsqueeze(1)
        at = (cells - (v >> width).unsqueeze(1)) % CELLS
        shift = _COLUMN + POWER_BITS - TABLE_BITS
        share = _rounded(low.gather(1, at) * factor, shift)
        share += (wraps.gather(1, at) * factor) << (_COLUMN_WIDTH - shift)
    return [share + trio.zero(share, SUM)]


def _halves(trio: Trio, r: Pieces) -> tuple[torch.Tensor, torch.Tensor]:
    """u, where this is the first party, and v, where it is another."""
    return r.own + r.next, r.own if trio.rank == PARTIES - 1 else r.next


def _told(trio: Trio, x: torch.Tensor, width: int, dtype: torch.dtype) -> Protocol[tuple[torch.Tensor, torch.Tensor]]:
    """x = low + 2^width * wraps, where the two others have a summand of both, |low| < 2^width; the first has nothing.

    Args:
        x: in [0, 2^width) at the first party; of no account at the others.
        width: of the mask; that of `dtype` or less.
    """
    every = (1 << width) - 1
    mask, of_wraps = trio.draw(Words(tuple(x.shape), dtype)), trio.draw(Words(tuple(x.shape)))
    one, other = (words.to(torch.int64) & every for words in (mask.own, mask.next))
    total = x + one + other
    told = [trio.known_to_first(x.to(dtype) + mask.own + mask.next, SUM)]
    told.append(trio.known_to_first((total >> width) + of_wraps.own + of_wraps.next, SUM))
    opened = yield Opening(sums=told)
    masked, wrapped = opened.sums
    if trio.rank == PARTIES - 1:
        return (masked.to(torch.int64) & every) - other, wrapped - of_wraps.next
    return (-one, -of_wraps.own) if trio.rank else (torch.zeros_like(one), torch.zeros_like(one))


def _rounded(words: torch.Tensor, shift: int) -> torch.Tensor:
    return (words + (1 << (shift - 1))) >> shift
