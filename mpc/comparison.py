"""Truncation, comparison and choice: what needs the bits of a secret.

All of it begins with one opening of x + r, for a dealt r that is uniform over the whole ring, so that what is opened
tells nothing. What follows works on the public c = x + r and on dealt bits of r, and is exact for every x: no
probabilities, no statistical masks.

    truncate       1 round, 8 bytes an element from each party to each other
    negative bits  3 rounds, 12.4 bytes (the opening, and a carry tree of fan-in four, whose first level is dealt)
    as numbers     1 round more, 1/8 byte; the choice of x or 0 by the bit goes along

Adversary: semi-honest, all parties but one may collude, but not with the dealer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch

from mpc import bits
from mpc.correlations import XOR, Correlation, Dealt, Words
from mpc.party import Party
from mpc.pieces import Array, at_once, by_pieces, upper
from mpc.ring import MAGNITUDE, WIDTH
from mpc.rounds import Opening, Protocol, together

# Lanes of a level: what propagates a carry (3 down to 0), and what makes one (2 down to 0; that of lane 3 is linear).
_P3, _P2, _P1, _P0, _G2, _G1, _G0 = range(7)
CARRY: Final = ((_P3, _G2), (_P3, _P2, _G1), (_P3, _P2, _P1, _G0))
ALL: Final = (_P3, _P2, _P1, _P0)
EVERY: Final = ((ALL,),)
"""For `ands`: whether all four are 1."""
_TOP: Final = bits.LANES - 1  # the highest bit of the highest digit is that of the words of the highest lane
_BELOW_TOP: Final = (1 << 15) - 1
_WITHOUT_TOP: Final = np.array(
    [[_BELOW_TOP if _TOP in factors else -1] for factors in bits.DIGIT_PRODUCTS], dtype=np.int16
)
_SHIFT_IN: Final = 1 << MAGNITUDE  # makes values non-negative while they are truncated


# --- what is dealt ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mask(Correlation):
    """A uniform r, [count]; where wanted the products of the bits of its digits (XOR, as bits.digit_products has them),
    and what truncation by `shift` needs: r >> shift, and its highest bit."""

    count: int
    shift: int = 0
    has_bits: bool = False

    @property
    def free(self) -> Sequence[Words]:
        return (Words((self.count,)),)

    @property
    def derived(self) -> Sequence[Words]:
        word = Words((self.count,))
        products = Words((bits.PRODUCTS, self.count), torch.int16, XOR)
        return [*[products] * self.has_bits, *[word, word] * bool(self.shift)]

    def derive(self, free: Sequence[torch.Tensor], kept: torch.Tensor | None) -> Sequence[torch.Tensor]:
        r = free[0]
        return by_pieces(self._parts, r)

    def _parts(self, r: Array) -> Sequence[Array]:
        found = [bits.digit_products(r)] if self.has_bits else []
        if self.shift:
            found += [upper(r, self.shift), upper(r, WIDTH - 1)]
        return found


@dataclass(frozen=True, slots=True)
class Level(Correlation):
    """Masks for the factors of some products of bits, and the products of those masks."""

    size: int
    dtype: torch.dtype
    chains: tuple[bits.Factors, ...]

    @property
    def factors(self) -> tuple[int, ...]:
        return bits.factors_of(self.chains)

    @property
    def free(self) -> Sequence[Words]:
        return (Words((len(self.factors), self.size), self.dtype, XOR),)

    @property
    def derived(self) -> Sequence[Words]:
        return (Words((len(bits.products_of(self.chains)), self.size), self.dtype, XOR),)

    def derive(self, free: Sequence[torch.Tensor], kept: torch.Tensor | None) -> Sequence[torch.Tensor]:
        return by_pieces(
            lambda masks: [bits.products_of_masks(self.chains, dict(zip(self.factors, masks, strict=True)))], free[0]
        )


@dataclass(frozen=True, slots=True)
class Choice(Correlation):
    """A uniform bit s for each element (packed, XOR) and as a number; with `mask`, the number of an earlier Mask, also
    s times what that one gives of the value: r, or its highest bit and r >> shift."""

    count: int
    mask: int | None = None
    shift: int = 0

    @property
    def kept(self) -> int | None:  # type: ignore[override]
        return self.mask

    @property
    def free(self) -> Sequence[Words]:
        return (Words((self.count // bits.GROUP,), torch.uint8, XOR),)

    @property
    def derived(self) -> Sequence[Words]:
        products = 0 if self.mask is None else 2 if self.shift else 1
        return [Words((self.count,))] * (1 + products)

    def derive(self, free: Sequence[torch.Tensor], kept: torch.Tensor | None) -> Sequence[torch.Tensor]:
        s = bits.unpack(free[0])
        return by_pieces(self._products, *((s,) if kept is None else (s, kept)))

    def _products(self, bit: Array, kept: Array | None = None) -> Sequence[Array]:
        s = bit.astype(np.int64)
        if kept is None:
            return [s]
        if not self.shift:
            return [s, s * kept]
        return [s, s * upper(kept, WIDTH - 1), s * upper(kept, self.shift)]


# --- opening x + r ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Masked:
    """A secret x as the public c = x + r and what is shared of r.

    Attributes:
        c: x + r.
        scale, constant: x >> shift is scale * (highest bit of r) - (r >> shift) + constant, all parties know both;
            None without a shift.
        number: that of the mask.
    """

    c: torch.Tensor
    scale: torch.Tensor | None
    constant: torch.Tensor | None
    dealt: Dealt
    number: int
    shift: int

    @property
    def r(self) -> torch.Tensor:
        return self.dealt.free[0]

    @property
    def r_digits(self) -> torch.Tensor:
        return self.dealt.derived[0]

    @property
    def r_shifted(self) -> torch.Tensor:
        return self.dealt.derived[-2]

    @property
    def r_top(self) -> torch.Tensor:
        return self.dealt.derived[-1]


def mask(party: Party, x: torch.Tensor, shift: int = 0, *, has_bits: bool = True) -> Protocol[Masked]:
    """Opens x + r. `x` is this party's share, [n] int64. One round, 8 bytes an element.

    With a shift every |x| must be below 2^62. Then x + 2^62 + r wraps just where r's highest bit is set and that of
    the sum is not; so the wrap is known without a comparison. (Dalskov, Escudero and Keller, PoPETs 2020, section 4.)
    """
    number = party.taken
    dealt = party.take(Mask(x.shape[0], shift, has_bits))
    share = x + dealt.free[0]
    if shift and party.is_first:
        share += _SHIFT_IN
    opened = yield Opening(sums=[share])
    c = opened.sums[0]
    if not shift:
        return Masked(c, None, None, dealt, number, shift)
    c, scale, constant = by_pieces(partial(_known, shift), c)
    return Masked(c, scale, constant, dealt, number, shift)


def _known(shift: int, c: Array) -> Sequence[Array]:
    """What follows from x + 2^62 + r: x + r, and the scale and constant of x >> shift."""
    scale = upper(~c, WIDTH - 1)
    scale <<= WIDTH - shift
    constant = upper(c, shift)
    constant -= _SHIFT_IN >> shift
    return c - _SHIFT_IN, scale, constant


def shifted(party: Party, masked: Masked) -> torch.Tensor:
    """A share of x >> shift, rounded down or up: off by less than 1. No round."""
    assert masked.scale is not None and masked.constant is not None
    given = (masked.scale, masked.constant, masked.r_top, masked.r_shifted)
    return by_pieces(partial(_shifted, party.is_first), *given)[0]


def _shifted(is_first: bool, scale: Array, constant: Array, r_top: Array, r_shifted: Array) -> list[Array]:
    share = scale * r_top
    share -= r_shifted
    if is_first:
        share += constant
    return [share]


def truncate(party: Party, x: torch.Tensor, shift: int) -> Protocol[torch.Tensor]:
    """A share of x >> shift, for any shape. One round."""
    if not shift or not x.numel():
        return x
    masked = yield from mask(party, x.reshape(-1), shift, has_bits=False)
    return shifted(party, masked).reshape(x.shape)


# --- signs --------------------------------------------------------------------------------------------------


def negative_bits(party: Party, masked: Masked) -> Protocol[torch.Tensor]:
    """Packed XOR shares of x < 0. Two rounds, 4.4 bytes an element.

    x = c - r, so its highest bit is that of c, that of r, and the borrow from below: whether the low 63 bits of r are
    more than those of c. A bit of r that is 1 where c has 0 makes a borrow, equal bits pass it on.
    """
    borrow, through, top = by_pieces(partial(_borrows, party.is_first), masked.r_digits, masked.c)
    borrow, passes = yield from _combine(party, bits.second_lanes, borrow, through)
    borrow, _ = yield from _combine(party, bits.third_lanes, borrow, passes, is_last=True)
    return borrow ^ bits.pack(top)


def _borrows(is_first: bool, r: Array, c: Array) -> Sequence[Array]:
    """Whether each digit makes a borrow, and passes one on, [n] int16; and a share of the highest bit of c - r where
    nothing is borrowed, uint8."""
    lanes = bits.first_lanes(c)
    top = (r[_TOP] ^ lanes[_TOP] if is_first else r[_TOP]) < 0
    # The highest bit itself passes on: as if it were 0 in c and in r.
    lanes[_TOP] &= _BELOW_TOP
    return *bits.compared(lanes, r & _WITHOUT_TOP, is_first), top.view(np.uint8)


def _combine(
    party: Party,
    lanes_of: Callable[[Array], list[Array]],
    makes: torch.Tensor,
    passes: torch.Tensor,
    *,
    is_last: bool = False,
) -> Protocol[tuple[torch.Tensor, torch.Tensor]]:
    """Four bits as one: whether they make a borrow together, and (but for the last level) pass one on. One round."""

    sums: bits.Sums = (CARRY,) if is_last else (CARRY, (ALL,))

    def lanes(makes: Array, passes: Array) -> Sequence[Array]:
        making = lanes_of(makes)
        factors = [*reversed(lanes_of(passes)), *reversed(making[:-1])]
        return [np.stack([factors[at] for at in bits.factors_of(bits.chains_of(sums))]), making[-1]]

    rows, highest = at_once(lanes, bits.LANES, makes, passes)
    found, *through = yield from _sums(party, sums, rows)
    found ^= highest
    return found, found if is_last else through[0]


def ands(party: Party, sums: bits.Sums, lanes: Mapping[int, torch.Tensor]) -> Protocol[Sequence[torch.Tensor]]:
    """For each sum shares of the XOR of its products: each the AND of its factors' words, [n] of one dtype. One
    round."""
    return (yield from _sums(party, sums, torch.stack([lanes[at] for at in bits.factors_of(bits.chains_of(sums))])))


def _sums(party: Party, sums: bits.Sums, rows: torch.Tensor) -> Protocol[Sequence[torch.Tensor]]:
    """The same of the factors' words in their order, a row each; they are used up."""
    dealt = party.take(Level(rows.shape[1], rows.dtype, bits.chains_of(sums)))
    opened = yield Opening(xors=[rows.bitwise_xor_(dealt.free[0])])
    work = partial(bits.sums_of_products, sums, party.is_first)
    return by_pieces(work, opened.xors[0], dealt.free[0], dealt.derived[0])


