"""Scans of a function that is captured: one node each. A gradient through a loop is a scan, too.

As for all loops, the step is traced by itself, as Python would run it (compute/steady.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from compute import through
from compute.bodies import Carried, active, begin, close, like_slice, noted, outer, results, traced
from compute.frames import Call, Frame, Source
from compute.recorder import Recorder
from compute.refusals import refusal
from compute.steady import Body, settled


def scan(
    recorder: Recorder, step: Callable[[Any, Any], tuple[Any, Any]], init: Any, xs: Any, reverse: bool
) -> tuple[Any, Any]:
    sliced, spec = pytree.tree_flatten(xs)
    if any(bool(tensor.shape[0] != sliced[0].shape[0]) for tensor in sliced):
        raise refusal("what is scanned differs in length along dimension 0")
    return _Scan(recorder, step, Carried((init,), recorder), spec, reverse).over(sliced)


class _Scan:
    """One scan. `_made` and `_kept_spec` are what its step keeps of a slice, as it was traced last."""

    def __init__(self, recorder: Recorder, step: Any, carried: Carried, spec: Any, reverse: bool) -> None:
        self._recorder = recorder
        self._step = step
        self._carried = carried
        self._spec = spec
        self._reverse = reverse
        self._made: list[torch.Tensor] = []
        self._kept_spec: Any = None

    def over(self, sliced: list[torch.Tensor]) -> tuple[Any, Any]:
        recorder, carried = self._recorder, self._carried
        given = [*((f"carried.{n}", tensor) for n, tensor in enumerate(carried.tensors))]
        given += [(f"slice.{n}", like_slice(recorder, tensor)) for n, tensor in enumerate(sliced)]
        body = settled(self._step, lambda before: traced(recorder, given, self._run, before))
        initial = [recorder.find(tensor) for tensor in carried.tensors]
        heads: list[torch.Tensor] = []
        if body.first is not None:
            initial, heads = self._begun(body.first, initial, sliced)
            sliced = [tensor[:-1] if self._reverse else tensor[1:] for tensor in sliced]
        made, stacked = self._noted(body, initial, sliced)
        if heads:
            parts = [(head.unsqueeze(0), rest) for head, rest in zip(heads, stacked, strict=True)]
            stacked = [torch.cat((rest, head) if self._reverse else (head, rest)) for head, rest in parts]
        return carried.rebuilt(made)[0], pytree.tree_unflatten(stacked, self._kept_spec)

    def _run(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """One step on tensors: what is carried, then a slice; what it carries on, and what it keeps."""
        count = len(self._carried.tensors)
        (before,) = self._carried.rebuilt(tensors[:count])
        result = self._step(before, pytree.tree_unflatten(list(tensors[count:]), self._spec))
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise refusal("the step of a scan gives two things: what is carried, and what is kept of each slice")
        kept, self._kept_spec = pytree.tree_flatten(result[1])
        self._made = [leaf if isinstance(leaf, torch.Tensor) else self._recorder.scalar(leaf) for leaf in kept]
        return [*self._carried.of((result[0],), "what the step of a scan carries"), *self._made]

    def _begun(
        self, first: Frame, initial: list[Source], sliced: Sequence[torch.Tensor]
    ) -> tuple[list[Source], list[torch.Tensor]]:
        """The first step, which is not as the others are: what it carries on, and what it keeps."""
        recorder, count = self._recorder, len(self._carried.tensors)
        firsts = [tensor.select(0, -1 if self._reverse else 0) for tensor in sliced]
        begin(recorder, first, [*initial, *(recorder.find(tensor) for tensor in firsts)])
        heads = results(recorder, self._made)
        for tensor, value in zip(heads, first.outputs[count:], strict=True):
            recorder.frame.know(tensor, value)
        return first.outputs[:count], heads

    def _noted(
        self, body: Body, initial: Sequence[Source], sliced: Sequence[torch.Tensor]
    ) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        """The node: what it carries in the end, and what it keeps, stacked."""
        recorder, carried = self._recorder, self._carried
        count, length = len(carried.tensors), sliced[0].shape[0]
        operands = close(body, count, len(sliced))
        stacked = [recorder.empty((length, *like.shape), like.dtype) for like in self._made]
        made = results(recorder, carried.tensors)
        carries, slices = [*initial, *outer(recorder, body.carried)], [recorder.find(tensor) for tensor in sliced]
        args = [body.frame, carries, slices, outer(recorder, operands)]
        parameters = through.used(body.frame)
        named = {"reverse": True} if self._reverse else {}
        call = noted(recorder, "flow.scan", args, body, [*made, *stacked], count, **named)
        back = self._back(body, call, sliced, parameters)
        inputs = [*carried.tensors, *sliced, *parameters]
        attached = through.attached([*made, *stacked], inputs, body.frame.is_smooth, back)
        return attached[:count], attached[count:]

    def _back(
        self, body: Body, call: Call, sliced: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor]
    ) -> Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor | None]]:
        recorder, carried, here = self._recorder, self._carried, self._recorder.frame
        count, length = len(carried.tensors), sliced[0].shape[0]

        def back(grads: Sequence[torch.Tensor]) -> Sequence[torch.Tensor | None]:
            through.check_pure(body.carried, body.first)
            kept = kept_of(recorder, here, call, carried.tensors, length)
            found, of_slices = back_through(
                lambda c, s: self._run(*c, *s), grads, (kept, sliced), parameters, count, not self._reverse
            )
            return [*found[:count], *of_slices, *found[count:]]

        return back


def kept_of(
    recorder: Recorder, frame: Frame, call: Call, carried: Sequence[torch.Tensor], length: Any
) -> list[torch.Tensor]:
    """What was carried into each step of a loop that was noted, stacked: the loop gives it as well from now on."""
    likes = [recorder.empty((length, *tensor.shape), tensor.dtype) for tensor in carried]
    return through.keep_carried(recorder, frame, call, len(carried), likes)


def back_through(
    run: Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], Sequence[torch.Tensor]],
    grads: Sequence[torch.Tensor],
    before: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]],
    parameters: Sequence[torch.Tensor],
    count: int,
    reverse: bool = True,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The gradients of what was carried into the first step and of `parameters`, and those of the slices, stacked.

    `before`: what was carried into each step, and the slices; `run` makes one step of them. `grads`: of what is carried
    in the end (`count` values), and of what each step gave besides.
    """
    recorder = active()
    assert recorder is not None
    kept, slices = before

    def step(carried: Any, given: Any) -> tuple[Any, Any]:
        of_carried, sums = carried
        inputs, parts, of_kept = (through.leaves(given[0]), through.leaves(given[1]), given[2])
        with torch.enable_grad():
            made = run(inputs, parts)
            found = through.gradients(made, [*inputs, *parts, *parameters], [*of_carried, *of_kept])
        found = [grad.detach() for grad in found]
        so_far = [total + grad for total, grad in zip(sums, found[len(inputs) + len(parts) :], strict=True)]
        return (found[: len(inputs)], so_far), found[len(inputs) : len(inputs) + len(parts)]

    init = (list(grads[:count]), [torch.zeros_like(tensor) for tensor in parameters])
    with torch.no_grad():
        xs = (list(kept), [part.detach() for part in slices], list(grads[count:]))
        (of_carried, sums), of_slices = scan(recorder, step, init, xs, reverse)
    return [*of_carried, *sums], of_slices
