"""The largest and the smallest, and where they are: the first of equal ones, as torch has it.

Among few, all pairs are compared at once; among many, in a tournament. The smallest is the largest of what is negated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch

from mpc.bilinear import Multiply
from mpc.comparison import as_numbers, mask, negative_bits
from mpc.operations.comparisons import flat, negative, opposite
from mpc.operations.contest import MOST, winners
from mpc.operations.linear import as_secrets, result_type
from mpc.operations.products import product
from mpc.party import Party
from mpc.rounds import Protocol
from mpc.secret import Secret, aligned
from mpc.table import Arguments, secure

_PAIRS: Final = 1 << 15
"""So many comparisons are made at once; where all pairs are more, a tournament has fewer, and more rounds."""


def _negated(secret: Secret, name: str) -> Secret:
    """What the largest is wanted of."""
    return secret.of(-secret.share) if name.startswith(("aten.min", "aten.amin", "aten.argmin")) else secret


# --- of two -------------------------------------------------------------------------------------------------


def larger(party: Party, x: Secret, y: Secret) -> Protocol[tuple[Secret, Secret]]:
    """max(x, y), and 1 where that is y because y > x. Of equal scales. Four rounds."""
    gap = x.of(x.share - y.share)
    masked = yield from mask(party, flat(gap.share))
    packed = yield from negative_bits(party, masked)
    bit, below = yield from as_numbers(party, packed, masked)
    assert below is not None
    count = gap.share.numel()
    size = gap.shape
    return gap.of(x.share - below[:count].view(size)), Secret(bit[:count].view(size), 0, torch.bool)


@secure("maximum", "minimum", "max.other", "min.other", "fmax", "fmin", "clamp_min.Tensor", "clamp_max.Tensor")
def of_two(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    other = arguments.get("other", arguments.get("min", arguments.get("max")))
    x, y = aligned(as_secrets(party, [arguments["self"], other]))
    is_smallest = name.startswith(("aten.min", "aten.fmin", "aten.clamp_max"))
    if is_smallest:
        x, y = x.of(-x.share), y.of(-y.share)
    best, _ = yield from larger(party, x, y)
    dtype = result_type(arguments["self"], other)
    return Secret(-best.share if is_smallest else best.share, best.bits, dtype)


# --- of many ------------------------------------------------------------------------------------------------


def tournament(party: Party, x: Secret) -> Protocol[Secret]:
    """The largest along the last dimension: four rounds for each halving."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        best, _ = yield from larger(party, x.of(x.share[..., :half]), x.of(x.share[..., half : 2 * half]))
        x = best.of(torch.cat([best.share, x.share[..., 2 * half :]], -1))
    return x.of(x.share[..., 0])


def _with_places(party: Party, x: Secret) -> Protocol[tuple[Secret, Secret]]:
    """The largest along the last dimension, and the place of the first such one."""
    if is_small(x):
        ones, value = yield from winners(party, x)
        return value, _place(ones)
    return (yield from _tournament_with_places(party, x))


def is_small(x: Secret) -> bool:
    """Whether all pairs are compared at once."""
    count = x.shape[-1]
    return count <= MOST and x.share.numel() // max(count, 1) * (count * (count - 1) // 2) <= _PAIRS


def _place(ones: Secret) -> Secret:
    """The place of the 1 in each row."""
    places = torch.arange(ones.shape[-1], device=ones.share.device)
    return Secret((ones.share * places).sum(-1), 0, torch.int64, rows=ones)


