"""How results lie in memory: as it was said before the operation ran.

Who asks for an operation knows its result by what meta tensors tell (compute/estimate.py), and asks for views of it by
these strides. Some kernels leave it another way round (LAPACK by columns, oneDNN by blocks, another device as it
likes): then it is laid out again, or `as_strided` would show other elements than it does where everything is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from compute.bounds import Result
from protocol.errors import OperationFailed


def laid_out(value: Any, results: Sequence[Result | None]) -> Any:
    """The value of an operation, its tensors with the strides that the results have."""
    if type(value) is torch.Tensor:
        result = results[0]
        if result is None or value.stride() == result.stride:
            return value
        return _again(value, result)
    if isinstance(value, list | tuple) and len(value) == len(results):
        return type(value)([laid_out(item, (result,)) for item, result in zip(value, results, strict=True)])
    return value


def check_dtypes(operation: str, value: Any, results: Sequence[Result | None]) -> None:
    """OperationFailed where a tensor that an operation gave is of another dtype than was said of it: who asked for it
    goes on by what was said. Of devices it is not: what a kernel there keeps for itself may be of another dtype."""
    values = value if isinstance(value, list | tuple) else (value,)
    for tensor, result in zip(values, results, strict=False):
        if result is None or not isinstance(tensor, torch.Tensor) or tensor.dtype is result.dtype or not tensor.is_cpu:
            continue
        gave, said = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, result.dtype))
        raise OperationFailed(
            f"it gave {gave}, and of such arguments {said} was expected, which who asked goes by: convert them to one "
            f"dtype first, x.to(torch.{gave})",
            operation=operation,
            type="TypeError",
        )


def _again(value: torch.Tensor, result: Result) -> torch.Tensor:
    if result.of is not None or value.shape != result.shape or not _is_other(value, result):
        return value  # a view shares the memory that it is a view of
    made = torch.empty_strided(result.shape, result.stride, dtype=value.dtype, device=value.device)
    return made.copy_(value)


def _is_other(value: torch.Tensor, result: Result) -> bool:
    """Whether the strides differ that matter: of dimensions with more than one element."""
    if not value.numel():
        return False
    strides = zip(value.shape, value.stride(), result.stride, strict=True)
    return any(one != other for size, one, other in strides if size > 1)
