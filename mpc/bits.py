"""Bits of words, shared by exclusive or, in the order and packing in which comparison needs them.

A comparison combines bits four at a time, in three levels (64 = 4 * 4 * 4). Bit i = 16 a + 4 b + c of a word is kept
at place 16 c + 4 b + a, so that what a level combines lies apart by whole lanes: first four lanes of 16 bits, then,
with two elements in a byte, of 8, then, with eight elements in a byte, of 8 again. No level wastes a bit of its
message.

The first level compares digits of a word c that all know with digits of a mask r that the dealer knows: it deals all
products of the bits of each digit, and what is asked of the two digits is a sum of these, with what c says as factors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any, Final

import numpy as np
import torch

from mpc.pieces import Array, at_once, by_pieces
from mpc.ring import signed

LANES: Final = 4
GROUP: Final = 8
"""Elements come in multiples of this."""

Factors = tuple[int, ...]
Sums = tuple[tuple[Factors, ...], ...]
"""Each the XOR of products of factors."""

_DIGIT: Final = (3, 2, 1, 0)
PRODUCTS: Final = 15
"""Of the bits of a digit: themselves, and the products of two to four of them."""

_KINDS: Final = 256  # of sums that are remembered: there are a few


def to_lanes(words: Array) -> Array:
    """The bits of int64 words in the order above. It is its own inverse."""
    return exchanged(words, _SWAPS)


def exchanged(words: Array, swaps: Iterable[tuple[int, int]]) -> Array:
    """Words of any width whose bits change places: for each (distance, mask) those in the mask with those that stand
    so far above them (delta swaps: Knuth, The Art of Computer Programming 4A, 7.1.3)."""
    for distance, mask in swaps:
        moved = words >> distance
        moved ^= words
        moved &= mask
        words = words ^ moved
        moved <<= distance
        words ^= moved
    return words


def _swap(low: int, high: int) -> tuple[int, int]:
    """Distance and mask of the exchange of two binary digits of all places."""
    places = [place for place in range(64) if place >> low & 1 and not place >> high & 1]
    return (1 << high) - (1 << low), signed(sum(1 << place for place in places))


_SWAPS: Final = (_swap(0, 4), _swap(1, 5))  # digits to base 4: the lowest and the highest change places


def first_lanes(words: Array) -> list[Array]:
    """The bits of [n] int64 as four [n] int16."""
    lanes = to_lanes(words).view(np.int16).reshape(-1, LANES)
    return [np.ascontiguousarray(lanes[:, lane]) for lane in range(LANES)]


def lanes_of(words: torch.Tensor) -> list[torch.Tensor]:
    """The same of a tensor."""
    return by_pieces(first_lanes, words)


def second_lanes(words: Array) -> list[Array]:
    """[n] int16 as four [n / 2] uint8: the nibbles, those of the second half of the elements above the first's."""
    half = words.shape[0] // 2
    low, high = words[:half], words[half:]
    shifts = range(0, 4 * LANES, 4)
    return [(((low >> by) & 15) | (((high >> by) & 15) << 4)).astype(np.uint8) for by in shifts]


def third_lanes(packed: Array) -> list[Array]:
    """[n / 2] uint8 of two nibbles as four [n / 8] uint8 of eight bits."""
    quarters = packed.reshape(4, -1)
    return [_merge((quarters >> lane) & 0x11) for lane in range(LANES)]


def pack(bits: torch.Tensor) -> torch.Tensor:
    """[n] of 0 and 1 as [n / 8] uint8, in the order in which the third level has them."""
    return at_once(_packed, GROUP, bits)[0]


def _packed(bits: Array) -> list[Array]:
    bits = bits.astype(np.uint8)
    half = bits.shape[0] // 2
    return [_merge((bits[:half] | (bits[half:] << 4)).reshape(4, -1))]


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """[n / 8] uint8 as [n] uint8 of 0 and 1: what `pack` packed."""
    return at_once(_unpacked, 1, packed)[0]


def _unpacked(packed: Array) -> list[Array]:
    nibbles = np.concatenate([(packed >> quarter) & 0x11 for quarter in range(4)])
    return [np.concatenate([nibbles & 1, nibbles >> 4])]


def _merge(quarters: Array) -> Array:
    merged: Array = quarters[0] | (quarters[1] << 1) | (quarters[2] << 2) | (quarters[3] << 3)
    return merged


# --- digits of a public word and of a mask ------------------------------------------------------------------


def digit_products(words: Array) -> Array:
    """[n] int64 as [PRODUCTS, n] int16: of each of the 16 hexadecimal digits the bits, and all products of them."""
    lanes = first_lanes(words)
    return np.concatenate([np.stack(lanes), products_of_masks((_DIGIT,), dict(enumerate(lanes)))])


def compared(c: Sequence[Array], products: Array, adds: bool) -> tuple[Array, Array]:
    """Shares, [n] int16, of whether a digit of r is the larger one, and of whether it is equal: digits of r by this
    party's shares of `digit_products`, those of c as `first_lanes` has them."""
    absent, of_r = [~lane for lane in c], dict(zip(DIGIT_PRODUCTS, products, strict=True))
    # From the highest bit on: r has a bit that c has not where all above are equal.
    equal, larger = None, None
    for at in _DIGIT:
        found = _where_equal(absent, of_r, at)
        above = found & absent[at]
        larger = above if larger is None else np.bitwise_xor(larger, above, out=larger)
        equal = _and_equal(equal, absent[at], found, adds)
    assert equal is not None and larger is not None
    return larger, equal


