"""The sizes of results that meta tensors cannot tell: bounds where they depend on data, rules where a kernel has no
meta form, and recurrent layers, which would otherwise run step by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from protocol.errors import BadRequest

Call = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """One tensor that an operation will give."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def contiguous(cls, dtype: torch.dtype, shape: tuple[int, ...]) -> Result:
        stride = [1]
        for size in reversed(shape[1:]):
            stride.insert(0, stride[0] * max(1, size))
        return cls(dtype, shape, tuple(stride[: len(shape)]))

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


# The most bytes that the results can take; or the exact results; or None: meta tensors can tell after all.
Bound = Callable[[Call], "int | tuple[Result, ...] | None"]

_INDEX: Final = 8  # bytes of an int64 index


def _positions(call: Call) -> int:
    given = call.get("self", call.get("condition"))
    assert isinstance(given, torch.Tensor)
    return given.numel() * max(1, given.dim()) * _INDEX


def _masked_select(call: Call) -> int:
    return math.prod(_broadcast(call["self"], call["mask"])) * int(call["self"].itemsize)


def _unique(call: Call) -> int:
    given = call["self"]
    return int(given.numel() * (given.itemsize + 2 * _INDEX))


def _bincount(call: Call) -> int:
    return int(max(0, call["minlength"]) * _INDEX)  # the values decide the rest: compute/value_guards.py


def _masked_index(call: Call) -> int | None:
    given, chosen, others, rest, at = call["self"], None, [], 1, 0
    for index in call["indices"]:
        if index is None:
            rest *= _size(given, at)
            at += 1
        elif index.dtype in (torch.bool, torch.uint8):
            chosen = index.numel() if chosen is None else min(chosen, index.numel())
            at += index.dim()
        else:
            others.append(index)
            at += 1
    if chosen is None:
        return None
    shape = _broadcast(*others) if others else (1,)
    # A mask becomes a list of positions, which broadcasts with the other indices along their last dimension.
    count = math.prod(shape[:-1]) * max(shape[-1] if shape else 1, chosen)
    return int(count * rest * math.prod(given.shape[at:]) * given.itemsize)


def _size(given: torch.Tensor, dim: int) -> int:
    return given.shape[dim] if dim < given.dim() else 1


def _broadcast(*tensors: torch.Tensor) -> tuple[int, ...]:
    try:
        return tuple(torch.broadcast_shapes(*(tensor.shape for tensor in tensors)))  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise BadRequest(str(error)) from None


def _repeated(call: Call) -> int | None:
    return None if call["output_size"] is not None else 0  # the values decide: compute/value_guards.py


def _one_hot(call: Call) -> int:
    return int(call["self"].numel() * max(0, call["num_classes"]) * _INDEX)


def _like_self(call: Call) -> tuple[Result, ...]:
    return (Result.contiguous(call["self"].dtype, tuple(call["self"].shape)),)


def _lstm(call: Call) -> int | tuple[Result, ...] | None:
    return (_layers(call, call["hx"][0]), *(_same(state) for state in call["hx"][:2]))


def _recurrent(call: Call) -> int | tuple[Result, ...] | None:
    return (_layers(call, call["hx"]), _same(call["hx"]))


def _layers(call: Call, hidden: torch.Tensor) -> Result:
    given = call["input"]
    width = hidden.shape[-1] * (1 + call["bidirectional"])
    return Result.contiguous(given.dtype, (*given.shape[:-1], width))


def _same(tensor: torch.Tensor) -> Result:
    return Result.contiguous(tensor.dtype, tuple(tensor.shape))


BOUNDS: Final[Mapping[str, Bound]] = {
    "aten.nonzero.default": _positions,
    "aten.argwhere.default": _positions,
    "aten.where.default": _positions,
    "aten.masked_select.default": _masked_select,
    "aten._unique2.default": _unique,
    "aten.unique_consecutive.default": _unique,
    "aten.unique_dim.default": _unique,
    "aten.bincount.default": _bincount,
    "aten.index.Tensor": _masked_index,
    "aten._unsafe_index.Tensor": _masked_index,
    "aten.repeat_interleave.Tensor": _repeated,
    "aten.repeat_interleave.self_Tensor": _repeated,
    "aten.one_hot.default": _one_hot,
    "aten.multi_margin_loss_backward.default": _like_self,
    "aten.multilabel_margin_loss_backward.default": _like_self,
    "aten.lstm.input": _lstm,
    "aten.gru.input": _recurrent,
    "aten.rnn_tanh.input": _recurrent,
    "aten.rnn_relu.input": _recurrent,
}
