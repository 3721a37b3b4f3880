"""Gradients said in plainer operations, where torch has a kernel and no decomposition of it. As plainer.py has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch.nn import functional

from mpc.plainer import RULES
from mpc.rewrites import Arguments, Lowering, Rule, rule

__all__ = ["RULES"]

_aten = torch.ops.aten


# --- pools and padding --------------------------------------------------------------------------------------


def _of_shapes(operation: Any) -> Rule:
    """Of a gradient that all know, and places that all know: of the rest only the shape counts."""

    def public(lowering: Lowering, arguments: Arguments) -> Any:
        if lowering.is_secret((arguments["grad_output"], arguments.get("indices"))):
            return None
        like = arguments["self"]
        return operation(**{**arguments, "self": torch.zeros(like.shape, dtype=like.dtype)})

    return public


for _operation in (
    *(_aten.avg_pool2d_backward, _aten.avg_pool3d_backward),
    *(_aten._adaptive_avg_pool2d_backward, _aten._adaptive_avg_pool3d_backward),
    *(_aten.max_pool2d_with_indices_backward, _aten.max_pool3d_with_indices_backward),
    *(_aten.adaptive_max_pool2d_backward, _aten.adaptive_max_pool3d_backward),
):
    rule(f"{_operation.__name__}.default")(_of_shapes(_operation.default))


@rule("replication_pad1d_backward.default", "replication_pad2d_backward.default", "replication_pad3d_backward.default")
def _replication_pad_backward(lowering: Lowering, arguments: Arguments) -> Any:
    """Each element's copies, added up."""
    gradient, shape, padding = arguments["grad_output"], arguments["self"].shape, list(arguments["padding"])
    rank = len(padding) // 2
    count = math.prod(shape[-rank:])
    numbers = torch.arange(count, dtype=torch.float64).view(1, 1, *shape[-rank:])
    places = functional.pad(numbers, padding, mode="replicate").long().flatten()

    def added() -> torch.Tensor:
        flat = gradient.reshape(-1, places.numel())
        return torch.zeros(flat.shape[0], count, dtype=gradient.dtype).index_add(1, places, flat).reshape(shape)

    return lowering.written(added)


_ENLARGED: Final = {
    f"upsample_{kind}{rank}d": rank
    for kind, ranks in (
        ("nearest", (1, 2, 3)),
        ("linear", (1,)),
        ("bilinear", (2,)),
        ("trilinear", (3,)),
        ("bicubic", (2,)),
    )
    for rank in ranks
}


def _enlarged(name: str, rank: int) -> Rule:
    """Back along one dimension after the other: what came of an element is a row of public weights."""
    forward = getattr(_aten, name).default

    def backward(lowering: Lowering, arguments: Arguments) -> Any:
        made, size, out = arguments["grad_output"], arguments["input_size"], arguments["output_size"]
        given = {key: each for key, each in arguments.items() if key == "align_corners" or key.startswith("scales")}
        for at in range(rank):
            # What the enlargement of this dimension alone does to unit vectors, which lie along the first.
            count = size[2 + at]
            eye = torch.eye(count, dtype=torch.float64).view(count, 1, *(count if at == k else 1 for k in range(rank)))
            sizes = [out[each] if each == at else 1 for each in range(rank)]
            weights = forward(eye, sizes, **given).reshape(count, out[at]).to(made.dtype)
            made = lowering.written(lambda x=made, w=weights, dim=2 + at: (x.movedim(dim, -1) @ w.T).movedim(-1, dim))
        return made

    return backward


for _name, _rank in _ENLARGED.items():
    rule(f"{_name}_backward.default")(_enlarged(_name, _rank))


# --- distances ----------------------------------------------------------------------------------------------


@rule("_pdist_backward.default")
def _pdist_backward(lowering: Lowering, arguments: Arguments) -> Any:
    gradient, x, p, distances = (arguments[key] for key in ("grad", "self", "p", "pdist"))
    i, j = torch.triu_indices(x.shape[0], x.shape[0], 1)

    def parts() -> torch.Tensor:
        gaps = x[i] - x[j]
        made = _along(gaps, distances, p) * gradient.unsqueeze(1)
        return torch.zeros(x.shape, dtype=x.dtype).index_add(0, i, made).index_add(0, j, -made)

    return lowering.written(parts)


def _along(gaps: torch.Tensor, distances: torch.Tensor, p: float) -> torch.Tensor:
    """How each distance moves with each gap."""
    if p == 2:
        return gaps / distances.unsqueeze(1)
    if p == 1:
        return gaps.sign()
    if math.isinf(p):
        return gaps.sign() * (gaps.abs() == distances.unsqueeze(1))
    return gaps.sign() * gaps.abs() ** (p - 1) / distances.unsqueeze(1) ** (p - 1)


# --- secret places ------------------------------------------------------------------------------------------


@rule("index_put.default")
def _added_at_secret_places(lowering: Lowering, arguments: Arguments) -> Any:
    """What the gradient of x[secret] is: values added up at secret places of one dimension."""
    x, values = arguments["self"], arguments["values"]
    given = [(dim, each) for dim, each in enumerate(arguments["indices"]) if each is not None]
    if not arguments.get("accumulate") or len(given) != 1 or not lowering.is_secret(given[0][1]):
        return None
    ((dim, index),) = given
    places = lowering.apply(_aten.one_hot.default, index, x.shape[dim])

    def added() -> torch.Tensor:
        wanted = values.expand(*x.shape[:dim], *index.shape, *x.shape[dim + 1 :])
        rows = places.to(x.dtype).reshape(-1, x.shape[dim])
        flat = wanted.movedim(tuple(range(dim, dim + index.dim())), tuple(range(index.dim())))
        total = rows.T @ flat.reshape(rows.shape[0], -1)
        rest = [*x.shape[:dim], *x.shape[dim + 1 :]]
        made: torch.Tensor = x + total.reshape(x.shape[dim], *rest).movedim(0, dim)
        return made

    return lowering.written(added)


@rule("put.default")
def _put(lowering: Lowering, arguments: Arguments) -> Any:
    """What the gradient of x.take(places) is: x as one row."""
    x, index, source = (arguments[key] for key in ("self", "index", "source"))
    if lowering.is_secret(index):
        return None

    def put() -> torch.Tensor:
        places = (index.reshape(-1),)
        made: torch.Tensor = x.reshape(-1).index_put(places, source.reshape(-1), arguments["accumulate"])
        return made.reshape(x.shape)

    return lowering.written(put)


# --- solutions ----------------------------------------------------------------------------------------------

_SOLVED: Final[Sequence[str]] = ("aten._linalg_solve_ex.default", "aten.linalg_solve_ex.default")


@rule("linalg_lu_solve.default")
def _solved_again(lowering: Lowering, arguments: Arguments) -> Any:
    """By the matrix whose factors these are, where it was solved by before."""
    made = lowering.made_by(arguments["LU"])
    if made is None or made[0] not in _SOLVED:
        return None
    matrix, right = made[1]["A"], arguments["B"]
    turns = arguments.get("adjoint", False)

    def solved() -> torch.Tensor:
        if arguments.get("left", True):
            made: torch.Tensor = torch.linalg.solve(matrix.mT if turns else matrix, right)
        else:
            made = torch.linalg.solve(matrix if turns else matrix.mT, right.mT).mT
        return made

    return lowering.written(solved)