def equal_to(c: Sequence[Array], products: Array, adds: bool) -> Array:
    """Shares, [n] int16, of whether digits of c and r are equal, as `compared` has them."""
    absent, of_r = [~lane for lane in c], dict(zip(DIGIT_PRODUCTS, products, strict=True))
    equal = None
    for at in _DIGIT:
        equal = _and_equal(equal, absent[at], _where_equal(absent, of_r, at), adds)
    assert equal is not None
    return equal


def _and_equal(equal: Array | None, absent: Array, found: Array, adds: bool) -> Array:
    """Whether one bit more is equal: r's is 1 (`found`), or it is 0 where c's is."""
    if equal is None:
        return found ^ absent if adds else found
    equal = equal & absent
    equal ^= found
    return equal


def _where_equal(absent: Sequence[Array], of_r: Mapping[frozenset[int], Array], at: int) -> Array:
    """Whether a bit of r is 1 and all above it are those of c: these are r's XOR what c has not."""

    def part(above: int, taken: frozenset[int]) -> Array:
        if above == at:
            return of_r[taken]
        made = absent[above] & part(above - 1, taken)
        made ^= part(above - 1, taken | {above})
        return made

    return part(LANES - 1, frozenset((at,)))


# --- products of several masked bits in one round -----------------------------------------------------------


@lru_cache(_KINDS)
def products_of(chains: tuple[Factors, ...]) -> tuple[frozenset[int], ...]:
    """The products of masks, of two factors or more, that `sums_of_products` needs for these chains; in a fixed
    order."""
    found: dict[frozenset[int], None] = {}
    for chain in chains:
        for size in range(2, len(chain) + 1):
            found.update(dict.fromkeys(map(frozenset, combinations(chain, size))))
    return tuple(found)


@lru_cache(_KINDS)
def factors_of(chains: tuple[Factors, ...]) -> tuple[int, ...]:
    """The factors in these chains, in their order."""
    return tuple(sorted({factor for chain in chains for factor in chain}))


def chains_of(sums: Sums) -> tuple[Factors, ...]:
    """The products in these sums."""
    return tuple(chain for each in sums for chain in each)


def sums_of_products(
    sums: Sums, adds: bool, masked: Sequence[Array], free: Sequence[Array], derived: Sequence[Array]
) -> list[Array]:
    """For each sum a share of the XOR of its products. Factor k is its row of `masked` XOR its mask.

    The AND of sums is the sum, over all ways to take the open part or the mask of each factor, of the products; those
    of the masks are dealt. (Ohata and Nuida, FC 2020: fan-in N in one round.)

    Args:
        adds: whether this party adds the product that has no mask in it: one of them does.
        masked: the opened words, a row for each factor, in their order.
        free: this party's shares of the masks, likewise.
        derived: those of the products of masks, in the order of `products_of`.
    """
    masks = [*free, *derived]
    made = []
    for trees in _trees(sums):
        first, *others = (_product(tree, masked, masks, adds) for tree in trees)
        for other in others:
            first ^= other
        made.append(first)
    return made


Tree = tuple[int, Any, Any]
"""One factor of a product: its row; what the others give, and what they give with its mask taken. The last factor's:
the row of the mask of those that were taken before (None: of none), and of that with its own."""


@lru_cache(_KINDS)
def _trees(sums: Sums) -> tuple[tuple[Tree, ...], ...]:
    """For each sum the trees of its products, in rows of factors and of masks."""
    chains = chains_of(sums)
    factors = factors_of(chains)
    masks = [*(frozenset((factor,)) for factor in factors), *products_of(chains)]
    row = {mask: at for at, mask in enumerate(masks)}

    def tree(chain: Factors, taken: frozenset[int]) -> Tree:
        first, rest = chain[0], chain[1:]
        if not rest:
            return factors.index(first), row.get(taken), row[taken | {first}]
        return factors.index(first), tree(rest, taken), tree(rest, taken | {first})

    return tuple(tuple(tree(chain, frozenset()) for chain in each) for each in sums)


def _product(tree: Tree, masked: Sequence[Array], masks: Sequence[Array], adds: bool) -> Array:
    """What is given is never a share that was dealt: it may be changed."""
    at, others, with_mask = tree
    if isinstance(with_mask, int):
        if others is None:
            return masked[at] ^ masks[with_mask] if adds else masks[with_mask].copy()
        made = masked[at] & masks[others]
        made ^= masks[with_mask]
        return made
    made = _product(others, masked, masks, adds)
    made &= masked[at]
    made ^= _product(with_mask, masked, masks, adds)
    return made


def products_of_masks(chains: tuple[Factors, ...], masks: Mapping[int, Array]) -> Array:
    """What is dealt for these chains: a row for each of `products_of`."""
    first = next(iter(masks.values()))
    wanted = products_of(chains)
    made = np.empty((len(wanted), *first.shape), first.dtype)
    rows: dict[frozenset[int], Array] = {frozenset((k,)): mask for k, mask in masks.items()}
    for row, each in zip(made, wanted, strict=True):
        *smaller, last = sorted(each)
        rows[each] = np.bitwise_and(rows[frozenset(smaller)], masks[last], out=row)
    return made


DIGIT_PRODUCTS: Final = [*(frozenset((at,)) for at in range(LANES)), *products_of((_DIGIT,))]
"""Which factors each row of `digit_products` is the product of."""
