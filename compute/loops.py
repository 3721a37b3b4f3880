"""Loops and branches of a function that is captured: one node each.

What a body closes over becomes an operand. It may change tensors in place, take gradients and step optimisers: it is
traced by itself, as Python would run it (compute/steady.py). Gradients go through (compute/through.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from compute import steady, through
from compute.bodies import (
    Carried,
    as_carried,
    begin,
    close,
    kind_of,
    like_slice,
    noted,
    outer,
    results,
    same_shape,
    shown,
    traced,
)
from compute.frames import Call, Frame, Ref, Source, replaced
from compute.recorder import Recorder
from compute.refusals import refusal
from compute.scans import back_through, kept_of
from compute.steady import Body, settled
from protocol import limits


def repeat(recorder: Recorder, count: Any, step: Callable[..., Any], values: tuple[Any, ...]) -> Any:
    if isinstance(count, int) and not 0 <= count <= limits.MAX_ITERATIONS:
        raise refusal(f"{count} iterations; a loop has at least 0 and at most {limits.MAX_ITERATIONS}")
    carried = Carried(values, recorder)
    counter = recorder.empty((), torch.int64)

    def run(i: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
        made = as_carried(step(i, *carried.rebuilt(tensors)), len(values))
        return carried.of(made, "what the step of a repeat carries")

    given = [("i", counter), *((f"carried.{n}", tensor) for n, tensor in enumerate(carried.tensors))]
    body = settled(step, lambda before: traced(recorder, given, run, before))
    initial = [recorder.find(tensor) for tensor in carried.tensors]
    if body.first is not None:
        count = _count(count)
        begin(recorder, body.first, [recorder.find(recorder.scalar(0)), *initial])
        initial = body.first.outputs
        _one_later(body.frame)
    rest = count if body.first is None else count - 1
    made = results(recorder, carried.tensors)
    operands = close(body, len(initial), 0)
    carried_refs = [*initial, *outer(recorder, body.carried)]
    args = [body.frame, _wire_count(recorder, rest), carried_refs, outer(recorder, operands)]
    parameters = through.used(body.frame)
    call = noted(recorder, "flow.repeat", args, body, made, len(initial))
    here = recorder.frame

    def back(grads: Sequence[torch.Tensor]) -> Sequence[torch.Tensor | None]:
        through.check_pure(body.carried, body.first)
        numbers = torch.arange(rest)
        kept = kept_of(recorder, here, call, carried.tensors, rest)
        return back_through(lambda c, s: run(s[0], *c), grads, (kept, [numbers]), parameters, len(made))[0]

    inputs = [*carried.tensors, *parameters]
    return carried.rebuilt(through.attached(made, inputs, body.frame.is_smooth, back))


def _one_later(frame: Frame) -> None:
    """The counter of the body begins with 1: its first iteration was taken out."""
    later = Call("aten.add.Tensor", [Ref(frame.inputs[0]), 1], tensors=(frame.inputs[0].tensor,))

    def put(value: Any) -> Any:
        return Ref(later) if isinstance(value, Ref) and value.of is frame.inputs[0] else value

    for call in frame.calls:
        call.args, call.kwargs = replaced(call.args, put), replaced(call.kwargs, put)
    frame.outputs = replaced(frame.outputs, put)
    frame.calls.insert(0, later)


def _count(count: Any) -> int:
    return int(count)


def _wire_count(recorder: Recorder, count: Any) -> Any:
    if isinstance(count, torch.SymInt) and recorder.open_sizes is not None:
        return recorder.open_sizes.value(count, recorder.frame)
    return count


def while_loop(
    recorder: Recorder,
    test: Callable[..., Any],
    step: Callable[..., Any],
    values: tuple[Any, ...],
    limit: int | None,
) -> tuple[Any, ...]:
    carried = Carried(values, recorder)
    given = [(f"carried.{n}", tensor) for n, tensor in enumerate(carried.tensors)]

    def run_test(*tensors: torch.Tensor) -> list[torch.Tensor]:
        found = test(*carried.rebuilt(tensors))
        if isinstance(found, bool):
            return [recorder.scalar(found)]
        if not isinstance(found, torch.Tensor) or found.numel() != 1:
            raise refusal("the test of a while loop gives one truth value, a tensor of one element")
        return [found if found.dtype == torch.bool else found.to(torch.bool)]

    def run(*tensors: torch.Tensor) -> list[torch.Tensor]:
        made = as_carried(step(*carried.rebuilt(tensors)), len(values))
        return carried.of(made, "what the step of a while loop carries")

    asked = traced(recorder, given, run_test)
    if asked.written:
        raise refusal("the test of a while loop changes a tensor in place; change it in the step")
    body = settled(step, lambda before: traced(recorder, given, run, before))
    if body.first is not None:
        raise refusal(
            "the first iteration of the while loop differs from the others (an optimiser that makes its state?); one "
            "that may end at once has one body: make the first step before it"
        )
    operands = close(body, len(carried.tensors), 0)
    steady.prune(asked)
    more = _joined([body.frame, asked], [*body.carried, *operands])
    rest = more[len(body.carried) :]
    asked.order = [*asked.inputs, *_aligned(asked, more)]
    body.frame.order = [*body.frame.inputs, *_aligned(body.frame, more)]
    made = results(recorder, carried.tensors)
    first = [*(recorder.find(tensor) for tensor in carried.tensors), *outer(recorder, body.carried)]
    named = {} if limit is None else {"limit": limit}
    args = [asked, body.frame, first, outer(recorder, rest)]
    parameters = through.used(body.frame)
    noted(recorder, "flow.while", args, body, made, len(carried.tensors), **named)
    inputs = [*carried.tensors, *parameters]
    return tuple(carried.rebuilt(through.attached(made, inputs, body.frame.is_smooth, _no_way_back)))


def _no_way_back(grads: Sequence[torch.Tensor]) -> Sequence[torch.Tensor | None]:
    raise refusal("no gradient goes through a while loop: nobody knows how often it ran; use grid.repeat or grid.scan")


def cond(
    recorder: Recorder, pred: Any, yes: Callable[..., Any], no: Callable[..., Any], operands: tuple[Any, ...]
) -> Any:
    if pred.numel() != 1:
        raise refusal(f"what a branch is chosen by is one truth value, not {kind_of(pred)}; write torch.where(a, b, c)")
    made_of: list[Any] = []

    def run(branch: Callable[..., Any]) -> list[torch.Tensor]:
        leaves, spec = pytree.tree_flatten(branch(*operands))
        tensors = [leaf if isinstance(leaf, torch.Tensor) else recorder.scalar(leaf) for leaf in leaves]
        made_of.append((spec, tensors))
        return tensors

    bodies = [steady.once(traced(recorder, [], lambda branch=branch: run(branch))) for branch in (yes, no)]
    (spec, first), (other_spec, second) = made_of
    if spec != other_spec:
        raise refusal(f"one branch gives {shown(spec)}, the other {shown(other_spec)}; both have to give the same")
    for a, b in zip(first, second, strict=True):
        if a.dtype != b.dtype or not same_shape(a, b):
            raise refusal(f"one branch gives {kind_of(a)}, the other {kind_of(b)}; both have to give the same")
    frames = [body.frame for body in bodies]
    changed = _joined(frames, [source for body in bodies for source in body.changed], only_given=True)
    for body, frame in zip(bodies, frames, strict=True):
        body.changed = _aligned(frame, changed)
        frame.outputs = [*frame.outputs, *map(Ref, body.changed)]
        frame.operands += [source for source in body.changed if source not in frame.operands]
        steady.prune(frame)
    joined = _joined(frames, changed)
    for frame in frames:
        frame.order = _aligned(frame, joined)
    made = results(recorder, first)
    pred_tensor = pred if pred.dtype == torch.bool else pred.to(torch.bool)
    args = [recorder.find(pred_tensor), *frames, outer(recorder, joined)]
    joint = Body(frames[0], None, changed, [])
    parameters = list({id(tensor): tensor for frame in frames for tensor in through.used(frame)}.values())
    noted(recorder, "flow.cond", args, joint, made, len(made))

    def back(grads: Sequence[torch.Tensor]) -> Sequence[torch.Tensor | None]:
        through.check_pure(changed, None)

        def of(branch: Callable[..., Any]) -> list[torch.Tensor]:
            with torch.enable_grad():
                return [grad.detach() for grad in through.gradients(run(branch), parameters, grads)]

        with torch.no_grad():
            found: list[torch.Tensor] = cond(recorder, pred_tensor, lambda: of(yes), lambda: of(no), ())
        return found

    is_smooth = any(frame.is_smooth for frame in frames)
    return pytree.tree_unflatten(through.attached(made, parameters, is_smooth, back), spec)


def mapped(recorder: Recorder, function: Callable[..., Any], xs: Any, more: tuple[Any, ...]) -> Any:
    sliced, spec = pytree.tree_flatten(xs)
    made_of: list[Any] = []

    def run(*tensors: torch.Tensor) -> list[torch.Tensor]:
        leaves, made_spec = pytree.tree_flatten(function(pytree.tree_unflatten(list(tensors), spec), *more))
        found = [leaf if isinstance(leaf, torch.Tensor) else recorder.scalar(leaf) for leaf in leaves]
        made_of[:] = [made_spec, found]
        return found

    given = [(f"slice.{n}", like_slice(recorder, tensor)) for n, tensor in enumerate(sliced)]
    body = steady.once(traced(recorder, given, run))
    if body.changed:
        raise refusal("the function of a map changes a tensor from outside in place; use a scan, which carries it")
    operands = close(body, 0, len(sliced))
    length = sliced[0].shape[0]
    made = [recorder.empty((length, *like.shape), like.dtype) for like in made_of[1]]
    args = [body.frame, [recorder.find(tensor) for tensor in sliced], outer(recorder, operands)]
    parameters = through.used(body.frame)
    spec_made = made_of[0]
    noted(recorder, "flow.map", args, body, made, len(made))

    def back(grads: Sequence[torch.Tensor]) -> Sequence[torch.Tensor | None]:
        found, of_slices = back_through(lambda _, s: run(*s), grads, ([], sliced), parameters, 0)
        return [*of_slices, *found]

    inputs = [*sliced, *parameters]
    return pytree.tree_unflatten(through.attached(made, inputs, body.frame.is_smooth, back), spec_made)


def _joined(frames: Sequence[Frame], first: Sequence[Source], only_given: bool = False) -> list[Source]:
    """Operands of all the frames, each once; `first` come first."""
    found: dict[Any, Source] = {}
    more = [] if only_given else [source for frame in frames for source in frame.operands]
    for source in [*first, *more]:
        found.setdefault(_key(source), source)
    return list(found.values())


def _aligned(frame: Frame, operands: Sequence[Source]) -> list[Source]:
    """The frame's own input for each of these operands, also for those that it does not use."""
    own = {_key(source): source for source in [*frame.operands]}
    return [own.get(_key(source)) or Source(source.name, source.tensor, source.outer) for source in operands]


def _key(source: Source) -> Any:
    return source.outer if isinstance(source.outer, Ref) else id(source.outer)
