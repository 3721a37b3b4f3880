"""Bits of words, shared by exclusive or, in the order and packing in which comparison needs them.

A comparison combines bits four at a time, in three levels (64 = 4 * 4 * 4). Bit i = 16 a + 4 b + c of a word is kept
at place 16 c + 4 b + a, so that what a level combines lies apart by whole lanes: first four lanes of 16 bits, then,
with two elements in a byte, of 8, then, with eight elements in a byte, of 8 again. No level wastes a bit of its
message.

The first level compares digits of a word c that all know with digits of a mask r that the dealer knows: it deals all
products of the bits of each digit, and what is asked of the two digits is a sum of these, with what c says as factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Final

import torch

from mpc.ring import signed

LANES: Final = 4
GROUP: Final = 8
"""Elements come in multiples of this."""

Factors = tuple[int, ...]
_DIGIT: Final = (3, 2, 1, 0)
PRODUCTS: Final = 15
"""Of the bits of a digit: themselves, and the products of two to four of them."""


def to_lanes(words: torch.Tensor) -> torch.Tensor:
    """The bits of int64 words in the order above. It is its own inverse."""
    for distance, mask in _SWAPS:
        moved = (words ^ (words >> distance)) & mask
        words = words ^ moved ^ (moved << distance)
    return words


def _swap(low: int, high: int) -> tuple[int, int]:
    """Distance and mask of the exchange of two binary digits of all places."""
    places = [place for place in range(64) if place >> low & 1 and not place >> high & 1]
    return (1 << high) - (1 << low), signed(sum(1 << place for place in places))


_SWAPS: Final = (_swap(0, 4), _swap(1, 5))  # digits to base 4: the lowest and the highest change places


def first_lanes(words: torch.Tensor) -> list[torch.Tensor]:
    """[n] int64 in lane order as four [n] int16."""
    lanes = words.view(torch.int16).view(-1, LANES)
    return [lanes[:, lane].contiguous() for lane in range(LANES)]


def second_lanes(words: torch.Tensor) -> list[torch.Tensor]:
    """[n] int16 as four [n / 2] uint8: the nibbles, those of the second half of the elements above the first's."""
    half = words.shape[0] // 2
    if words.is_meta:  # bit by bit that takes long there
        return [words.new_empty(half, dtype=torch.uint8)] * LANES
    lanes = []
    for lane in range(LANES):
        nibbles = (words >> (4 * lane)) & 15
        lanes.append((nibbles[:half] | (nibbles[half:] << 4)).to(torch.uint8))
    return lanes


def third_lanes(packed: torch.Tensor) -> list[torch.Tensor]:
    """[n / 2] uint8 of two nibbles as four [n / 8] uint8 of eight bits."""
    quarters = packed.view(4, -1)
    if packed.is_meta:
        return [quarters[0]] * LANES
    return [_merge((quarters >> lane) & 0x11) for lane in range(LANES)]


