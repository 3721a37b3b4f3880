"""Gradients through loops and branches of a captured function: their backward passes are loops and branches too.

The backward pass of a scan goes through the slices in reverse, with what was carried into each step, which the scan
then keeps; each step is traced anew and differentiated, so that nothing but that is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from compute.frames import Call, Frame, Ref, Source
from compute.recorder import Recorder
from compute.refusals import refusal

Back = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor | None]]


class _Through(torch.autograd.Function):
    """Results of a node that autograd knows nothing of, and how to go back through it."""

    @staticmethod
    def forward(ctx: Any, back: Back, results: Sequence[torch.Tensor], *inputs: torch.Tensor) -> Any:
        ctx.back, ctx.likes = back, [(tensor.shape, tensor.dtype) for tensor in results]
        ctx.mark_non_differentiable(*[tensor for tensor in results if not is_smooth(tensor)])
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        full = [
            torch.zeros(shape, dtype=dtype) if grad is None else grad
            for grad, (shape, dtype) in zip(grads, ctx.likes, strict=True)
        ]
        with torch.enable_grad():
            return None, None, *ctx.back(full)


def is_smooth(tensor: torch.Tensor) -> bool:
    return tensor.dtype.is_floating_point or tensor.dtype.is_complex


def attached(
    results: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], is_needed: bool, back: Back
) -> list[torch.Tensor]:
    """The results, with the way back to `inputs`: `back` makes their gradients of those of the results."""
    if not is_needed or not any(tensor.requires_grad for tensor in inputs) or not any(map(is_smooth, results)):
        return list(results)
    made: Any = _Through.apply(back, list(results), *inputs)  # type: ignore[no-untyped-call]
    return list(made)


def used(frame: Frame) -> list[torch.Tensor]:
    """The tensors of the frames around it that it takes gradients of."""
    return [source.tensor for source in frame.operands if source.tensor.requires_grad]


def gradients(
    results: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], grads: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Of what was computed from `inputs`; zeros where nothing depends on one. Integers have zeros of their own kind."""
    pairs = [(result, grad) for result, grad in zip(results, grads, strict=True) if result.requires_grad]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    found: list[Any] = [None] * len(wanted)
    if pairs and wanted:
        found = list(
            torch.autograd.grad([result for result, _ in pairs], wanted, [grad for _, grad in pairs], allow_unused=True)
        )
    made = iter(found)
    grads_of = [next(made) if tensor.requires_grad else None for tensor in inputs]
    return [torch.zeros_like(tensor) if grad is None else grad for tensor, grad in zip(inputs, grads_of, strict=True)]


def leaves(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The same values, as what gradients are taken of."""
    return [tensor.detach().requires_grad_() if is_smooth(tensor) else tensor.detach() for tensor in tensors]


def check_pure(changed: Sequence[Source], first: Frame | None) -> None:
    """Refuses a gradient through a loop that changes something around it."""
    if changed or first is not None:
        raise refusal(
            "a gradient through a loop whose body changes tensors around it in place (a step of an optimiser, running "
            "statistics); take gradients inside the body, or carry what changes"
        )


def keep_carried(
    recorder: Recorder, frame: Frame, call: Call, count: int, likes: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Makes a scan (or a repeat, which becomes one) that was noted in `frame` keep what is carried into each step too;
    returns that, stacked."""
    body: Frame = call.args[0]
    if call.operation == "flow.repeat":
        _, length, carried, operands = call.args
        numbers = recorder.empty((length if isinstance(length, int) else likes[0].shape[0],), torch.int64)
        counted = Call("aten.arange.default", [length], tensors=(numbers,))
        frame.calls.insert(frame.calls.index(call), counted)
        frame.know(numbers, Ref(counted))
        call.operation, call.args = "flow.scan", [body, carried, [Ref(counted)], operands]
        body.order = [*body.order[1 : 1 + count], body.order[0], *body.order[1 + count :]]
    carried_in = body.order[:count]
    if any(source.tensor.untyped_storage()._cdata in body.written for source in carried_in):
        raise refusal("a gradient through a loop whose body changes what is carried in place; use x = x + 1 there")
    body.outputs = [*body.outputs, *map(Ref, carried_in)]
    kept = [recorder.empty(like.shape, like.dtype) for like in likes]
    start = len(call.tensors)
    call.tensors = [*call.tensors, *kept]
    for number, tensor in enumerate(kept, start):
        frame.know(tensor, Ref(call, number))
    return kept
