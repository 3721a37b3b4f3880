"""Every secure form, and the gradients of all that has one, by 3 and 5 parties with a dealer and by 3 without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final

import pytest
import torch

from compute.dtypes import NAME_OF
from compute.program import Input, Node, Program
from compute.table import lookup
from compute.values import inline_tensor
from mpc.backward import RULES
from mpc.lowering import lower
from mpc.operations import SECURE
from tests.full import FULL
from tests.mpc.shares import OnShares, lowered
from tests.mpc.test_listed_operations import check
from tests.mpc.test_operations import _CASES, _X, _Y, Function

_TEAMS: Final = {"2": (2, True), "3": (3, True), "5": (5, True), "3, no dealer": (3, False)}
_SIZE: Final = 20


def _with_gradients(cases: Sequence[Function]) -> Callable[..., Any]:
    """What each gives, and its gradients in both operands, where it has any."""
    differentiable = _differentiable()

    def function(x: torch.Tensor, y: torch.Tensor) -> list[Any]:
        made: list[Any] = []
        for case in cases:
            made.append(case(x, y))
            if case in differentiable:
                one, other = x.clone().requires_grad_(), y.clone().requires_grad_()
                out = case(one, other)
                weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
                ((out * weights).sum() * x[0, 0]).backward()  # the gradient is a secret, too
                made += [each.grad for each in (one, other) if each.grad is not None]
        return made

    return function


_NAMES: Final = list(_CASES)
# Side by side they share rounds.
_GROUPS: Final = {_NAMES[at]: _NAMES[at : at + _SIZE] for at in range(0, len(_NAMES), _SIZE)}
# Where gradients are asked for, torch takes some operations apart: here nothing is.
_PLAIN: Final = ["matmul", "conv1d", "conv2d", "max_pool1d", "max_pool2d odd", "max_pool3d", "avg_pool1d"]
_PLAIN += ["adaptive_max1", "softmax", "log_softmax", "square", "relu6", "argsort", "chunk", "views", "expand", "var"]
_PLAIN += ["masked_fill", "masked_fill secret", "cdist", "norm", "kl", "huber", "mse", "unfold", "fold"]
_GROUPS["without gradients"] = _PLAIN
# Five do nothing that three do not; with PEERGRID_FULL set they do all of it.
_BY_FIVE: Final = ("add", "lt scalar", "without gradients")


@cache
def _differentiable() -> set[Function]:
    """Those of which torch has gradients: of some it has none in all operands at once."""
    found = set()
    for case in _CASES.values():
        try:
            out = case(_X.clone().requires_grad_(), _Y.clone().requires_grad_())
            out.sum().backward()  # type: ignore[no-untyped-call]
        except RuntimeError:
            continue
        found.add(case)
    return found


@cache
def _group(first: str) -> tuple[OnShares, Any]:
    cases = [_CASES[name] for name in _GROUPS[first]]

    def plain(x: torch.Tensor, y: torch.Tensor) -> list[Any]:
        return [case(x, y) for case in cases]

    function = plain if _GROUPS[first] is _PLAIN else _with_gradients(cases)
    return lowered(function, {"x": _X, "y": _Y}), function(_X, _Y)


# --- forms that no function above comes to ------------------------------------------------------------------

_VOLUME: Final = torch.randn(1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(3))
_SQUARE: Final = torch.eye(3) * 3 + _X[:3, :3] / 8
_LABELS: Final = torch.tensor([1, 0, 3, 5])
_GRADIENT: Final = torch.linspace(-1, 1, 16).view(1, 2, 2, 2, 2)
_SECRETS: Final = {
    "x": _X,
    "y": _Y,
    "volume": _VOLUME,
    "square": _SQUARE,
    "labels": _LABELS,
    "bit": _X > _Y,
    "gradient": _GRADIENT,
}
_BEST: Final = torch.nn.functional.adaptive_max_pool3d(_VOLUME, 2, return_indices=True)[1]
_AT: Final = torch.tensor([2, 0])

_DIRECT: Final[list[tuple[str, list[Any]]]] = [
    ("_adaptive_avg_pool3d_backward.default", [_GRADIENT, _VOLUME]),
    ("adaptive_max_pool3d.default", [_VOLUME, [2, 2, 2]]),
    ("adaptive_max_pool3d_backward.default", [_GRADIENT, _VOLUME, _BEST]),
    ("conv3d.default", [_VOLUME, torch.ones(1, 2, 2, 2, 2)]),
    ("max_pool1d_with_indices.default", [_X, [2]]),
    *((f"{name}.default", [_X]) for name in ("adjoint", "alias", "detach", "lift_fresh_copy", "ravel", "fliplr")),
    *((f"{name}.default", [_X]) for name in ("flipud", "ceil", "floor", "diag", "triu", "trace", "mT", "squeeze")),
    *((f"{name}.default", [_X, _Y]) for name in ("fmax", "fmin", "reshape_as", "view_as", "type_as")),
    *((f"{name}.other", [_X, _Y]) for name in ("max", "min")),
    *((f"{name}.default", [[_X, _Y]]) for name in ("concat", "concatenate", "hstack", "vstack")),
    ("amin.default", [_X, [1]]),
    ("argsort.stable", [_X]),
    ("min.dim", [_X, 1]),
    *((f"bitwise_{name}.Scalar", [_X > _Y, True]) for name in ("and", "or", "xor")),
    ("broadcast_to.default", [_X, [2, 4, 6]]),
    ("clamp_max.default", [_X, 0.5]),
    ("clamp_max.Tensor", [_X, _Y]),
    ("diag_embed.default", [_X]),
    ("diagonal_backward.default", [_LABELS, [4, 4], 0, 0, 1]),
    ("diagonal_scatter.default", [_X, _Y[0, :4]]),
    ("hsplit.int", [_X, 2]),
    ("vsplit.int", [_X, 2]),
    ("index_copy.default", [_X, 0, _AT, _Y[:2]]),
    ("inverse.default", [_SQUARE]),
    ("linalg_inv.default", [_SQUARE]),
    ("linalg_inv_ex.default", [_SQUARE]),
    ("linalg_solve_ex.default", [_SQUARE, torch.eye(3)]),
    ("linear.default", [_X, _Y]),
    ("movedim.int", [_X, 0, 1]),
    ("movedim.intlist", [_X, [0], [1]]),
    ("narrow.default", [_X, 1, 2, 3]),
    ("nll_loss_forward.default", [_X, _LABELS, None, 1, -100]),
    ("nll_loss_nd.default", [_X, _LABELS]),
    ("rot90.default", [_X]),
    ("rsub.Tensor", [_X, _Y]),
    ("select_scatter.default", [_X, _Y[0], 0, 1]),
    ("slice_scatter.default", [_X, _Y[:2], 0, 1, 3]),
    ("split_with_sizes.default", [_X, [2, 4], 1]),
    ("squeeze.dims", [_X, [0]]),
    ("swapaxes.default", [_X, 0, 1]),
    ("swapdims.default", [_X, 0, 1]),
    ("take_along_dim.default", [_X, _LABELS.view(4, 1), 1]),
    ("tensor_split.indices", [_X, [1, 3]]),
    ("tensor_split.sections", [_X, 2]),
    ("tile.default", [_X, [2, 1]]),
    ("type_as.default", [_X, torch.zeros(1, dtype=torch.float64)]),
    ("unflatten.int", [_X, 1, [2, 3]]),
    ("unfold.default", [_X, 1, 3, 2]),
    ("unsafe_chunk.default", [_X, 2]),
    ("unsafe_split.Tensor", [_X, 2]),
    ("var.default", [_X]),
    ("var.dim", [_X, [1]]),
    ("contiguous.default", [_X]),
    ("expand_as.default", [_X, _X]),
    ("flatten.using_ints", [_X]),
    ("numpy_T.default", [_X]),
    ("argsort.default", [_X]),
    ("where.ScalarOther", [_X > _Y, _X, 3.0]),
    ("where.Scalar", [_X > _Y, 2.0, 3.0]),
]


@cache
def _direct() -> tuple[OnShares, Any]:
    """One program of a node for each: who is in the table has its own form, and is not taken apart."""
    secrets = list(_SECRETS.items())
    constants: list[Any] = []

    def said(value: Any) -> Any:
        if isinstance(value, list):
            return [said(each) for each in value]
        if not isinstance(value, torch.Tensor):
            return value
        for at, (_, each) in enumerate(secrets):
            if each.shape == value.shape and torch.equal(each, value):
                return {"node": at}
        constants.append(inline_tensor(value)["tensor"])
        return {"constant": len(constants) - 1}

    nodes, outputs, want = [], [], []
    for name, args in _DIRECT:
        named = {"stable": True} if name == "argsort.stable" else {}
        made = lookup(f"aten.{name}").overload(*args, **named)
        nodes.append(Node(f"aten.{name}", [said(each) for each in args], named))
        number = len(secrets) + len(nodes) - 1
        parts = [made] if isinstance(made, torch.Tensor) else list(made)
        outputs += [{"node": number} if made is parts[0] else {"node": number, "item": at} for at in range(len(parts))]
        want += parts
    inputs = tuple(Input(name, NAME_OF[each.dtype], tuple(each.shape)) for name, each in secrets)
    program = Program(inputs, tuple(nodes), outputs, tuple(constants))
    return OnShares(lower(program, [each for _, each in secrets], [True] * len(secrets)), dict(secrets)), want


@pytest.mark.parametrize(
    ("first", "team"),
    [(first, team) for first in _GROUPS for team in _TEAMS if FULL or team != "5" or first in _BY_FIVE],
)
def test_operations_and_gradients_are_as_in_the_clear(first: str, team: str) -> None:
    made, want = _group(first)
    count, has_dealer = _TEAMS[team]
    check(made.result(count, has_dealer=has_dealer), want)


@pytest.mark.parametrize("team", _TEAMS)
def test_forms_that_functions_do_not_come_to(team: str) -> None:
    made, want = _direct()
    count, has_dealer = _TEAMS[team]
    check(made.result(count, has_dealer=has_dealer), want)


def test_every_secure_form_is_tried_here() -> None:
    tried = {node.operation for node in _direct()[0].lowered.program.nodes}
    for first in _GROUPS:
        tried |= {node.operation for node in _group(first)[0].lowered.program.nodes}
    assert not set(SECURE) - tried - set(RULES)  # these may be said in others
