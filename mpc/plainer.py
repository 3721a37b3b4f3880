"""Operations said in plainer ones, where torch's own decompositions are wrong, overflow, or are none.

Each is a function of torch operations, which are lowered one by one. As rules have it (rewrites.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch.nn import functional

from mpc.kinds import RULES
from mpc.rewrites import Arguments, Lowering, Rule, overload, rule
from protocol.errors import OperationNotAllowed

__all__ = ["RULES"]

_aten = torch.ops.aten


def _said(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the operations are this function of their arguments, which it takes by name."""

    def note(function: Callable[..., Any]) -> Callable[..., Any]:
        rule(*names)(lambda lowering, arguments: lowering.written(lambda: function(**arguments)))
        return function

    return note


# --- tensors of no dimension --------------------------------------------------------------------------------


def _as_a_row(name: str) -> Rule:
    """A number is reduced, picked from or put into as a row of one element is."""
    operation = overload(f"aten.{name}")

    def said(lowering: Lowering, arguments: Arguments) -> Any:
        tensors = {key: each for key, each in arguments.items() if isinstance(each, torch.Tensor)}
        if all(each.dim() for each in tensors.values()):
            return None
        shape = operation(**arguments).shape
        rows = {key: lowering.apply(_aten.reshape.default, each, [-1]) for key, each in tensors.items()}
        made = lowering.written(lambda: operation(**{**arguments, **rows}))
        return lowering.apply(_aten.reshape.default, made, list(shape))

    return said


for _name in (
    *("prod.dim_int", "cumprod.default", "logsumexp.default", "index_select.default", "gather.default"),
    *("scatter.src", "scatter.value", "scatter_add.default"),
):
    rule(_name)(_as_a_row(_name))


@_said("take_along_dim.default")
def _take_along_dim(self: torch.Tensor, indices: torch.Tensor, dim: int | None) -> torch.Tensor:
    if dim is None:
        return self.flatten().gather(0, indices.flatten())
    dim = dim % self.dim()
    shapes = [(*each.shape[:dim], 1, *each.shape[dim + 1 :]) for each in (self, indices)]
    shape = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    own, places = ((*shape[:dim], each.shape[dim], *shape[dim + 1 :]) for each in (self, indices))
    return self.expand(own).gather(dim, indices.expand(places))


# --- losses -------------------------------------------------------------------------------------------------

_MEAN: Final = 1  # torch's number of it; 2 is the sum


def _reduced(loss: torch.Tensor, reduction: int) -> torch.Tensor:
    return loss if not reduction else loss.mean() if reduction == _MEAN else loss.sum()


@_said("margin_ranking_loss.default")
def _margin_ranking_loss(
    input1: torch.Tensor, input2: torch.Tensor, target: torch.Tensor, margin: float, reduction: int
) -> torch.Tensor:
    return _reduced((margin - target * (input1 - input2)).clamp_min(0), reduction)


@_said("hinge_embedding_loss.default")
def _hinge_embedding_loss(self: torch.Tensor, target: torch.Tensor, margin: float, reduction: int) -> torch.Tensor:
    near = torch.where(target != -1, self, 0.0)
    return _reduced(near + torch.where(target != 1, (margin - self).clamp_min(0), 0.0), reduction)


_FAR: Final = 16  # e^-16 is nothing


@_said("softplus.default")
def _softplus(self: torch.Tensor, beta: float, threshold: float) -> torch.Tensor:
    """No power above 1 is taken. Where the threshold is a usual one it makes no difference."""
    x = self if beta == 1 else self * beta
    made = x.relu() + torch.exp(-x.abs()).log1p()
    made = made if beta == 1 else made / beta
    return made if threshold > _FAR else torch.where(x > threshold, self, made)


@_said("soft_margin_loss.default")
def _soft_margin_loss(self: torch.Tensor, target: torch.Tensor, reduction: int) -> torch.Tensor:
    """log(1 + e^z) as softplus has it: e^z overflows."""
    return _reduced(functional.softplus(-target * self), reduction).to(self.dtype)


@_said("soft_margin_loss_backward.default")
def _soft_margin_loss_backward(
    grad_output: torch.Tensor, self: torch.Tensor, target: torch.Tensor, reduction: int
) -> torch.Tensor:
    made = -target * torch.sigmoid(-target * self) * grad_output
    return made / self.numel() if reduction == _MEAN else made


# --- sums, means, norms -------------------------------------------------------------------------------------


