"""Softmax, its logarithm, and their gradients.

Among up to ten: who is the largest comes from all pairs, together with what lies too far below for exp (contest.py).
The sum of the powers is then at least 1 and at most ten, so that its reciprocal and its logarithm are a series of it as
it stands: neither a first digit nor a truncation before.

    softmax       10 rounds for up to ten, error below 1e-4; beyond, 20 and those of the tournament
    log_softmax   9 rounds for up to ten, error below 1e-4

All pairs of ten are 135 comparisons, a tournament and what lies too far below 19: where there are many rows there are
14 rounds more, and a sixth of the work.
"""

from __future__ import annotations

from typing import Any, Final

import torch

from mpc.arithmetic import multiply
from mpc.bilinear import Multiply
from mpc.operations.contest import below_largest, winners
from mpc.operations.functions import exponential
from mpc.operations.largest import is_small, tournament
from mpc.operations.linear import add
from mpc.operations.places import rows_of
from mpc.operations.products import mul, product
from mpc.operations.quotients import log, positive_reciprocal
from mpc.party import Party
from mpc.ring import MAGNITUDE
from mpc.rounds import Protocol, together
from mpc.secret import Secret, aligned, settled
from mpc.table import Arguments, secure
from mpc.waves import LOWEST, Series, exp, series
from protocol.errors import OperationNotAllowed

_FEW: Final = 10
_COARSE: Final = 18  # bits of coefficients: the reciprocal is a factor as it comes out of its series

# Least-squares fits on [1, 10], of the period 16: a power of two, so that angles are exact.
_MULTIPLES: Final = tuple(range(1, 11))
_RECIPROCAL: Final = Series(  # 1.6e-5
    16.0,
    _MULTIPLES,
    (
        *(-13.506842106, -14.314553526, -5.108893324, 2.432341188, 3.37373915),
        *(1.298648755, 0.009208485, -0.143473434, -0.036801715, -0.001571487),
    ),
    (
        *(11.730602983, -2.378482125, -9.020921857, -6.009434848, -0.964951403),
        *(0.958240814, 0.611981628, 0.111524835, -0.010133984, -0.004065846),
    ),
    9.793810106,
)
_LOG: Final = Series(  # 3.7e-6
    16.0,
    _MULTIPLES,
    (
        *(3.548685781, 4.347771928, 1.87908763, -0.395336775, -0.861156603),
        *(-0.379052097, -0.025753528, 0.032419624, 0.009588055, 0.000524284),
    ),
    (
        *(-4.605044637, -0.063531487, 2.299886418, 1.75516935, 0.401152569),
        *(-0.199081398, -0.157497709, -0.033574914, 0.001266412, 0.000956114),
    ),
    -1.440736726,
)


