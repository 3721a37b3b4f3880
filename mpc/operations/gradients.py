"""Gradients with a form of their own: of products, and of what a comparison chose, which is not made again."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from mpc.bilinear import Convolve, Multiply, Sizes, spread, turned
from mpc.operations.comparisons import negative
from mpc.operations.linear import add
from mpc.operations.products import as_sizes, on, product
from mpc.party import Party
from mpc.rounds import Protocol, together
from mpc.secret import Secret
from mpc.table import Arguments, secure


@secure("threshold_backward")
def threshold_backward(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """The gradient where self is above the threshold. One round after a relu, which kept that; else five. Exact."""
    x, threshold = arguments["self"], arguments["threshold"]
    above = x.above if isinstance(x, Secret) and not threshold else None
    if above is None:
        above = (
            (yield from negative(party, add(party, "aten.rsub.Scalar", {"self": x, "other": threshold})))
            if isinstance(x, Secret)
            else x > threshold
        )
    gradient = arguments["grad_output"]
    return (yield from product(party, Multiply(), above, gradient, gradient.dtype))


@secure("convolution_backward")
def convolution_backward(party: Party, name: str, arguments: Arguments) -> Protocol[list[Any]]:
    """Of input, weight and bias, those that are wanted: convolutions themselves. One round (and one before, where the
    gradient is a product)."""
    gradient, x, weight = arguments["grad_output"], arguments["input"], arguments["weight"]
    of_input, of_weight, of_bias = arguments["output_mask"]
    rank = len(weight.shape) - 2
    stride, padding, dilation = (as_sizes(arguments[key], rank) for key in ("stride", "padding", "dilation"))
    settings = Convolve(stride, padding, dilation, arguments["groups"])
    is_transposed = arguments["transposed"]
    parts: list[Any] = []
    if of_input and is_transposed:
        parts.append(product(party, settings, gradient, weight, gradient.dtype))
    elif of_input:
        parts.append(_of_input(party, settings, gradient, weight, tuple(x.shape[2:])))
    if of_weight:
        seen, by = (gradient, x) if is_transposed else (x, gradient)
        parts.append(_of_weight(party, settings, seen, by, tuple(weight.shape)))
    made = iter((yield from together(*parts)))
    bias = None
    if of_bias:
        dims = [0, *range(2, rank + 2)]
        bias = on(gradient, lambda each: each.sum(dims))
    return [next(made) if of_input else None, next(made) if of_weight else None, bias]


def _of_input(party: Party, forward: Convolve, gradient: Any, weight: Any, size: Sizes) -> Protocol[Secret]:
    """A transposed convolution with the same weight."""
    kernel = tuple(weight.shape[2:])
    rank = len(kernel)
    extra = tuple(
        size[at]
        - ((gradient.shape[2 + at] - 1) * forward.stride[at] - 2 * forward.padding[at])
        - forward.dilation[at] * (kernel[at] - 1)
        - 1
        for at in range(rank)
    )
    move = partial(
        spread, stride=forward.stride, padding=forward.padding, dilation=forward.dilation, kernel=kernel, extra=extra
    )
    back = Convolve((1,) * rank, (0,) * rank, forward.dilation, forward.groups)
    filters = on(weight, partial(turned, groups=forward.groups))
    return (yield from product(party, back, on(gradient, move), filters, gradient.dtype))


def _of_weight(party: Party, forward: Convolve, x: Any, gradient: Any, shape: Sizes) -> Protocol[Secret]:
    """The input's convolution with the gradient, where images and channels change places."""
    groups = forward.groups

    def seen(each: torch.Tensor) -> torch.Tensor:
        n, c, *size = each.shape
        return (
            each.reshape(n, groups, c // groups, math.prod(size))
            .permute(2, 1, 0, 3)
            .reshape(c // groups, groups * n, *size)
        )

    swapped = Convolve(forward.dilation, forward.padding, forward.stride, groups)
    made = yield from product(
        party, swapped, on(x, seen), on(gradient, lambda each: each.transpose(0, 1).contiguous()), gradient.dtype
    )
    cut: list[Any] = [..., *(slice(0, each) for each in shape[2:])]
    return made.of(made.share[tuple(cut)].transpose(0, 1).contiguous())
