"""Products of secrets, on words: of any bilinear operation, by Beaver's triples (CRYPTO 1991).

    multiply         1 round; both arguments' bytes from each party to each other
    multiply_fixed   1 round; the first argument's bytes only: the second was opened under its mask once, for good
    multiply_and_fix 1 round; both at once

Adversary: semi-honest, all parties but one may collude, but not with the dealer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch

from mpc.bilinear import Bilinear
from mpc.correlations import Correlation, Words
from mpc.party import Party
from mpc.rounds import Opening, Protocol

Shape = tuple[int, ...]

_SHAPES: Final = 4_096  # remembered: those of a few programs


@dataclass(frozen=True, slots=True)
class Triple(Correlation):
    """Uniform a and b, and their product c."""

    operation: Bilinear
    one: Shape
    other: Shape

    @property
    def free(self) -> Sequence[Words]:
        return Words(self.one), Words(self.other)

    @property
    def derived(self) -> Sequence[Words]:
        return (Words(result_shape(self.operation, self.one, self.other)),)

    def derive(self, free: Sequence[torch.Tensor], kept: torch.Tensor | None) -> Sequence[torch.Tensor]:
        return [self.operation(free[0], free[1])]


@dataclass(frozen=True, slots=True)
class FixedMask(Correlation):
    """A uniform b, for a secret that many products use."""

    shape: Shape

    @property
    def free(self) -> Sequence[Words]:
        return (Words(self.shape),)


@dataclass(frozen=True, slots=True)
class FixedTriple(Correlation):
    """A uniform a, and its product with the b that was dealt as number `mask`, or with that transposed."""

    operation: Bilinear
    one: Shape
    other: Shape
    mask: int
    is_transposed: bool = False

    @property
    def kept(self) -> int | None:  # type: ignore[override]
        return self.mask

    @property
    def free(self) -> Sequence[Words]:
        return (Words(self.one),)

    @property
    def derived(self) -> Sequence[Words]:
        return (Words(result_shape(self.operation, self.one, self.other)),)

    def derive(self, free: Sequence[torch.Tensor], kept: torch.Tensor | None) -> Sequence[torch.Tensor]:
        assert kept is not None
        return [self.operation(free[0], kept.mT if self.is_transposed else kept)]


@dataclass(frozen=True, slots=True)
class Fixed:
    """A secret whose masked form is open: delta = y - b, this party's share of b (plus delta at the first), and the
    number of the mask, which was dealt for y or for y transposed."""

    delta: torch.Tensor
    share: torch.Tensor
    number: int
    is_transposed: bool = False

    @property
    def mT(self) -> Fixed:  # as torch has it
        return Fixed(self.delta.mT, self.share.mT, self.number, not self.is_transposed)


@lru_cache(_SHAPES)
def result_shape(operation: Bilinear, one: Shape, other: Shape) -> Shape:
    """The shape of what it gives. Remembered: torch takes longer to find it than for the product of a row."""
    made = operation(
        torch.empty(one, dtype=torch.int64, device="meta"), torch.empty(other, dtype=torch.int64, device="meta")
    )
    return tuple(made.shape)


def multiply(party: Party, operation: Bilinear, x: torch.Tensor, y: torch.Tensor) -> Protocol[torch.Tensor]:
    """A share of operation(x, y), of shares of both. Scales add up; nothing is truncated."""
    dealt = party.take(Triple(operation, tuple(x.shape), tuple(y.shape)))
    a, b = dealt.free
    opened = yield Opening(sums=[x - a, y - b])
    epsilon, delta = opened.sums
    return _product(party, operation, epsilon, delta, a, b + delta if party.is_first else b, dealt.derived[0])


def multiply_and_fix(
    party: Party, operation: Bilinear, y: torch.Tensor, *factors: torch.Tensor
) -> Protocol[tuple[list[torch.Tensor], Fixed]]:
    """Shares of operation(x, y) for each x of `factors`, and y ready to be a factor of more. One round."""
    number = party.taken
    b = party.take(FixedMask(tuple(y.shape))).free[0]
    dealt = [party.take(FixedTriple(operation, tuple(x.shape), tuple(y.shape), number)) for x in factors]
    opened = yield Opening(sums=[y - b, *(x - each.free[0] for x, each in zip(factors, dealt, strict=True))])
    delta, *epsilons = opened.sums
    fixed = Fixed(delta, b + delta if party.is_first else b, number)
    made = [
        _product(party, operation, epsilon, delta, each.free[0], fixed.share, each.derived[0])
        for epsilon, each in zip(epsilons, dealt, strict=True)
    ]
    return made, fixed


def fix(party: Party, y: torch.Tensor) -> Protocol[Fixed]:
    """Opens y under a mask that stays. One round, once for each y."""
    number = party.taken
    b = party.take(FixedMask(tuple(y.shape))).free[0]
    opened = yield Opening(sums=[y - b])
    delta = opened.sums[0]
    return Fixed(delta, b + delta if party.is_first else b, number)


def multiply_fixed(party: Party, operation: Bilinear, x: torch.Tensor, y: Fixed) -> Protocol[torch.Tensor]:
    """A share of operation(x, y) for a y that was fixed."""
    dealt = party.take(FixedTriple(operation, tuple(x.shape), tuple(y.delta.shape), y.number, y.is_transposed))
    a = dealt.free[0]
    opened = yield Opening(sums=[x - a])
    return _product(party, operation, opened.sums[0], y.delta, a, y.share, dealt.derived[0])


def _product(
    party: Party,
    operation: Bilinear,
    epsilon: torch.Tensor,
    delta: torch.Tensor,
    a: torch.Tensor,
    b_and_delta: torch.Tensor,
    c: torch.Tensor,
) -> torch.Tensor:
    # xy = (epsilon + a)(delta + b), and epsilon delta + epsilon b is one product at the party that adds the former.
    return operation(epsilon, b_and_delta) + operation(a, delta) + c
