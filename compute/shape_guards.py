"""Checks of shapes that torch's CPU kernels leave out: without them, these calls read or write foreign memory, kill the
process, or never end. Most were found by running the table against guard pages with hostile arguments.

They look at metadata alone, so they run once for each signature (compute/estimate.py). Each takes the arguments by name
and raises BadRequest or TooLarge. Checks that must read data are in compute/value_guards.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch.utils._python_dispatch import _disable_current_modes

from compute import layer_guards as layers
from compute.checks import Call, Guard, dense, require, same_shapes, too_large, too_many
from compute.dtypes import DTYPE_OF, NAME_OF
from compute.numeric_guards import SHAPES
from protocol import limits
from protocol.errors import BadRequest


def _as_forward(gradient: str, forward: Callable[[Call], Any], *others: str) -> Guard:
    """The gradient that came in, and `others`, must have the shape that the forward operation gives."""

    def guard(call: Call) -> None:
        try:
            with _disable_current_modes():
                result = forward({name: _meta(value) for name, value in call.items()})
        except Exception as error:
            raise BadRequest(f"no forward operation has these arguments: {str(error)[:200]}") from None
        for name in (gradient, *others):
            shape = list(call[name].shape)
            require(shape == list(result.shape), f"{name} must have the shape {list(result.shape)}, not {shape}")

    return guard


def _meta(value: Any) -> Any:
    return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, torch.Tensor) else value


def _zeros(shape: Sequence[int]) -> torch.Tensor:
    return torch.empty(shape, device="meta")


# --- pooling, padding, sampling ---------------------------------------------------------------------------


def _adaptive_backward(spatial: int, has_indices: bool = False) -> Guard:
    def guard(call: Call) -> None:
        given, gradient = call["self"], call["grad_output"]
        require(given.dim() in (spatial + 1, spatial + 2), f"self must have {spatial + 1} or {spatial + 2} dimensions")
        require(
            given.shape[:-spatial] == gradient.shape[:-spatial] and given.dim() == gradient.dim(),
            "grad_output must have the batch and channels of self",
        )
        require(0 not in given.shape[-spatial:] + gradient.shape[-spatial:], "an empty image has no gradient")
        if has_indices:
            same_shapes(call, "grad_output", "indices")
            dense(call, "indices")

    return guard


def _adaptive(call: Call) -> None:
    # An image of nothing costs a step for each of its rows and columns all the same.
    sizes = [call["output_size"]] if isinstance(call["output_size"], int) else call["output_size"]
    steps = math.prod(max(1, size) for size in sizes)
    require(0 not in sizes or steps <= limits.MAX_WINDOW, "an empty image with that many rows or columns")


def _max_pool(call: Call, spatial: int) -> torch.Tensor:
    _window(call)
    pool = (torch.ops.aten.max_pool2d_with_indices, torch.ops.aten.max_pool3d_with_indices)[spatial - 2]
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    result: torch.Tensor = pool(call["self"], *(call[name] for name in names))[0]
    return result


def _avg_pool(call: Call, spatial: int) -> torch.Tensor:
    _window(call)
    pool = (torch.ops.aten.avg_pool2d, torch.ops.aten.avg_pool3d)[spatial - 2]
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    result: torch.Tensor = pool(call["self"], *(call[name] for name in names))
    return result


def _grid(call: Call) -> torch.Tensor:
    given, grid = call["input"], call["grid"]
    require(grid.dim() == given.dim() and grid.shape[0] == given.shape[0], "input and grid must have one batch size")
    return _zeros([*given.shape[:2], *grid.shape[1:-1]])


def _sampled(call: Call) -> None:
    """The kernel for 16-bit numbers counts its pixels in them: it reads beside an image that they do not reach."""
    given = call["input"]
    if given.dtype.itemsize > 2 or given.dim() != 4:
        return
    sides, steps = given.shape[2:], given.stride()[2:]
    reach = max(math.prod(sides) - 1, sum((side - 1) * step for side, step in zip(sides, steps, strict=True)))
    require(
        max(sides) <= _SIDE and reach <= _REACH,
        f"images of {NAME_OF.get(given.dtype)} have sides of at most {_SIDE} here, and {_REACH + 1} pixels: "
        "use .float()",
    )


_SIDE: Final = 256  # bfloat16 tells all places up to it apart
_REACH: Final = (1 << 15) - 1


def _sampled_backward(call: Call) -> None:
    _as_forward("grad_output", _grid)(call)
    _sampled(call)


def _summed(call: Call) -> None:
    """With nothing to add up, the kernel for 16-bit numbers writes nothing."""
    is_short = call["batch1"].dtype.itemsize <= 2
    require(not is_short or bool(call["alpha"] or call["beta"]), "with alpha = 0 and beta = 0: write zeros instead")


def _upsample(call: Call) -> None:
    out = [call["output_size"]] if isinstance(call["output_size"], int) else call["output_size"]
    if "input_size" in call:
        size = [call["input_size"]] if isinstance(call["input_size"], int) else call["input_size"]
    else:
        size = list(call["self"].shape)
    scales = [value for name, value in call.items() if name.startswith("scales")]
    require(len(out) == len(scales) < len(size), "output_size must name each dimension of the image")
    for have, want, scale in zip(size[-len(out) :], out, scales, strict=True):
        # The kernel computes where to read from the scale, whatever the sizes say.
        fits = scale is None or (0 < scale < limits.MAX_INT and abs(have * scale - want) <= 1 + want * 1e-6)
        require(fits, f"a scale of {scale} does not lead from {have} to {want}")


def _padded(name: str) -> Guard:
    pad = getattr(torch.ops.aten, name)
    return _as_forward("grad_output", lambda call: pad(call["self"], call["padding"]))


# --- layouts ----------------------------------------------------------------------------------------------


def _median(call: Call) -> None:
    # Its search for the middle steps from element to element, and with steps of nothing never finds the end.
    given, dim = call["self"], call["dim"]
    repeats = -given.dim() <= dim < given.dim() and given.stride(dim) == 0 and given.shape[dim] > 1
    require(not repeats, "the median of one element repeated (expand) along a dimension: use .contiguous()")


def _same_bytes(call: Call) -> None:
    dtype = call["dtype"]
    require(dtype != torch.bool or call["self"].dtype == torch.bool, "bytes of other numbers are no truth values")
    require(dtype in NAME_OF, f"{dtype} is no dtype that tensors have here")


def _negated(call: Call) -> None:
    fits = call["self"].dtype not in _WITHOUT_NEGATIVES
    require(fits, f"{call['self'].dtype} has no negatives")


def _lowest_random(call: Call) -> None:
    # The next number after it is sought bit by bit; after the highest of all it is sought for ever.
    require(call["from"] < (1 << 63) - 1, "random numbers from the highest integer on")


_WITHOUT_NEGATIVES: Final = frozenset(
    dtype
    for name, dtype in DTYPE_OF.items()
    if dtype is torch.bool or name.startswith("float8") or name in ("uint16", "uint32", "uint64")
)

# --- lists of results, workspace --------------------------------------------------------------------------


def _parts(count: Callable[[Call, int], int]) -> Guard:
    def guard(call: Call) -> None:
        given, dim = call["self"], call.get("dim", 0)
        if given.dim() and -given.dim() <= dim < given.dim():
            too_many(count(call, given.shape[dim]))

    return guard


def _sections(call: Call) -> None:
    too_many(call["sections"])


def _few(name: str, most: int) -> Guard:
    return lambda call: require(len(call[name]) <= most, f"{name}: at most {most}")


def _window(call: Call) -> None:
    for name in ("kernel_size", "stride", "padding", "dilation", "output_padding"):
        sizes = call.get(name)
        sizes = [sizes] if isinstance(sizes, int) else sizes
        fits = not isinstance(sizes, list) or all(abs(size) <= limits.MAX_WINDOW for size in sizes)
        require(fits, f"{name} goes up to {limits.MAX_WINDOW}")


def _convolution(call: Call) -> None:
    _window(call)
    _columns(call)


def _columns(call: Call) -> None:
    # Only float types have kernels without the matrix of all patches, (batch, channels * kernel, positions).
    weight, given = call["weight"], call["input"]
    if weight.dtype in (torch.float32, torch.bfloat16, torch.float16) or weight.dim() < 3 or given.dim() < 2:
        return
    padding, stride = call["padding"], call["stride"]
    positions = 1
    for at, size in enumerate(given.shape[2 - weight.dim() :]):
        positions *= max(1, (size + 2 * _at(padding, at, 0)) // max(1, _at(stride, at, 1)))
    too_large(math.prod(given.shape[: 2 - weight.dim()]) * math.prod(weight.shape[2:]) * positions * weight.itemsize)


def _at(sizes: Any, position: int, missing: int) -> int:
    if isinstance(sizes, str):
        return missing
    sizes = [sizes] if isinstance(sizes, int) else sizes
    return int(sizes[min(position, len(sizes) - 1)]) if sizes else missing


_POOLS: Final = (
    *(f"max_pool{n}d" for n in (1, 2, 3)),
    *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)),
    *(f"avg_pool{n}d" for n in (1, 2, 3)),
    *("im2col", "col2im"),
)
_PADS: Final = tuple(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3))
_UPSAMPLES: Final = tuple(
    f"{name}d"
    for name in (
        *("upsample_nearest1", "upsample_nearest2", "upsample_nearest3", "upsample_linear1"),
        *("upsample_bilinear2", "upsample_bicubic2", "upsample_trilinear3"),
        *("_upsample_nearest_exact1", "_upsample_nearest_exact2", "_upsample_nearest_exact3"),
    )
)
_SMOOTHED: Final = ("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
_CONVOLUTIONS: Final = (
    *("convolution", "convolution_backward", "conv1d", "conv1d.padding", "conv2d", "conv2d.padding", "conv3d"),
    *("conv3d.padding", "conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input"),
)
_SPLIT: Final = _parts(lambda call, size: -(-size // max(1, call["split_size"])))
_CHUNK: Final = _parts(lambda call, size: min(call["chunks"], size) if size else call["chunks"])  # nothing, often
_UNBIND: Final = _parts(lambda call, size: size)

SHAPE_GUARDS: Final[Mapping[str, Guard]] = {
    f"aten.{name if '.' in name else name + '.default'}": guard
    for name, guard in {
        "batch_norm": layers.batch_norm,
        "native_batch_norm": layers.batch_norm,
        "_native_batch_norm_legit": layers.batch_norm,
        "_native_batch_norm_legit.no_stats": layers.batch_norm,
        "_native_batch_norm_legit_no_training": layers.batch_norm,
        "_batch_norm_with_update": layers.batch_norm,
        "native_batch_norm_backward": layers.batch_norm_backward,
        "batch_norm_backward": layers.batch_norm_backward,
        "native_layer_norm_backward": layers.layer_norm_backward,
        "native_group_norm": layers.group_norm,
        "native_group_norm_backward": layers.group_norm,
        "_adaptive_avg_pool2d_backward": _adaptive_backward(2),
        "_adaptive_avg_pool3d_backward": _adaptive_backward(3),
        "adaptive_max_pool2d_backward": _adaptive_backward(2, has_indices=True),
        "adaptive_max_pool3d_backward": _adaptive_backward(3, has_indices=True),
        "max_pool2d_with_indices_backward": _as_forward("grad_output", lambda call: _max_pool(call, 2), "indices"),
        "max_pool3d_with_indices_backward": _as_forward("grad_output", lambda call: _max_pool(call, 3), "indices"),
        "avg_pool2d_backward": _as_forward("grad_output", lambda call: _avg_pool(call, 2)),
        "avg_pool3d_backward": _as_forward("grad_output", lambda call: _avg_pool(call, 3)),
        **{f"{pad}_backward": _padded(pad) for pad in _PADS},
        **{f"{name}{form}": _upsample for name in (*_UPSAMPLES, *_SMOOTHED) for form in ("", "_backward")},
        **dict.fromkeys(("grid_sampler", "grid_sampler_2d"), _sampled),
        "grid_sampler_2d_backward": _sampled_backward,
        "grid_sampler_3d_backward": _as_forward("grad_output", _grid),
        "_scaled_dot_product_flash_attention_for_cpu": layers.attention,
        "_scaled_dot_product_flash_attention_for_cpu_backward": layers.attention,
        "_softmax_backward_data": lambda call: same_shapes(call, "grad_output", "output"),
        "_log_softmax_backward_data": lambda call: same_shapes(call, "grad_output", "output"),
        "embedding_dense_backward": layers.embedding_backward,
        "embedding_backward": layers.embedding_backward,
        "nll_loss_backward": layers.nll_backward,
        "nll_loss2d_backward": layers.nll_backward,
        "multi_margin_loss_backward": layers.margin_backward,
        "multilabel_margin_loss_backward": layers.margin_backward,
        "gelu_backward": layers.gelu_backward,
        "_standard_gamma_grad": lambda call: same_shapes(call, "self", "output"),
        "_dirichlet_grad": lambda call: same_shapes(call, "x", "alpha", "total"),
        "binomial": lambda call: same_shapes(call, "count", "prob"),
        **dict.fromkeys(("baddbmm", "baddbmm_"), _summed),
        "lstm.input": layers.rnn(4),
        "gru.input": layers.rnn(3),
        "rnn_tanh.input": layers.rnn(1),
        "rnn_relu.input": layers.rnn(1),
        **dict.fromkeys(("split.Tensor", "unsafe_split.Tensor", "split_copy.Tensor"), _SPLIT),
        **dict.fromkeys(("chunk", "unsafe_chunk"), _CHUNK),
        **dict.fromkeys(("unbind.int", "unbind_copy.int"), _UNBIND),
        **dict.fromkeys(("tensor_split.sections", "hsplit.int", "vsplit.int", "dsplit.int"), _sections),
        **dict.fromkeys(("meshgrid", "meshgrid.indexing", "cartesian_prod"), _few("tensors", limits.MAX_NDIM)),
        **dict.fromkeys(("median.dim", "nanmedian.dim"), _median),
        "_neg_view": _negated,
        "view.dtype": _same_bytes,
        "random_.from": _lowest_random,
        **dict.fromkeys(("scaled_dot_product_attention", "_scaled_dot_product_attention_math"), layers.grouped_heads),
        **dict.fromkeys(_POOLS, _window),
        **{f"adaptive_{kind}_pool{n}d": _adaptive for kind in ("avg", "max") for n in (1, 2, 3)},
        **{f"_adaptive_avg_pool{n}d": _adaptive for n in (2, 3)},
        "linalg_multi_dot": _few("tensors", 64),
        "chain_matmul": _few("matrices", 64),
        **dict.fromkeys(_CONVOLUTIONS, _convolution),
    }.items()
} | SHAPES
"""The check of an operation's shapes, for those that need one."""
