"""The sizes of results that meta tensors cannot tell: bounds where they depend on data, rules where a kernel has no
meta form, and recurrent layers, which would otherwise run step by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch._prims_common import suggest_memory_format

from compute.lazy import PLAIN
from protocol.errors import BadRequest

Call = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """One tensor that an operation will give.

    Attributes:
        offset: where it begins, in elements: from where that begins which it is a view of.
        of: the number of the tensor among the arguments whose memory it is a view of; None where its memory is its own.
        is_absolute: `offset` counts from the beginning of that memory.
        bits: whether it is conjugated or negated lazily (compute/lazy.py).
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0
    of: int | None = None
    is_absolute: bool = False
    bits: int = PLAIN

    @classmethod
    def contiguous(cls, dtype: torch.dtype, shape: tuple[int, ...]) -> Result:
        stride = [1]
        for size in reversed(shape[1:]):
            stride.insert(0, stride[0] * max(1, size))
        return cls(dtype, shape, tuple(stride[: len(shape)]))

    @classmethod
    def columns(cls, dtype: torch.dtype, shape: tuple[int, ...]) -> Result:
        """A batch of matrices as LAPACK leaves them: column after column."""
        rows, columns = shape[-2:]
        outer = cls.contiguous(dtype, (*shape[:-2], columns, rows)).stride
        return cls(dtype, shape, (*outer[:-2], 1, max(1, rows)))

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


def _like(name: str) -> Bound:
    return lambda call: (_same(call[name]),)


_like_self = _like("self")


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


def _spaced(call: Call) -> tuple[Result, ...] | None:
    """linspace and logspace between tensors of no dimensions, which on meta tensors have no values."""
    dtype = call["dtype"]
    if dtype is None:
        ends = (call["start"], call["end"])
        is_complex = any(end.is_complex() if isinstance(end, torch.Tensor) else type(end) is complex for end in ends)
        dtype = torch.complex64 if is_complex else torch.get_default_dtype()
    return (Result.contiguous(dtype, (max(0, call["steps"]),)),)


def _histogram(call: Call) -> tuple[Result, ...]:
    given, bins = call["self"], call["bins"]
    count = bins if isinstance(bins, int) else bins.numel() - 1
    return tuple(Result.contiguous(given.dtype, (length,)) for length in (count, count + 1))


def _histograms(call: Call) -> tuple[Result, ...]:
    counts = [bins if isinstance(bins, int) else bins.numel() - 1 for bins in call["bins"]]
    return (Result.contiguous(call["self"].dtype, tuple(counts)),)


def _histogram_edges(call: Call) -> tuple[Result, ...]:
    return tuple(Result.contiguous(call["self"].dtype, (bins + 1,)) for bins in call["bins"])


def _evaluated(call: Call) -> tuple[Result, ...] | None:
    """Batch normalisation that does not train keeps no statistics of the batch; meta kernels say that it does."""
    given = call["input"]
    if call["training"] and given.dtype not in _HALVES:
        return None
    kept = Result.contiguous(_kept(call), (given.shape[1] if call["training"] else 0,))
    return (Result(given.dtype, tuple(given.shape), normalised_strides(given)), kept, kept)


def normalised_strides(given: torch.Tensor) -> tuple[int, ...]:
    """Those of what batch normalisation gives; meta kernels give it those of the input, whatever they are."""
    meta = torch.empty_strided(given.shape, given.stride(), dtype=given.dtype, device="meta")
    return torch.empty_like(meta, memory_format=suggest_memory_format(meta)).stride()


_HALVES: Final = (torch.bfloat16, torch.float16)


def _kept(call: Call) -> torch.dtype:
    """The dtype of the statistics that a normalisation keeps; of half precision meta kernels say float32 always."""
    given: torch.dtype = call["input"].dtype
    scales = [call[name] for name in ("weight", "bias", "running_mean") if call.get(name) is not None]
    return torch.float32 if given in _HALVES and any(scale.dtype is torch.float32 for scale in scales) else given


def _normalised(call: Call) -> tuple[Result, ...] | None:
    """The same, with what a kernel keeps for itself: on the processor it is empty."""
    found = _evaluated({**call, "training": True})
    return None if found is None else (*found, Result.contiguous(torch.uint8, (0,)))