@_said("std_mean.default", "std_mean.dim", "std_mean.correction")
def _std_mean(
    self: torch.Tensor,
    dim: Sequence[int] | None = None,
    unbiased: bool = True,
    correction: float | None = None,
    keepdim: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    correction = int(unbiased) if correction is None else correction
    var, mean = torch.var_mean(self, list(dim) if dim else None, correction=correction, keepdim=keepdim)
    return var.sqrt(), mean


@rule("native_layer_norm.default")
def _layer_norm(lowering: Lowering, arguments: Arguments) -> Any:
    weight, bias = arguments["weight"], arguments["bias"]
    if weight is None and bias is None:
        return None
    own = (arguments["input"], arguments["normalized_shape"], None, None, arguments["eps"])
    made, mean, scale = lowering.apply(_aten.native_layer_norm.default, *own)
    if weight is not None:
        made = lowering.apply(_aten.mul.Tensor, made, weight)
    if bias is not None:
        made = lowering.apply(_aten.add.Tensor, made, bias)
    return made, mean, scale


@rule("native_batch_norm.default", "_native_batch_norm_legit.default")
def _batch_norm(lowering: Lowering, arguments: Arguments) -> Any:
    """In training each channel is a row."""
    return lowering.written(lambda: _of_channels(**arguments)) if arguments["training"] else None


def _of_channels(
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    swapped = input.transpose(0, 1)
    rows = swapped.reshape(input.shape[1], -1)
    normal, mean, scale = torch.native_layer_norm(rows, [rows.shape[1]], None, None, eps)
    made, wide = normal.reshape(swapped.shape).transpose(0, 1), (-1, *(1,) * (input.dim() - 2))
    if weight is not None:
        made = made * weight.reshape(wide)
    if bias is not None:
        made = made + bias.reshape(wide)
    if running_mean is not None:
        running_mean.copy_(momentum * mean.flatten() + (1 - momentum) * running_mean)
    if running_var is not None:
        running_var.copy_(momentum * rows.var(1) + (1 - momentum) * running_var)
    return made.contiguous(), mean.flatten(), scale.flatten()


@_said("native_group_norm.default")
def _group_norm(
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    N: int,
    C: int,
    HxW: int,
    group: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    groups = input.reshape(N, group, C // group * HxW)
    rows, mean, scale = torch.native_layer_norm(groups, [groups.shape[2]], None, None, eps)
    made = rows.reshape(N, C, HxW)
    if weight is not None:
        made = made * weight.reshape(C, 1)
    if bias is not None:
        made = made + bias.reshape(C, 1)
    return made.reshape(input.shape), mean.reshape(N, group), scale.reshape(N, group)


@_said("addbmm.default")
def _addbmm(self: torch.Tensor, batch1: torch.Tensor, batch2: torch.Tensor, beta: float, alpha: float) -> torch.Tensor:
    return beta * self + alpha * torch.bmm(batch1, batch2).sum(0)


_NEAR: Final = 0.25


@_said("sinc.default")
def _sinc(self: torch.Tensor) -> torch.Tensor:
    """Near 0 a series: a sine that is right to so many digits, and not to so much of itself, is no dividend there."""
    self = self if self.is_floating_point() else self.to(torch.get_default_dtype())
    is_near = self.abs() < _NEAR
    u = (math.pi * self).square()
    series = 1 - u / 6 * (1 - u / 20 * (1 - u / 42))
    angle = math.pi * torch.where(is_near, 1.0, self)
    return torch.where(is_near, series, torch.sin(angle) / angle)


@_said("hypot.default")
def _hypot(self: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (self.square() + other.square()).sqrt()


@_said("_trilinear.default")
def _trilinear(
    i1: torch.Tensor,
    i2: torch.Tensor,
    i3: torch.Tensor,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    sumdim: Sequence[int],
    unroll_dim: int,
) -> torch.Tensor:
    for dims, at in ((expand1, 1), (expand2, 2), (expand3, 3)):
        for dim in dims:
            i1, i2, i3 = (each.unsqueeze(dim) if at == own else each for own, each in enumerate((i1, i2, i3), 1))
    return (i1 * i2 * i3).sum(list(sumdim)) if sumdim else i1 * i2 * i3


@_said("_adaptive_avg_pool3d.default")
def _adaptive_avg_pool3d(self: torch.Tensor, output_size: Sequence[int]) -> torch.Tensor:
    """One dimension after the other: a product with public weights, each of which is 1 in so many elements."""
    made = self
    for dim, out in zip((-3, -2, -1), output_size, strict=True):
        size = self.shape[dim]
        if size % out == 0:
            made = made.unflatten(dim, (out, size // out)).mean(dim)  # type: ignore[no-untyped-call]
            continue
        weights = torch.zeros(out, size, dtype=self.dtype)
        for at in range(out):
            start, stop = at * size // out, -(-(at + 1) * size // out)
            weights[at, start:stop] = 1 / (stop - start)
        made = (made.movedim(dim, -1) @ weights.T).movedim(-1, dim)
    return made


# --- places in memory ---------------------------------------------------------------------------------------


@rule("as_strided.default")
def _as_strided(lowering: Lowering, arguments: Arguments) -> Any:
    """By the places that it names; of what lies in memory in its order."""
    x: torch.Tensor = arguments["self"]
    if not x.is_contiguous():
        return None
    offset = arguments["storage_offset"]
    start = 0 if offset is None else offset - x.storage_offset()
    reach = start + sum((size - 1) * step for size, step in zip(arguments["size"], arguments["stride"], strict=True))
    if start < 0 or (math.prod(arguments["size"]) and reach >= x.numel()):
        return None
    places = torch.arange(x.numel()).as_strided(arguments["size"], arguments["stride"], start)
    flat = lowering.apply(_aten.reshape.default, x, [-1])
    return lowering.apply(_aten.index.Tensor, flat, [places])


# --- what has none ------------------------------------------------------------------------------------------


@rule("complex.default", "polar.default", "view_as_complex.default")
def _complex(lowering: Lowering, arguments: Arguments) -> Any:
    raise OperationNotAllowed(
        "complex numbers cannot be secrets: compute with their real and imaginary parts", operation="aten.complex"
    )


@rule(
    *("floor_divide.default", "floor_divide.Scalar", "div.Tensor_mode", "div.Scalar_mode"),
    *("remainder.Scalar", "remainder.Tensor", "fmod.Scalar", "fmod.Tensor"),
)
def _rounded_quotient(lowering: Lowering, arguments: Arguments) -> Any:
    """A quotient on shares is off by a little, and so by one where it is whole: what to do about that is the user's."""
    if arguments.get("rounding_mode", "floor") is None:
        return None
    raise OperationNotAllowed(
        "//, % and quotients that are rounded have no secure form, as they jump where a quotient is whole: of whole "
        "numbers below 32,768 by n write ((x.float() + 0.5) / n).floor(), and x - n * that for what is left; of reals "
        "(x / y).floor()",
        operation="aten.floor_divide",
    )
