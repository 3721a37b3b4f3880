"""Checks of values that torch's CPU kernels leave out: indices that a gradient kernel trusts, and the one division that
kills the process. They read data, so they run at each call, and only where the data are.

Each takes the arguments by name and raises BadRequest or TooLarge.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch

from compute.checks import Call, Guard, require, too_large
from compute.numeric_guards import VALUES


def is_readable(values: Iterable[Any]) -> bool:
    """True where every tensor among the arguments holds its data here: no meta, fake or pointer tensors."""
    for value in values:
        if isinstance(value, torch.Tensor):
            if type(value) not in _PLAIN or value.device.type != "cpu":
                return False
        elif isinstance(value, list | tuple) and not is_readable(value):
            return False
    return not torch._C._len_torch_dispatch_stack()


_PLAIN: Final = frozenset({torch.Tensor, torch.nn.Parameter})


def _range(tensor: torch.Tensor) -> tuple[int, int]:
    require(not tensor.dtype.is_floating_point and not tensor.dtype.is_complex, "integers were wanted")
    low, high = torch.aminmax(tensor.detach())
    return int(low), int(high)


def _within(indices: torch.Tensor, end: int, name: str, low: int = 0) -> None:
    if indices.numel():
        least, most = _range(indices)
        require(low <= least and most < end, f"{name} must lie in {low}..{end - 1}")


def _is_within(indices: torch.Tensor, end: int) -> bool:
    if not indices.numel():
        return True
    least, most = _range(indices)
    return least >= 0 and most < end


# --- indices ----------------------------------------------------------------------------------------------


def _pooled(spatial: int) -> Guard:
    return lambda call: _within(call["indices"], math.prod(call["self"].shape[-spatial:]), "indices")


def _unpooled(call: Call) -> None:
    size = call["output_size"]
    _within(call["indices"], math.prod([size] if isinstance(size, int) else size), "indices")


def _embedded(call: Call) -> None:
    _within(call["indices"], call["num_weights"], "indices")


def _finite_grid(call: Call) -> None:
    require(bool(torch.isfinite(call["grid"].detach()).all()), "the grid holds a position that is no number")


def _classes(call: Call) -> None:
    scores, target = call["self"], call["target"]
    classes = scores.shape[0 if scores.dim() == 1 else 1]
    if _is_within(target, classes):  # none to be left out, as mostly
        return
    _within(target[target != call["ignore_index"]], classes, "target")


def _margin_classes(call: Call) -> None:
    scores = call["self"]
    _within(call["target"], scores.shape[-1] if scores.dim() else 1, "target")


def _label_lists(call: Call) -> None:
    scores = call["self"]
    _within(call["target"], scores.shape[-1] if scores.dim() else 1, "target", low=-1)


def _sorter(call: Call) -> None:
    if call["sorter"] is not None:
        _within(call["sorter"], call["sorted_sequence"].shape[-1] if call["sorted_sequence"].dim() else 1, "sorter")


def _pivots(call: Call) -> None:
    _within(call["pivots"], call["LU"].shape[-1] + 1, "pivots", low=1)


def _strided(call: Call) -> None:
    given = call["self"]
    start = given.storage_offset()
    offset = start if call["storage_offset"] is None else call["storage_offset"]
    sizes, strides = call["size"], call["stride"]
    sizes, strides = ([value] if isinstance(value, int) else value for value in (sizes, strides))
    require(len(sizes) == len(strides) and min([0, *sizes, *strides]) >= 0, "sizes and strides do not fit")
    last = start + sum((size - 1) * stride for size, stride in zip(given.shape, given.stride(), strict=True))
    want = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    # torch would go as far as the storage; the elements between are another tensor's.
    fits = 0 in sizes or (0 not in given.shape and start <= offset and want <= last)
    require(fits, "the view would reach beyond the tensor")


# --- integers ---------------------------------------------------------------------------------------------


def _division(call: Call) -> None:
    if call.get("rounding_mode", "trunc") is None:
        return
    divided, by = call["self"], call["other"]
    kind = _computed_as(divided, by)
    if kind in _WRAPPING and _holds(by, -1, kind):
        fits = not _holds(divided, torch.iinfo(kind).min, kind)
        require(fits, "the lowest integer divided by -1 has no result")


def _divisors(call: Call) -> None:
    kind = _computed_as(call["self"], call["other"])
    if kind in _WRAPPING:
        lowest = torch.iinfo(kind).min
        fits = not _holds(call["self"], lowest, kind) and not _holds(call["other"], lowest, kind)
        require(fits, "the lowest integer of its type has no greatest common divisor or least common multiple")


def _computed_as(one: Any, other: Any) -> torch.dtype:
    """The type in which the kernel computes: both operands are made that first, and integers wrap around."""
    one, other = (value - (1 << 64) if type(value) is int and value >= 1 << 63 else value for value in (one, other))
    return torch.result_type(one, other)


def _holds(value: Any, wanted: int, kind: torch.dtype) -> bool:
    if isinstance(value, torch.Tensor):
        return bool((value.detach().to(kind) == wanted).any())
    return (int(value) - wanted) % (1 << torch.iinfo(kind).bits) == 0


_WRAPPING: Final = frozenset({torch.int32, torch.int64})


# --- sizes that depend on data ----------------------------------------------------------------------------


def _repeats(call: Call) -> None:
    repeats, given, dim = call["repeats"], call.get("self"), call.get("dim")
    total = 0
    if repeats.numel():
        require(_range(repeats)[0] >= 0, "repeats must be from 0 up")
        # Adding up as int64 could wrap around.
        total = int(repeats.detach().to(torch.float64).sum())
    if call["output_size"] is not None:
        require(call["output_size"] == total, f"output_size must be the sum of repeats, {total}")
    if given is None:
        return too_large(total * 8)
    length = given.numel() if dim is None else given.shape[dim] if given.dim() else 1
    total *= length if repeats.numel() == 1 else 1
    too_large(total * (given.numel() // max(1, length)) * given.itemsize)


def _one_hot(call: Call) -> None:
    given = call["self"]
    if call["num_classes"] == -1 and given.numel():
        too_large((_range(given)[1] + 1) * given.numel() * 8)


def _bincount(call: Call) -> None:
    given = call["self"]
    if given.numel() and given.dtype in _WRAPPING:
        too_large((_range(given)[1] + 1) * 8)


VALUE_GUARDS: Final[Mapping[str, Guard]] = {
    f"aten.{name if '.' in name else name + '.default'}": guard
    for name, guard in {
        "max_pool2d_with_indices_backward": _pooled(2),
        "max_pool3d_with_indices_backward": _pooled(3),
        "adaptive_max_pool2d_backward": _pooled(2),
        "adaptive_max_pool3d_backward": _pooled(3),
        "max_unpool2d": _unpooled,
        "max_unpool3d": _unpooled,
        "grid_sampler_2d_backward": _finite_grid,
        "grid_sampler_3d_backward": _finite_grid,
        "embedding_dense_backward": _embedded,
        "embedding_backward": _embedded,
        "nll_loss_backward": _classes,
        "nll_loss2d_backward": _classes,
        "multi_margin_loss": _margin_classes,
        "multi_margin_loss_backward": _margin_classes,
        "multilabel_margin_loss": _label_lists,
        "multilabel_margin_loss_forward": _label_lists,
        "multilabel_margin_loss_backward": _label_lists,
        "searchsorted.Tensor": _sorter,
        "searchsorted.Scalar": _sorter,
        "linalg_lu_solve": _pivots,
        "as_strided": _strided,
        "as_strided_copy": _strided,
        "as_strided_scatter": _strided,
        **dict.fromkeys(
            (
                *("div.Tensor_mode", "div.Scalar_mode", "divide.Tensor_mode", "divide.Scalar_mode"),
                *("div_.Tensor_mode", "div_.Scalar_mode", "floor_divide", "floor_divide.Scalar"),
                *("floor_divide_.Tensor", "floor_divide_.Scalar", "remainder.Tensor", "remainder.Scalar"),
                *("remainder.Scalar_Tensor", "remainder_.Tensor", "remainder_.Scalar", "fmod.Tensor", "fmod.Scalar"),
                *("fmod_.Tensor", "fmod_.Scalar"),
            ),
            _division,
        ),
        **dict.fromkeys(("gcd", "gcd_", "lcm", "lcm_"), _divisors),
        "repeat_interleave.Tensor": _repeats,
        "repeat_interleave.self_Tensor": _repeats,
        "one_hot": _one_hot,
        "bincount": _bincount,
    }.items()
} | VALUES
"""The check of an operation's values, for those that need one."""
