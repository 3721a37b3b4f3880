"""Products of many elements, and distances between rows."""

from __future__ import annotations

import math
from typing import Any

import torch

from mpc.bilinear import Multiply
from mpc.operations.comparisons import absolute
from mpc.operations.largest import tournament
from mpc.operations.linear import add, counted
from mpc.operations.products import product
from mpc.operations.quotients import power, sqrt
from mpc.party import Party
from mpc.rounds import Protocol, together
from mpc.secret import Secret, known, settled
from mpc.table import Arguments, secure


@secure("prod", "prod.dim_int")
def prod(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """Two rounds for each halving; each product is rounded to 2^-16."""
    x: Secret = arguments["self"]
    dim = arguments.get("dim")
    x = Secret(x.share.reshape(-1) if dim is None else x.share.movedim(dim, -1), x.bits, counted(x))
    if not x.shape[-1]:  # the product of nothing
        x = known(party, torch.ones((*x.shape[:-1], 1), dtype=x.dtype), 0, x)
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        one, other = (x.of(x.share[..., half * at : half * (at + 1)]) for at in range(2))
        made, rest = yield from together(
            _settled_product(party, one, other), settled(party, x.of(x.share[..., 2 * half :]))
        )
        x = made.of(torch.cat([made.share, rest.share], -1))
    made = x.of(x.share[..., 0])
    return made if dim is None or not arguments.get("keepdim") else made.of(made.share.unsqueeze(dim))


def _settled_product(party: Party, one: Secret, other: Secret) -> Protocol[Secret]:
    made = yield from product(party, Multiply(), one, other, one.dtype)
    return (yield from settled(party, made))


@secure("cumprod")
def cumprod(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """Two rounds for each doubling; each product is rounded to 2^-16."""
    x: Secret = arguments["self"]
    dim = arguments["dim"]
    x = yield from settled(party, Secret(x.share.movedim(dim, -1), x.bits, counted(x)))
    step = 1
    while step < x.shape[-1]:
        made = yield from _settled_product(party, x.of(x.share[..., step:]), x.of(x.share[..., :-step]))
        x = x.of(torch.cat([x.share[..., :step], made.share], -1))
        step *= 2
    return x.of(x.share.movedim(-1, dim))


@secure("_cdist_forward")
def cdist(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """Distances of all rows of x1 [..., n, d] from all of x2 [..., m, d], from their differences, so that none is the
    root of something negative. Fourteen rounds and n m d products for p = 2; four for p = 1; errors as sqrt."""
    one, other = arguments["x1"], arguments["x2"]
    rows = _moved(one, -2), _moved(other, -3)
    gaps = add(party, "aten.sub.Tensor", {"self": rows[0], "other": rows[1]})
    return (yield from _norms(party, gaps, arguments["p"]))


@secure("_pdist_forward")
def pdist(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """Distances of each row from all later ones, as cdist."""
    x: Secret = arguments["self"]
    i, j = torch.triu_indices(x.shape[0], x.shape[0], 1).to(x.share.device)
    return (yield from _norms(party, x.of(x.share[i] - x.share[j]), arguments.get("p", 2)))


def _moved(value: Any, dim: int) -> Any:
    return value.of(value.share.unsqueeze(dim)) if isinstance(value, Secret) else value.unsqueeze(dim)


def _norms(party: Party, gaps: Secret, p: float) -> Protocol[Secret]:
    if p == 2:
        squares = yield from product(party, Multiply(), gaps, gaps, gaps.dtype)
        return (yield from sqrt(party, "", {"self": squares.of(squares.share.sum(-1))}))
    sizes = yield from absolute(party, "", {"self": gaps})
    if p == 1:
        return sizes.of(sizes.share.sum(-1))
    if math.isinf(p):
        return (yield from tournament(party, sizes))
    powers = yield from power(party, "", {"self": sizes, "exponent": p})
    total = powers.of(powers.share.sum(-1))
    return (yield from power(party, "", {"self": total, "exponent": 1 / p}))
