"""What a run will take, before it runs: correlations in their order, rounds and bytes.

Protocols do the same whatever the values are. So one party's part, run on shapes alone, tells all: the dealer what to
deal, and everyone what it will cost. Of a loop one iteration is run, which stands for all that are like it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mpc.correlations import Correlation, Dealt, Words
from mpc.party import Party
from mpc.ring import PRECISION
from mpc.rounds import Opened, Opening, Protocol

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


@dataclass(frozen=True, slots=True)
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
        return _dealt(self.parts)

    def stretches(self) -> Iterator[Stretch]:
        """All correlations of the run, those of each iteration for themselves. Made while they are asked for."""
        return _stretches(self.parts, 0, [])

    def crossing(self) -> set[int]:
        """The masks that another stretch than their own needs."""
        found: set[int] = set()
        for stretch in _stretches(_once(self.parts), 0, []):
            own = {number for number, _ in stretch}
            found |= {each.kept for _, each in stretch if each.kept is not None and each.kept not in own}
        return found


def _flat(parts: Sequence[Part]) -> Iterator[Correlation]:
    for part in parts:
        if isinstance(part, Loop):
            yield from _flat(part.parts)
        else:
            yield part


def _dealt(parts: Sequence[Part]) -> int:
    return sum(
        part.times * _dealt(part.parts) if isinstance(part, Loop) else sum(words.nbytes for words in part.derived)
        for part in parts
    )


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
