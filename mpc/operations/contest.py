"""Who is the largest of few, by all pairs at once; and how much the others are less, with what is far below cut off.

All differences x_i - x_j are opened once, masked. From that opening come their signs, and whether they are below a
bound, which is public and moves the opened word only; j is the largest where it loses to nobody, an AND in two rounds.
The bits become numbers, and choose among the differences that are open already, in one round more.

    6 rounds; for n of few elements n^2 differences of 8 bytes, n (n - 1) / 2 comparisons, or three times as many
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch.nn import functional

from mpc import bits
from mpc.comparison import ALL, EVERY, Masked, ands, as_numbers, mask, negative_bits
from mpc.correlations import Dealt
from mpc.operations.comparisons import flat
from mpc.party import Party
from mpc.rounds import Protocol, together
from mpc.secret import Secret, rescaled

MOST: Final = 13
"""So many elements at most: the outcomes of one are ANDed in two rounds."""


def winners(party: Party, x: Secret) -> Protocol[tuple[Secret, Secret]]:
    """1 at the first largest along the last dimension and 0 elsewhere; and the largest itself. Six rounds, exact."""
    if x.shape[-1] == 1:
        one = torch.full_like(x.share, 1 if party.is_first else 0)
        return Secret(one, 0, torch.bool), x.of(x.share[..., 0])
    contest = _Contest(x)
    shift = max(x.bits - party.precision, 0)
    differences, values = yield from together(
        mask(party, flat(contest.pairs())), mask(party, flat(x.share), shift, has_bits=False)
    )
    signs = yield from contest.signs(party, differences, None)
    first = yield from contest.first(party, signs)
    number, chosen = yield from as_numbers(party, _packed(first), values)
    assert chosen is not None
    best = contest.cut(chosen, x.shape).sum(-1)
    return Secret(contest.cut(number, x.shape), 0, torch.bool), Secret(best, x.bits - shift, x.dtype)


def below_largest(party: Party, x: Secret, lowest: int) -> Protocol[Secret]:
    """x less the largest along the last dimension; `lowest` where that is less than lowest + 1. Six rounds, to
    within 2^-16."""
    x = rescaled(x, max(x.bits, party.precision))
    contest, shift = _Contest(x), x.bits - party.precision
    masked = yield from mask(party, flat(contest.differences()), shift)
    signs = yield from contest.signs(party, masked, lowest + 1)
    near = yield from contest.first(party, signs, near=True)
    number, chosen = yield from as_numbers(party, _packed(near), masked)
    assert chosen is not None
    square = (*x.shape, x.shape[-1])
    gap, is_near = (contest.cut(each, square).sum(-1) for each in (chosen, number))
    far = (1 if party.is_first else 0) - is_near
    return Secret(gap + far * (lowest * (1 << party.precision)), party.precision, x.dtype)


class _Contest:
    """The pairs of one tensor's rows: [rows, n] elements."""

    def __init__(self, x: Secret) -> None:
        self._x = x
        self._n = x.shape[-1]
        self._rows = x.share.numel() // max(self._n, 1)
        i, j = torch.meshgrid(torch.arange(self._n), torch.arange(self._n), indexing="ij")
        self._upper = (i < j).flatten().nonzero().squeeze(1)
        self._others = (i != j).flatten().nonzero().squeeze(1)

    def differences(self) -> torch.Tensor:
        """[rows, n, n]: x_i - x_j."""
        values = self._x.share.reshape(self._rows, self._n)
        return values.unsqueeze(2) - values.unsqueeze(1)

    def pairs(self) -> torch.Tensor:
        """[rows, n (n - 1) / 2]: those with i < j."""
        return self.differences().flatten(1)[:, self._upper.to(self._x.share.device)]

    def cut(self, share: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """What was padded, in its shape."""
        return share[: torch.Size(shape).numel()].view(shape)

    def signs(self, party: Party, masked: Masked, bound: int | None) -> Protocol[tuple[torch.Tensor, torch.Tensor]]:
        """XOR shares, [rows, n, n] uint8: whether x_i < x_j; with a bound also whether x_i - x_j is at least that."""
        rows, n = self._rows, self._n
        device = masked.c.device
        pairs = (torch.arange(rows, device=device).unsqueeze(1) * (n * n) + self._upper.to(device)).flatten()
        others = (torch.arange(rows, device=device).unsqueeze(1) * (n * n) + self._others.to(device)).flatten()
        first = slice(pairs.shape[0]) if bound is None else pairs  # they were opened alone
        words, digits = [masked.c[first]], [masked.r_digits[:, first]]
        if bound is not None:
            words.append(masked.c[others] - bound * (1 << self._x.bits))
            digits.append(masked.r_digits[:, others])
        c, r = torch.cat(words), torch.cat(digits, 1)
        missing = -c.shape[0] % bits.GROUP
        c, r = functional.pad(c, (0, missing)), functional.pad(r, (0, missing))
        packed = yield from negative_bits(party, replace(masked, c=c, dealt=Dealt([r], [r])))
        found = bits.unpack(packed)
        loses = found.new_zeros(rows * n * n)
        loses[pairs] = found[: pairs.shape[0]]
        loses = loses.view(rows, n, n)
        near = torch.ones_like(loses) if party.is_first else torch.zeros_like(loses)
        if bound is not None:
            far = found[pairs.shape[0] : pairs.shape[0] + others.shape[0]]
            near.view(-1)[others] = far ^ 1 if party.is_first else far
        return loses, near

    def first(
        self, party: Party, signs: tuple[torch.Tensor, torch.Tensor], *, near: bool = False
    ) -> Protocol[torch.Tensor]:
        """XOR shares, [rows, n] uint8: whether j is the first largest; with `near` [rows, n, n]: whether j is, and i is
        near it. Two rounds."""
        loses, is_near = signs
        one = 1 if party.is_first else 0
        # j beats an earlier i where x_i < x_j, and a later one where not x_j < x_i.
        earlier, later = loses.mT, loses ^ one
        n = self._n
        outcomes = [[(earlier if i < j else later)[:, j, i] for i in range(n) if i != j] for j in range(n)]
        factors = [torch.stack(each, 1) for each in zip(*outcomes, strict=True)]  # each [rows, n]; of one alone none
        factors = yield from _grouped(party, factors)
        if near:
            factors = [each.unsqueeze(1).expand(is_near.shape) for each in factors]
            factors.append(is_near)
        if not factors:
            return torch.full_like(loses[..., 0], one)
        (made,) = yield from _and(party, [factors])
        return made


def _grouped(party: Party, factors: list[torch.Tensor]) -> Protocol[list[torch.Tensor]]:
    """At most three bits whose AND is that of all of these. One round, or none."""
    if len(factors) <= 3:
        return factors
    groups = [factors[at : at + 4] for at in range(0, len(factors), 4)]
    single = [group[0] for group in groups if len(group) == 1]
    made = yield from _and(party, [group for group in groups if len(group) > 1])
    return [*made, *single]


def _and(party: Party, groups: list[list[torch.Tensor]]) -> Protocol[list[torch.Tensor]]:
    """The AND of each group of up to four bits, XOR shares of one shape, uint8. One round."""
    shape = groups[0][0].shape
    one = torch.full(shape, 1 if party.is_first else 0, dtype=torch.uint8, device=groups[0][0].device)
    whole = [[*group, *[one] * (4 - len(group))] for group in groups]
    lanes = [_packed(torch.stack([group[at] for group in whole])) for at in range(4)]
    (packed,) = yield from ands(party, EVERY, dict(zip(reversed(ALL), lanes, strict=True)))
    made = bits.unpack(packed)
    return list(made[: len(groups) * one.numel()].view(len(groups), *shape).unbind(0))


def _packed(values: torch.Tensor) -> torch.Tensor:
    values = values.reshape(-1)
    return bits.pack(functional.pad(values, (0, -values.shape[0] % bits.GROUP)))
