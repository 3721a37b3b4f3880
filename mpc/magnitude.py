"""How large a secret is: which of its hexadecimal digits is the first that is not zero.

x = c - r for the opened c. A digit of x is zero where c's and r's digits are equal and nothing is borrowed from it, or
c's is one more and something is. Whether digits are equal, and what they borrow, comes from what was dealt; the borrows
of all digits from two levels of a prefix network of fan-in four (Kogge and Stone, 1973; the masks of a word serve for
all its shifts, so that two words are opened a level); the leading zeros from two more.

    7 rounds, 25 bytes an element from each party to each other; 31 where it may be negative, with its sign

Adversary: semi-honest, all parties but one may collude, but not with the dealer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import torch

from mpc import bits
from mpc.comparison import ALL, CARRY, EVERY, Masked, ands, as_numbers, mask
from mpc.correlations import XOR, Correlation, Words
from mpc.party import Party
from mpc.pieces import Array, by_pieces
from mpc.rounds import Opening, Protocol, together

NARROW: Final = 20
WIDE: Final = 28
"""Secrets are below 2^20 in absolute value, or 2^28."""

_PLACES: Final = 16  # hexadecimal digits of a word
_SIGN_DIGIT: Final = 12  # one that is 0 or 15, as all are above the highest that counts
# Whether a digit is that of a sign: equal, but for what a borrow changes, and a sign, and both.
_BORROWED, _DIFFERS, _NEGATIVE, _WITH_SIGN, _WITH_BOTH = range(5)
_CHOICES: Final = (((_BORROWED, _DIFFERS), (_NEGATIVE, _WITH_SIGN), (_BORROWED, _NEGATIVE, _WITH_BOTH)),)


def digits_of(precision: int, domain: int) -> int:
    """How many digits the words of secrets below 2^domain have."""
    return -(-(domain + precision) // 4)


@dataclass(frozen=True, slots=True)
class Leading:
    """Which digit of a secret is the first that is not zero, as one party has it: bits of which one is 1 (none for 0),
    as the open bits XOR s, and this party's shares of s.

    Attributes:
        opened: [n] int16, the lowest digit's bit is the lowest.
        masks: [digits, n], numbers.
    """

    opened: torch.Tensor
    masks: torch.Tensor
    is_first: bool

    @property
    def digits(self) -> int:
        return self.masks.shape[0]

    def chosen(self, numbers: Sequence[int]) -> torch.Tensor:
        """A share of the one of these numbers that belongs to the digit, [n]; 0 for 0. No round."""
        (total,) = by_pieces(partial(self._total, numbers), self.opened, self.masks)
        return total

    def _total(self, numbers: Sequence[int], opened: Array, masks: Array) -> list[Array]:
        total = np.zeros_like(masks[0])
        for digit, number in enumerate(numbers):
            # t + (1 - 2 t) s, where t is -1 or 0: then s XOR it, less it, is -s or s.
            t = ((opened << (15 - digit)) >> 15).astype(np.int64)
            bit = masks[digit] ^ t
            bit -= t
            if self.is_first:
                bit -= t
            bit *= number
            total += bit
        return [total]


def leading_digit(party: Party, x: torch.Tensor, digits: int) -> Protocol[Leading]:
    """The first digit of x that is not zero.

    `x` is a share of words in [0, 16^digits), [n] with n a multiple of bits.GROUP. For 0 all are 0. Seven rounds.
    """
    masked = yield from mask(party, x)
    found = _digits(party, masked, False)
    taken = (yield from _prefix(party, found.makes, found.equal)) << 1  # what is borrowed from a digit
    zero = found.equal ^ (yield from _both(party, taken, found.equal ^ found.one_more))
    return (yield from _which(party, (yield from _first(party, zero)), digits))


def leading_digit_and_sign(
    party: Party, x: torch.Tensor, digits: int
) -> Protocol[tuple[Leading, torch.Tensor, torch.Tensor]]:
    """For words of |x| < 16^digits, [n]: the leading digit of |x| (where x is negative, of |x| - 1), packed XOR shares
    of x < 0, and |x|. Seven rounds.

    The digits of x above its size are 0, or 15 where it is negative. What says which, is a bit between two digits: that
    of c, that of r, and the borrow, which are there.
    """
    masked = yield from mask(party, x)
    found = _digits(party, masked, True)
    assert found.one_fewer is not None
    taken = (yield from _prefix(party, found.makes, found.equal)) << 1
    negative = by_pieces(partial(_negative, party.is_first), masked.c, masked.r_digits[0], taken)[0]
    lanes = {_BORROWED: taken, _DIFFERS: found.equal ^ found.one_more, _NEGATIVE: negative}
    lanes |= {_WITH_SIGN: found.equal ^ found.one_fewer, _WITH_BOTH: found.one_more ^ found.one_fewer}
    (of_sign,) = yield from ands(party, _CHOICES, lanes)
    of_sign ^= found.equal
    first = yield from _first(party, of_sign)
    sign = bits.pack(negative & 1)
    leading, (_, below) = yield from together(_which(party, first, digits), as_numbers(party, sign, masked))
    assert below is not None
    return leading, sign, x - 2 * below


def _negative(is_first: bool, c: Array, r: Array, taken: Array) -> list[Array]:
    """A share of x < 0 in all bits of [n] int16, of the lowest bits of r's digits."""
    bit = (r >> 3) ^ (taken >> _SIGN_DIGIT)  # digit 12 = 4 * 3 + 0 is at place 4 * 0 + 3
    if is_first:
        bit ^= (c >> (4 * _SIGN_DIGIT)).astype(np.int16)
    bit &= 1
    return [np.negative(bit, out=bit)]


