"""How large a positive secret is: which of its hexadecimal digits is the first that is not zero.

x = c - r for the opened c. A digit of x is zero where c's and r's digits are equal and nothing is borrowed from it, or
c's is one more and something is. Whether digits are equal, and what they borrow, comes from one level of products of
four bits; the borrows of all digits from two levels of a prefix network of fan-in four (Kogge and Stone, 1973; the
masks of a word serve for all its shifts, so that two words are opened a level); the leading zeros from two more.

    8 rounds, 48 bytes an element from each party to each other

Adversary: semi-honest, all parties but one may collude, but not with the dealer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from mpc import bits
from mpc.comparison import ALL, CARRY, Level, as_numbers, mask, masked_bits
from mpc.correlations import XOR, Correlation, Words
from mpc.party import Party
from mpc.rounds import Opening, Protocol

DIGITS: Final = 9
"""A secret's words are below 16^9."""

_PLACES: Final = 16  # hexadecimal digits of a word
_ONE_MORE: Final = (7, 8, 9, 10)  # lanes beside those of a carry: whether c's digit is one more
_DIGIT_CHAINS: Final = (*CARRY, ALL, _ONE_MORE)


def leading_digit(party: Party, x: torch.Tensor) -> Protocol[torch.Tensor]:
    """Shares, [DIGITS, n], of 1 at the first digit of x that is not zero, 0 at all others; the lowest digit is row 0.

    `x` is a share of words in [0, 16^9), [n] with n a multiple of bits.GROUP. For 0 all are 0.
    """
    masked = yield from mask(party, x)
    makes, equal, one_more = yield from _digits(party, bits.to_lanes(masked.c), masked.r_bits)
    borrow = yield from _prefix(party, makes, equal)
    taken = _up(borrow, 1)  # what is borrowed from a digit: by those below it
    zero = equal ^ (yield from _both(party, taken, equal ^ one_more))
    zeros_from = yield from _all_above(party, zero)
    first = _down(zeros_from, 1, party.is_first) ^ zeros_from
    rows = torch.stack([(first >> place) & 1 for place in range(DIGITS)])
    numbers, _ = yield from as_numbers(party, bits.pack(rows.view(-1)))
    return numbers.view(DIGITS, -1)


