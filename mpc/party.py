"""One party of a computation: which one it is, and where its correlated randomness comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mpc.correlations import Correlation, Dealt
from mpc.ring import PRECISION, check_precision
from mpc.rounds import Protocol


@dataclass(slots=True)
class Party:
    """A party's own state in one run. Protocols take it first.

    Attributes:
        rank: 0 for the first party, which adds what is public to its shares.
        count: how many parties there are.
        supply: this party's shares of the correlation of a number; called once for each number.
        precision: fractional bits of secret reals, the same at all parties; that of the program's lowering too.
    """

    rank: int
    count: int
    supply: Callable[[int, Correlation], Dealt]
    precision: int = PRECISION
    _next: int = field(default=0)

    def __post_init__(self) -> None:
        check_precision(self.precision)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def take(self, correlation: Correlation) -> Dealt:
        """The next correlation. All parties take the same ones in the same order."""
        number, self._next = self._next, self._next + 1
        return self.supply(number, correlation)

    def iterations(self, total: int, look: Callable[[], Any]) -> Iterator[int]:
        """The numbers of a loop's iterations.

        Args:
            look: what is carried, as far as it decides what an iteration takes: who only foresees a run (script.py)
                leaves out iterations that are like the one before.
        """
        return iter(range(total))

    def between(self) -> Protocol[None]:
        """Before an iteration and after a loop: who makes the correlations itself (replicated.py) makes the next
        ones."""
        ahead = getattr(self.supply, "make_ahead", None)
        if ahead is not None:
            yield from ahead(self._next)

    @property
    def taken(self) -> int:
        """The number that the next correlation gets."""
        return self._next