def _first(party: Party, empty: torch.Tensor) -> Protocol[torch.Tensor]:
    """Whether a digit is not empty, and all above it are. Two rounds."""
    empty_from = yield from _all_above(party, empty)
    first: torch.Tensor = _down(empty_from, 1, party.is_first) ^ empty_from
    return first


def _which(party: Party, first: torch.Tensor, digits: int) -> Protocol[Leading]:
    """Opens the bits under masks that were dealt as numbers, too. One round, 2 bytes an element."""
    dealt = party.take(Which(first.shape[0], digits))
    opened = yield Opening(xors=[first ^ dealt.free[0]])
    return Leading(opened.xors[0], dealt.derived[0], party.is_first)


@dataclass(frozen=True, slots=True)
class _Digits:
    """Of each digit, in [n] int16 words in their natural order: whether it borrows by itself, whether those of c and r
    are equal, whether c's is one more, and, where that was wanted, one fewer."""

    makes: torch.Tensor
    equal: torch.Tensor
    one_more: torch.Tensor
    one_fewer: torch.Tensor | None = None


def _digits(party: Party, masked: Masked, has_sign: bool) -> _Digits:
    """What is to be known of the digits of c and r. No round."""

    def work(r: Array, c: Array) -> list[Array]:
        of_c = bits.first_lanes(c)
        makes, equal = bits.compared(of_c, r, party.is_first)
        others = [_one_less(of_c), *[_one_more(of_c)] * has_sign]
        return [_natural(each) for each in (makes, equal, *(bits.equal_to(c, r, party.is_first) for c in others))]

    return _Digits(*by_pieces(work, masked.r_digits, masked.c))


def _one_more(lanes: Sequence[Array]) -> list[Array]:
    """The bits of each digit and one, modulo 16."""
    zero, one, two, three = lanes
    return [~zero, one ^ zero, two ^ (zero & one), three ^ (zero & one & two)]


def _one_less(lanes: Sequence[Array]) -> list[Array]:
    """The bits of each digit less one, modulo 16."""
    zero, one, two, three = lanes
    return [~zero, one ^ ~zero, two ^ (~zero & ~one), three ^ (~zero & ~one & ~two)]


def _natural(words: Array) -> Array:
    """Of 16 digits 4 a + b those at 4 b + a, so that a digit's place is its number."""
    return bits.exchanged(words, ((3, 0x0A0A), (6, 0x00CC)))


# --- prefix networks ----------------------------------------------------------------------------------------


def _down(words: Any, by: int, fills: bool = False) -> Any:
    """Shifted down; what comes in at the top is 1 where `fills`."""
    kept = (words >> by) & ((1 << (_PLACES - by)) - 1)
    return kept | (-1 << (_PLACES - by)) if fills else kept


_FIRST_MADE: Final = 3  # less one: the factors of Prefix from here on are of what makes

Product = frozenset[int]
"""Of factors."""