def _layer_norm(call: Call) -> tuple[Result, ...] | None:
    given, inner = call["input"], call["normalized_shape"]
    if given.dtype not in _HALVES:
        return None
    size = 1 if isinstance(inner, int) else len(inner)
    if size > given.dim():
        raise BadRequest("normalized_shape has more dimensions than the input")
    kept = Result.contiguous(_kept(call), (*given.shape[: given.dim() - size], *[1] * size))
    return (_same(given), kept, kept)


def _geqrf(call: Call) -> tuple[Result, ...]:
    given = call["self"]
    tau = Result.contiguous(given.dtype, (*given.shape[:-2], min(given.shape[-2:])))
    return (Result.columns(given.dtype, tuple(given.shape)), tau)


def _least_squares(call: Call) -> tuple[Result, ...]:
    given, right, driver = call["self"], call["b"], call["driver"] or "gelsy"
    rows, columns = given.shape[-2:]
    is_vector = right.dim() == 1 or (right.dim() == given.dim() - 1 and right.shape == given.shape[:-1])
    width = () if is_vector else (right.shape[-1],)
    outer = _broadcast_shapes(given.shape[:-2], right.shape[: right.dim() - 1 - len(width)])
    if rows > columns and driver in ("gelsd", "gelss"):
        raise BadRequest(f"driver {driver!r} gives residuals or none, as the data are: take 'gels' or 'gelsy'")
    residuals = (*outer, *width) if rows > columns and driver == "gels" else (0,)
    real = given.real.dtype if given.is_complex() else given.dtype
    values = (*given.shape[:-2], min(rows, columns)) if driver in ("gelsd", "gelss") else (0,)
    ranks = (0,) if driver == "gels" else tuple(given.shape[:-2])
    return (
        Result.contiguous(given.dtype, (*outer, columns, *width)),  # torch's has gaps, for the residuals
        Result.contiguous(real, residuals),
        Result.contiguous(torch.int64, ranks),
        Result.contiguous(real, values),
    )


def _broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


def _label_margin(call: Call) -> tuple[Result, ...] | None:
    """Of one sample there is one loss, with no dimensions; meta kernels say that there is a list of one."""
    given, target = call["self"], call["target"]
    if target.dim() > 1:
        return None
    return (Result.contiguous(given.dtype, ()), Result.contiguous(given.dtype, tuple(target.shape)))


def _one_label_margin(call: Call) -> tuple[Result, ...] | None:
    found = _label_margin(call)
    return None if found is None else found[:1]


def _aligned(call: Call) -> tuple[Result, ...]:
    """The second result is for the gradient alone. How many states it has depends on the lengths: at most so many."""
    scores, targets = call["log_probs"], call["targets"]
    steps, batch, _ = scores.shape
    states = 2 * targets.shape[-1] + 1
    return tuple(Result.contiguous(scores.dtype, shape) for shape in ((batch,), (batch, steps, states)))


BOUNDS: Final[Mapping[str, Bound]] = {
    **{
        f"aten.{kind}.{form}": _spaced
        for kind in ("linspace", "logspace")
        for form in ("Tensor_Tensor", "Tensor_Scalar", "Scalar_Tensor")
    },
    "aten.histogram.bin_ct": _histogram,
    "aten.histogram.bins_tensor": _histogram,
    "aten._histogramdd_from_bin_cts.default": _histograms,
    "aten._histogramdd_from_bin_tensors.default": _histograms,
    "aten._histogramdd_bin_edges.default": _histogram_edges,
    "aten.native_layer_norm.default": _layer_norm,
    "aten.native_batch_norm.default": _evaluated,
    "aten._native_batch_norm_legit.default": _evaluated,
    "aten._batch_norm_with_update.default": _normalised,
    "aten.geqrf.default": _geqrf,
    "aten.linalg_lstsq.default": _least_squares,
    "aten._ctc_loss.default": _aligned,
    "aten._ctc_loss.Tensor": _aligned,
    "aten._ctc_loss_backward.default": _like("log_probs"),
    "aten._ctc_loss_backward.Tensor": _like("log_probs"),
    "aten._standard_gamma_grad.default": _like_self,
    "aten._sample_dirichlet.default": _like_self,
    "aten._dirichlet_grad.default": _like("x"),
    "aten.binomial.default": _like("count"),
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
    "aten.multilabel_margin_loss_forward.default": _label_margin,
    "aten.multilabel_margin_loss.default": _one_label_margin,
    "aten.fractional_max_pool3d_backward.default": _like_self,
    "aten.lstm.input": _lstm,
    "aten.gru.input": _recurrent,
    "aten.rnn_tanh.input": _recurrent,
    "aten.rnn_relu.input": _recurrent,
}