def zero_bits(party: Party, masked: Masked) -> Protocol[torch.Tensor]:
    """Packed XOR shares of x == 0: whether all digits of c and r are equal. Two rounds, 2.5 bytes an element."""
    (equal,) = by_pieces(partial(_equal, party.is_first), masked.r_digits, masked.c)
    for lanes_of in (bits.second_lanes, bits.third_lanes):
        (rows,) = at_once(partial(_rows, lanes_of), bits.LANES, equal)
        (equal,) = yield from _sums(party, EVERY, rows)
    return equal


def _rows(lanes_of: Callable[[Array], list[Array]], words: Array) -> list[Array]:
    return [np.stack(list(reversed(lanes_of(words))))]


def _equal(is_first: bool, r: Array, c: Array) -> Sequence[Array]:
    return [bits.equal_to(bits.first_lanes(c), r, is_first)]


# --- bits as numbers ----------------------------------------------------------------------------------------


def as_numbers(
    party: Party, packed: torch.Tensor, masked: Masked | None = None
) -> Protocol[tuple[torch.Tensor, torch.Tensor | None]]:
    """Shares of 0 or 1 of packed bits, [n] int64; with `masked` also of the bit times x (shifted, where it was masked
    with a shift). One round, one bit an element.

    bit = t + (1 - 2 t) s for the opened t = bit XOR s. The product needs no opening of x: that was opened already.
    """
    count = packed.shape[0] * bits.GROUP
    choice = Choice(count) if masked is None else Choice(count, masked.number, masked.shift)
    return _numbers(party, masked, *(yield from _open_bits(party, packed, choice)))


