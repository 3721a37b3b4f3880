"""Sorting, and what is told by rank: all pairs are compared at once, and each element's rank is how many it follows.

    9 rounds, n (n - 1) / 2 comparisons of 12.4 bytes and n^2 (of topk: n k) equalities of 10.6 bytes for n elements

Equal elements keep their order, as in torch's stable sort. Exact.
"""

from __future__ import annotations

from typing import Any

import torch

from mpc.bilinear import MatrixProduct
from mpc.operations.comparisons import negative
from mpc.operations.places import rows_of
from mpc.operations.products import product
from mpc.party import Party
from mpc.rounds import Protocol
from mpc.secret import Secret
from mpc.table import Arguments, secure
from protocol.errors import BadRequest


def _ranks(party: Party, x: Secret, descending: bool) -> Protocol[Secret]:
    """How many elements along the last dimension come before each. Four rounds."""
    count = x.shape[-1]
    i, j = torch.triu_indices(count, count, 1)
    gap = x.share[..., j] - x.share[..., i]  # below zero: the later one is smaller
    later_first = yield from negative(party, x.of(-gap if descending else gap))
    bit = later_first.share
    ranks = torch.zeros_like(x.share)
    ranks = ranks.index_add(-1, i.to(ranks.device), bit)
    return Secret(ranks.index_add(-1, j.to(ranks.device), 1 - bit if party.is_first else -bit), 0, torch.int64)


def _sorted(
    party: Party, x: Secret, dim: int, descending: bool, start: int = 0, stop: int | None = None
) -> Protocol[tuple[Secret, Secret]]:
    """Those of ranks from start to stop, and where they were."""
    moved = x.of(x.share.movedim(dim, -1)) if x.shape else x.of(x.share.view(1))
    count = moved.shape[-1]
    ranks = yield from _ranks(party, moved, descending)
    wanted = range(start, count if stop is None else stop)
    first = ranks.share - start if party.is_first else ranks.share
    rows = yield from rows_of(party, ranks.of(first), len(wanted))  # [..., element, rank]
    turned = rows.of(rows.share.mT)
    made = yield from product(party, MatrixProduct(), turned, moved.of(moved.share.unsqueeze(-1)), x.dtype)
    places = turned.share @ torch.arange(count, device=turned.share.device)
    if not x.shape:
        return made.of(made.share.view(())), Secret(places.view(()), 0, torch.int64)
    found = Secret(places.movedim(-1, dim), 0, torch.int64, rows=turned.of(turned.share.movedim(-2, dim)))
    return made.of(made.share.squeeze(-1).movedim(-1, dim)), found


@secure("sort", "sort.stable")
def sort(party: Party, name: str, arguments: Arguments) -> Protocol[tuple[Secret, Secret]]:
    """Values in order, and their places. Nine rounds, exact."""
    return (yield from _sorted(party, arguments["self"], arguments.get("dim", -1), arguments.get("descending", False)))


@secure("argsort", "argsort.stable")
def argsort(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """The places alone. Nine rounds, exact."""
    return (yield from sort(party, name, arguments))[1]


@secure("topk")
def topk(party: Party, name: str, arguments: Arguments) -> Protocol[tuple[Secret, Secret]]:
    """The k largest, or smallest, in order, and their places; of equal ones the first. Nine rounds, exact."""
    dim, largest = arguments.get("dim", -1), arguments.get("largest", True)
    return (yield from _sorted(party, arguments["self"], dim, largest, 0, arguments["k"]))


@secure("kthvalue", "median", "median.dim")
def of_rank(party: Party, name: str, arguments: Arguments) -> Protocol[Any]:
    """The k-th smallest, or the lower median, and its place. Nine rounds, exact."""
    x: Secret = arguments["self"]
    is_whole = name == "aten.median.default"
    dim = 0 if is_whole else arguments.get("dim", -1)
    x = x.of(x.share.reshape(-1)) if is_whole else x
    count = x.shape[dim] if x.shape else 1
    if not count:
        raise BadRequest(f"{name}: of no elements there is none", operation=name)
    rank = (count - 1) // 2 if "median" in name else arguments["k"] - 1
    value, place = yield from _sorted(party, x, dim, False, rank, rank + 1)
    if is_whole:
        return value.of(value.share.view(()))
    if arguments.get("keepdim") or not x.shape:
        return value, place
    return value.of(value.share.squeeze(dim)), place.of(place.share.squeeze(dim))
