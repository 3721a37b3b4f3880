"""What a run will take, before it runs: correlations in their order, rounds and bytes.

Protocols do the same whatever the values are. So one party's part, run on shapes alone, tells all: the dealer what to
deal, and everyone what it will cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mpc.correlations import Correlation, Dealt, Words
from mpc.party import Party
from mpc.ring import PRECISION
from mpc.rounds import Opened, Opening, Protocol


@dataclass(frozen=True, slots=True)
class Script:
    """What one run takes.

    Attributes:
        correlations: in the order in which parties take them; their numbers count from 0.
        openings: for each round the bytes that each party sends to each other.
    """

    correlations: tuple[Correlation, ...]
    openings: tuple[int, ...]

    @property
    def rounds(self) -> int:
        return len(self.openings)

    @property
    def nbytes(self) -> int:
        """Bytes from one party to one other, in all rounds."""
        return sum(self.openings)

    @property
    def dealt(self) -> int:
        """Bytes from the dealer to the last party; the others are sent a seed."""
        return sum(words.nbytes for correlation in self.correlations for words in correlation.derived)


def script_of(protocol: Callable[[Party], Protocol[Any]], count: int, precision: int = PRECISION) -> Script:
    """The script of `protocol(party)` among `count` parties. Its secrets are tensors on the meta device.

    Args:
        precision: as Party has it.

    Raises what the protocol raises for these shapes: an operation without a secure form, say.
    """
    taken: list[Correlation] = []
    openings: list[int] = []

    def supply(number: int, correlation: Correlation) -> Dealt:
        taken.append(correlation)
        return Dealt([_shapes(words) for words in correlation.free], [_shapes(words) for words in correlation.derived])

    run, answer = protocol(Party(0, count, supply, precision)), None
    while True:
        try:
            asked: Opening = run.send(answer)  # type: ignore[arg-type]  # None begins it
        except StopIteration:
            return Script(tuple(taken), tuple(openings))
        openings.append(asked.nbytes)
        answer = Opened(asked.sums, asked.xors)


def _shapes(words: Words) -> torch.Tensor:
    return torch.empty(words.shape, dtype=words.dtype, device="meta")