def truncate_and_choose(
    party: Party, x: torch.Tensor, shift: int, packed: torch.Tensor
) -> Protocol[tuple[torch.Tensor, torch.Tensor]]:
    """Shares of x >> shift and of the packed bit times that, [n]. One round."""
    choice = Choice(x.shape[0], party.taken, shift)
    masked, (t, dealt) = yield from together(mask(party, x, shift, has_bits=False), _open_bits(party, packed, choice))
    _, chosen = _numbers(party, masked, t, dealt)
    assert chosen is not None
    return shifted(party, masked), chosen


def _open_bits(party: Party, packed: torch.Tensor, choice: Choice) -> Protocol[tuple[torch.Tensor, Dealt]]:
    """t = bit XOR s for each bit, [n] uint8. One round."""
    dealt = party.take(choice)
    opened = yield Opening(xors=[packed ^ dealt.free[0]])
    return bits.unpack(opened.xors[0]), dealt


def _numbers(
    party: Party, masked: Masked | None, t: torch.Tensor, dealt: Dealt
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What `as_numbers` gives, of the opened t."""
    if masked is None:
        return by_pieces(partial(_number, party.is_first), t, *dealt.derived)[0], None
    if not masked.shift:
        given = (t, masked.c, masked.r, *dealt.derived)
        bit, chosen = by_pieces(partial(_number_and_choice, party.is_first), *given)
        return bit, chosen
    assert masked.scale is not None and masked.constant is not None
    given = (t, masked.scale, masked.constant, masked.r_top, masked.r_shifted, *dealt.derived)
    bit, chosen = by_pieces(partial(_number_and_choice_shifted, party.is_first), *given)
    return bit, chosen


def _number(is_first: bool, t: Array, s: Array) -> list[Array]:
    t = t.astype(np.int64)
    return [_signed(is_first, t, 1 - 2 * t, s)]


def _signed(is_first: bool, t: Array, sign: Array, s: Array) -> Array:
    """A share of the bit, t + sign * s."""
    bit: Array = sign * s
    if is_first:
        bit += t
    return bit


def _number_and_choice(is_first: bool, t: Array, c: Array, r: Array, s: Array, s_r: Array) -> list[Array]:
    """The bit, and the bit times c - r: that t times, and (c - r) s times 1 - 2 t."""
    t = t.astype(np.int64)
    sign = 1 - 2 * t
    chosen = c * s
    chosen -= s_r
    chosen *= sign
    own = c - r if is_first else -r
    own *= t
    chosen += own
    return [_signed(is_first, t, sign, s), chosen]


def _number_and_choice_shifted(
    is_first: bool,
    t: Array,
    scale: Array,
    constant: Array,
    r_top: Array,
    r_shifted: Array,
    s: Array,
    s_top: Array,
    s_shifted: Array,
) -> list[Array]:
    """The bit, and the bit times scale * r_top - r_shifted + constant."""
    t = t.astype(np.int64)
    sign = 1 - 2 * t
    (own,) = _shifted(is_first, scale, constant, r_top, r_shifted)
    own *= t
    chosen = scale * s_top
    chosen -= s_shifted
    chosen += constant * s
    chosen *= sign
    chosen += own
    return [_signed(is_first, t, sign, s), chosen]
