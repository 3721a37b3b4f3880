"""Three parties without a dealer: they make the correlations of a run themselves, of which one may be corrupt.

Masks are pieces of which each party knows two (trio.py). Sums with carries are added bit by bit in a prefix network,
bits become numbers as in ABY3 (Mohassel and Rindal, CCS 2018), sines, cosines and powers come from two halves of a mask
(halves.py).

What comes out are shares by addition of three, and the run itself is that of three parties with a dealer: the same
protocols, rounds and bytes.

    triples of any bilinear operation    no message
    products of bits                     1 round, 16 bytes for each 8 bytes of masks
    a mask with its bits and truncation  10 rounds, 136 to 192 bytes an element from each party to each other
    a choice                             3 rounds, 8 to 16 bytes an element
    sines and cosines of multiples       1 round, 24 bytes for each multiple of an element
    a table of powers                    1 round, 256 bytes an element

All correlations of a script share their rounds; those of a loop are made while it runs, many iterations at once.

Adversary: semi-honest, one of the three.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from mpc import bits
from mpc.arithmetic import FixedTriple, Triple
from mpc.comparison import Choice, Level, Mask
from mpc.correlations import SUM, XOR, Correlation, Dealt
from mpc.halves import angles, powers, wave
from mpc.inverse import CUT, HALF, Start, Wave
from mpc.magnitude import Pair, Prefix, Which
from mpc.masks import SEED
from mpc.party import Party
from mpc.ring import WIDTH, shift_logical
from mpc.rounds import Protocol, together
from mpc.script import Across, Script, Stretch, script_of
from mpc.standing import number_of
from mpc.trio import Pieces, Trio
from mpc.waves import Angles, Powers
from protocol.errors import BadRequest


@dataclass(frozen=True, slots=True)
class _Made:
    """A correlation of one party: what it takes, and what later ones may keep of it, in pieces."""

    dealt: Dealt
    kept: Sequence[Pieces]


def prepare(
    rank: int, seeds: tuple[bytes, bytes], script: Script, standing: Mapping[int, Pieces] | None = None
) -> Protocol[Making]:
    """What a Party is given as its supply: the correlations of a script, of which the first are made. For three
    parties, `rank` 0 to 2.

    Args:
        seeds: the one that this party has in common with the one before it, and with the one after it; for this run
            alone.
        standing: masks that were fixed before the run, by their numbers (`pieces_of`).
    """
    made = Making(rank, seeds, script, standing or {})
    yield from made.make_ahead(0)
    return made


AT_ONCE: Final = 1 << 26
"""Bytes of correlations that are made in the same rounds: whole stretches, and one at least."""


class Making:
    """Makes correlations stretch by stretch, while a run uses them up: at once as many as `AT_ONCE` bytes have room
    for, so that a loop takes no more memory than its largest iteration, or these."""

    def __init__(self, rank: int, seeds: tuple[bytes, bytes], script: Script, standing: Mapping[int, Pieces]) -> None:
        self._rank, self._seeds = rank, seeds
        self._groups = groups(script)
        self._kept = _across(script, standing)
        self._left: dict[int, tuple[Correlation, Dealt]] = {}
        self._end = 0  # the number behind those that were made

    def make_ahead(self, number: int) -> Protocol[None]:
        """Makes what begins with this number, where that is not made."""
        while number >= self._end and (group := next(self._groups, None)) is not None:
            made = yield from make(self._rank, self._seeds, group, self._kept)
            self._left |= {at: (correlation, made[at].dealt) for at, correlation in group}
            for at, _ in group:
                self._kept.put(at, made[at])
            self._end = group[-1][0] + 1 if group else self._end

    def __call__(self, number: int, correlation: Correlation) -> Dealt:
        """This party's shares. BadRequest: they were not made, or were taken."""
        prepared, dealt = self._left.pop(number, (None, None))
        if dealt is None or prepared != correlation:
            raise BadRequest(f"correlation {number} was not prepared, or was taken: each is used once")
        return dealt


def groups(script: Script) -> Iterator[Stretch]:
    """What is made in the same rounds."""
    group: Stretch = []
    size = 0
    for stretch in script.stretches():
        nbytes = sum(words.nbytes for _, each in stretch for words in (*each.free, *each.derived))
        if group and size + nbytes > AT_ONCE:
            yield group
            group, size = [], 0
        group, size = group + stretch, size + nbytes
    if group:
        yield group


def foreseen(script: Script, standing: Mapping[int, Pieces]) -> Script:
    """What making all of it takes: rounds and bytes; those of groups that are alike are found once."""
    seeds, kept = (bytes(SEED), bytes(SEED)), _across(script, standing)
    costs: dict[object, Script] = {}
    rounds = nbytes = largest = 0
    for group in groups(script):

        def making(party: Party, group: Stretch = group) -> Protocol[None]:
            made = yield from make(0, seeds, group, kept)
            for at, _ in group:
                kept.put(at, made[at])

        key = tuple((type(each), *each.free, *each.derived) for _, each in group)
        if key not in costs:
            costs[key] = script_of(making, 3)
        rounds, nbytes = rounds + costs[key].rounds, nbytes + costs[key].nbytes
        largest = max(largest, costs[key].largest)
    return Script((), rounds, nbytes, largest)


def _across(script: Script, standing: Mapping[int, Pieces]) -> Across[_Made]:
    return Across(script, {number: _Made(Dealt([], []), [pieces]) for number, pieces in standing.items()})


