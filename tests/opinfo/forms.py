"""The forms in which an operation is written. Each takes (input, args, kwargs) and gives (result, what it changed)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

Form = Callable[[Any, Any, Any], tuple[Any, Any]]


def forms_of(op: Any) -> dict[str, Form]:
    """The forms that torch says the operation has: torch.f(x), x.f(), x.f_(), x + y, x += y."""
    forms: dict[str, Form] = {"function": _calling(op.op)}
    if (method := op.method_variant) is not None:
        forms["method"] = _calling(method)
    if (operator := op.operator_variant) is not None:
        forms["operator"] = _calling(operator)
    if (inplace := op.inplace_variant) is not None:
        forms["in place"] = _changing(inplace)
    if (inplace_operator := op.inplace_operator_variant) is not None:
        forms["operator in place"] = _changing(inplace_operator)
    if _has_flag(op.op):
        forms["inplace=True"] = _changing(lambda x, *args, **kwargs: op.op(x, *args, **{**kwargs, "inplace": True}))
    return forms


def _calling(function: Callable[..., Any]) -> Form:
    return lambda x, args, kwargs: (function(x, *args, **kwargs), None)


def _changing(function: Callable[..., Any]) -> Form:
    def change(x: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if not isinstance(x, torch.Tensor):
            raise TypeError("only a tensor is changed in place")
        with torch.no_grad():
            changed = x.detach().clone()
            return function(changed, *args, **kwargs), changed

    return change


def _has_flag(function: Any) -> bool:
    try:
        return "inplace" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
