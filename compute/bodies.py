"""Bodies of loops and branches: what is carried through them, traced, and put into the order that a flow node has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch.utils import _pytree as pytree

from compute import steady
from compute.frames import Call, Frame, Ref, Source, replaced, storage_of
from compute.recorder import Recorder
from compute.refusals import refusal
from compute.steady import Body

recording: ContextVar[Recorder | None] = ContextVar("recording", default=None)
"""The capture that goes on, in whose frames loops are noted; None: they run as Python."""


class LoopMet(BaseException):
    """A loop or branch that is to stay one came up in what cannot hold it. Nothing but its catcher is to catch it."""


refusing: ContextVar[bool] = ContextVar("refusing", default=False)
"""Whether loops and branches raise LoopMet where nothing is recorded."""


def active() -> Recorder | None:
    """The recorder that loops go into. None inside a transform of torch.func: there they are written out."""
    recorder = recording.get()
    if recorder is None and refusing.get():
        raise LoopMet
    if recorder is None or torch._C._functorch.peek_interpreter_stack() is not None:
        return None
    return recorder


# --- what is carried ----------------------------------------------------------------------------------------


class Carried:
    """The structure of what goes from one iteration to the next; `tensors` is what of it does.

    Plain numbers count as tensors. Anything else (a module, an optimiser, text) stays what it is.
    """

    def __init__(self, values: Any, recorder: Recorder) -> None:
        self._leaves, self._spec = pytree.tree_flatten(values)
        self._recorder = recorder
        self.tensors = [self._tensor(leaf) for leaf in self._leaves if _is_value(leaf)]

    def rebuilt(self, tensors: Sequence[torch.Tensor]) -> Any:
        made = iter(tensors)
        leaves = [next(made) if _is_value(leaf) else leaf for leaf in self._leaves]
        return pytree.tree_unflatten(leaves, self._spec)

    def of(self, values: Any, what: str) -> list[torch.Tensor]:
        """The tensors of a structure that is to be like this one, dtypes and shapes too."""
        leaves, spec = pytree.tree_flatten(values)
        if spec != self._spec:
            raise refusal(f"{what} comes back as {shown(spec)}, but {shown(self._spec)} was given")
        found: list[torch.Tensor] = []
        for leaf, before in zip(leaves, self._leaves, strict=True):
            if _is_value(before) and _is_value(leaf):
                found.append(self._tensor(leaf))
            elif leaf is not before and leaf != before:
                raise refusal(f"{what}: a {type(before).__name__} comes back as another {type(leaf).__name__}")
        for number, (tensor, before) in enumerate(zip(found, self.tensors, strict=True)):
            if tensor.dtype != before.dtype or not same_shape(tensor, before):
                raise refusal(
                    f"{what}: value {number} comes back as {kind_of(tensor)}, but {kind_of(before)} was given; what is "
                    "carried keeps dtype and shape"
                )
        return found

    def _tensor(self, leaf: Any) -> torch.Tensor:
        return leaf if isinstance(leaf, torch.Tensor) else self._recorder.scalar(leaf)


def _is_value(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor | bool | int | float)


def same_shape(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dim() == other.dim() and all(bool(a == b) for a, b in zip(one.shape, other.shape, strict=True))


def kind_of(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def shown(spec: Any) -> str:
    return "a tensor" if spec.is_leaf() else f"{spec.type.__name__} of {spec.num_leaves}"


def as_carried(result: Any, count: int) -> Any:
    """What a step gave, as a tuple of `count`: with one value carried it may come without a tuple around it."""
    if count == 1 and not (isinstance(result, tuple) and len(result) == 1 and not hasattr(result, "_fields")):
        return (result,)
    if result is None:
        return ()
    return tuple(result) if isinstance(result, list) else result


# --- tracing ------------------------------------------------------------------------------------------------

Run = Callable[..., Sequence[torch.Tensor]]


def traced(
    recorder: Recorder, given: Sequence[tuple[str, torch.Tensor]], run: Run, before: Sequence[Frame] = ()
) -> Frame:
    """The frame of `run` on fresh tensors like those given."""
    frame = Frame(recorder.frame, before)
    fakes: list[torch.Tensor] = []
    for name, like in given:
        fake = recorder.empty(like.shape, like.dtype)
        if like.requires_grad and torch.is_grad_enabled():
            fake.requires_grad_()
        frame.add_input(name, fake)
        fakes.append(fake)
    recorder.frame = frame
    try:
        made = run(*fakes)
        frame.outputs = [recorder.find(tensor) for tensor in made]
        frame.is_smooth = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in made)
    finally:
        assert frame.parent is not None
        recorder.frame = frame.parent
    return frame


def like_slice(recorder: Recorder, tensor: torch.Tensor) -> torch.Tensor:
    """What one slice along dimension 0 is like."""
    made = recorder.empty(tensor.shape[1:], tensor.dtype)
    return made.requires_grad_() if tensor.requires_grad else made


def close(body: Body, carried: int, sliced: int) -> list[Source]:
    """Brings the body's inputs and outputs into the order of a flow node: returns the operands that are left.

    `carried` values are the user's, then come those that the body carries for itself; `sliced` slices follow.
    """
    frame = body.frame
    own, slices = frame.inputs[: len(frame.inputs) - sliced], frame.inputs[len(frame.inputs) - sliced :]
    frame.outputs = [*frame.outputs[:carried], *body.results, *frame.outputs[carried:]]
    steady.prune(frame)
    taken = {id(source) for source in body.carried}
    operands = [source for source in frame.operands if id(source) not in taken]
    frame.order = [*own, *body.carried, *slices, *operands]
    return operands


def noted(
    recorder: Recorder,
    operation: str,
    args: list[Any],
    body: Body,
    tensors: Sequence[torch.Tensor],
    carried: int,
    **named: Any,
) -> Call:
    """The call of a loop in the frame around it. `tensors` stand for the user's results: what is carried, then more."""
    changed = [None] * len(body.changed)
    replaced_ = [tensor for _, _, tensor in body.replaced]
    call = recorder.call(operation, args, [*tensors[:carried], *changed, *replaced_, *tensors[carried:]], **named)
    for number, source in enumerate(body.changed, carried):
        recorder.write(source.tensor, Ref(call, number))
    return call


def outer(recorder: Recorder, sources: Sequence[Source]) -> list[Any]:
    """What the operands of a body are in the frame around it."""
    return [recorder.find(source.tensor) for source in sources]


def begin(recorder: Recorder, frame: Frame, given: Sequence[Any]) -> None:
    """The first iteration happens in the frame around the loop, with these values as its inputs."""
    bound: dict[int, Any] = {}
    for source, value in zip(frame.inputs, given, strict=True):
        copied = value
        if storage_of(source.tensor) in frame.written:
            copied = Ref(
                recorder.call(
                    "aten.clone.default", [value], (recorder.empty(source.tensor.shape, source.tensor.dtype),)
                )
            )
        bound[id(source)] = copied
    for source in frame.operands:
        bound[id(source)] = recorder.find(source.tensor)

    def put(value: Any) -> Any:
        return bound.get(id(value.of), value) if isinstance(value, Ref) else value

    recorder.frame.take_over(frame, put)
    frame.outputs = replaced(frame.outputs, put)


def results(recorder: Recorder, likes: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [recorder.empty(like.shape, like.dtype) for like in likes]