@dataclass(frozen=True, slots=True)
class Prefix(Correlation):
    """Masks for two words (one, where nothing is made), [count], and products of them and of their shifts.

    The factors are the word that passes on as it is, and shifted one to three times (0 to 3), and that which makes,
    shifted one to three times (4 to 6). What all of a product's words are shifted by, the product is.
    """

    count: int
    stride: int
    is_up: bool
    is_last: bool = False
    """Nobody asks any more what passes on, where something is made."""

    @property
    def sums(self) -> bits.Sums:
        if not self.is_up:
            return EVERY
        return (CARRY,) if self.is_last else (CARRY, (ALL,))

    @property
    def products(self) -> tuple[Product, ...]:
        """Those that are dealt: of which a word is not shifted."""
        return tuple(each for each in bits.products_of(bits.chains_of(self.sums)) if 0 in each)

    @property
    def free(self) -> Sequence[Words]:
        return (Words((2 if self.is_up else 1, self.count), torch.int16, XOR),)

    @property
    def derived(self) -> Sequence[Words]:
        return (Words((len(self.products), self.count), torch.int16, XOR),)

    def derive(self, free: Sequence[torch.Tensor], kept: torch.Tensor | None) -> Sequence[torch.Tensor]:
        return by_pieces(self._of_masks, free[0])

    def _of_masks(self, free: Array) -> list[Array]:
        masks = self.factors(free)
        found: dict[Product, Array] = {frozenset((0,)): masks[0]}
        for each in self.products:
            found[each] = found[each - {max(each)}] & masks[max(each)]
        return [np.stack([found[each] for each in self.products])]

    def of_opened(self, adds: bool, masked: Array, free: Array, derived: Array) -> list[Array]:
        """Shares of the sums, of the opened words and what was dealt."""
        dealt = dict(zip(self.products, derived, strict=True))
        chains = bits.chains_of(self.sums)
        products = []
        for each in bits.products_of(chains):
            times = min(each)  # no product is of words that make alone
            products.append(self._shifted(dealt[frozenset(factor - times for factor in each)], times, False))
        opened, masks = self.factors(masked, fills=True), self.factors(free)
        one, other = ([each[factor] for factor in bits.factors_of(chains)] for each in (opened, masks))
        return bits.sums_of_products(self.sums, adds, one, other, products)

    def factors(self, words: Any, fills: bool = False) -> dict[int, Any]:
        """Of [words, n]; what comes in where they are shifted down is 1 if it `fills`."""
        found = {times: self._shifted(words[0], times, fills) for times in range(3 if self.is_last else 4)}
        if self.is_up:
            found |= {_FIRST_MADE + times: self._shifted(words[1], times, fills) for times in range(1, 4)}
        return found

    def _shifted(self, words: Any, times: int, fills: bool) -> Any:
        by = times * self.stride
        if not by:
            return words
        return words << by if self.is_up else _down(words, by, fills)


def _prefix(party: Party, makes: torch.Tensor, passes: torch.Tensor) -> Protocol[torch.Tensor]:
    """Whether each place or one below it makes something that is passed on up to there. Two rounds."""
    count = makes.shape[0]
    made, through = yield from _network(party, Prefix(count, 1, True), [passes, makes])
    makes = made.bitwise_xor_(makes)
    (made,) = yield from _network(party, Prefix(count, 4, True, True), [through, makes])
    return made.bitwise_xor_(makes)


def _all_above(party: Party, words: torch.Tensor) -> Protocol[torch.Tensor]:
    """Whether each place and all above it are 1. Two rounds."""
    for stride in (1, 4):
        (words,) = yield from _network(party, Prefix(words.shape[0], stride, False), [words])
    return words


def _network(party: Party, prefix: Prefix, words: list[torch.Tensor]) -> Protocol[Sequence[torch.Tensor]]:
    """The prefix's sums. One round."""
    dealt = party.take(prefix)
    opened = yield Opening(xors=[torch.stack(words).bitwise_xor_(dealt.free[0])])
    return by_pieces(partial(prefix.of_opened, party.is_first), opened.xors[0], dealt.free[0], dealt.derived[0])


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


@dataclass(frozen=True, slots=True)
class Which(Correlation):
    """A uniform word for each element, [count], and its lowest bits as numbers, [digits, count]."""

    count: int
    digits: int

    @property
    def free(self) -> Sequence[Words]:
        return (Words((self.count,), torch.int16, XOR),)

    @property
    def derived(self) -> Sequence[Words]:
        return (Words((self.digits, self.count)),)

    def derive(self, free: Sequence[torch.Tensor], kept: torch.Tensor | None) -> Sequence[torch.Tensor]:
        return [self.rows(free[0])]

    def rows(self, words: torch.Tensor) -> torch.Tensor:
        """[digits, n] of 0 and 1: the lowest bits of words."""
        made = words.new_empty((self.digits, *words.shape), dtype=torch.int64)
        for digit, row in enumerate(made):
            row.copy_((words >> digit) & 1)
        return made


def _both(party: Party, one: torch.Tensor, other: torch.Tensor) -> Protocol[torch.Tensor]:
    """one AND other. One round."""
    dealt = party.take(Pair(one.shape[0]))
    a, b = dealt.free[0]
    opened = yield Opening(xors=[torch.stack([one ^ a, other ^ b])])
    d, e = opened.xors[0]
    made: torch.Tensor = dealt.derived[0] ^ (d & b) ^ (e & a)
    return made ^ (d & e) if party.is_first else made
