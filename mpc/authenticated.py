"""Arithmetic with malicious security: every secret carries a MAC, and nothing is revealed before all MACs are checked.

A secret x is shared by addition modulo the prime P = 2^61 - 1, and so is its tag alpha * x, under a key alpha that is
shared and never opened (SPDZ: Damgard, Pastro, Smart, Zakarias, CRYPTO 2012; the check after Damgard, Keller and
others, ESORICS 2013). Who changes an opened value by e != 0 has to change the tags by alpha * e: odds of 2^-60. The
truncation is that of comparison.py in this field, exact.

Why a field: in the ring modulo 2^64 an error of 2^63 hits its tag with odds of one half. SPDZ2k (CRYPTO 2018) mends it
with words of 64 + 60 bits, for which int64 is too narrow; the field costs six products of limbs for one, and three
bits: |x| is below 2^59.

    private    no round; its holder tells each party 8 bytes an element
    multiply   1 round, 8 bytes for each element of both factors from each party to each other
    truncate   1 round, 8 bytes an element
    check      4 rounds, 32, 32, 32 and 40 bytes for each pair of parties, however much was opened
    reveal     2 rounds of 8 bytes an element, and two checks

Adversary: all parties but one may be malicious, but the dealer deals truthfully and does not collude. Nobody who is
honest has a result unless it is right. Who cheats with what opens the result itself may have seen it, as in all
protocols without an honest majority; who cheats earlier sees nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from mpc import field
from mpc.arithmetic import Shape, result_shape
from mpc.bilinear import Bilinear
from mpc.correlations import Correlation, Words
from mpc.field import P
from mpc.masks import SEED, Masks
from mpc.party import Party
from mpc.rounds import Opening, Protocol
from protocol.errors import BadRequest, PartyFailed

MAGNITUDE = 59
"""Secrets are below 2^59 in absolute value, so that truncation is exact."""

_SHIFT_IN = 1 << MAGNITUDE
_TOP = field.BITS - 1
_NONCE = 32
_MOST_PARTIES = 7  # the sum of so many shares fits 64 bits


# --- what is dealt ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Elements(Words):
    """Elements of the field; uniform to within 2^-61."""

    def combine_(self, total: torch.Tensor, other: torch.Tensor) -> None:
        total.copy_(field.add(total, self.cut(other)))

    def cut(self, words: torch.Tensor) -> torch.Tensor:
        return field.reduced(words & P)

    def without_(self, total: torch.Tensor, other: torch.Tensor) -> None:
        total.copy_(field.sub(total, self.cut(other)))


@dataclass(frozen=True, slots=True)
class Key(Correlation):
    """The key of all MACs of a run, [1]."""

    @property
    def free(self) -> Sequence[Words]:
        return (Elements((1,)),)


@dataclass(frozen=True, slots=True)
class _Tagged(Correlation):
    key: int

    @property
    def kept(self) -> int | None:  # type: ignore[override]
        return self.key

    def moved(self, by: Callable[[int], int]) -> Correlation:
        return replace(self, key=by(self.key))

    @property
    def shapes(self) -> Sequence[Shape]:
        """Of the free words, and of what is made of them."""
        raise NotImplementedError

    def made(self, free: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        return ()

    @property
    def derived(self) -> Sequence[Words]:
        made = self.shapes[len(self.free) :]
        return [Elements(shape) for shape in (*made, *self.shapes)]

    def derive(self, free: Sequence[torch.Tensor], kept: torch.Tensor | None) -> Sequence[torch.Tensor]:
        assert kept is not None
        made = self.made(free)
        return [*made, *(field.times(each, kept[0]) for each in (*free, *made))]


@dataclass(frozen=True, slots=True)
class TaggedMask(_Tagged):
    """A uniform r and its tag."""

    shape: Shape

    @property
    def free(self) -> Sequence[Words]:
        return (Elements(self.shape),)

    @property
    def shapes(self) -> Sequence[Shape]:
        return (self.shape,)


@dataclass(frozen=True, slots=True)
class PrivateMask(_Tagged):
    """A uniform r that one other knows, and its tag. `seed`: who is to know r has drawn it, and told the dealer alone;
    parties do without."""

    shape: Shape
    at: int
    seed: bytes = dataclasses.field(default=b"", compare=False, repr=False)

    @property
    def free(self) -> Sequence[Words]:
        return ()

    @property
    def shapes(self) -> Sequence[Shape]:
        return (self.shape,)

    def made(self, free: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        return [private_mask(self.seed, self.at, self.shape)]


def private_mask(seed: bytes, at: int, shape: Shape) -> torch.Tensor:
    """The r of a PrivateMask, to who has its seed. Each `at` of a seed is used once."""
    return Elements(shape).cut(Masks(seed, at).draw(shape, torch.int64))


@dataclass(frozen=True, slots=True)
class TaggedTriple(_Tagged):
    """Uniform a and b, their product c, and the tags of the three."""

    operation: Bilinear
    one: Shape
    other: Shape

    @property
    def free(self) -> Sequence[Words]:
        return Elements(self.one), Elements(self.other)

    @property
    def shapes(self) -> Sequence[Shape]:
        return self.one, self.other, result_shape(self.operation, self.one, self.other)

    def made(self, free: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        return [field.apply(self.operation, free[0], free[1])]


@dataclass(frozen=True, slots=True)
class TaggedShift(_Tagged):
    """A uniform r, r >> shift and the highest bit of r, with tags."""

    shape: Shape
    shift: int

    @property
    def free(self) -> Sequence[Words]:
        return (Elements(self.shape),)

    @property
    def shapes(self) -> Sequence[Shape]:
        return (self.shape,) * 3

    def made(self, free: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        return [free[0] >> self.shift, free[0] >> _TOP]


# --- secrets ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tagged:
    """This party's share of a secret, and of its tag: elements of the field."""

    value: torch.Tensor
    tag: torch.Tensor

    def __add__(self, other: Tagged) -> Tagged:
        return Tagged(field.add(self.value, other.value), field.add(self.tag, other.tag))

    def __sub__(self, other: Tagged) -> Tagged:
        return Tagged(field.sub(self.value, other.value), field.sub(self.tag, other.tag))

    def by(self, operation: Bilinear, public: torch.Tensor) -> Tagged:
        """operation(secret, elements that all know)."""
        return Tagged(field.apply(operation, self.value, public), field.apply(operation, self.tag, public))