def _digits(
    party: Party, c: torch.Tensor, r: torch.Tensor
) -> Protocol[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """For each digit, [n] int16 words in their natural order: whether it borrows by itself, whether those of c and r
    are equal, and whether c's is one more. One round."""
    of_c, of_r = bits.first_lanes(c), bits.first_lanes(r)
    less = _one_less(of_c)

    def same(lane: torch.Tensor, public: torch.Tensor) -> torch.Tensor:
        return lane ^ ~public if party.is_first else lane

    lanes = {ALL[3 - at]: same(of_r[at], of_c[at]) for at in range(4)}
    lanes |= {_ONE_MORE[3 - at]: same(of_r[at], less[at]) for at in range(4)}
    makes = [lane & ~public for lane, public in zip(of_r, of_c, strict=True)]
    lanes |= {4: makes[2], 5: makes[1], 6: makes[0]}
    opened, masks = yield from masked_bits(party, Level(c.shape[0], torch.int16, _DIGIT_CHAINS), lanes)

    def product(chain: bits.Factors) -> torch.Tensor:
        return bits.product(opened, masks, chain, adds=party.is_first)

    made = makes[3]
    for chain in CARRY:
        made = made ^ product(chain)
    return _natural(made), _natural(product(ALL)), _natural(product(_ONE_MORE))


def _one_less(lanes: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The bits of each digit less one, modulo 16."""
    zero, one, two, three = lanes
    return [~zero, one ^ ~zero, two ^ (~zero & ~one), three ^ (~zero & ~one & ~two)]


def _natural(words: torch.Tensor) -> torch.Tensor:
    """Of 16 digits 4 a + b those at 4 b + a, so that a digit's place is its number."""
    for distance, places in ((3, 0x0A0A), (6, 0x00CC)):
        moved = (words ^ (words >> distance)) & places
        words = words ^ moved ^ (moved << distance)
    return words


# --- prefix networks ----------------------------------------------------------------------------------------


def _up(words: torch.Tensor, by: int) -> torch.Tensor:
    return words << by


def _down(words: torch.Tensor, by: int, fills: bool = False) -> torch.Tensor:
    """Shifted down; what comes in at the top is 1 where `fills`."""
    kept = (words >> by) & ((1 << (_PLACES - by)) - 1)
    return kept | (-1 << (_PLACES - by)) if fills else kept


@dataclass(frozen=True, slots=True)
class Prefix(Correlation):
    """Masks for two words (one, where nothing is made), [count], and products of them and of their shifts."""

    count: int
    stride: int
    is_up: bool

    @property
    def chains(self) -> tuple[bits.Factors, ...]:
        return (*CARRY, ALL) if self.is_up else (ALL,)

    @property
    def free(self) -> Sequence[Words]:
        return (Words((2 if self.is_up else 1, self.count), torch.int16, XOR),)

    @property
    def derived(self) -> Sequence[Words]:
        return (Words((len(bits.products_of(self.chains)), self.count), torch.int16, XOR),)

    def derive(self, free: Sequence[torch.Tensor], kept: torch.Tensor | None) -> Sequence[torch.Tensor]:
        masks = self.shifts(list(free[0]))
        products: dict[frozenset[int], torch.Tensor] = {frozenset((k,)): mask for k, mask in masks.items()}
        for wanted in bits.products_of(self.chains):
            *smaller, last = sorted(wanted)
            products[wanted] = products[frozenset(smaller)] & masks[last]
        return [torch.stack([products[wanted] for wanted in bits.products_of(self.chains)])]

    def shifts(self, words: Sequence[torch.Tensor], fills: bool = False) -> dict[int, torch.Tensor]:
        """The factors of the chains: words that pass on, and that make, each as seen from further on."""
        if not self.is_up:
            return {ALL[at]: _down(words[0], at * self.stride, fills) if at else words[0] for at in range(4)}
        passes, makes = words
        found = {ALL[at]: _up(passes, at * self.stride) if at else passes for at in range(4)}
        return found | {3 + at: _up(makes, at * self.stride) for at in range(1, 4)}


def _prefix(party: Party, makes: torch.Tensor, passes: torch.Tensor) -> Protocol[torch.Tensor]:
    """Whether each place or one below it makes something that is passed on up to there. Two rounds."""
    for stride in (1, 4):
        prefix = Prefix(makes.shape[0], stride, True)
        opened, masks = yield from _shifted(party, prefix, [passes, makes])
        made = makes
        for chain in CARRY:
            made = made ^ bits.product(opened, masks, chain, adds=party.is_first)
        passes = bits.product(opened, masks, ALL, adds=party.is_first)
        makes = made
    return makes


def _all_above(party: Party, words: torch.Tensor) -> Protocol[torch.Tensor]:
    """Whether each place and all above it are 1. Two rounds."""
    for stride in (1, 4):
        opened, masks = yield from _shifted(party, Prefix(words.shape[0], stride, False), [words])
        words = bits.product(opened, masks, ALL, adds=party.is_first)
    return words


def _shifted(
    party: Party, prefix: Prefix, words: list[torch.Tensor]
) -> Protocol[tuple[dict[int, torch.Tensor], dict[frozenset[int], torch.Tensor]]]:
    dealt = party.take(prefix)
    opened = yield Opening(xors=[torch.stack(words) ^ dealt.free[0]])
    masked = prefix.shifts(list(opened.xors[0]), fills=True)
    masks = dict(zip(bits.products_of(prefix.chains), dealt.derived[0], strict=True))
    for factor, each in prefix.shifts(list(dealt.free[0])).items():
        masks[frozenset((factor,))] = each
    return masked, masks


@dataclass(frozen=True, slots=True)
class Pair(Correlation):
    """Two uniform words a and b, [count], and a AND b."""

    count: int

    @property
    def free(self) -> Sequence[Words]:
        return (Words((2, self.count), torch.int16, XOR),)

    @property
    def derived(self) -> Sequence[Words]:
        return (Words((self.count,), torch.int16, XOR),)

    def derive(self, free: Sequence[torch.Tensor], kept: torch.Tensor | None) -> Sequence[torch.Tensor]:
        return [free[0][0] & free[0][1]]


def _both(party: Party, one: torch.Tensor, other: torch.Tensor) -> Protocol[torch.Tensor]:
    """one AND other. One round."""
    dealt = party.take(Pair(one.shape[0]))
    a, b = dealt.free[0]
    opened = yield Opening(xors=[torch.stack([one ^ a, other ^ b])])
    d, e = opened.xors[0]
    made: torch.Tensor = dealt.derived[0] ^ (d & b) ^ (e & a)
    return made ^ (d & e) if party.is_first else made


Coefficient = Callable[[int], int]


def chosen(first: torch.Tensor, of_digit: Coefficient) -> torch.Tensor:
    """A share of the public number that belongs to the leading digit, [n]; 0 for 0. No round."""
    total = torch.zeros_like(first[0])
    for digit in range(DIGITS):
        total += first[digit] * of_digit(digit)
    return total
