"""Three parties without a dealer: they make the correlations of a run themselves, of which one may be corrupt.

A mask is m = m0 + m1 + m2 (or by XOR), where party i knows m(i) and m(i + 1): replicated shares, drawn from seeds that
pairs of parties have in common, so that free words take no message at all. A product of two of them is a local sum of
three products and a share of zero (Araki, Furukawa, Lindell, Nof, Ohara, CCS 2016); shared anew by one opening under a
fresh mask, it can be a factor again. Sums with carries are added bit by bit in a prefix network, bits become numbers as
in ABY3 (Mohassel and Rindal, CCS 2018).

What comes out are shares by addition of three, and the run itself is that of three parties with a dealer: the same
protocols, rounds and bytes.

    triples of any bilinear operation    no message
    products of bits                     1 round, 16 bytes for each 8 bytes of masks
    a mask with its bits and truncation  10 rounds, 136 to 192 bytes an element from each party to each other
    a choice                             3 rounds, 8 to 16 bytes an element

All correlations of a script share their rounds. What a wave or a table of powers takes (waves.py) is no product and
needs a dealer.

Adversary: semi-honest, one of the three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from mpc import bits
from mpc.arithmetic import FixedTriple, Triple
from mpc.comparison import Choice, Level, Mask
from mpc.correlations import SUM, XOR, Correlation, Dealt, Words
from mpc.magnitude import Pair, Prefix
from mpc.masks import Masks
from mpc.ring import WIDTH, shift_logical
from mpc.rounds import Opening, Protocol, together
from mpc.script import Script
from mpc.standing import number_of
from mpc.waves import Angles, Powers
from protocol.errors import BadRequest, OperationNotAllowed

_PARTIES = 3


@dataclass(frozen=True, slots=True)
class Pieces:
    """What one party knows of a value: the piece of its own number and the next one's; of three."""

    own: torch.Tensor
    next: torch.Tensor

    def map(self, linear: Callable[[torch.Tensor], torch.Tensor]) -> Pieces:
        return Pieces(linear(self.own), linear(self.next))

    def __xor__(self, other: Pieces) -> Pieces:
        return Pieces(self.own ^ other.own, self.next ^ other.next)

    def __add__(self, other: Pieces) -> Pieces:
        return Pieces(self.own + other.own, self.next + other.next)

    def __getitem__(self, at: int) -> Pieces:
        return Pieces(self.own[at], self.next[at])


Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class _Trio:
    """One party's two streams of one number: all parties draw the same things in the same order."""

    def __init__(self, rank: int, seeds: tuple[bytes, bytes], number: int) -> None:
        self.rank = rank
        self._streams = [Masks(seed, number) for seed in seeds]

    def draw(self, words: Words) -> Pieces:
        return Pieces(*(stream.draw(words.shape, words.dtype) for stream in self._streams))

    def zero(self, like: torch.Tensor, sharing: str) -> torch.Tensor:
        """A share of 0; what each party has is uniform to each other one."""
        one, other = (stream.draw(tuple(like.shape), like.dtype) for stream in self._streams)
        return one - other if sharing == SUM else one ^ other

    def share(self, pieces: Pieces, sharing: str) -> torch.Tensor:
        """One of three shares, fresh."""
        fresh = self.zero(pieces.own, sharing)
        return pieces.own + fresh if sharing == SUM else pieces.own ^ fresh

    def times(self, x: Pieces, y: Pieces, product: Product) -> torch.Tensor:
        """A share by addition of product(x, y), which is bilinear."""
        made = product(x.own, y.own) + product(x.own, y.next) + product(x.next, y.own)
        return made + self.zero(made, SUM)

    def both(self, x: Pieces, y: Pieces) -> torch.Tensor:
        """A share by XOR of x AND y."""
        made = (x.own & y.own) ^ (x.own & y.next) ^ (x.next & y.own)
        return made ^ self.zero(made, XOR)

    def pieces(self, share: torch.Tensor, sharing: str) -> Protocol[Pieces]:
        """A value that is shared by three, in pieces again. One round: it is opened under a fresh mask."""
        mask = self.draw(Words(tuple(share.shape), share.dtype))
        if sharing == XOR:
            opened = (yield Opening(xors=[share ^ mask.own])).xors[0]
            return mask ^ self.public(opened)
        opened = (yield Opening(sums=[share + mask.own])).sums[0]
        return mask.map(torch.neg) + self.public(opened)

    def public(self, value: torch.Tensor) -> Pieces:
        """What all know: the first piece, which parties 0 and 2 have."""
        return self.piece(0, value, value)

    def piece(self, which: int, own: torch.Tensor, following: torch.Tensor) -> Pieces:
        """A value that is one piece, the others 0: `own` where it is this party's own, `following` where the next."""
        nothing = torch.zeros_like(own)
        is_next = (self.rank + 1) % _PARTIES == which
        return Pieces(own if self.rank == which else nothing, following if is_next else nothing)

    def known_to_first(self, value: torch.Tensor, sharing: str) -> torch.Tensor:
        """A share of what the first party computed alone; the others' values are of no account."""
        fresh = self.zero(value, sharing)
        if self.rank:
            return fresh
        return value + fresh if sharing == SUM else value ^ fresh


