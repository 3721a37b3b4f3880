"""Correlated randomness: what the dealer deals ahead of time, knowing shapes and no data.

A correlation has *free* words, which are uniform, and *derived* ones, which follow from them. Every party draws its
shares of the free words, and all but the last their shares of the derived ones, from a seed that it has in common with
the dealer; only the last party's shares of derived words (the *corrections*) have to travel. (Boyle and others, the
usual compression of Beaver triples: Beaver, CRYPTO 1991.)

Each correlation is used once. Its number, of which all parties and the dealer have the same count, keeps its masks
apart from those of all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Literal

import torch

from mpc.masks import Masks
from mpc.pieces import BYTES

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

    def cut(self, words: torch.Tensor) -> torch.Tensor:
        """The words modulo 2^width."""
        return words & ((1 << self.width) - 1) if self.width else words

    def combine_(self, total: torch.Tensor, other: torch.Tensor) -> None:
        """Puts one party's words to those of others."""
        total.add_(other) if self.sharing == SUM else total.bitwise_xor_(other)
        if self.width:
            total.bitwise_and_((1 << self.width) - 1)

    def without_(self, total: torch.Tensor, other: torch.Tensor) -> None:
        """Takes one party's words from all."""
        total.sub_(other) if self.sharing == SUM else total.bitwise_xor_(other)

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

    `kept`: the number of an earlier correlation whose first free words this one uses too (a mask that stays); below
    zero, of a mask that stands since before the run (standing.py).
    """

    __slots__ = ()
    kept: ClassVar[int | None] = None

    def moved(self, by: Callable[[int], int]) -> Correlation:
        """The same, where the mask that it keeps has another number."""
        return self if self.kept is None else replace(self, mask=by(self.kept))  # type: ignore[type-var]

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
    derived = [share.contiguous() for share in correlation.derive(values, kept)]
    for share, words in zip(derived, correlation.derived, strict=True):
        for each in masks[:-1]:
            _fold(share, words.without_, words, each)
    return Corrections(values[0] if values else None, derived)


def drawn(correlation: Correlation, number: int, seeds: Sequence[bytes]) -> torch.Tensor:
    """The value of a correlation's first free words: a mask, for the dealer alone."""
    return _total(correlation.free[0], [Masks(seed, number) for seed in seeds])


@dataclass(frozen=True, slots=True)
class Corrections:
    """What dealing gave: the first free words, for later correlations that keep them, and the last party's shares."""

    first: torch.Tensor | None
    shares: Sequence[torch.Tensor]


def _total(words: Words, masks: Sequence[Masks]) -> torch.Tensor:
    total = words.cut(masks[0].draw(words.shape, words.dtype))
    for each in masks[1:]:
        _fold(total, words.combine_, words, each)
    return total


def _fold(
    total: torch.Tensor, change: Callable[[torch.Tensor, torch.Tensor], None], words: Words, masks: Masks
) -> None:
    """Masks put to words or taken from them, in place and piece by piece: only a piece of them is ever there."""
    flat, size = total.view(-1), BYTES // total.element_size()
    for start in range(0, flat.shape[0], size):
        part = flat[start : start + size]
        change(part, masks.draw(tuple(part.shape), words.dtype))


def take(
    correlation: Correlation, number: int, seed: bytes, corrections: Sequence[torch.Tensor] | None = None
) -> Dealt:
    """One party's shares; `corrections` at the last party, None at all others."""
    masks = Masks(seed, number)
    free = [words.cut(masks.draw(words.shape, words.dtype)) for words in correlation.free]
    if corrections is None:
        corrections = [masks.draw(words.shape, words.dtype) for words in correlation.derived]
    return Dealt(free, corrections)