def pack(bits: torch.Tensor) -> torch.Tensor:
    """[n] of 0 and 1 as [n / 8] uint8, in the order in which the third level has them."""
    bits = bits.to(torch.uint8)
    if bits.is_meta:
        return bits[: bits.shape[0] // GROUP]
    half = bits.shape[0] // 2
    return _merge((bits[:half] | (bits[half:] << 4)).view(4, -1))


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """[n / 8] uint8 as [n] uint8 of 0 and 1: what `pack` packed."""
    if packed.is_meta:
        return packed.new_empty(packed.shape[0] * GROUP)
    nibbles = torch.cat([(packed >> quarter) & 0x11 for quarter in range(4)])
    return torch.cat([nibbles & 1, nibbles >> 4])


def _merge(quarters: torch.Tensor) -> torch.Tensor:
    return quarters[0] | (quarters[1] << 1) | (quarters[2] << 2) | (quarters[3] << 3)


# --- digits of a public word and of a mask ------------------------------------------------------------------


def digit_products(words: torch.Tensor) -> torch.Tensor:
    """[n] int64 as [PRODUCTS, n] int16: of each of the 16 hexadecimal digits the bits, and all products of them."""
    lanes = first_lanes(to_lanes(words))
    return torch.cat([torch.stack(lanes), products_of_masks((_DIGIT,), dict(enumerate(lanes)))])


def compared(c: Sequence[torch.Tensor], products: torch.Tensor, adds: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Shares, [n] int16, of whether a digit of r is the larger one, and of whether it is equal: digits of r by this
    party's shares of `digit_products`, those of c as `first_lanes` has them."""
    absent, of_r = [~lane for lane in c], dict(zip(DIGIT_PRODUCTS, products, strict=True))
    # From the highest bit on: r has a bit that c has not where all above are equal.
    equal, larger = None, None
    for at in _DIGIT:
        found = _where_equal(absent, of_r, at)
        above = found & absent[at]
        larger = above if larger is None else larger.bitwise_xor_(above)
        equal = _and_equal(equal, absent[at], found, adds)
    assert equal is not None and larger is not None
    return larger, equal


def equal_to(c: Sequence[torch.Tensor], products: torch.Tensor, adds: bool) -> torch.Tensor:
    """Shares, [n] int16, of whether digits of c and r are equal, as `compared` has them."""
    absent, of_r = [~lane for lane in c], dict(zip(DIGIT_PRODUCTS, products, strict=True))
    equal = None
    for at in _DIGIT:
        equal = _and_equal(equal, absent[at], _where_equal(absent, of_r, at), adds)
    assert equal is not None
    return equal


def _and_equal(equal: torch.Tensor | None, absent: torch.Tensor, found: torch.Tensor, adds: bool) -> torch.Tensor:
    """Whether one bit more is equal: r's is 1 (`found`), or it is 0 where c's is."""
    if equal is None:
        return found ^ absent if adds else found
    return (equal & absent).bitwise_xor_(found)


def _where_equal(absent: Sequence[torch.Tensor], of_r: Mapping[frozenset[int], torch.Tensor], at: int) -> torch.Tensor:
    """Whether a bit of r is 1 and all above it are those of c: these are r's XOR what c has not."""

    def part(above: int, taken: frozenset[int]) -> torch.Tensor:
        if above == at:
            return of_r[taken]
        with_r = part(above - 1, taken | {above})
        return (absent[above] & part(above - 1, taken)).bitwise_xor_(with_r)

    return part(LANES - 1, frozenset((at,)))


# --- products of several masked bits in one round -----------------------------------------------------------


def products_of(chains: Sequence[Factors]) -> list[frozenset[int]]:
    """The products of masks, of two factors or more, that `products` needs for these chains; in a fixed order."""
    found: dict[frozenset[int], None] = {}
    for chain in chains:
        for size in range(2, len(chain) + 1):
            found.update(dict.fromkeys(map(frozenset, combinations(chain, size))))
    return list(found)


def products(
    chains: Sequence[Factors],
    adds: bool,
    masked: torch.Tensor,
    free: torch.Tensor,
    derived: torch.Tensor,
) -> list[torch.Tensor]:
    """For each chain a share of the AND of its bits. Factor k is its row of `masked` XOR its mask.

    The AND of sums is the sum, over all ways to take the open part or the mask of each factor, of the products; those
    of the masks are dealt. (Ohata and Nuida, FC 2020: fan-in N in one round.)

    Args:
        adds: whether this party adds the product that has no mask in it: one of them does.
        masked: the opened words, a row for each factor, in their order.
        free: this party's shares of the masks, likewise.
        derived: those of the products of masks, in the order of `products_of`.
    """
    factors = factors_of(chains)
    opened = dict(zip(factors, masked, strict=True))
    masks = {frozenset((factor,)): row for factor, row in zip(factors, free, strict=True)}
    masks |= dict(zip(products_of(chains), derived, strict=True))
    return [_product(opened, masks, chain, frozenset(), adds) for chain in chains]


def factors_of(chains: Sequence[Factors]) -> list[int]:
    """The factors in these chains, in their order."""
    return sorted({factor for chain in chains for factor in chain})


def products_of_masks(chains: Sequence[Factors], masks: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """What is dealt for these chains: a row for each of `products_of`."""
    first = next(iter(masks.values()))
    wanted = products_of(chains)
    made = first.new_empty((len(wanted), *first.shape))
    rows: dict[frozenset[int], torch.Tensor] = {frozenset((k,)): mask for k, mask in masks.items()}
    for row, each in zip(made, wanted, strict=True):
        *smaller, last = sorted(each)
        rows[each] = torch.bitwise_and(rows[frozenset(smaller)], masks[last], out=row)
    return made


def _product(
    masked: Mapping[int, torch.Tensor],
    masks: Mapping[frozenset[int], torch.Tensor],
    factors: Factors,
    taken: frozenset[int],
    adds: bool,
) -> torch.Tensor:
    first, *others = factors
    rest = tuple(others)
    if not rest:
        chosen = masks[taken | {first}]
        if taken:
            return (masked[first] & masks[taken]).bitwise_xor_(chosen)
        return masked[first] ^ chosen if adds else chosen
    made = _product(masked, masks, rest, taken, adds)
    # What was computed just now is changed where it lies; a share that was dealt is not.
    made = made.bitwise_and_(masked[first]) if taken else made & masked[first]
    return made.bitwise_xor_(_product(masked, masks, rest, taken | {first}, adds))


DIGIT_PRODUCTS: Final = [*(frozenset((at,)) for at in range(LANES)), *products_of((_DIGIT,))]
"""Which factors each row of `digit_products` is the product of."""