class Authenticated:
    """One party's part in a run with MACs: what it opened is remembered until it was checked.

    Attributes:
        party: which one, and what it is dealt.
        precision: fractional bits of reals.
        device: where its shares are.
    """

    def __init__(self, party: Party) -> None:
        if party.count > _MOST_PARTIES:
            raise BadRequest(f"runs with malicious security have at most {_MOST_PARTIES} parties, not {party.count}")
        self.party = party
        self.precision = party.precision
        self._number = party.taken
        self._key = party.take(Key()).free[0][0]
        self.device = self._key.device
        self._unchecked: list[tuple[torch.Tensor, torch.Tensor]] = []

    def _take(self, correlation: _Tagged) -> list[Tagged]:
        dealt = self.party.take(correlation)
        count = len(correlation.shapes)
        words = [*dealt.free, *(field.reduced(each & P) for each in dealt.derived)]
        return [Tagged(*pair) for pair in zip(words[:count], words[count:], strict=True)]

    def plus(self, secret: Tagged, public: torch.Tensor) -> Tagged:
        """secret + elements that all know, of the same shape."""
        value = field.add(secret.value, public) if self.party.is_first else secret.value
        return Tagged(value, field.add(secret.tag, field.times(self._key.expand(public.shape), public)))

    def mask(self, shape: Shape) -> Tagged:
        """A uniform r."""
        return self._take(TaggedMask(self._number, shape))[0]

    def private(self, shape: Shape, at: int, seed: bytes = b"") -> Tagged:
        """A uniform r that one other knows, who has told the dealer its seed (`seed`: at the dealer alone). Of its
        input x that one tells all parties x - r: whoever is told another word than others are finds a wrong tag.
        """
        return self._take(PrivateMask(self._number, shape, at, seed))[0]

    def open(self, *secrets: Tagged) -> Protocol[list[torch.Tensor]]:
        """Their values, which are masked ones: they are not checked yet. One round."""
        opened = yield Opening(sums=[secret.value for secret in secrets])
        values = [field.reduced(each) for each in opened.sums]
        self._unchecked += [(value, secret.tag) for value, secret in zip(values, secrets, strict=True)]
        return values

    def multiply(self, operation: Bilinear, x: Tagged, y: Tagged) -> Protocol[Tagged]:
        """operation(x, y); scales add up. One round."""
        a, b, c = self._take(TaggedTriple(self._number, operation, tuple(x.value.shape), tuple(y.value.shape)))
        epsilon, delta = yield from self.open(x - a, y - b)
        left, right = self.plus(b, delta), a.by(operation, delta)
        return Tagged(*(field.apply(operation, epsilon, each) for each in (left.value, left.tag))) + right + c

    def truncate(self, x: Tagged, shift: int) -> Protocol[Tagged]:
        """x >> shift, rounded down or up: off by at most one. One round."""
        r, low, top = self._take(TaggedShift(self._number, tuple(x.value.shape), shift))
        (c,) = yield from self.open(self.plus(x + r, torch.full_like(x.value, _SHIFT_IN)))
        wraps = field.times(1 - (c >> _TOP), torch.full_like(c, 1 << (field.BITS - shift)))
        made = Tagged(field.times(top.value, wraps), field.times(top.tag, wraps)) - low
        return self.plus(made, field.sub(c >> shift, torch.full_like(c, _SHIFT_IN >> shift)))

    # --- checks -----------------------------------------------------------------------------------------------

    def reveal(self, *secrets: Tagged) -> Protocol[list[torch.Tensor]]:
        """Their values, as signed words. All that was opened is checked while they are masked; then the masks are
        opened and checked.

        Raises:
            PartyFailed: somebody did not do as agreed; nobody who did has any of the values.
        """
        masks = [self.mask(tuple(secret.value.shape)) for secret in secrets]
        masked = yield from self.open(*(secret + mask for secret, mask in zip(secrets, masks, strict=True)))
        yield from self.check()
        opened = yield from self.open(*masks)
        yield from self.check()
        return [field.to_words(field.sub(one, other)) for one, other in zip(masked, opened, strict=True)]

    @property
    def is_unchecked(self) -> bool:
        """Whether something was opened since the last check."""
        return bool(self._unchecked)

    def check(self) -> Protocol[None]:
        """Whether all that was opened since the last check has right MACs; PartyFailed. Four rounds.

        A coin that nobody chooses, then the coin's combination of (tag - key * value): it sums to 0. Each is committed
        to before any is seen, so that none is made to fit the others. Who was told another value than others are is
        found as well: its key multiplies what differs.
        """
        unchecked, self._unchecked = self._unchecked, []
        if self._key.is_meta:
            for size in (_NONCE, _NONCE, _NONCE, _NONCE + 8):
                yield Opening(xors=[torch.zeros(self.party.count, size, dtype=torch.uint8)])
            return
        coins = yield from self._committed(b"")
        draws = Masks(hashlib.sha256(b"coin" + b"".join(coins)).digest()[:SEED], 0)
        left = torch.zeros(1, dtype=torch.int64)
        for value, tag in unchecked:
            chances = draws.draw(tuple(value.shape), torch.int64) & P
            gap = field.sub(tag, field.times(self._key.expand(value.shape), value))
            left = field.add(left, field.total(field.times(field.reduced(chances), gap)))
        rows = yield from self._committed(int(left).to_bytes(8, "little"))
        if sum(int.from_bytes(row[_NONCE:], "little") for row in rows) % P:
            raise _cheated("a message was changed")

    def _committed(self, said: bytes) -> Protocol[list[bytes]]:
        """A nonce and what each party says, where nobody knew the others' when it chose its own. Two rounds."""
        said = os.urandom(_NONCE) + said
        commitments = yield from self._rows(_commitment(self.party.rank, said))
        rows = yield from self._rows(said)
        if commitments != [_commitment(rank, row) for rank, row in enumerate(rows)]:
            raise _cheated("a party did not say what it had committed to")
        return rows

    def _rows(self, said: bytes) -> Protocol[list[bytes]]:
        share = torch.zeros(self.party.count, len(said), dtype=torch.uint8)
        share[self.party.rank] = torch.frombuffer(bytearray(said), dtype=torch.uint8)
        opened = yield Opening(xors=[share])
        rows = [bytes(row.tolist()) for row in opened.xors[0]]
        if rows[self.party.rank] != said:
            raise _cheated("somebody spoke for this party")
        return rows


def _commitment(rank: int, said: bytes) -> bytes:
    return hashlib.sha256(b"commitment" + rank.to_bytes(8, "big") + said).digest()


def _cheated(how: str) -> PartyFailed:
    return PartyFailed(f"the run is over, without a result: {how}")