@secure("softmax.int", "_softmax", "_safe_softmax")
def softmax(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """Softmax along a dimension of up to 2^20: error below 1e-4 (3e-4 for more than ten), however far apart the logits
    are. Ten rounds for up to ten in few rows, 24 in many."""
    x = _last(arguments)
    if x.shape[-1] > _FEW:
        _, powers = yield from _powers_of_many(party, x)
        inverse = yield from positive_reciprocal(party, powers.of(powers.share.sum(-1, keepdim=True)))
        made = yield from product(party, Multiply(), powers, inverse, powers.dtype)
        return made.of(_back(made.share, arguments))
    powers = yield from _powers_of_few(party, x)
    sums = powers.of(powers.share.sum(-1, keepdim=True))
    (inverse,), powers = yield from together(
        series(party, sums, _RECIPROCAL, precision=_COARSE), settled(party, powers)
    )
    if powers.bits + inverse.bits > MAGNITUDE - 2:
        inverse = yield from settled(party, inverse)
    share = yield from multiply(party, Multiply(), powers.share, inverse.share)
    made = yield from settled(party, Secret(share, powers.bits + inverse.bits, x.dtype))
    return made.of(_back(made.share, arguments))


@secure("log_softmax.int", "_log_softmax")
def log_softmax(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """Logarithm of softmax: error below 1e-4 (2e-4 for more than ten). Nine rounds for up to ten."""
    x = _last(arguments)
    if x.shape[-1] <= _FEW and is_small(x):
        powers, moved = yield from together(_powers_of_few(party, x), _moved(party, x))
    else:
        moved, powers = yield from _powers_of_many(party, x)
    sums = powers.of(powers.share.sum(-1, keepdim=True))
    if x.shape[-1] > _FEW:
        logs = yield from log(party, name, {"self": sums})
    else:
        (logs,) = yield from series(party, sums, _LOG)
        logs = yield from settled(party, logs)
    terms = aligned([moved, logs])
    return terms[0].of(_back(terms[0].share - terms[1].share, arguments))


def _last(arguments: Arguments) -> Secret:
    """With the dimension that is meant as the last one. A number alone is a row of one."""
    x: Secret = arguments["self"]
    return x.of(x.share.movedim(arguments["dim"], -1) if x.shape else x.share.view(1))


def _back(share: torch.Tensor, arguments: Arguments) -> torch.Tensor:
    return share.movedim(-1, arguments["dim"]) if arguments["self"].shape else share.view(())


def _powers_of_few(party: Party, x: Secret) -> Protocol[Secret]:
    """e to the power of x less the largest: by all pairs, or a tournament where there are many rows."""
    if is_small(x):
        return (yield from exp(party, (yield from below_largest(party, x, LOWEST))))
    return (yield from _powers_of_many(party, x))[1]


def _moved(party: Party, x: Secret) -> Protocol[Secret]:
    """x less the largest, however far below."""
    (_, best), x = yield from together(winners(party, x), settled(party, x))
    terms = aligned([x, best])
    return terms[0].of(terms[0].share - terms[1].share.unsqueeze(-1))


def _powers_of_many(party: Party, x: Secret) -> Protocol[tuple[Secret, Secret]]:
    """x less the largest, and e to the power of that."""
    x = yield from settled(party, x)
    largest = yield from tournament(party, x)
    moved = x.of(x.share - largest.share.unsqueeze(-1))
    powers = yield from exponential(party, "aten.exp.default", {"self": moved})
    return moved, (yield from settled(party, powers))


@secure("logsumexp")
def logsumexp(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """Logarithm of the sum of the powers: error below 1e-4 beside the largest's own. Nine rounds for up to ten."""
    x: Secret = arguments["self"]
    dims = [arguments["dim"]] if isinstance(arguments["dim"], int) else list(arguments["dim"])
    rank = len(x.shape)
    dims = [dim % rank for dim in dims]
    kept = [dim for dim in range(rank) if dim not in dims]
    flat = x.of(x.share.permute(*kept, *dims).flatten(len(kept)))
    logs, flat = yield from together(log_softmax(party, name, {"self": flat, "dim": len(kept)}), settled(party, flat))
    terms = aligned([flat, logs])  # x - log_softmax(x) is the same for all x of a row
    made = (terms[0].share - terms[1].share)[..., 0]
    for dim in sorted(dims) if arguments.get("keepdim") else ():
        made = made.unsqueeze(dim)
    return terms[0].of(made)


# --- gradients and losses -----------------------------------------------------------------------------------


@secure("_softmax_backward_data")
def softmax_backward(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """p (g - sum(p g)). Four rounds."""
    gradient, p, dim = arguments["grad_output"], arguments["output"], arguments["dim"]
    weighted = yield from mul(party, "aten.mul.Tensor", {"self": gradient, "other": p})
    weighted = yield from settled(party, weighted)
    total = weighted.of(weighted.share.sum(dim, keepdim=True))
    part = yield from mul(party, "aten.mul.Tensor", {"self": p, "other": total})
    return add(party, "aten.sub.Tensor", {"self": weighted, "other": part})


@secure("_log_softmax_backward_data")
def log_softmax_backward(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """g - exp(output) sum(g). Eight rounds; lowering has it without the exp where it can."""
    gradient, dim = arguments["grad_output"], arguments["dim"]
    p = yield from exponential(party, name, {"self": arguments["output"]})
    total = (
        gradient.of(gradient.share.sum(dim, keepdim=True))
        if isinstance(gradient, Secret)
        else gradient.sum(dim, keepdim=True)
    )
    part = yield from mul(party, "aten.mul.Tensor", {"self": p, "other": total})
    return add(party, "aten.sub.Tensor", {"self": gradient, "other": part})


@secure("nll_loss_forward", "nll_loss", "nll_loss_nd")
def nll_loss(party: Party, name: str, arguments: Arguments) -> Protocol[Any]:
    """The mean of -x at the labels, which may be secret: they are of the classes, and none is ignored then. Five rounds
    with secret labels."""
    x, target = arguments["self"], arguments["target"]
    if arguments.get("weight") is not None or len(x.shape) > 2:
        raise OperationNotAllowed(
            f"{name}: with secret labels, of rows of classes, and without weights", operation=name
        )
    rows = yield from rows_of(party, target, x.shape[-1])
    at_labels = yield from product(party, Multiply(), rows, x, x.dtype)
    made = at_labels.of(-at_labels.share.sum(-1))
    count = max(made.share.numel(), 1)
    reduction = arguments.get("reduction", 1)
    if reduction:
        made = made.of(made.share.sum())
    if reduction == 1:
        made = yield from product(party, Multiply(), made, 1.0 / count, x.dtype)
    return (made, torch.tensor(float(count))) if "forward" in name else made