def first_of_all_pairs(party: Party, x: Secret) -> Protocol[Secret]:
    """1 at the first largest along the last dimension, 0 elsewhere: all pairs at once, then the product of each one's
    outcomes. Four rounds, and one for each halving."""
    values = x.share
    count = values.shape[-1]
    i, j = torch.triu_indices(count, count, 1)
    # 1 where an earlier one is smaller than a later one: then it loses, else the later one does.
    loses = yield from negative(party, x.of(values[..., i] - values[..., j]))
    table = values.new_zeros(*values.shape[:-1], count, count)
    table[..., i, j] = opposite(party, loses).share
    table[..., j, i] = loses.share
    if party.is_first:
        table += torch.eye(count, dtype=torch.int64, device=table.device)
    outcomes = Secret(table, 0, torch.int64)
    while outcomes.shape[-1] > 1:
        half = outcomes.shape[-1] // 2
        one, other = (outcomes.of(outcomes.share[..., half * at : half * (at + 1)]) for at in range(2))
        made = yield from product(party, Multiply(), one, other, torch.int64)
        outcomes = made.of(torch.cat([made.share, outcomes.share[..., 2 * half :]], -1))
    return outcomes.of(outcomes.share[..., 0])


def _tournament_with_places(party: Party, x: Secret) -> Protocol[tuple[Secret, Secret]]:
    """Neighbours meet, so that the earlier one is always the one with the smaller places."""
    count = x.shape[-1]
    places = torch.arange(count, device=x.share.device).expand(x.shape)
    at = Secret(places if party.is_first else torch.zeros_like(places), 0, torch.int64)
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        even, odd = (slice(start, 2 * half, 2) for start in range(2))
        best, bit = yield from larger(party, x.of(x.share[..., even]), x.of(x.share[..., odd]))
        gap = at.of(at.share[..., odd] - at.share[..., even])
        step = yield from product(party, Multiply(), bit, gap, torch.int64)
        at = at.of(torch.cat([at.share[..., even] + step.share, at.share[..., 2 * half :]], -1))
        x = best.of(torch.cat([best.share, x.share[..., 2 * half :]], -1))
    return x.of(x.share[..., 0]), at.of(at.share[..., 0])


def _last(x: Secret, dims: Sequence[int] | int | None) -> tuple[Secret, list[int]]:
    """With these dimensions as one, the last; and which those are."""
    rank = x.share.dim()
    chosen = [dims] if isinstance(dims, int) else list(dims or range(rank))
    chosen = sorted(dim % rank for dim in chosen) if rank else []
    if not chosen:
        return x.of(x.share.reshape(1)), []
    kept = [dim for dim in range(rank) if dim not in chosen]
    return x.of(x.share.permute(*kept, *chosen).flatten(len(kept))), chosen


def _kept(made: Secret, dims: Sequence[int], keepdim: bool) -> Secret:
    share = made.share
    for dim in dims if keepdim else ():
        share = share.unsqueeze(dim)
    return replace(made, share=share, rows=made.rows if share is made.share else None)


@secure("max", "min", "amax", "amin")
def of_all(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    x, dims = _last(_negated(arguments["self"], name), arguments.get("dim"))
    best = (yield from winners(party, x))[1] if 3 < x.shape[-1] and is_small(x) else (yield from tournament(party, x))
    return _negated(_kept(best, dims, arguments.get("keepdim", False)), name)


@secure("max.dim", "min.dim")
def of_dim(party: Party, name: str, arguments: Arguments) -> Protocol[tuple[Secret, Secret]]:
    x, dims = _last(_negated(arguments["self"], name), arguments["dim"])
    best, place = yield from _with_places(party, x)
    keep = arguments.get("keepdim", False)
    return _negated(_kept(best, dims, keep), name), _kept(place, dims, keep)


@secure("argmax", "argmin")
def place_of(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    x, dims = _last(_negated(arguments["self"], name), arguments.get("dim"))
    count = x.shape[-1]
    if is_small(x):
        place = _place((yield from winners(party, x))[0])
    elif x.share.numel() // max(count, 1) * (count * (count - 1) // 2) <= _PAIRS * 4:
        place = _place((yield from first_of_all_pairs(party, x)))
    else:
        _, place = yield from _tournament_with_places(party, x)
    return _kept(place, dims, arguments.get("keepdim", False))
