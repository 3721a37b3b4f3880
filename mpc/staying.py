"""Outputs that stay with the parties, as they are kept.

A product has twice the fractional bits of its factors until something needs it to be less. What is kept is needed
again: with the run's precision every later use takes it as it is, and a factor of many products (weights that were
trained on shares) can be fixed. So kept reals are truncated once, all in one round at the end of the run; but for those
that are revealed as well: what is told is rarely needed again, and the round would be its alone. What has digits that
count below a real's last (`Secret.fine`) keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch

from compute.outputs import leaves
from mpc.party import Party
from mpc.rounds import Protocol, together
from mpc.secret import Secret, settled


def staying(party: Party, run: Protocol[Any], template: Any, stays: Sequence[bool]) -> Protocol[Any]:
    """What `run` gives, with at most the run's precision in the reals that only stay. One round more, or none.

    Args:
        template: the program's outputs.
        stays: for each value that comes out whether it is kept; shorter where the rest is not.
    """
    made = yield from run
    finer: dict[int, Secret] = {}
    told: set[int] = set()

    def counts(secret: Secret) -> int:
        return party.precision + secret.fine

    for each, stay in zip_longest(leaves(template, made), stays, fillvalue=False):
        if not stay:
            told.add(id(each))
        elif isinstance(each, Secret) and each.bits > counts(each):
            finer[id(each)] = each
    finer = {key: each for key, each in finer.items() if key not in told}
    if not finer:
        return made
    found = yield from together(*(settled(party, each, counts(each)) for each in finer.values()))
    return _replaced(made, dict(zip(finer, found, strict=True)))


def as_given(share: torch.Tensor, bits: int, dtype: torch.dtype, precision: int) -> Secret:
    """An input: if it has more fractional bits than the run's reals, they were meant to count."""
    return Secret(share, bits, dtype, fine=max(bits - precision, 0))


def _replaced(value: Any, by: Mapping[int, Secret]) -> Any:
    if isinstance(value, Secret):
        return by.get(id(value), value)
    if isinstance(value, list | tuple):
        return type(value)(_replaced(each, by) for each in value)
    if isinstance(value, dict):
        return {key: _replaced(each, by) for key, each in value.items()}
    return value
