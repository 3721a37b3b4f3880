"""Truncation, comparison and choice: what needs the bits of a secret.

All of it begins with one opening of x + r, for a dealt r that is uniform over the whole ring, so that what is opened
tells nothing. What follows works on the public c = x + r and on dealt bits of r, and is exact for every x: no
probabilities, no statistical masks.

    truncate       1 round, 8 bytes an element from each party to each other
    negative bits  4 rounds, 25.5 bytes (the opening, and three levels of a carry tree of fan-in four)
    as numbers     1 round more, 1/8 byte; the choice of x or 0 by the bit goes along

Adversary: semi-honest, all parties but one may collude, but not with the dealer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from mpc import bits
from mpc.correlations import XOR, Correlation, Dealt, Words
from mpc.party import Party
from mpc.ring import MAGNITUDE, WIDTH, shift_logical
from mpc.rounds import Opening, Protocol

# Lanes of a level: what propagates a carry (3 down to 0), and what makes one (2 down to 0; that of lane 3 is linear).
_P3, _P2, _P1, _P0, _G2, _G1, _G0 = range(7)
CARRY: Final = ((_P3, _G2), (_P3, _P2, _G1), (_P3, _P2, _P1, _G0))
ALL: Final = (_P3, _P2, _P1, _P0)
_LOW: Final = (1 << (WIDTH - 1)) - 1
_SHIFT_IN: Final = 1 << MAGNITUDE  # makes values non-negative while they are truncated


# --- what is dealt ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mask(Correlation):
    """A uniform r, [count]; where wanted its bits (XOR, in the order of bits.py), and what truncation by `shift` needs:
    r >> shift, and its highest bit."""

    count: int
    shift: int = 0
    has_bits: bool = False

    @property
    def free(self) -> Sequence[Words]:
        return (Words((self.count,)),)

    @property
    def derived(self) -> Sequence[Words]:
        word = Words((self.count,))
        return [*[Words((self.count,), sharing=XOR)] * self.has_bits, *[word, word] * bool(self.shift)]

    def derive(self, free: Sequence[torch.Tensor], kept: torch.Tensor | None) -> Sequence[torch.Tensor]:
        r = free[0]
        found = [bits.to_lanes(r)] if self.has_bits else []
        if self.shift:
            found += [shift_logical(r, self.shift), shift_logical(r, WIDTH - 1)]
        return found


@dataclass(frozen=True, slots=True)
class Level(Correlation):
    """Masks for the factors of some products of bits, and the products of those masks."""

    size: int
    dtype: torch.dtype
    chains: tuple[bits.Factors, ...]

    @property
    def factors(self) -> list[int]:
        return sorted({factor for chain in self.chains for factor in chain})

    @property
    def free(self) -> Sequence[Words]:
        return (Words((len(self.factors), self.size), self.dtype, XOR),)

    @property
    def derived(self) -> Sequence[Words]:
        return (Words((len(bits.products_of(self.chains)), self.size), self.dtype, XOR),)

    def derive(self, free: Sequence[torch.Tensor], kept: torch.Tensor | None) -> Sequence[torch.Tensor]:
        masks = dict(zip(self.factors, free[0], strict=True))
        products: dict[frozenset[int], torch.Tensor] = {frozenset((k,)): mask for k, mask in masks.items()}
        for wanted in bits.products_of(self.chains):
            *smaller, last = sorted(wanted)
            products[wanted] = products[frozenset(smaller)] & masks[last]
        return [torch.stack([products[wanted] for wanted in bits.products_of(self.chains)])]


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
        if kept is None:
            return [s]
        if not self.shift:
            return [s, s * kept]
        return [s, s * shift_logical(kept, WIDTH - 1), s * shift_logical(kept, self.shift)]


# --- opening x + r ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Masked:
    """A secret x as the public c = x + r and what is shared of r.

    Attributes:
        c: x + r, or with a shift x + 2^62 + r.
        number: that of the mask.
        scale, constant: x >> shift is scale * (highest bit of r) - (r >> shift) + constant, all parties know both;
            None without a shift.
    """

    c: torch.Tensor
    dealt: Dealt
    number: int
    shift: int
    scale: torch.Tensor | None = None
    constant: torch.Tensor | None = None

    @property
    def r(self) -> torch.Tensor:
        return self.dealt.free[0]

    @property
    def r_bits(self) -> torch.Tensor:
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
        return Masked(c, dealt, number, shift)
    scale = (1 - shift_logical(c, WIDTH - 1)) << (WIDTH - shift)
    constant = shift_logical(c, shift) - (_SHIFT_IN >> shift)
    return Masked(c - _SHIFT_IN, dealt, number, shift, scale, constant)


def shifted(party: Party, masked: Masked) -> torch.Tensor:
    """A share of x >> shift, rounded down or up: off by less than 1. No round."""
    assert masked.scale is not None and masked.constant is not None
    share = masked.scale * masked.r_top - masked.r_shifted
    return share + masked.constant if party.is_first else share


def truncate(party: Party, x: torch.Tensor, shift: int) -> Protocol[torch.Tensor]:
    """A share of x >> shift, for any shape. One round."""
    if not shift or not x.numel():
        return x
    masked = yield from mask(party, x.reshape(-1), shift, has_bits=False)
    return shifted(party, masked).reshape(x.shape)


# --- signs --------------------------------------------------------------------------------------------------


def negative_bits(party: Party, masked: Masked) -> Protocol[torch.Tensor]:
    """Packed XOR shares of x < 0. Three rounds, 17.5 bytes an element.

    x = c - r, so its highest bit is that of c, that of r, and the borrow from below: whether the low 63 bits of r are
    more than those of c. A bit of r that is 1 where c has 0 makes a borrow, equal bits pass it on.
    """
    c, r = bits.to_lanes(masked.c), masked.r_bits
    low, absent = r & _LOW, ~(c & _LOW)  # above them a place that passes on
    makes, passes = low & absent, low ^ absent if party.is_first else low
    lanes = bits.first_lanes(makes), bits.first_lanes(passes)
    borrow, through = yield from _combine(party, *lanes)
    assert through is not None
    lanes = bits.second_lanes(borrow), bits.second_lanes(through)
    borrow, through = yield from _combine(party, *lanes)
    assert through is not None
    lanes = bits.third_lanes(borrow), bits.third_lanes(through)
    borrow, _ = yield from _combine(party, *lanes, is_last=True)
    top = shift_logical(r, WIDTH - 1)
    if party.is_first:
        top ^= shift_logical(c, WIDTH - 1)
    return borrow ^ bits.pack(top)


def _combine(
    party: Party, makes: list[torch.Tensor], passes: list[torch.Tensor], *, is_last: bool = False
) -> Protocol[tuple[torch.Tensor, torch.Tensor | None]]:
    """Four bits as one: whether they make a borrow together, and (but for the last level) pass one on. One round."""
    chains = CARRY if is_last else (*CARRY, ALL)
    level = Level(makes[0].shape[0], makes[0].dtype, chains)
    lanes = {_P3: passes[3], _P2: passes[2], _P1: passes[1], _P0: passes[0]}
    lanes |= {_G2: makes[2], _G1: makes[1], _G0: makes[0]}
    masked, masks = yield from masked_bits(party, level, lanes)
    made = makes[3]
    for chain in CARRY:
        made = made ^ bits.product(masked, masks, chain, adds=party.is_first)
    return made, None if is_last else bits.product(masked, masks, ALL, adds=party.is_first)


def masked_bits(
    party: Party, level: Level, lanes: dict[int, torch.Tensor]
) -> Protocol[tuple[dict[int, torch.Tensor], dict[frozenset[int], torch.Tensor]]]:
    dealt = party.take(level)
    share = torch.stack([lanes[factor] for factor in level.factors])
    share ^= dealt.free[0]
    opened = yield Opening(xors=[share])
    masked = dict(zip(level.factors, opened.xors[0], strict=True))
    masks = dict(zip(bits.products_of(level.chains), dealt.derived[0], strict=True))
    for factor, each in zip(level.factors, dealt.free[0], strict=True):
        masks[frozenset((factor,))] = each
    return masked, masks


def zero_bits(party: Party, masked: Masked) -> Protocol[torch.Tensor]:
    """Packed XOR shares of x == 0: whether all bits of c and r are equal. Three rounds, 10.5 bytes an element."""
    equal = masked.r_bits ^ ~bits.to_lanes(masked.c) if party.is_first else masked.r_bits
    for lanes_of in (bits.first_lanes, bits.second_lanes, bits.third_lanes):
        lanes = lanes_of(equal)
        level = Level(lanes[0].shape[0], lanes[0].dtype, (ALL,))
        opened, masks = yield from masked_bits(party, level, dict(zip(reversed(ALL), lanes, strict=True)))
        equal = bits.product(opened, masks, ALL, adds=party.is_first)
    return equal


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
    dealt = party.take(choice)
    opened = yield Opening(xors=[packed ^ dealt.free[0]])
    t = bits.unpack(opened.xors[0])
    sign = 1 - 2 * t
    bit = sign * dealt.derived[0]
    if party.is_first:
        bit += t
    if masked is None:
        return bit, None
    if not masked.shift:
        own = -masked.r + masked.c if party.is_first else -masked.r
        return bit, own * t + sign * (masked.c * dealt.derived[0] - dealt.derived[1])
    assert masked.scale is not None and masked.constant is not None
    inner = masked.scale * dealt.derived[1] - dealt.derived[2] + masked.constant * dealt.derived[0]
    return bit, shifted(party, masked) * t + sign * inner
