"""Arithmetic on plain numbers inside a program: sizes, mostly. Torch-free."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from protocol.errors import BadRequest, OperationFailed

COMPUTES: Final[Mapping[str, Callable[..., Any]]] = {
    "int.add": operator.add,
    "int.sub": operator.sub,
    "int.mul": operator.mul,
    "int.floordiv": operator.floordiv,
    "int.mod": operator.mod,
    "int.neg": operator.neg,
    "int.min": min,
    "int.max": max,
    "int.from_float": int,
    "float.div": operator.truediv,
    "float.sqrt": math.sqrt,
    "float.from_int": float,
}
_INT64: Final = 1 << 63


def compute(operation: str, args: Sequence[Any]) -> Any:
    """One operation of compute.operations.NUMBERS.

    Raises:
        BadRequest: an argument that is no number.
        OperationFailed: division by zero, the root of what is negative, a result beyond 64 bits.
    """
    if not all(type(value) in (int, float) for value in args):
        raise BadRequest(f"{operation} takes numbers", operation=operation)
    try:
        result = COMPUTES[operation](*args)
    except (ArithmeticError, ValueError) as error:
        raise OperationFailed(str(error), operation=operation, type=type(error).__name__) from None
    if isinstance(result, int) and not -_INT64 <= result < _INT64:
        raise OperationFailed("a number beyond 64 bits", operation=operation, type="OverflowError")
    return result
