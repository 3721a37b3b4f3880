"""Checks of shapes for layers and losses (compute/shape_guards.py says why)."""

from __future__ import annotations

import math

import torch

from compute.checks import Call, Guard, dense, has, require, same_shapes

# --- normalisation ----------------------------------------------------------------------------------------


def batch_norm(call: Call) -> None:
    given = call["input"]
    require(given.dim() >= 2, "batch normalisation takes (batch, channels, ...)")
    for name in ("weight", "bias", "running_mean", "running_var"):
        has(call.get(name), given.shape[1], name)
    if call.get("training") is False:  # torch reads them then, even where there are none
        for name in ("running_mean", "running_var"):
            require(call.get(name) is not None, f"{name} is missing: without training, it is what normalises")


def batch_norm_backward(call: Call) -> None:
    same_shapes(call, "input", "grad_out")
    batch_norm(call)
    channels = call["input"].shape[1]
    of_batch = ("save_mean", "save_invstd" if "save_invstd" in call else "save_var")
    is_read = of_batch if call.get("train", call.get("update")) else ("running_mean", "running_var")
    for name in of_batch:
        saved = call[name]
        if saved is not None and (saved.numel() or name in is_read):
            has(saved, channels, name)
    for name in is_read:
        require(call[name] is not None, f"{name} is missing")


def layer_norm_backward(call: Call) -> None:
    same_shapes(call, "input", "grad_out")
    shape, inner = list(call["input"].shape), call["normalized_shape"]
    inner = [inner] if isinstance(inner, int) else inner
    require(0 < len(inner) <= len(shape) and shape[-len(inner) :] == inner, "input does not end in normalized_shape")
    for name in ("mean", "rstd"):
        has(call[name], math.prod(shape[: -len(inner)]), name)
    for name in ("weight", "bias"):
        has(call[name], math.prod(inner), name)


def group_norm(call: Call) -> None:
    batch, channels, inner, groups = call["N"], call["C"], call["HxW"], call["group"]
    require(min(batch, channels, inner) >= 0 and groups > 0 and channels % groups == 0, "channels must fit the groups")
    has(call["input"], batch * channels * inner, "input")
    has(call["weight"], channels, "weight")
    has(call.get("bias"), channels, "bias")
    for name in ("mean", "rstd"):
        has(call.get(name), batch * groups, name)
    if "grad_out" in call:
        same_shapes(call, "input", "grad_out")
    dense(call, *("input", "grad_out", "weight", "bias", "mean", "rstd"))


# --- attention, losses, recurrent layers ------------------------------------------------------------------


def attention(call: Call) -> None:
    query, key, value = call["query"], call["key"], call["value"]
    require(query.dim() == key.dim() == value.dim() == 4, "query, key and value are (batch, heads, length, size)")
    require(
        query.shape[:2] == key.shape[:2] == value.shape[:2]
        and key.shape[2] == value.shape[2]
        and query.shape[3] == key.shape[3] == value.shape[3],
        "query, key and value do not fit each other",
    )
    require(query.numel() > 0 and key.numel() > 0, "attention over nothing")
    for name in ("query", "key", "value"):
        require(call[name].stride(-1) == 1, f"{name} must have the numbers of a vector side by side: use .contiguous()")
    mask, scores = call["attn_mask"], [*query.shape[:3], key.shape[2]]
    if mask is not None:
        fits = mask.dim() in (2, 4) and all(
            have in (1, want) for have, want in zip(reversed(mask.shape), reversed(scores), strict=False)
        )
        require(fits, f"attn_mask must broadcast to {scores}")
    if "out" in call:
        same_shapes(call, "query", "out", "grad_out")
        require(list(call["logsumexp"].shape) == scores[:3], f"logsumexp must have the shape {scores[:3]}")


def grouped_heads(call: Call) -> None:
    heads = [call[name].shape[-3] if call[name].dim() > 2 else 0 for name in ("key", "value")]
    require(not call["enable_gqa"] or 0 not in heads, "key and value have no heads that queries could share")


def embedding_backward(call: Call) -> None:
    gradient = call.get("grad_output", call.get("grad"))
    assert gradient is not None
    require(not call.get("sparse"), "sparse gradients are not supported: Embedding(sparse=False)")
    require(call["num_weights"] >= 0, "num_weights is negative")
    require(gradient.dim() >= 1 and gradient.shape[:-1] == call["indices"].shape, "grad_output does not fit indices")


def nll_backward(call: Call) -> None:
    scores, target, gradient = call["self"], call["target"], call["grad_output"]
    require(scores.dim() >= 1, "the scores must have a class dimension")
    # (classes), (batch, classes) or (batch, classes, height, width)
    want = scores.shape[:0] if scores.dim() == 1 else scores.shape[:1] + scores.shape[2:]
    fits = target.shape == want or (scores.dim() == 1 and target.numel() == 1)
    require(fits, f"target must have the shape {list(want)}")
    has(call["weight"], scores.shape[0 if scores.dim() == 1 else 1], "weight")
    has(call["total_weight"], 1, "total_weight")
    if call["reduction"] == 0 and scores.dim() > 1:
        require(gradient.shape == want, f"grad_output must have the shape {list(want)}")
    else:
        has(gradient, 1, "grad_output")


def margin_backward(call: Call) -> None:
    scores, target, gradient = call["self"], call["target"], call["grad_output"]
    require(scores.dim() <= 2, "the scores are (batch, classes) or (classes)")
    batch = scores.shape[0] if scores.dim() == 2 else 1
    classes = scores.shape[-1] if scores.dim() else 1
    if "is_target" in call:
        require(target.shape == scores.shape == call["is_target"].shape, "target must have the shape of the scores")
    else:
        has(target, batch, "target")
        has(call["weight"], classes, "weight")
    has(gradient, batch if call["reduction"] == 0 and scores.dim() == 2 else 1, "grad_output")


def differentiable(call: Call) -> None:
    """The rule for every gradient operation: what comes in first is a gradient, and gradients are no integers."""
    first = next(iter(call.values()))
    fits = isinstance(first, torch.Tensor) and (first.dtype.is_floating_point or first.dtype.is_complex)
    require(fits, "a gradient is a tensor of a floating-point type")


def gelu_backward(call: Call) -> None:
    # Nothing is broadcast, though the shape of the result is inferred as if it were.
    same_shapes(call, "self", "grad_output")
    require(call["grad_output"].dtype is call["self"].dtype, "grad_output must have the dtype of self")


def rnn(gates: int) -> Guard:
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
