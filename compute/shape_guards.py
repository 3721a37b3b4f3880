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

from protocol import limits
from protocol.errors import BadRequest, TooLarge

Call = Mapping[str, Any]
Guard = Callable[[Call], None]


def require(fits: bool, what: str) -> None:
    """BadRequest with this sentence unless it fits."""
    if not fits:
        raise BadRequest(what)


def _same_shapes(call: Call, *names: str) -> None:
    first = call[names[0]]
    for name in names[1:]:
        require(call[name].shape == first.shape, f"{name} must have the shape of {names[0]}, {list(first.shape)}")


def _has(tensor: torch.Tensor | None, count: int, name: str) -> None:
    if tensor is not None:
        require(tensor.numel() == count, f"{name} must have {count} elements, not {tensor.numel()}")


def _too_many(count: int) -> None:
    if count > limits.MAX_PARTS:
        raise TooLarge(
            f"{count} results; at most {limits.MAX_PARTS}", limit="MAX_PARTS", size=count, allowed=limits.MAX_PARTS
        )


def too_large(nbytes: int) -> None:
    """TooLarge for more bytes than any result may have."""
    if nbytes > limits.MAX_RESULT:
        raise TooLarge(
            f"a result of {nbytes} bytes; at most {limits.MAX_RESULT}",
            limit="MAX_RESULT",
            size=min(nbytes, limits.MAX_ID),
            allowed=limits.MAX_RESULT,
        )


def _as_forward(gradient: str, forward: Callable[[Call], Any], *others: str) -> Guard:
    """The gradient that came in, and `others`, must have the shape that the forward operation gives."""

    def guard(call: Call) -> None:
        try:
            with _disable_current_modes(), torch.no_grad():
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


# --- shapes: normalisation --------------------------------------------------------------------------------


def _batch_norm(call: Call) -> None:
    given = call["input"]
    require(given.dim() >= 2, "batch normalisation takes (batch, channels, ...)")
    for name in ("weight", "bias", "running_mean", "running_var"):
        _has(call.get(name), given.shape[1], name)


def _batch_norm_backward(call: Call) -> None:
    _same_shapes(call, "input", "grad_out")
    _batch_norm(call)
    channels = call["input"].shape[1]
    for name in ("save_mean", "save_invstd", "save_var"):
        saved = call.get(name)
        if saved is not None and saved.numel():
            _has(saved, channels, name)
    trains = call.get("train", call.get("update"))
    saved_mean = call["save_mean"]
    require(not trains or (saved_mean is not None and saved_mean.numel() == channels), "save_mean is missing")
    require(bool(trains) or call["running_mean"] is not None, "running_mean is missing")


def _layer_norm_backward(call: Call) -> None:
    _same_shapes(call, "input", "grad_out")
    shape, inner = list(call["input"].shape), call["normalized_shape"]
    inner = [inner] if isinstance(inner, int) else inner
    require(0 < len(inner) <= len(shape) and shape[-len(inner) :] == inner, "input does not end in normalized_shape")
    for name in ("mean", "rstd"):
        _has(call[name], math.prod(shape[: -len(inner)]), name)
    for name in ("weight", "bias"):
        _has(call[name], math.prod(inner), name)


def _group_norm(call: Call) -> None:
    batch, channels, inner, groups = call["N"], call["C"], call["HxW"], call["group"]
    require(min(batch, channels, inner) >= 0 and groups > 0 and channels % groups == 0, "channels must fit the groups")
    _has(call["input"], batch * channels * inner, "input")
    _has(call["weight"], channels, "weight")
    _has(call.get("bias"), channels, "bias")
    for name in ("mean", "rstd"):
        _has(call.get(name), batch * groups, name)
    if "grad_out" in call:
        _same_shapes(call, "input", "grad_out")


# --- shapes: pooling, padding, sampling -------------------------------------------------------------------


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
            _same_shapes(call, "grad_output", "indices")

    return guard


def _max_pool(call: Call, spatial: int) -> torch.Tensor:
    pool = (torch.ops.aten.max_pool2d_with_indices, torch.ops.aten.max_pool3d_with_indices)[spatial - 2]
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    result: torch.Tensor = pool(call["self"], *(call[name] for name in names))[0]
    return result


def _avg_pool(call: Call, spatial: int) -> torch.Tensor:
    pool = (torch.ops.aten.avg_pool2d, torch.ops.aten.avg_pool3d)[spatial - 2]
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    result: torch.Tensor = pool(call["self"], *(call[name] for name in names))
    return result


def _grid(call: Call) -> torch.Tensor:
    given, grid = call["input"], call["grid"]
    require(grid.dim() == given.dim() and grid.shape[0] == given.shape[0], "input and grid must have one batch size")
    return _zeros([*given.shape[:2], *grid.shape[1:-1]])


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


# --- shapes: the rest -------------------------------------------------------------------------------------


