"""What a run will take, before it runs: correlations in their order, rounds and bytes.

Protocols do the same whatever the values are. So one party's part, run on shapes alone, tells all: the dealer what to
deal, and everyone what it will cost. Of a loop one iteration is run, which stands for all that are like it.

Who deals and who runs have to have the same script: out of step they would mask with one thing what is unmasked with
another, and nothing but the result would show it. So each compares its digest with the other's before anything is
shared (`Script.digest`).
"""

from __future__ import annotations

import hashlib
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any, Final, Generic, TypeVar

import msgpack
import torch

from compute.dtypes import NAME_OF
from mpc.correlations import Correlation, Dealt, Words
from mpc.party import Party
from mpc.ring import PRECISION
from mpc.rounds import Opened, Opening, Protocol

FORM: Final = 1
"""Counts on when the same correlation is dealt otherwise, or the same opening means something else: who computes
together has the same one (tests/mpc/test_script.py holds what is dealt)."""
DIGEST_BYTES: Final = 32

T = TypeVar("T")
Stretch = list[tuple[int, Correlation]]
"""Correlations with their numbers, between two ends of iterations."""


@dataclass(frozen=True, slots=True)
class Loop:
    """What one iteration takes, `times` times over.

    Attributes:
        parts: of the first of them.
        first: the number of its first correlation.
        size: how many correlations it takes: numbers count on from one iteration to the next.
    """

    parts: tuple[Part, ...]
    first: int
    size: int
    times: int


Part = Correlation | Loop


@dataclass(frozen=True)
class Script:
    """What one run takes.

    Attributes:
        parts: correlations in the order in which parties take them, and loops; numbers count from 0.
        rounds: how many there are.
        nbytes: bytes from one party to one other, in all rounds.
        largest: those of the largest round.
    """

    parts: tuple[Part, ...]
    rounds: int
    nbytes: int
    largest: int

    @property
    def correlations(self) -> tuple[Correlation, ...]:
        """All of them, those of a loop once."""
        return tuple(_flat(self.parts))

    @property
    def dealt(self) -> int:
        """Bytes from the dealer to the last party; the others are sent a seed."""
        return self.total(lambda each: sum(words.nbytes for words in each.derived))

    def total(self, of: Callable[[Correlation], int]) -> int:
        """The sum of that over all correlations of a run."""
        return _total(self.parts, of)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all this in msgpack: [FORM, parts, rounds, nbytes, largest]. A correlation is its class's name,
        its fields, and its words, free and derived, each [shape, dtype, sharing, width]; a loop [parts, first, size,
        times]. What is dealt for the eyes of one alone (a seed) is no part of it."""
        told = [FORM, list(map(_told, self.parts)), self.rounds, self.nbytes, self.largest]
        return hashlib.sha256(msgpack.packb(told)).digest()

    def stretches(self) -> Iterator[Stretch]:
        """All correlations of the run, those of each iteration for themselves. Made while they are asked for."""
        return _stretches(self.parts, 0, [])

    def crossing(self) -> set[int]:
        """The masks that another stretch than their own needs, of loops those of the first iteration."""
        found: set[int] = set()
        for stretch in _stretches(_once(self.parts), 0, []):
            own = {number for number, _ in stretch}
            found |= {each.kept for _, each in stretch if each.kept is not None and each.kept not in own}
        return found


class Across(Generic[T]):
    """What is kept of the masks that another stretch than their own needs: of those of a loop the latest iteration's,
    since nothing of an iteration is used in another one.

    Args:
        standing: masks that were fixed before the run, by their numbers.
    """

    def __init__(self, script: Script, standing: Mapping[int, T]) -> None:
        self._loops, self._crossing = _nested(script.parts), script.crossing()
        self._standing = standing
        self._latest: dict[int, T] = {}

    def put(self, number: int, mask: T) -> None:
        """Kept, if it is one that has to be."""
        first = self._in_first(number)
        if first in self._crossing:
            self._latest[first] = mask

    def __getitem__(self, number: int) -> T:
        return self._standing[number] if number < 0 else self._latest[self._in_first(number)]

    def _in_first(self, number: int) -> int:
        """Its number, had it been of the first iteration of all loops around."""
        loops = self._loops
        while (at := bisect(loops, number, key=lambda each: each[0].first) - 1) >= 0:
            loop, inner = loops[at]
            if number >= loop.first + loop.size * loop.times:
                break
            number, loops = loop.first + (number - loop.first) % loop.size, inner
        return number


def _nested(parts: Sequence[Part]) -> list[tuple[Loop, Any]]:
    """The loops, each with those in it."""
    return [(part, _nested(part.parts)) for part in parts if isinstance(part, Loop) and part.size]


def _told(value: Any) -> Any:
    """As `Script.digest` has it."""
    if isinstance(value, Correlation):
        words = [[_told(each) for each in group] for group in (value.free, value.derived)]
        return [type(value).__name__, *_fields(value), *words]
    if isinstance(value, Words | Loop):
        return _fields(value)
    if is_dataclass(value):
        return [type(value).__name__, *_fields(value)]
    if isinstance(value, list | tuple):
        return list(map(_told, value))
    return NAME_OF[value] if isinstance(value, torch.dtype) else value


def _fields(value: Any) -> list[Any]:
    return [_told(getattr(value, each.name)) for each in fields(value) if each.compare]


def _flat(parts: Sequence[Part]) -> Iterator[Correlation]:
    for part in parts:
        if isinstance(part, Loop):
            yield from _flat(part.parts)
        else:
            yield part


def _total(parts: Sequence[Part], of: Callable[[Correlation], int]) -> int:
    return sum(part.times * _total(part.parts, of) if isinstance(part, Loop) else of(part) for part in parts)


def _once(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Loops with one iteration. What stands behind them keeps its number by an empty one."""
    made: list[Part] = []
    for part in parts:
        if isinstance(part, Loop):
            made.append(Loop(_once(part.parts), part.first, part.size, 1))
            part = Loop((), part.first, part.size * (part.times - 1), 1)
        made.append(part)
    return tuple(made)


