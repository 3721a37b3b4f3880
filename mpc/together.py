"""All parties and the dealer in one process, in step: for tests, and for trying protocols out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mpc.correlations import Corrections, Correlation, Dealt, deal, take
from mpc.masks import fresh_seed
from mpc.party import Party
from mpc.ring import PRECISION
from mpc.rounds import Opening, Protocol, message, opened


@dataclass(slots=True)
class Ledger:
    """What a run cost: rounds, bytes from one party to one other, bytes from the dealer to the last party."""

    rounds: int = 0
    nbytes: int = 0
    dealt: int = 0
    openings: list[Opening] = field(default_factory=list)


class LocalDealer:
    """Deals on demand to parties in the same process; a correlation is dealt when the first of them takes it."""

    def __init__(self, count: int, ledger: Ledger, standing: Mapping[int, torch.Tensor] | None = None) -> None:
        self._standing = standing or {}
        self.seeds = [fresh_seed() for _ in range(count)]
        self._made: dict[int, tuple[Correlation, Corrections]] = {}
        self._ledger = ledger

    def supply(self, rank: int) -> Callable[[int, Correlation], Dealt]:
        def take_one(number: int, correlation: Correlation) -> Dealt:
            corrections = self._dealt(number, correlation).shares if rank == len(self.seeds) - 1 else None
            return take(correlation, number, self.seeds[rank], corrections)

        return take_one

    def _mask(self, number: int) -> torch.Tensor | None:
        return self._standing[number] if number < 0 else self._made[number][1].first

    def _dealt(self, number: int, correlation: Correlation) -> Corrections:
        if number not in self._made:
            kept = None if correlation.kept is None else self._mask(correlation.kept)
            self._made[number] = correlation, deal(correlation, number, self.seeds, kept)
            self._ledger.dealt += sum(words.nbytes for words in correlation.derived)
        made, corrections = self._made[number]
        assert made == correlation
        return corrections


def run_together(
    protocol: Callable[..., Protocol[Any]],
    shares: Sequence[Sequence[Any]],
    *rest: Any,
    precision: int = PRECISION,
    standing: Mapping[int, torch.Tensor] | None = None,
) -> tuple[list[Any], Ledger]:
    """`protocol(party, *shares of this party, *rest)` at all parties in step; their results, and what it cost.

    Args:
        precision: as Party has it.
        standing: the masks that were fixed before, by their numbers.
    """
    ledger, count = Ledger(), len(shares)
    dealer = LocalDealer(count, ledger, standing)
    runs = [
        protocol(Party(rank, count, dealer.supply(rank), precision), *own, *rest) for rank, own in enumerate(shares)
    ]
    answers: list[Any] = [None] * len(runs)
    while True:
        asked, results = _turn(runs, answers)
        if results:
            assert len(results) == len(runs)
            return results, ledger
        messages = [b"".join(message(each)) for each in asked]
        ledger.rounds += 1
        ledger.nbytes += asked[0].nbytes
        ledger.openings += asked
        answers = [
            opened(each, [other for index, other in enumerate(messages) if index != rank])
            for rank, each in enumerate(asked)
        ]


def _turn(runs: Sequence[Protocol[Any]], answers: Sequence[Any]) -> tuple[list[Opening], list[Any]]:
    asked, results = [], []
    for run, answer in zip(runs, answers, strict=True):
        try:
            asked.append(run.send(answer))
        except StopIteration as done:
            results.append(done.value)
    return asked, results


def shares_of(words: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Additive shares of words, uniform but for their sum."""
    from mpc.masks import Masks

    parts = [Masks(fresh_seed(), 0).draw(tuple(words.shape), words.dtype) for _ in range(count - 1)]
    last = words
    for part in parts:
        last = last - part
    return [*parts, last]