@dataclass(frozen=True, slots=True)
class _Made:
    """A correlation of one party: what it takes, and what later ones may keep of it, in pieces."""

    dealt: Dealt
    kept: Sequence[Pieces]


def prepare(
    rank: int, seeds: tuple[bytes, bytes], script: Script, standing: Mapping[int, Pieces] | None = None
) -> Protocol[Callable[[int, Correlation], Dealt]]:
    """All correlations of a script: what a Party is given as its supply. For three parties, `rank` 0 to 2.

    Args:
        seeds: the one that this party has in common with the one before it, and with the one after it; for this run
            alone.
        standing: masks that were fixed before the run, by their numbers (`pieces_of`).

    Raises:
        OperationNotAllowed: something in the script needs a dealer.
    """
    made = {number: _Made(Dealt([], []), [pieces]) for number, pieces in (standing or {}).items()}
    for keeps in (False, True):
        numbers = [at for at, each in enumerate(script.correlations) if (each.kept is not None) == keeps]
        protocols = [_make(_Trio(rank, seeds, at), script.correlations[at], made) for at in numbers]
        made.update(zip(numbers, (yield from together(*protocols)), strict=True))
    left = {number: (script.correlations[number], each.dealt) for number, each in made.items() if number >= 0}

    def supply(number: int, correlation: Correlation) -> Dealt:
        prepared, dealt = left.pop(number, (None, None))
        if dealt is None or prepared != correlation:
            raise BadRequest(f"correlation {number} was not prepared, or was taken: each is used once")
        return dealt

    return supply


def pieces_of(rank: int, seeds: tuple[bytes, bytes], script: Script, before: int = 0) -> dict[int, Pieces]:
    """The masks of a run of standing.fixing, by their later numbers: what each party keeps of them.

    Args:
        seeds: that the fixing run was prepared with.
        before: how many were fixed before.
    """
    return {
        number_of(before + at): _Trio(rank, seeds, at).draw(each.free[0]) for at, each in enumerate(script.correlations)
    }


def _make(trio: _Trio, correlation: Correlation, made: Mapping[int, _Made]) -> Protocol[_Made]:
    if isinstance(correlation, Angles | Powers):
        raise OperationNotAllowed(
            f"{type(correlation).__name__.lower()} of a function by waves cannot be made by three parties alone: "
            "name a provider"
        )
    free = [trio.draw(words) for words in correlation.free]
    kept: Sequence[Pieces] = () if correlation.kept is None else made[correlation.kept].kept
    match correlation:
        case Triple():
            derived = [trio.times(free[0], free[1], correlation.operation)]
        case FixedTriple():
            factor = kept[0].map(lambda words: words.mT) if correlation.is_transposed else kept[0]
            derived = [trio.times(free[0], factor, correlation.operation)]
        case Level():
            masks = dict(zip(correlation.factors, (free[0][at] for at in range(len(correlation.factors))), strict=True))
            derived = yield from _products(trio, masks, correlation.chains)
        case Prefix():
            own, following = (correlation.shifts(list(words)) for words in (free[0].own, free[0].next))
            masks = {factor: Pieces(own[factor], following[factor]) for factor in own}
            derived = yield from _products(trio, masks, correlation.chains)
        case Pair():
            derived = [trio.both(free[0][0], free[0][1])]
        case Choice():
            derived = yield from _choice(trio, free[0], correlation, kept)
        case Mask():
            return (yield from _mask(trio, free[0], correlation))
        case _:
            assert not correlation.derived, correlation
            derived = []
    return _Made(Dealt(_shares(trio, free, correlation), derived), free)


def _shares(trio: _Trio, free: Sequence[Pieces], correlation: Correlation) -> list[torch.Tensor]:
    return [trio.share(each, words.sharing) for each, words in zip(free, correlation.free, strict=True)]


