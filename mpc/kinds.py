"""Dtypes as torch has them, truth values of numbers, and what several elements become that go to one place.

Each is a function of torch operations, which are lowered one by one. As rules have it (rewrites.py).
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch

from mpc.rewrites import RULES, Arguments, Lowering, Rule, overload, rule
from protocol.errors import OperationNotAllowed

__all__ = ["RULES"]

_aten = torch.ops.aten


# --- dtypes -------------------------------------------------------------------------------------------------


def _converted_first(name: str) -> Rule:
    """What is computed in another dtype is of that before: of reals no whole numbers are added up."""
    operation = overload(f"aten.{name}")

    def said(lowering: Lowering, arguments: Arguments) -> Any:
        value, dtype = arguments["self"], arguments["dtype"]
        if dtype is None or value.dtype == dtype:
            return None
        rest = {key: each for key, each in arguments.items() if key not in ("self", "dtype")}
        return lowering.apply(operation, lowering.apply(_aten.to.dtype, value, dtype), **rest)

    return said


for _name in (
    *("softmax.int", "log_softmax.int", "sum.default", "sum.dim_IntList", "cumsum.default", "mean.default"),
    *("mean.dim", "cumprod.default", "prod.default", "prod.dim_int"),
):
    rule(_name)(_converted_first(_name))

# --- truth values of numbers --------------------------------------------------------------------------------


def _truth(value: torch.Tensor) -> torch.Tensor:
    return value if value.dtype == torch.bool else value != 0


@rule("to.dtype", "_to_copy.default")
def _as_truth(lowering: Lowering, arguments: Arguments) -> Any:
    value = arguments["self"]
    if arguments.get("dtype") != torch.bool or value.dtype == torch.bool:
        return None
    return lowering.apply(_aten.ne.Scalar, value, 0)


@rule("add.Tensor", "add.Scalar")
def _sum_of_truths(lowering: Lowering, arguments: Arguments) -> Any:
    """True and True are True."""
    one, other = arguments["self"], arguments["other"]
    if torch.result_type(one, other) != torch.bool:
        return None
    return lowering.apply(_aten.logical_or.default, one, torch.as_tensor(other)) if arguments["alpha"] else one


def _truths_added(name: str) -> Rule:
    """True and True are True, wherever they meet."""
    operation = overload(f"aten.{name}")

    def said(lowering: Lowering, arguments: Arguments) -> Any:
        if arguments["self"].dtype != torch.bool or arguments.get("accumulate") is False:
            return None
        tensors = {key: each for key, each in arguments.items() if getattr(each, "dtype", None) == torch.bool}
        return lowering.written(
            lambda: operation(**{**arguments, **{key: each.long() for key, each in tensors.items()}}) != 0
        )

    return said


for _name in ("scatter_add.default", "index_add.default", "index_put.default"):
    rule(_name)(_truths_added(_name))


@rule("masked_fill.Scalar", "masked_fill.Tensor")
def _filled(lowering: Lowering, arguments: Arguments) -> Any:
    """The dtype is that of the tensor, whatever it is filled with."""
    x, mask, value = arguments["self"], arguments["mask"], arguments["value"]
    if isinstance(value, bool | int | float):
        value = torch.tensor(value).to(x.dtype)
    elif value.dtype != x.dtype:
        value = lowering.apply(_aten.to.dtype, value, x.dtype)
    return lowering.apply(_aten.where.self, mask, value, x)


def _of_bytes(name: str) -> Rule:
    """Whether all bytes, or any, are above zero is a byte, as torch has it."""
    operation = overload(f"aten.{name}")

    def said(lowering: Lowering, arguments: Arguments) -> Any:
        value = arguments["self"]
        if value.dtype != torch.uint8:
            return None
        made = lowering.written(lambda: operation(**{**arguments, "self": value != 0}))
        return lowering.apply(_aten.to.dtype, made, torch.uint8)

    return said


for _name in ("default", "dim", "dims"):
    rule(f"all.{_name}")(_of_bytes(f"all.{_name}"))
    rule(f"any.{_name}")(_of_bytes(f"any.{_name}"))


@rule("logical_not.default")
def _logical_not(lowering: Lowering, arguments: Arguments) -> Any:
    value = arguments["self"]
    return None if value.dtype == torch.bool else lowering.apply(_aten.eq.Scalar, value, 0)


def _of_truths(operation: Any) -> Rule:
    def said(lowering: Lowering, arguments: Arguments) -> Any:
        one, other = arguments["self"], arguments["other"]
        if one.dtype == other.dtype == torch.bool:
            return None
        return lowering.written(lambda: operation(_truth(one), _truth(other)))

    return said


for _name in ("and", "or", "xor"):
    rule(f"logical_{_name}.default")(_of_truths(getattr(_aten, f"logical_{_name}").default))


@rule("pow.Tensor_Tensor")
def _power_of_whole(lowering: Lowering, arguments: Arguments) -> Any:
    if torch.result_type(arguments["self"], arguments["exponent"]).is_floating_point:
        return None
    raise OperationNotAllowed(
        "a secret power of whole numbers has no secure form: compute with x.float()", operation="aten.pow.Tensor_Tensor"
    )


@rule("pow.Scalar")
def _power_of_known(lowering: Lowering, arguments: Arguments) -> Any:
    """A base above zero that all know, as a power of e."""
    base, exponent = arguments["self"], arguments["exponent"]
    dtype = torch.result_type(base, exponent)
    if not dtype.is_floating_point or base <= 0:
        raise OperationNotAllowed(
            f"{base:g} to a secret power has no secure form: a base above zero has, with reals as exponents: x.float()",
            operation="aten.pow.Scalar",
        )
    if base == 1:
        return torch.ones(exponent.shape, dtype=dtype)
    if base == 2:
        return lowering.apply(_aten.exp2.default, exponent)
    return lowering.apply(_aten.exp.default, lowering.apply(_aten.mul.Scalar, exponent, math.log(base)))


# --- places that all know -----------------------------------------------------------------------------------

_AT_ONCE: Final = 32_768  # elements up to which torch writes one after the other


@rule("index_put.default")
def _put_once(lowering: Lowering, arguments: Arguments) -> Any:
    """Of several elements that go to one place the last one stays. Where torch writes them side by side, parties might
    each keep another: only the last ones are written then."""
    x, values, indices = arguments["self"], arguments["values"], arguments["indices"]
    if arguments["accumulate"]:
        return None
    if lowering.is_secret(indices) or x.numel() < _AT_ONCE:
        return None
    if any(len(lowering.values_of(each)) > 1 for each in indices if each is not None):
        return None
    places = torch.arange(x.numel()).view(x.shape)[tuple(slice(None) if each is None else each for each in indices)]
    flat = places.flatten()
    if flat.numel() < _AT_ONCE:
        return None
    order = torch.arange(flat.numel())
    last = torch.full((x.numel(),), -1).scatter_reduce(0, flat, order, "amax")
    kept = (last[flat] == order).nonzero().squeeze(1)
    if kept.numel() == flat.numel():
        return None

    def written() -> torch.Tensor:
        chosen = values.expand(places.shape).reshape(-1)[kept]
        made: torch.Tensor = x.reshape(-1).index_put((flat[kept],), chosen).reshape(x.shape)
        return made

    return lowering.written(written)
