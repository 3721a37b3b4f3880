"""Operators of ONNX that are layers: convolutions, pooling, normalisation, resizing, attention."""

from __future__ import annotations

import math
import operator as arithmetic
from collections.abc import Sequence
from typing import Any, Final

import torch

from compute.importing.onnx_nodes import Node, operator, pairs, rank
from compute.importing.worlds import Dim, Operand
from protocol.errors import BadFile


def _geometry(node: Node, x: Operand, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, paddings before and after, of a sliding window."""
    count = len(kernel)
    strides, dilations = list(node.attr("strides") or [1] * count), list(node.attr("dilations") or [1] * count)
    how = node.is_one_of("auto_pad", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
    if not count or len(strides) != count or len(dilations) != count or min(*strides, *dilations) < 1:
        raise BadFile(f"{node.op} in it has strides or dilations that do not fit its kernel")
    if how == "VALID":
        return strides, dilations, [0] * count, [0] * count
    if how == "NOTSET":
        return strides, dilations, *pairs(list(node.attr("pads") or [0] * (2 * count)), count)
    before, after = [], []
    for at, (size, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        length = node.world.size(x, 2 + at)
        reach = (size - 1) * dilation + 1
        if stride == 1:
            total = reach - 1
        elif isinstance(length, int):
            total = max((math.ceil(length / stride) - 1) * stride + reach - length, 0)
        else:
            raise BadFile(f"{node.op} in it pads a size that is open to {how}")
        less = total // 2
        before.append(total - less if how == "SAME_LOWER" else less)
        after.append(less if how == "SAME_LOWER" else total - less)
    return strides, dilations, before, after


def _padded(node: Node, x: Operand, before: list[int], after: list[int], value: float) -> tuple[Any, list[int]]:
    """The tensor with what its window's own padding cannot say written around it, and the rest."""
    if before == after and min(before) >= 0:
        return x, before
    wide = [item for pair in reversed(list(zip(before, after, strict=True))) for item in pair]
    return node.call("constant_pad_nd.default", x, wide, value), [0] * len(before)


@operator("Conv")
def _conv(node: Node) -> Any:
    x, weight = node.tensor(0), node.tensor(1)
    kernel = [size for size in node.world.shape(weight)[2:] if isinstance(size, int)]
    strides, dilations, before, after = _geometry(node, x, kernel)
    x, padding = _padded(node, x, before, after, 0.0)
    name = {1: "conv1d.default", 2: "conv2d.default", 3: "conv3d.default"}.get(len(kernel))
    if name is None:
        raise BadFile(f"a convolution of {len(kernel)} dimensions in it is not read")
    return node.call(name, x, weight, node.optional(2), strides, padding, dilations, node.attr("group", 1))


@operator("ConvTranspose")
def _conv_transpose(node: Node) -> Any:
    x, weight = node.tensor(0), node.tensor(1)
    kernel = [size for size in node.world.shape(weight)[2:] if isinstance(size, int)]
    if node.attr("output_shape") is not None:
        raise BadFile("ConvTranspose with output_shape in it is not read")
    if node.is_one_of("auto_pad", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER").startswith("SAME"):
        raise BadFile("ConvTranspose that pads by itself in it is not read")
    strides, dilations, before, after = _geometry(node, x, kernel)
    more = list(node.attr("output_padding") or [0] * len(kernel))
    name = {1: "conv_transpose1d.default", 2: "conv_transpose2d.input", 3: "conv_transpose3d.input"}.get(len(kernel))
    if name is None:
        raise BadFile(f"a convolution of {len(kernel)} dimensions in it is not read")
    cut = before if before == after else [0] * len(kernel)
    made = node.call(name, x, weight, node.optional(2), strides, cut, more, node.attr("group", 1), dilations)
    if before == after:
        return made
    for at, (low, high) in enumerate(zip(before, after, strict=True)):
        made = node.call("slice.Tensor", made, 2 + at, low, -high if high else (1 << 62))
    return made


@operator("MaxPool")
def _max_pool(node: Node) -> Any:
    x, kernel = node.tensor(0), list(node.attr("kernel_shape") or ())
    if node.outputs > 1:
        raise BadFile("MaxPool in it gives indices, which ONNX counts in another way")
    strides, dilations, before, after = _geometry(node, x, kernel)
    lowest = float("-inf") if x.dtype.is_floating_point else 0.0
    x, padding = _padded(node, x, before, after, lowest)
    if any(2 * pad > size for pad, size in zip(padding, kernel, strict=True)):
        x, padding = node.call("constant_pad_nd.default", x, _around(padding), lowest), [0] * len(kernel)
    ceil = bool(node.attr("ceil_mode", 0))
    name = {1: "max_pool1d.default", 2: "max_pool2d.default", 3: "max_pool3d.default"}.get(len(kernel))
    if name is None:
        raise BadFile(f"pooling of {len(kernel)} dimensions in it is not read")
    return node.call(name, x, kernel, strides, padding, dilations, ceil)


def _around(padding: Sequence[int]) -> list[int]:
    return [pad for pad in reversed(padding) for _ in range(2)]


@operator("AveragePool")
def _average_pool(node: Node) -> Any:
    x, kernel = node.tensor(0), list(node.attr("kernel_shape") or ())
    strides, dilations, before, after = _geometry(node, x, kernel)
    counts = bool(node.attr("count_include_pad", 0))
    if any(dilation != 1 for dilation in dilations):
        raise BadFile("AveragePool with dilations in it is not read")
    if before != after and not counts:
        return _uneven_average(node, x, kernel, strides, before, after)
    x, padding = _padded(node, x, before, after, 0.0)
    name = {1: "avg_pool1d.default", 2: "avg_pool2d.default", 3: "avg_pool3d.default"}.get(len(kernel))
    if name is None:
        raise BadFile(f"pooling of {len(kernel)} dimensions in it is not read")
    return node.call(name, x, kernel, strides, padding, bool(node.attr("ceil_mode", 0)), counts)


def _uneven_average(
    node: Node, x: Operand, kernel: list[int], strides: list[int], before: list[int], after: list[int]
) -> Any:
    """Sums over what is there, over how much of it is there."""
    if node.attr("ceil_mode", 0) or len(kernel) > 3:
        raise BadFile("AveragePool with uneven padding and ceil_mode in it is not read")
    name = f"avg_pool{len(kernel)}d.default"
    parts = []
    for part in (x, node.call("ones_like.default", x)):
        padded, _ = _padded(node, part, before, after, 0.0)
        parts.append(node.call(name, padded, kernel, strides, [0] * len(kernel), False, True))
    return node.call("div.Tensor", *parts)


@operator("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(node: Node) -> Any:
    x = node.tensor(0)
    name = "mean.dim" if node.op == "GlobalAveragePool" else "amax.default"
    return node.call(name, x, list(range(2, rank(x))), True)


# --- normalisation ----------------------------------------------------------------------------------------


@operator("BatchNormalization")
def _batch_norm(node: Node) -> Any:
    if node.attr("training_mode", 0) or node.outputs > 1:
        raise BadFile("BatchNormalization in it is in training mode: export the model after model.eval()")
    x, *rest = (node.tensor(at) for at in range(5))
    for part in rest[2:]:
        if isinstance(part, torch.Tensor):
            node.world.is_buffer.add(id(part))
    return node.call("batch_norm.default", x, *rest, False, 0.0, node.attr("epsilon", 1e-5), False)


@operator("InstanceNormalization")
def _instance_norm(node: Node) -> Any:
    x, scale, bias = (node.tensor(at) for at in range(3))
    eps = node.attr("epsilon", 1e-5)
    return node.call("instance_norm.default", x, scale, bias, None, None, True, 0.0, eps, False)


@operator("GroupNormalization")
def _group_norm(node: Node) -> Any:
    x, scale, bias = (node.tensor(at) for at in range(3))
    groups, channels = node.attr("num_groups"), node.world.size(x, 1)
    if node.version < 21:  # one for each group, then
        each = channels // groups
        scale, bias = (node.call("repeat_interleave.self_int", part, each) for part in (scale, bias))
    return node.call("group_norm.default", x, groups, scale, bias, node.attr("epsilon", 1e-5), False)


@operator("LayerNormalization", "RMSNormalization")
def _layer_norm(node: Node) -> Any:
    x, scale = node.tensor(0), node.tensor(1)
    axis = node.attr("axis", -1) % rank(x)
    shape = node.world.shape(x)[axis:]
    eps = node.attr("epsilon", 1e-5)
    if node.op == "RMSNormalization":
        square = node.call("mean.dim", node.call("square.default", x), list(range(axis, rank(x))), True)
        normal = node.call("mul.Tensor", x, node.call("rsqrt.default", node.call("add.Scalar", square, eps)))
        return node.call("mul.Tensor", normal, scale)
    if node.outputs > 1:
        raise BadFile("LayerNormalization in it gives its mean, which is not read")
    if node.world.shape(scale) == shape and all(isinstance(size, int) for size in shape):
        return node.call("layer_norm.default", x, shape, scale, node.optional(2), eps, False)
    normal = node.call("layer_norm.default", x, shape, None, None, eps, False)
    scaled = node.call("mul.Tensor", normal, scale)
    return node.call("add.Tensor", scaled, node.tensor(2)) if node.has(2) else scaled


@operator("MeanVarianceNormalization")
def _mean_variance(node: Node) -> Any:
    x, axes = node.tensor(0), list(node.attr("axes") or (0, 2, 3))
    centred = node.call("sub.Tensor", x, node.call("mean.dim", x, axes, True))
    square = node.call("mean.dim", node.call("square.default", centred), axes, True)
    return node.call("div.Tensor", centred, node.call("add.Scalar", node.call("sqrt.default", square), 1e-9))


@operator("LpNormalization")
def _lp_norm(node: Node) -> Any:
    x, axis, power = node.tensor(0), node.attr("axis", -1), node.attr("p", 2)
    length = node.call("linalg_vector_norm.default", x, float(power), [axis], True)
    return node.call("div.Tensor", x, node.call("clamp_min.default", length, 1e-12))


@operator("LRN")
def _lrn(node: Node) -> Any:
    x, size = node.tensor(0), node.attr("size")
    alpha, beta, bias = node.attr("alpha", 1e-4), node.attr("beta", 0.75), node.attr("bias", 1.0)
    channels = node.call("unsqueeze.default", node.call("square.default", x), 1)
    before, after = (size - 1) // 2, size // 2
    flat = node.call("flatten.using_ints", channels, 3, -1)
    flat = node.call("constant_pad_nd.default", flat, [0, 0, before, after], 0.0)
    mean = node.call("avg_pool2d.default", flat, [size, 1], [1, 1], [0, 0], False, True)
    mean = node.call("reshape.default", node.call("squeeze.dim", mean, 1), node.world.shape(x))
    scale = node.call("add.Scalar", node.call("mul.Scalar", mean, alpha), bias)
    return node.call("div.Tensor", x, node.call("pow.Tensor_Scalar", scale, beta))


# --- resizing ---------------------------------------------------------------------------------------------

_NAMES: Final = {
    ("nearest", 1): "upsample_nearest1d.vec", ("nearest", 2): "upsample_nearest2d.vec",
    ("nearest", 3): "upsample_nearest3d.vec", ("linear", 1): "upsample_linear1d.vec",
    ("linear", 2): "upsample_bilinear2d.vec", ("linear", 3): "upsample_trilinear3d.vec",
    ("cubic", 2): "upsample_bicubic2d.vec",
}  # fmt: skip


@operator("Resize", "Upsample")
def _resize(node: Node) -> Any:
    x = node.tensor(0)
    mode = node.is_one_of("mode", "nearest", "linear", "cubic")
    where = node.text("coordinate_transformation_mode", "half_pixel" if node.op == "Resize" else "asymmetric")
    count = rank(x) - 2
    axes = [axis % rank(x) for axis in node.attr("axes") or range(rank(x))]
    at = 1 if node.op == "Upsample" else 2
    sizes, scales = _new_sizes(node, x, axes, at)
    aligned = where == "align_corners"
    name = _NAMES.get((mode, count))
    fits = (
        where in ("half_pixel", "pytorch_half_pixel", "align_corners") if mode != "nearest" else where == "asymmetric"
    )
    if mode == "nearest" and where != "asymmetric" and node.text("nearest_mode", "round_prefer_floor") != "floor":
        fits = scales is not None and all(scale == int(scale) for scale in scales)  # then it is the same
    if mode == "nearest" and where == "asymmetric" and node.text("nearest_mode", "round_prefer_floor") != "floor":
        fits = node.op == "Upsample" or (scales is not None and all(scale == int(scale) for scale in scales))
    if name is None or not fits or node.attr("antialias", 0):
        raise BadFile(f"Resize in it ({mode}, {where[:40]}, {count} dimensions) is not read")
    if mode == "cubic" and abs(node.attr("cubic_coeff_a", -0.75) + 0.75) > 1e-6:
        raise BadFile("Resize in it has a cubic coefficient that is not -0.75")
    args: list[Any] = [x, sizes if scales is None else None]
    if mode != "nearest":
        args.append(aligned)
    return node.call(name, *args, scales if scales is not None else None)


def _new_sizes(node: Node, x: Operand, axes: list[int], at: int) -> tuple[list[Dim] | None, list[float] | None]:
    """What is asked for: sizes, or factors, of the dimensions behind the channels."""
    if node.has(3):
        wanted = dict(zip(axes, node.ints(3), strict=True))
        if any(wanted.get(axis, node.world.size(x, axis)) is not node.world.size(x, axis) for axis in (0, 1)):
            if any(wanted.get(axis) not in (None, node.world.size(x, axis)) for axis in (0, 1)):
                raise BadFile("Resize in it changes the batch or the channels")
        return [wanted.get(axis, node.world.size(x, axis)) for axis in range(2, rank(x))], None
    given = node.attr("scales") if node.attr("scales") is not None else node.constant(at).tolist()
    factors = dict(zip(axes, given, strict=True))
    if any(factors.get(axis, 1.0) != 1.0 for axis in (0, 1)):
        raise BadFile("Resize in it changes the batch or the channels")
    return None, [float(factors.get(axis, 1.0)) for axis in range(2, rank(x))]


@operator("GridSample")
def _grid_sample(node: Node) -> Any:
    mode = node.text("mode", "bilinear")
    modes = {"bilinear": 0, "linear": 0, "nearest": 1, "bicubic": 2, "cubic": 2}
    paddings = {"zeros": 0, "border": 1, "reflection": 2}
    padding = node.text("padding_mode", "zeros")
    if mode not in modes or padding not in paddings:
        raise BadFile("GridSample in it has a mode that is not read")
    aligned = bool(node.attr("align_corners", 0))
    return node.call("grid_sampler.default", node.tensor(0), node.tensor(1), modes[mode], paddings[padding], aligned)


# --- attention (operator set 23) --------------------------------------------------------------------------


@operator("Attention")
def _attention(node: Node) -> Any:
    if node.outputs > 1 or node.has(4) or node.attr("softcap", 0.0) or node.has(6):
        raise BadFile("Attention with a cache or a soft cap in it is not read")
    parts = [node.tensor(at) for at in range(3)]
    heads = [node.attr("q_num_heads"), node.attr("kv_num_heads"), node.attr("kv_num_heads")]
    is_flat = rank(parts[0]) == 3
    if is_flat:
        parts = [_heads(node, part, count) for part, count in zip(parts, heads, strict=True)]
    groups = node.world.size(parts[0], 1), node.world.size(parts[1], 1)
    if groups[0] != groups[1]:
        each = groups[0] // groups[1]  # type: ignore[operator]
        parts[1:] = [node.call("repeat_interleave.self_int", part, each, 1) for part in parts[1:]]
    query, key, value = parts
    scale, mask = node.attr("scale"), node.optional(3)
    is_causal = bool(node.attr("is_causal", 0))
    made = node.call("scaled_dot_product_attention.default", query, key, value, mask, 0.0, is_causal, scale=scale)
    if not is_flat:
        return made
    return node.call("flatten.using_ints", node.call("transpose.int", made, 1, 2), 2, -1)


def _heads(node: Node, x: Operand, count: int) -> Any:
    batch, length, width = node.world.shape(x)
    each = node.world.compute("int.floordiv", arithmetic.floordiv, width, count)
    return node.call("transpose.int", node.call("reshape.default", x, [batch, length, count, each]), 1, 2)


@operator("DequantizeLinear")
def _dequantize(node: Node) -> Any:
    x, scale, zero = node.tensor(0), node.tensor(1), node.optional(2)
    axis = node.attr("axis", 1)
    wide = node.call("_to_copy.default", x, dtype=scale.dtype)
    if zero is not None:
        shifted = _along(node, node.call("_to_copy.default", zero, dtype=scale.dtype), rank(x), axis)
        wide = node.call("sub.Tensor", wide, shifted)
    return node.call("mul.Tensor", wide, _along(node, scale, rank(x), axis))


@operator("QuantizeLinear")
def _quantize(node: Node) -> Any:
    x, scale, zero = node.tensor(0), node.tensor(1), node.optional(2)
    dtype = torch.uint8 if zero is None else zero.dtype
    if dtype not in (torch.uint8, torch.int8):
        raise BadFile("QuantizeLinear in it has a type that is not read")
    axis, info = node.attr("axis", 1), torch.iinfo(dtype)
    made = node.call("round.default", node.call("div.Tensor", x, _along(node, scale, rank(x), axis)))
    if zero is not None:
        made = node.call(
            "add.Tensor", made, _along(node, node.call("_to_copy.default", zero, dtype=x.dtype), rank(x), axis)
        )
    return node.call("_to_copy.default", node.call("clamp.default", made, info.min, info.max), dtype=dtype)


def _along(node: Node, value: Operand, count: int, axis: int) -> Any:
    """A vector as one that runs along one dimension of several."""
    if rank(value) != 1 or not count:
        return value
    shape = [1] * count
    shape[axis % count] = -1
    return node.call("reshape.default", value, shape)