def _attention(call: Call) -> None:
    query, key, value = call["query"], call["key"], call["value"]
    require(query.dim() == key.dim() == value.dim() == 4, "query, key and value are (batch, heads, length, size)")
    require(
        query.shape[:2] == key.shape[:2] == value.shape[:2]
        and key.shape[2] == value.shape[2]
        and query.shape[3] == key.shape[3] == value.shape[3],
        "query, key and value do not fit each other",
    )
    require(query.numel() > 0 and key.numel() > 0, "attention over nothing")
    mask, scores = call["attn_mask"], [*query.shape[:3], key.shape[2]]
    if mask is not None:
        fits = mask.dim() in (2, 4) and all(
            have in (1, want) for have, want in zip(reversed(mask.shape), reversed(scores), strict=False)
        )
        require(fits, f"attn_mask must broadcast to {scores}")
    if "out" in call:
        _same_shapes(call, "query", "out", "grad_out")
        require(list(call["logsumexp"].shape) == scores[:3], f"logsumexp must have the shape {scores[:3]}")


def _embedding_backward(call: Call) -> None:
    gradient = call.get("grad_output", call.get("grad"))
    assert gradient is not None
    require(not call.get("sparse"), "sparse gradients are not supported: Embedding(sparse=False)")
    require(call["num_weights"] >= 0, "num_weights is negative")
    require(gradient.dim() >= 1 and gradient.shape[:-1] == call["indices"].shape, "grad_output does not fit indices")


def _nll_backward(call: Call) -> None:
    scores, target, gradient = call["self"], call["target"], call["grad_output"]
    require(scores.dim() >= 1, "the scores must have a class dimension")
    # (classes), (batch, classes) or (batch, classes, height, width)
    want = scores.shape[:0] if scores.dim() == 1 else scores.shape[:1] + scores.shape[2:]
    fits = target.shape == want or (scores.dim() == 1 and target.numel() == 1)
    require(fits, f"target must have the shape {list(want)}")
    _has(call["weight"], scores.shape[0 if scores.dim() == 1 else 1], "weight")
    _has(call["total_weight"], 1, "total_weight")
    if call["reduction"] == 0 and scores.dim() > 1:
        require(gradient.shape == want, f"grad_output must have the shape {list(want)}")
    else:
        _has(gradient, 1, "grad_output")


def _margin_backward(call: Call) -> None:
    scores, target, gradient = call["self"], call["target"], call["grad_output"]
    require(scores.dim() in (1, 2), "the scores are (batch, classes) or (classes)")
    batch = scores.shape[0] if scores.dim() == 2 else 1
    if "is_target" in call:
        require(target.shape == scores.shape == call["is_target"].shape, "target must have the shape of the scores")
    else:
        _has(target, batch, "target")
        _has(call["weight"], scores.shape[-1], "weight")
    _has(gradient, batch if call["reduction"] == 0 and scores.dim() == 2 else 1, "grad_output")


def differentiable(call: Call) -> None:
    """The rule for every gradient operation: what comes in first is a gradient, and gradients are no integers."""
    first = next(iter(call.values()))
    fits = isinstance(first, torch.Tensor) and (first.dtype.is_floating_point or first.dtype.is_complex)
    require(fits, "a gradient is a tensor of a floating-point type")


def _rnn(gates: int) -> Guard:
    def guard(call: Call) -> None:
        given, states = call["input"], call["hx"] if isinstance(call["hx"], list) else [call["hx"]]
        directions, layers = 1 + call["bidirectional"], call["num_layers"]
        require(given.dim() in (2, 3) and len(states) == (2 if gates == 4 else 1), "hx holds the state of each layer")
        batch = [given.shape[0 if call["batch_first"] else 1]] if given.dim() == 3 else []
        for state in states:
            fits = list(state.shape[:-1]) == [layers * directions, *batch] and state.dtype is given.dtype
            require(fits and state.dim() == given.dim(), "hx must be (layers * directions, batch, size)")
        hidden, params, width = states[0], call["params"], given.shape[-1]
        each = 4 if call["has_biases"] else 2
        each += len(params) == (each + 1) * directions * layers  # with a projection of the state
        require(0 < layers and len(params) == each * directions * layers, "the weights do not fit the layers")
        for at in range(0, len(params), each):
            cell = params[at : at + each]
            require(all(p.dtype is given.dtype for p in cell) and cell[1].dim() == 2, "weights of several dtypes")
            size, state = cell[1].shape[0] // gates, cell[1].shape[1]
            require(state == hidden.shape[-1] and size == states[-1].shape[-1], "hx does not fit the weights")
            rows = gates * size
            below = width if at < each * directions else state * directions
            want = [[rows, below], [rows, state], *([[rows], [rows]] if call["has_biases"] else [])]
            want += [[state, size]] if each in (3, 5) else []
            require([list(p.shape) for p in cell] == want, f"weights of a layer must have the shapes {want}")

    return guard