def make(rank: int, seeds: tuple[bytes, bytes], group: Stretch, before: Across[_Made]) -> Protocol[dict[int, _Made]]:
    """Correlations by their numbers: those that keep a mask after those that make it."""
    made: dict[int, _Made] = {}
    for keeps in (False, True):
        chosen = [(at, each) for at, each in group if (each.kept is not None) == keeps]
        protocols = [_make(Trio(rank, seeds, at), each, _kept_for(each, made, before)) for at, each in chosen]
        made.update(zip((at for at, _ in chosen), (yield from together(*protocols)), strict=True))
    return made


def pieces_of(rank: int, seeds: tuple[bytes, bytes], script: Script, before: int = 0) -> dict[int, Pieces]:
    """The masks of a run of standing.fixing, by their later numbers: what each party keeps of them.

    Args:
        seeds: that the fixing run was prepared with.
        before: how many were fixed before.
    """
    return {
        number_of(before + at): Trio(rank, seeds, at).draw(each.free[0]) for at, each in enumerate(script.correlations)
    }


def _kept_for(correlation: Correlation, made: Mapping[int, _Made], before: Across[_Made]) -> Sequence[Pieces]:
    """The mask that it keeps: of this group, or from before."""
    number = correlation.kept
    return () if number is None else (made[number] if number in made else before[number]).kept


def _make(trio: Trio, correlation: Correlation, kept: Sequence[Pieces]) -> Protocol[_Made]:
    free = [trio.draw(words) for words in correlation.free]
    match correlation:
        case Triple():
            derived = [trio.times(free[0], free[1], correlation.operation)]
        case FixedTriple():
            factor = kept[0].map(lambda words: words.mT) if correlation.is_transposed else kept[0]
            derived = [trio.times(free[0], factor, correlation.operation)]
        case Level():
            masks = dict(zip(correlation.factors, (free[0][at] for at in range(len(correlation.factors))), strict=True))
            derived = yield from _products(trio, masks, bits.products_of(correlation.chains))
        case Prefix():
            own, following = (correlation.factors(words) for words in (free[0].own, free[0].next))
            masks = {factor: Pieces(own[factor], following[factor]) for factor in own}
            derived = yield from _products(trio, masks, correlation.products)
        case Pair():
            derived = [trio.both(free[0][0], free[0][1])]
        case Choice():
            derived = yield from _choice(trio, free[0], correlation, kept)
        case Mask():
            return (yield from _mask(trio, free[0], correlation))
        case Angles():
            derived = yield from angles(trio, free[0], correlation)
        case Powers():
            derived = yield from powers(trio, free[0], correlation)
        case Which():
            derived = [(yield from _number(trio, free[0].map(correlation.rows)))]
        case Wave():
            derived = yield from wave(trio, free[0], correlation)
        case Start():
            derived = yield from _start(trio, free, correlation)
        case _:
            assert not correlation.derived, correlation
            derived = []
    return _Made(Dealt(_shares(trio, free, correlation), derived), free)


def _shares(trio: Trio, free: Sequence[Pieces], correlation: Correlation) -> list[torch.Tensor]:
    return [trio.share(each, words.sharing) for each, words in zip(free, correlation.free, strict=True)]


def _products(
    trio: Trio, masks: Mapping[int, Pieces], products: Sequence[frozenset[int]]
) -> Protocol[list[torch.Tensor]]:
    """Those of pairs at once, of three and four by pairs. One round, or none."""
    wanted = [sorted(each) for each in products]
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


def _number(trio: Trio, bit: Pieces) -> Protocol[torch.Tensor]:
    """Bits, int64 in pieces by XOR, as a share by addition. One round.

    The first party knows two of the pieces, and the others the third: q XOR e = q + e - 2 q e.
    """
    q = yield from trio.pieces(trio.known_to_first(bit.own ^ bit.next, SUM), SUM)
    e = trio.piece(2, bit.own, bit.next)
    return q.own + e.own - 2 * trio.times(q, e, torch.mul)


def _choice(trio: Trio, s: Pieces, correlation: Choice, kept: Sequence[Pieces]) -> Protocol[list[torch.Tensor]]:
    number = yield from _number(trio, s.map(lambda packed: bits.unpack(packed).to(torch.int64)))
    if not kept:
        return [number]
    factor = yield from trio.pieces(number + trio.zero(number, SUM), SUM)
    factors = (kept[2], kept[1]) if correlation.shift else (kept[0],)
    return [number, *(trio.times(factor, each, torch.mul) for each in factors)]


def _start(trio: Trio, free: Sequence[Pieces], correlation: Start) -> Protocol[list[torch.Tensor]]:
    """What a mask of 32 bits has is that of one of 64, whose lower half is 0."""
    r = free[0].map(lambda words: words.to(torch.int64) << HALF)
    _, low, top = (yield from _mask(trio, r, Mask(correlation.count, HALF + CUT))).kept
    digits = Pieces(torch.stack([low.own, top.own]), torch.stack([low.next, top.next]))
    return [trio.share(digits, SUM), *(trio.times(digits, free[1][at], torch.mul) for at in range(2))]


def _mask(trio: Trio, r: Pieces, correlation: Mask) -> Protocol[_Made]:
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


def _digit_products(trio: Trio, words: Pieces) -> Protocol[list[torch.Tensor]]:
    """What bits.digit_products gives. One round."""
    lanes = [bits.lanes_of(each) for each in (words.own, words.next)]
    masks = {at: Pieces(lanes[0][at], lanes[1][at]) for at in range(bits.LANES)}
    (products,) = yield from _products(trio, masks, bits.DIGIT_PRODUCTS[bits.LANES :])
    singles = torch.stack([trio.share(mask, XOR) for mask in masks.values()])
    return [torch.cat([singles, products])]


def _carries(trio: Trio, u: Pieces, v: Pieces) -> Protocol[Pieces]:
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