def _stretches(parts: Sequence[Part], number: int, moves: list[tuple[int, int]]) -> Iterator[Stretch]:
    """`moves`: of each loop around, from which number on its masks are its own, and how far this iteration's numbers
    are from those of the first."""

    def moved(kept: int) -> int:
        return kept + sum(by for first, by in moves if kept >= first)

    stretch: Stretch = []
    for part in parts:
        if not isinstance(part, Loop):
            stretch.append((number, part.moved(moved) if moves else part))
            number += 1
            continue
        yield stretch
        stretch = []
        for at in range(part.times):
            if part.parts:
                yield from _stretches(part.parts, number, [*moves, (part.first, at * part.size)])
            number += part.size
    yield stretch


def script_of(protocol: Callable[[Party], Protocol[Any]], count: int, precision: int = PRECISION) -> Script:
    """The script of `protocol(party)` among `count` parties. Its secrets are tensors on the meta device.

    Args:
        precision: as Party has it.

    Raises what the protocol raises for these shapes: an operation without a secure form, say.
    """
    party = _Foreseeing(count, precision)
    run, answer = protocol(party), None
    while True:
        try:
            asked: Opening = run.send(answer)  # type: ignore[arg-type]  # None begins it
        except StopIteration:
            return Script(tuple(party.parts), party.rounds, party.nbytes, party.largest)
        party.rounds += 1
        party.nbytes += asked.nbytes
        party.largest = max(party.largest, asked.nbytes)
        answer = Opened(asked.sums, asked.xors)


class _Foreseeing(Party):
    """A party that notes what it takes, and goes through a loop until its iterations are alike."""

    __slots__ = ("largest", "nbytes", "parts", "rounds")

    def __init__(self, count: int, precision: int) -> None:
        super().__init__(0, count, self._note, precision)
        self.parts: list[Part] = []
        self.rounds = self.nbytes = self.largest = 0

    def _note(self, number: int, correlation: Correlation) -> Dealt:
        self.parts.append(correlation)
        return Dealt([_shapes(words) for words in correlation.free], [_shapes(words) for words in correlation.derived])

    def iterations(self, total: int, look: Callable[[], Any]) -> Iterator[int]:
        for at in range(total):
            before, begun = look(), self.rounds > 0  # in the first round of all, more may come along
            parts, number, rounds, nbytes = len(self.parts), self._next, self.rounds, self.nbytes
            yield at
            left = total - at
            if left > 1 and begun and look() == before:
                loop = Loop(tuple(self.parts[parts:]), number, self._next - number, left)
                self.parts[parts:] = [loop]
                self._next = number + loop.size * left
                self.rounds += (self.rounds - rounds) * (left - 1)
                self.nbytes += (self.nbytes - nbytes) * (left - 1)
                return


def _shapes(words: Words) -> torch.Tensor:
    return torch.empty(words.shape, dtype=words.dtype, device="meta")