def _parts(count: Callable[[Call, int], int]) -> Guard:
    def guard(call: Call) -> None:
        given, dim = call["self"], call.get("dim", 0)
        if given.dim() and -given.dim() <= dim < given.dim():
            _too_many(count(call, given.shape[dim]))

    return guard


def _sections(call: Call) -> None:
    _too_many(call["sections"])


def _few(name: str, most: int) -> Guard:
    return lambda call: require(len(call[name]) <= most, f"{name}: at most {most}")


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


_PADS: Final = tuple(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3))
_UPSAMPLES: Final = tuple(
    f"{name}d"
    for name in (
        *("upsample_nearest1", "upsample_nearest2", "upsample_nearest3", "upsample_linear1"),
        *("upsample_bilinear2", "upsample_bicubic2", "upsample_trilinear3"),
        *("_upsample_nearest_exact1", "_upsample_nearest_exact2"),
    )
)
_CONVOLUTIONS: Final = (
    *("convolution", "convolution_backward", "conv1d", "conv1d.padding", "conv2d", "conv2d.padding", "conv3d"),
    *("conv3d.padding", "conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input"),
)
_SPLIT: Final = _parts(lambda call, size: -(-size // max(1, call["split_size"])))
_CHUNK: Final = _parts(lambda call, size: min(max(1, call["chunks"]), max(1, size)))
_UNBIND: Final = _parts(lambda call, size: size)

SHAPE_GUARDS: Final[Mapping[str, Guard]] = {
    f"aten.{name if '.' in name else name + '.default'}": guard
    for name, guard in {
        "batch_norm": _batch_norm,
        "native_batch_norm": _batch_norm,
        "_native_batch_norm_legit": _batch_norm,
        "_native_batch_norm_legit.no_stats": _batch_norm,
        "_native_batch_norm_legit_no_training": _batch_norm,
        "_batch_norm_with_update": _batch_norm,
        "native_batch_norm_backward": _batch_norm_backward,
        "batch_norm_backward": _batch_norm_backward,
        "native_layer_norm_backward": _layer_norm_backward,
        "native_group_norm": _group_norm,
        "native_group_norm_backward": _group_norm,
        "_adaptive_avg_pool2d_backward": _adaptive_backward(2),
        "_adaptive_avg_pool3d_backward": _adaptive_backward(3),
        "adaptive_max_pool2d_backward": _adaptive_backward(2, has_indices=True),
        "adaptive_max_pool3d_backward": _adaptive_backward(3, has_indices=True),
        "max_pool2d_with_indices_backward": _as_forward("grad_output", lambda call: _max_pool(call, 2), "indices"),
        "max_pool3d_with_indices_backward": _as_forward("grad_output", lambda call: _max_pool(call, 3), "indices"),
        "avg_pool2d_backward": _as_forward("grad_output", lambda call: _avg_pool(call, 2)),
        "avg_pool3d_backward": _as_forward("grad_output", lambda call: _avg_pool(call, 3)),
        **{f"{pad}_backward": _padded(pad) for pad in _PADS},
        **{f"{name}{form}": _upsample for name in _UPSAMPLES for form in ("", "_backward")},
        "grid_sampler_2d_backward": _as_forward("grad_output", _grid),
        "grid_sampler_3d_backward": _as_forward("grad_output", _grid),
        "_scaled_dot_product_flash_attention_for_cpu": _attention,
        "_scaled_dot_product_flash_attention_for_cpu_backward": _attention,
        "_softmax_backward_data": lambda call: _same_shapes(call, "grad_output", "output"),
        "_log_softmax_backward_data": lambda call: _same_shapes(call, "grad_output", "output"),
        "embedding_dense_backward": _embedding_backward,
        "embedding_backward": _embedding_backward,
        "nll_loss_backward": _nll_backward,
        "nll_loss2d_backward": _nll_backward,
        "multi_margin_loss_backward": _margin_backward,
        "multilabel_margin_loss_backward": _margin_backward,
        "lstm.input": _rnn(4),
        "gru.input": _rnn(3),
        "rnn_tanh.input": _rnn(1),
        "rnn_relu.input": _rnn(1),
        **dict.fromkeys(("split.Tensor", "unsafe_split.Tensor", "split_copy.Tensor"), _SPLIT),
        **dict.fromkeys(("chunk", "unsafe_chunk"), _CHUNK),
        **dict.fromkeys(("unbind.int", "unbind_copy.int"), _UNBIND),
        **dict.fromkeys(("tensor_split.sections", "hsplit.int", "vsplit.int", "dsplit.int"), _sections),
        **dict.fromkeys(("meshgrid", "meshgrid.indexing", "cartesian_prod"), _few("tensors", limits.MAX_NDIM)),
        "linalg_multi_dot": _few("tensors", 64),
        "chain_matmul": _few("matrices", 64),
        **dict.fromkeys(_CONVOLUTIONS, _columns),
    }.items()
}
"""The check of an operation's shapes, for those that need one."""