def _products(trio: _Trio, masks: Mapping[int, Pieces], chains: Sequence[bits.Factors]) -> Protocol[list[torch.Tensor]]:
    """Those that bits.products needs: of pairs at once, of three and four by pairs. One round, or none."""
    wanted = [sorted(each) for each in bits.products_of(chains)]
    pairs = sorted({tuple(part) for each in wanted if len(each) > 2 for part in (each[:2], each[2:]) if len(part) == 2})
    paired: dict[tuple[int, ...], Pieces] = {(factor,): mask for factor, mask in masks.items()}
    if pairs:
        found = torch.stack([trio.both(masks[one], masks[other]) for one, other in pairs])
        again = yield from trio.pieces(found, XOR)
        paired.update({pair: again[at] for at, pair in enumerate(pairs)})
    made = []
    for each in wanted:
        cut = 1 if len(each) == 2 else 2
        made.append(trio.both(paired[tuple(each[:cut])], paired[tuple(each[cut:])]))
    return [torch.stack(made)]


# --- numbers of bits, and bits of numbers -------------------------------------------------------------------


def _number(trio: _Trio, bit: Pieces) -> Protocol[torch.Tensor]:
    """Bits, int64 in pieces by XOR, as a share by addition. One round.

    The first party knows two of the pieces, and the others the third: q XOR e = q + e - 2 q e.
    """
    q = yield from trio.pieces(trio.known_to_first(bit.own ^ bit.next, SUM), SUM)
    e = trio.piece(2, bit.own, bit.next)
    return q.own + e.own - 2 * trio.times(q, e, torch.mul)


def _choice(trio: _Trio, s: Pieces, correlation: Choice, kept: Sequence[Pieces]) -> Protocol[list[torch.Tensor]]:
    number = yield from _number(trio, s.map(lambda packed: bits.unpack(packed).to(torch.int64)))
    if not kept:
        return [number]
    factor = yield from trio.pieces(number + trio.zero(number, SUM), SUM)
    factors = (kept[2], kept[1]) if correlation.shift else (kept[0],)
    return [number, *(trio.times(factor, each, torch.mul) for each in factors)]


def _mask(trio: _Trio, r: Pieces, correlation: Mask) -> Protocol[_Made]:
    """r = u + v: the first party knows u, the sum of two pieces, and the others v, the third."""
    shift = correlation.shift
    free = _shares(trio, [r], correlation)
    if not shift and not correlation.has_bits:
        return _Made(Dealt(free, []), [r])
    u_alone = r.own + r.next  # meant at the first party
    v = trio.piece(2, r.own, r.next)
    u = yield from trio.pieces(trio.known_to_first(u_alone, XOR), XOR)
    carries = yield from _carries(trio, u, v)
    total = u ^ v ^ carries.map(lambda words: words << 1)
    derived = (yield from _digit_products(trio, total)) if correlation.has_bits else []
    if not shift:
        return _Made(Dealt(free, derived), [r])

    def bit(words: Pieces, place: int) -> Pieces:
        return words.map(lambda each: shift_logical(each, place) & 1)

    # Of what is cut off comes a carry; and what u + v has beyond 2^64 is not there.
    wanted = [bit(carries, shift - 1), bit(carries, WIDTH - 1), bit(total, WIDTH - 1)]
    carried, beyond, top = yield from together(*(_number(trio, each) for each in wanted))
    upper = trio.known_to_first(shift_logical(u_alone, shift), SUM)
    low = upper + v.map(lambda each: shift_logical(each, shift)).own + carried - (beyond << (WIDTH - shift))
    low, top = low + trio.zero(low, SUM), top + trio.zero(top, SUM)
    pieces = yield from together(trio.pieces(low, SUM), trio.pieces(top, SUM))
    return _Made(Dealt(free, [*derived, low, top]), [r, *pieces])


def _digit_products(trio: _Trio, words: Pieces) -> Protocol[list[torch.Tensor]]:
    """What bits.digit_products gives. One round."""
    lanes = [bits.first_lanes(bits.to_lanes(each)) for each in (words.own, words.next)]
    masks = {at: Pieces(lanes[0][at], lanes[1][at]) for at in range(bits.LANES)}
    (products,) = yield from _products(trio, masks, (tuple(reversed(range(bits.LANES))),))
    singles = torch.stack([trio.share(mask, XOR) for mask in masks.values()])
    return [torch.cat([singles, products])]


def _carries(trio: _Trio, u: Pieces, v: Pieces) -> Protocol[Pieces]:
    """What each place of u + v carries on: a prefix network (Kogge and Stone, 1973). Seven rounds."""
    passes = u ^ v
    makes = yield from trio.pieces(trio.both(u, v), XOR)
    for step in range(6):

        def up(words: torch.Tensor, by: int = 1 << step) -> torch.Tensor:
            return words << by

        found = torch.stack([trio.both(passes, makes.map(up)), trio.both(passes, passes.map(up))])
        again = yield from trio.pieces(found, XOR)
        makes, passes = makes ^ again[0], again[1]
    return makes
