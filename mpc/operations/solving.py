"""Inverses of small matrices and what is solved by them: elimination without exchanging rows, and one step of Newton's.

For matrices that need no exchange, as positive definite and diagonally dominant ones do not (the normal equations of a
regression, say), with elements between about 2^-6 and 2^10: error about 2^-14 times the condition. 18 rounds for each
row, and 4.
"""

from __future__ import annotations

from typing import Any

import torch

from mpc.bilinear import MatrixProduct, Multiply
from mpc.operations.linear import add
from mpc.operations.products import on, product
from mpc.operations.quotients import reciprocal
from mpc.party import Party
from mpc.rounds import Protocol
from mpc.secret import Secret, known, settled
from mpc.table import Arguments, secure


@secure("linalg_inv_ex", "inverse", "linalg_inv")
def inverse(party: Party, name: str, arguments: Arguments) -> Protocol[Any]:
    """The inverse, of a matrix [..., n, n] that needs no exchange of rows."""
    made = yield from _inverse(party, arguments.get("A", arguments.get("self")))
    return (made, torch.zeros(made.shape[:-2], dtype=torch.int32)) if name.endswith("_ex.default") else made


@secure("_linalg_solve_ex", "linalg_solve_ex")
def solve(party: Party, name: str, arguments: Arguments) -> Protocol[tuple[Any, ...]]:
    """x of A x = B; what stands for the factors and exchanges is not given."""
    matrix, given = arguments["A"], arguments["B"]
    if not isinstance(matrix, Secret):
        matrix = known(party, matrix.double(), party.precision, given)
    is_vector = len(given.shape) == len(matrix.shape) - 1
    inverted = yield from _inverse(party, matrix)
    if arguments.get("left", True):
        columns = on(given, lambda each: each.unsqueeze(-1)) if is_vector else given
        made = yield from product(party, MatrixProduct(), inverted, columns, inverted.dtype)
        made = made.of(made.share.squeeze(-1)) if is_vector else made
    else:  # x A = B
        made = yield from product(party, MatrixProduct(), given, inverted, inverted.dtype)
    factors = (None, None) if "._" in name else ()
    return made, *factors, torch.zeros(inverted.shape[:-2], dtype=torch.int32)


def _inverse(party: Party, x: Secret) -> Protocol[Secret]:
    x = yield from settled(party, x)
    n = x.shape[-1]
    eye = known(party, torch.eye(n, dtype=torch.float64).expand(x.shape), x.bits, x)
    rows = x.of(torch.cat([x.share, eye.share], -1))
    for at in range(n):
        pivot = rows.of(rows.share[..., at : at + 1, at : at + 1])
        scale = yield from settled(party, (yield from reciprocal(party, "", {"self": pivot})))
        row = rows.of(rows.share[..., at : at + 1, :])
        row = yield from settled(party, (yield from product(party, Multiply(), row, scale, x.dtype)))
        column = rows.of(rows.share[..., :, at : at + 1])
        taken = yield from product(party, MatrixProduct(), column, row, x.dtype)
        taken = yield from settled(party, taken)
        share = rows.share - taken.share
        share[..., at, :] = row.share[..., 0, :]
        rows = rows.of(share)
    near = rows.of(rows.share[..., n:].contiguous())
    # Y (2 - X Y): the error of Y is squared.
    made = yield from settled(party, (yield from product(party, MatrixProduct(), x, near, x.dtype)))
    twice = add(party, "aten.sub.Tensor", {"self": 2 * torch.eye(n, dtype=torch.float64), "other": made})
    made = yield from product(party, MatrixProduct(), near, twice, x.dtype)
    return (yield from settled(party, made))
