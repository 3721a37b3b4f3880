"""Bits of words, shared by exclusive or, in the order and packing in which comparison needs them.

A comparison combines bits four at a time, in three levels (64 = 4 * 4 * 4). Bit i = 16 a + 4 b + c of a word is kept
at place 16 c + 4 b + a, so that what a level combines lies apart by whole lanes: first four lanes of 16 bits, then,
with two elements in a byte, of 8, then, with eight elements in a byte, of 8 again. No level wastes a bit of its
message.
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
    lanes = []
    for lane in range(LANES):
        nibbles = (words >> (4 * lane)) & 15
        lanes.append((nibbles[:half] | (nibbles[half:] << 4)).to(torch.uint8))
    return lanes


def third_lanes(packed: torch.Tensor) -> list[torch.Tensor]:
    """[n / 2] uint8 of two nibbles as four [n / 8] uint8 of eight bits."""
    quarters = packed.view(4, -1)
    return [_merge((quarters >> lane) & 0x11) for lane in range(LANES)]


def pack(bits: torch.Tensor) -> torch.Tensor:
    """[n] of 0 and 1 as [n / 8] uint8, in the order in which the third level has them."""
    bits = bits.to(torch.uint8)
    half = bits.shape[0] // 2
    return _merge((bits[:half] | (bits[half:] << 4)).view(4, -1))


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """[n / 8] uint8 as [n] int64 of 0 and 1: what `pack` packed."""
    nibbles = torch.cat([(packed >> quarter) & 0x11 for quarter in range(4)])
    return torch.cat([nibbles & 1, (nibbles >> 4) & 1]).to(torch.int64)


def _merge(quarters: torch.Tensor) -> torch.Tensor:
    return quarters[0] | (quarters[1] << 1) | (quarters[2] << 2) | (quarters[3] << 3)


# --- products of several masked bits in one round -----------------------------------------------------------


def products_of(chains: Sequence[Factors]) -> list[frozenset[int]]:
    """The products of masks, of two factors or more, that `product` needs for these chains; in a fixed order."""
    found: dict[frozenset[int], None] = {}
    for chain in chains:
        for size in range(2, len(chain) + 1):
            found.update(dict.fromkeys(map(frozenset, combinations(chain, size))))
    return list(found)


def product(
    masked: Mapping[int, torch.Tensor], masks: Mapping[frozenset[int], torch.Tensor], factors: Factors, *, adds: bool
) -> torch.Tensor:
    """A share of the AND of some bits: factor k is masked[k] XOR its mask.

    The AND of sums is the sum, over all ways to take the open part or the mask of each factor, of the products; those
    of the masks are dealt. (Ohata and Nuida, FC 2020: fan-in N in one round.)

    Args:
        masked: the opened words.
        masks: this party's shares of the products of masks; of single ones too.
        adds: whether this party adds the product that has no mask in it: one of them does.
    """
    return _product(masked, masks, factors, frozenset(), adds)


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
            return (masked[first] & masks[taken]) ^ chosen
        return masked[first] ^ chosen if adds else chosen
    with_mask = _product(masked, masks, rest, taken | {first}, adds)
    return (masked[first] & _product(masked, masks, rest, taken, adds)) ^ with_mask
