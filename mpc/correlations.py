"""Correlated randomness: what the dealer deals ahead of time, knowing shapes and no data.

A correlation has *free* words, which are uniform, and *derived* ones, which follow from them. Every party draws its
shares of the free words, and all but the last their shares of the derived ones, from a seed that it has in common with
the dealer; only the last party's shares of derived words (the *corrections*) have to travel. (Boyle and others, the
usual compression of Beaver triples: Beaver, CRYPTO 1991.)

Each correlation is used once. Its number, of which all parties and the dealer have the same count, keeps its masks
apart from those of all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch

from mpc.masks import Masks

SUM: Final = "sum"
XOR: Final = "xor"


@dataclass(frozen=True, slots=True)
class Words:
    """Words of one shape and integer dtype, shared by addition (modulo 2^width) or by exclusive or."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.int64
    sharing: Literal["sum", "xor"] = "sum"
    width: int = 0
    """0: all bits of the dtype."""

    def combine(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self.cut(one + other if self.sharing == SUM else one ^ other)

    def cut(self, words: torch.Tensor) -> torch.Tensor:
        """The words modulo 2^width."""
        return words & ((1 << self.width) - 1) if self.width else words

    def without(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return one - other if self.sharing == SUM else one ^ other

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Dealt:
    """One party's shares of a correlation."""

    free: Sequence[torch.Tensor]
    derived: Sequence[torch.Tensor]


class Correlation:
    """What may be asked of the dealer. Subclasses are frozen dataclasses of shapes and settings.

    `kept`: the number of an earlier correlation whose first free words this one uses too (a mask that stays).
    """

    __slots__ = ()
    kept: ClassVar[int | None] = None

    @property
    def free(self) -> Sequence[Words]:
        raise NotImplementedError

    @property
    def derived(self) -> Sequence[Words]:
        return ()

    def derive(self, free: Sequence[torch.Tensor], kept: torch.Tensor | None) -> Sequence[torch.Tensor]:
        """The derived words, of the values of the free ones. Runs at the dealer."""
        return ()


def deal(
    correlation: Correlation, number: int, seeds: Sequence[bytes], kept: torch.Tensor | None = None
) -> Corrections:
    """The dealer's part: what the last party is to be sent.

    Args:
        seeds: those of the parties, in their order.
        kept: the value of the mask that `correlation.kept` names.
    """
    masks = [Masks(seed, number) for seed in seeds]
    values = [_total(words, masks) for words in correlation.free]
    derived = list(correlation.derive(values, kept))
    for index, words in enumerate(correlation.derived):
        for each in masks[:-1]:
            derived[index] = words.without(derived[index], each.draw(words.shape, words.dtype))
    return Corrections(values[0] if values else None, derived)


@dataclass(frozen=True, slots=True)
class Corrections:
    """What dealing gave: the first free words, for later correlations that keep them, and the last party's shares."""

    first: torch.Tensor | None
    shares: Sequence[torch.Tensor]


def _total(words: Words, masks: Sequence[Masks]) -> torch.Tensor:
    total = words.cut(masks[0].draw(words.shape, words.dtype))
    for each in masks[1:]:
        total = words.combine(total, each.draw(words.shape, words.dtype))
    return total


def take(
    correlation: Correlation, number: int, seed: bytes, corrections: Sequence[torch.Tensor] | None = None
) -> Dealt:
    """One party's shares; `corrections` at the last party, None at all others."""
    masks = Masks(seed, number)
    free = [words.cut(masks.draw(words.shape, words.dtype)) for words in correlation.free]
    if corrections is None:
        corrections = [masks.draw(words.shape, words.dtype) for words in correlation.derived]
    return Dealt(free, corrections)
