"""What results look like where meta kernels say it otherwise than the processor's kernels do it.

Mostly that is how they lie in memory. Results are laid out as was said of them (compute/layout.py), so nothing computed
is wrong by it; but whether `reshape`, `flatten` and `contiguous` share memory or copy hangs on strides, and is to be as
in local torch. What is left of that is in docs/differences.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import torch

from compute.bounds import Result, normalised_strides

Results = tuple[Result | None, ...]
Call = Mapping[str, Any]
Rule = Callable[[Call, Results], Results]
"""Of a call and what meta kernels say of its results: what these are."""


def _by_columns(at: int) -> Rule:
    def rule(call: Call, results: Results) -> Results:
        return _with(results, at, lambda result: Result.columns(result.dtype, result.shape).stride)

    return rule


def _by_rows(call: Call, results: Results) -> Results:
    return _with(results, 0, lambda result: Result.contiguous(result.dtype, result.shape).stride)


def _cloned(call: Call, results: Results) -> Results:
    return _with(results, 0, lambda result: torch.empty_like(call["self"]).stride())


def _normalised(call: Call, results: Results) -> Results:
    return _with(results, 0, lambda result: normalised_strides(call["input"]))


def _untrained(call: Call, results: Results) -> Results:
    """It keeps no statistics of the batch, and meta kernels say that it does."""
    kept = [None if result is None else Result.contiguous(result.dtype, (0,)) for result in results[1:]]
    return (_normalised(call, results)[0], *kept)


def _scaled_by_power(call: Call, results: Results) -> Results:
    """Whole numbers times a power of two that is one number of half precision: meta kernels say float32."""
    given, other, result = call["self"], call["other"], results[0]
    is_half = not other.dim() and other.dtype in (torch.bfloat16, torch.float16)
    if result is None or not is_half or given.is_floating_point() or given.is_complex():
        return results
    return (replace(result, dtype=other.dtype),)


def _with(results: Results, at: int, strides: Callable[[Result], tuple[int, ...]]) -> Results:
    """With other strides of that result, if it is there and has matrices in it."""
    found = results[at]
    if found is None or len(found.shape) < 2:
        return results
    return (*results[:at], replace(found, stride=strides(found)), *results[at + 1 :])


CORRECTIONS: Final[Mapping[str, Rule]] = {
    "aten.ldexp.Tensor": _scaled_by_power,
    "aten._linalg_svd.default": _by_columns(2),
    "aten.linalg_svd.default": _by_columns(2),
    "aten.linalg_eig.default": _by_columns(1),
    "aten.nonzero_static.default": _by_rows,
    "aten.index_fill.int_Scalar": _cloned,
    "aten.index_fill.int_Tensor": _cloned,
    "aten.batch_norm.default": _normalised,
    "aten.native_batch_norm.default": _normalised,
    "aten._native_batch_norm_legit.default": _normalised,
    "aten._native_batch_norm_legit.no_stats": _normalised,
    "aten._batch_norm_with_update.default": _normalised,
    "aten._native_batch_norm_legit_no_training.default": _untrained,
}
