"""What lowering knows better than torch's decompositions: operations that on shares are said in another way.

Each rule gets the lowering and the arguments by name, and gives the results, or None where it does not apply.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import torch

from mpc.moments import over_root
from protocol.errors import BadRequest

Arguments = Mapping[str, Any]

_aten = torch.ops.aten


class Lowering(Protocol):
    """What a rule may ask of the lowering."""

    def is_secret(self, value: Any) -> bool:
        """Whether there is a secret in it."""

    def made_by(self, tensor: torch.Tensor) -> tuple[str, Arguments] | None:
        """The operation that gave it, with its arguments."""

    def apply(self, overload: Any, *args: Any, **kwargs: Any) -> Any:
        """What an operation gives: here and now, or written down."""

    def written(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function of torch operations gives."""

    def remembered(self, tensor: torch.Tensor, purpose: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, once for each value and purpose."""

    def values_of(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Of what is public: its value in each iteration of a loop; one, where it is the same in all."""

    def differing(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """One public tensor that has these values in the iterations."""

    def carried_as(self, tensor: torch.Tensor, purpose: Any, make: Callable[[Any, Any], Any]) -> torch.Tensor | None:
        """What a loop carries, in the form that `make` gives it; None where it carries no such thing."""

    def finer(self, tensor: torch.Tensor, bits: int) -> None:
        """Has a secret that is given be given with so many more fractional bits; nothing of one that is made."""


Rule = Callable[[Lowering, Arguments], Any]
RULES: Final[dict[str, Rule]] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Decorator: the rule for these operations (their names without `aten.`). Where it does not apply, those do that
    were noted before it."""

    def note(rule: Rule) -> Rule:
        for name in names:
            before = RULES.get(f"aten.{name}")
            RULES[f"aten.{name}"] = rule if before is None else _first(rule, before)
        return rule

    return note


def overload(name: str) -> Any:
    """The overload of a name such as aten.add.Tensor."""
    _, base, which = name.split(".")
    return getattr(getattr(_aten, base), which)


def _first(one: Rule, other: Rule) -> Rule:
    def said(lowering: Lowering, arguments: Arguments) -> Any:
        made = one(lowering, arguments)
        return other(lowering, arguments) if made is None else made

    return said


# --- what secrets never are ---------------------------------------------------------------------------------


@rule("isnan.default", "isinf.default", "isposinf.default", "isneginf.default")
def _never(lowering: Lowering, arguments: Arguments) -> Any:
    """Secrets are finite."""
    return torch.zeros(arguments["self"].shape, dtype=torch.bool)


@rule("isfinite.default")
def _always(lowering: Lowering, arguments: Arguments) -> Any:
    return torch.ones(arguments["self"].shape, dtype=torch.bool)


@rule("eq.Scalar", "eq.Tensor")
def _of_infinity(lowering: Lowering, arguments: Arguments) -> Any:
    other = arguments["other"]
    return None if isinstance(other, torch.Tensor) or not math.isinf(other) else _never(lowering, arguments)


@rule("ne.Scalar", "ne.Tensor")
def _not_infinity(lowering: Lowering, arguments: Arguments) -> Any:
    other = arguments["other"]
    if other is arguments["self"]:  # how decompositions ask for NaN
        return _never(lowering, arguments)
    return None if isinstance(other, torch.Tensor) or not math.isinf(other) else _always(lowering, arguments)


@rule("where.self")
def _known_choice(lowering: Lowering, arguments: Arguments) -> Any:
    """By one truth value that all know."""
    condition, one, other = (arguments[key] for key in ("condition", "self", "other"))
    if lowering.is_secret(condition) or condition.numel() != 1 or condition.dim() > one.dim():
        return None
    if one.shape != other.shape or one.dtype != other.dtype:
        return None
    chosen = {bool(each) for each in lowering.values_of(condition)}
    if len(chosen) > 1:
        return None
    return one if chosen.pop() else other


# --- public factors -----------------------------------------------------------------------------------------

_SMALL: Final = 1 / 64


@rule("mul.Tensor")
def _public_factor(lowering: Lowering, arguments: Arguments) -> Any:
    """A factor of one element is a number, and a small tensor is one of usual size and a power of two: digits count,
    not their place. What is multiplied by an inverse is divided: the inverse alone would have few digits, or none."""
    x, y = arguments["self"], arguments["other"]
    for one, other in ((x, y), (y, x)):
        inverse = _inverted(lowering, other)
        if inverse is not None:
            return _over(lowering, one, *inverse)
    if not lowering.is_secret(x):
        x, y = y, x
    return _times(lowering, x, y)


def _over(lowering: Lowering, x: Any, top: float, y: torch.Tensor) -> Any:
    """x * top / y."""
    if top != 1:
        x = lowering.apply(_aten.mul.Scalar, x, top) if isinstance(x, torch.Tensor) else x * top
    return lowering.apply(_aten.div.Tensor, x, y)


def _inverted(lowering: Lowering, value: Any) -> tuple[float, torch.Tensor] | None:
    """What this is a public number's quotient by, and that number; None where it is not."""
    made = lowering.made_by(value) if isinstance(value, torch.Tensor) else None
    if made is None:
        return None
    x, y = made[1].get("self"), made[1].get("other")
    if made[0] == "aten.reciprocal.default":
        return 1, made[1]["self"]
    if made[0] in ("aten.mul.Tensor", "aten.mul.Scalar") and isinstance(y, int | float):
        inverse = _inverted(lowering, x)
        return None if inverse is None else (inverse[0] * y, inverse[1])
    return None


@rule("div.Tensor")
def _public_divisor(lowering: Lowering, arguments: Arguments) -> Any:
    x, y = arguments["self"], arguments["other"]
    if lowering.is_secret(y):
        return over_root(lowering, x, y)
    if not isinstance(y, torch.Tensor):
        if y == 0:
            raise BadRequest(_BY_ZERO)
        return None
    if any(not bool(each.all()) for each in lowering.values_of(y)):
        raise BadRequest(_BY_ZERO)
    dtype, inverse = _dtype(torch.div, x, y), 1 / y.double()
    made = _product(lowering, x, inverse)
    return _as(lowering, lowering.apply(_aten.mul.Tensor, x, inverse.to(dtype)) if made is None else made, dtype)


_BY_ZERO: Final = "a secret is divided by a public zero: what comes of it is no number, and has no share"


def _times(lowering: Lowering, x: torch.Tensor, y: Any) -> Any:
    made = _product(lowering, x, y)
    return None if made is None else _as(lowering, made, _dtype(torch.mul, x, y))


def _dtype(operation: Callable[..., torch.Tensor], *given: torch.Tensor) -> torch.dtype:
    """That torch gives what the operation gives."""
    return operation(*(torch.empty(each.shape, dtype=each.dtype, device="meta") for each in given)).dtype


def _as(lowering: Lowering, made: torch.Tensor, dtype: torch.dtype) -> Any:
    return made if made.dtype == dtype else lowering.apply(_aten.to.dtype, made, dtype)


def _product(lowering: Lowering, x: torch.Tensor, y: Any) -> Any:
    """By a number, or by a small tensor with its power of two apart; None where neither is any better."""
    if not isinstance(y, torch.Tensor) or lowering.is_secret(y) or not y.is_floating_point():
        return None
    values = [each.double() for each in lowering.values_of(y)]
    if not all(bool(each.isfinite().all()) for each in values):
        return None
    if y.dim() == 0 and len(values) == 1:
        return lowering.apply(_aten.mul.Scalar, x, float(values[0]))
    largest = max(float(each.abs().max()) for each in values) if y.numel() else 0.0
    if not 0 < largest < (_SMALL if y.dim() else math.inf):
        return None
    power = math.frexp(largest)[1]
    if not power:
        return None
    dtype = x.dtype if x.is_floating_point() else torch.float32
    scaled = lowering.differing([(each * 2.0**-power).to(dtype) for each in values])
    return lowering.apply(_aten.mul.Scalar, lowering.apply(_aten.mul.Tensor, x, scaled), 2.0**power)


@rule("reciprocal.default")
def _inverse_root(lowering: Lowering, arguments: Arguments) -> Any:
    return over_root(lowering, torch.ones(arguments["self"].shape), arguments["self"])


@rule("inverse.default", "linalg_inv.default")
def _inverse(lowering: Lowering, arguments: Arguments) -> Any:
    """The form that does not ask whether there is one: what is lowered has no values."""
    matrix = arguments.get("A", arguments.get("self"))
    return lowering.apply(_aten.linalg_inv_ex.default, matrix)[0]


# --- losses of labels ---------------------------------------------------------------------------------------


@rule("nll_loss_forward.default")
def _loss_of_labels(lowering: Lowering, arguments: Arguments) -> Any:
    """With secret labels all count: their number is public."""
    target = arguments["target"]
    if not lowering.is_secret(target):
        return None
    loss = lowering.apply(
        _aten.nll_loss.default, arguments["self"], target, arguments["weight"], arguments["reduction"]
    )
    return loss, torch.tensor(float(target.numel()))


@rule("nll_loss_backward.default")
def _gradient_of_labels(lowering: Lowering, arguments: Arguments) -> Any:
    """Of the log-probabilities only the shape counts; the gradient is -1 at the label, times a scale."""
    x, target = arguments["self"], arguments["target"]
    scale, total = arguments["grad_output"], arguments["total_weight"]
    if not lowering.is_secret((scale, target, total)):
        return _aten.nll_loss_backward.default(
            scale, torch.zeros_like(x), target, arguments["weight"], *(arguments[key] for key in _REST)
        )
    if arguments["weight"] is not None or x.dim() != 2 or not lowering.is_secret(target):
        return None
    scale = _scale(lowering, arguments)
    rows = lowering.apply(_aten.one_hot.default, target, x.shape[1])
    return lowering.apply(_aten.mul.Tensor, rows, lowering.apply(_aten.neg.default, scale))


_REST: Final = ("reduction", "ignore_index", "total_weight")


def _scale(lowering: Lowering, arguments: Arguments) -> Any:
    """What each row's loss has to do with the whole one."""
    scale = arguments["grad_output"]
    if arguments["reduction"] == 1:
        scale = lowering.apply(_aten.mul.Scalar, scale, 1 / arguments["target"].numel())
    return lowering.apply(_aten.unsqueeze.default, scale, 1) if scale.dim() == 1 else scale


@rule("_log_softmax_backward_data.default")
def _gradient_of_log_softmax(lowering: Lowering, arguments: Arguments) -> Any:
    """g - softmax(x) * sum(g): no power of the output is computed. Of labels: (softmax(x) - one-hot) * scale."""
    gradient, dim = arguments["grad_output"], arguments["dim"]
    origin = lowering.made_by(arguments["output"])
    if origin is None or "log_softmax" not in origin[0]:
        return None
    p = lowering.apply(_aten._softmax.default, origin[1]["self"], dim, False)
    labels = lowering.made_by(gradient)
    if labels is not None and labels[0] == "aten.nll_loss_backward.default" and dim in (1, -1):
        rows = lowering.apply(_aten.one_hot.default, labels[1]["target"], gradient.shape[1])
        gap = lowering.apply(_aten.sub.Tensor, p, rows)
        return lowering.apply(_aten.mul.Tensor, gap, _scale(lowering, labels[1]))
    total = lowering.apply(_aten.sum.dim_IntList, gradient, [dim], True)
    return lowering.apply(_aten.sub.Tensor, gradient, lowering.apply(_aten.mul.Tensor, p, total))
