"""The body of a loop, settled: what it uses from outside, what it changes, what Python carries for it.

A body is traced more than once, as Python would run it, to see what becomes of the first iteration in the second:

- a tensor from outside that it changes in place (parameters, averages of an optimiser) is carried;
- one that it replaces each time (`self.mean = 0.9 * self.mean + ...`) is carried too;
- where the first iteration differs from the others (an optimiser makes its state), it is taken out of the loop;
- where no two agree, Python counts something for itself, which a program cannot; nor where they agree, and a plain
  number that the body reaches goes on changing (compute/counting.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from compute.counting import changed, numbers
from compute.frames import Call, Constant, Frame, Kept, Ref, Source, replaced, storage_of, values_in
from compute.refusals import refusal


@dataclass(slots=True)
class Body:
    """A body that was traced until it was steady.

    Attributes:
        frame: one iteration.
        first: the first iteration, where it differs from the others; otherwise None.
        changed: operands that it changes in place.
        replaced: operands that Python replaces by another tensor: (operand, value in the frame, tensor that Python
            has in the end).
    """

    frame: Frame
    first: Frame | None
    changed: list[Source]
    replaced: list[tuple[Source, Any, torch.Tensor]]

    @property
    def carried(self) -> list[Source]:
        """What goes from one iteration to the next though the user does not say so."""
        return [*self.changed, *(source for source, _, _ in self.replaced)]

    @property
    def results(self) -> list[Any]:
        """The values of `carried` at the end of an iteration."""
        return [*map(Ref, self.changed), *(value for _, value, _ in self.replaced)]


def settled(step: Callable[..., Any], trace: Callable[[Sequence[Frame]], Frame]) -> Body:
    """Traces the body two or three times, which calls `step`; `trace` is told of the frames before.

    Raises:
        CannotCapture: the iterations differ in what Python does, or may later on.
    """
    first = trace(())
    before = numbers(step)
    second = trace((first,))
    after = numbers(step)
    pairs = _same(first, second)
    if pairs is not None:
        _check_counts(before, after)
        return _body(first, second, None, pairs)
    third = trace((first, second))
    pairs = _same(second, third)
    if pairs is not None:
        _check_counts(after, numbers(step))
    else:
        raise refusal(
            "the body of the loop does something else each time that it is called; a program has one body for all "
            "iterations: carry what changes as a tensor (a number too: torch.tensor(0.1)) instead of in Python"
        )
    return _body(second, third, first, pairs)


def _check_counts(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    name = changed(before, after)
    if name is None:
        return
    if name.startswith("len("):
        instead = "what is kept is to come out: return it from the body (grid.scan stacks what its step gives)"
    else:
        instead = (
            "compute it of the number of the iteration, or carry it as a tensor (a learning rate: group['lr'] = "
            "0.1 * 0.5 ** (i // 10) instead of a scheduler)"
        )
    raise refusal(
        f"{name} changes from one iteration to the next, {before.get(name)!r} to {after[name]!r}, and a program has "
        f"one body for all iterations: {instead}"
    )


def once(frame: Frame) -> Body:
    """A body that runs at most once: a branch."""
    return Body(frame, None, changed_in(frame), [])


def changed_in(frame: Frame) -> list[Source]:
    found = [source for source in frame.operands if storage_of(source.tensor) in frame.written]
    if len({storage_of(source.tensor) for source in found}) < len(found):
        raise refusal(
            "the body of a loop changes a tensor in place that it has as two different views; make views in the body"
        )
    return found


def _body(frame: Frame, after: Frame, first: Frame | None, pairs: list[tuple[int, Any]]) -> Body:
    replaced = [(frame.operands[at], value, _tensor(_counterpart(value, frame, after))) for at, value in pairs]
    taken = {id(source) for source, _, _ in replaced}
    changed = [source for source in changed_in(frame) if id(source) not in taken]
    return Body(frame, first, changed, replaced)


def _same(frame: Frame, after: Frame) -> list[tuple[int, Any]] | None:
    """Which operands of `after` are values that `frame` made, as (number of the operand, value in `frame`); None where
    the frames differ."""
    if len(frame.operands) != len(after.operands) or _form(frame) != _form(after):
        return None
    pairs: list[tuple[int, Any]] = []
    for at, (one, other) in enumerate(zip(frame.operands, after.operands, strict=True)):
        if isinstance(other.outer, Kept) and other.outer.frame is frame:
            pairs.append((at, other.outer.value))
        elif one.outer != other.outer:
            return None
    return pairs


def _form(frame: Frame) -> tuple[Any, ...]:
    """What a frame does, without who it is: equal for two traces of the same."""
    numbers: dict[int, Any] = {id(source): ("input", at) for at, source in enumerate(frame.inputs)}
    numbers |= {id(source): ("operand", at) for at, source in enumerate(frame.operands)}
    numbers |= {id(call): ("call", at) for at, call in enumerate(frame.calls)}

    def form(value: Any) -> Any:
        if isinstance(value, Ref):
            return (*numbers[id(value.of)], value.item)
        if isinstance(value, Constant):
            return id(value.tensor) if value.is_outside else _written(value.tensor)
        if isinstance(value, Frame):
            return _form(value)
        if isinstance(value, list):
            return tuple(form(item) for item in value)
        if isinstance(value, dict):
            return tuple((key, form(item)) for key, item in sorted(value.items()))
        return type(value).__name__, repr(value)

    calls = [(call.operation, form(call.args), form(call.kwargs)) for call in frame.calls]
    return tuple(calls), form(frame.outputs)


def _written(tensor: torch.Tensor) -> tuple[Any, ...]:
    """A tensor that the function wrote out, by its values."""
    with _disable_current_modes():
        return tensor.dtype, tuple(tensor.shape), str(tensor.tolist())


def _counterpart(value: Any, frame: Frame, after: Frame) -> Any:
    """The value of `after` that stands where `value` stands in `frame`."""
    if isinstance(value.of, Call):
        return Ref(after.calls[frame.calls.index(value.of)], value.item)
    of = frame.sources.index(value.of)
    return Ref(after.sources[of])


def _tensor(value: Any) -> torch.Tensor:
    if isinstance(value.of, Source):
        return value.of.tensor
    found: torch.Tensor = value.of.tensors[value.item or 0]
    return found


# --- what nothing needs ---------------------------------------------------------------------------------------


def prune(frame: Frame) -> None:
    """Takes out the calls that no output needs, and the operands that no call needs."""
    _without_copies(frame)
    live: set[int] = set()
    storages: set[int] = set()

    def mark(value: Any) -> None:
        if not isinstance(value, Ref):
            return
        live.add(id(value.of))
        tensor = value.of.tensor if isinstance(value.of, Source) else value.of.tensors[value.item or 0]
        if isinstance(tensor, torch.Tensor):
            storages.add(storage_of(tensor))

    for value in values_in(frame.outputs):
        mark(value)
    kept: list[Call] = []
    for call in reversed(frame.calls):
        if id(call) in live or call.is_kept or call.written & storages:
            kept.append(call)
            for value in values_in([call.args, call.kwargs]):
                mark(value)
    frame.calls = kept[::-1]
    frame.written = {storage for call in kept for storage in call.written}
    frame.operands = [source for source in frame.operands if id(source) in live]


def _without_copies(frame: Frame) -> None:
    """Autograd copies a gradient into fresh memory where somebody else has it too, which here everybody has: without
    that, where neither changes afterwards."""
    last: dict[int, int] = {storage: at for at, call in enumerate(frame.calls) for storage in call.written}
    stands_for: dict[int, Any] = {}
    dropped: set[int] = set()
    for at, (made, copied) in enumerate(zip(frame.calls, frame.calls[1:], strict=False)):
        if made.operation != "aten.new_zeros.default" or copied.operation != "aten.copy_.default":
            continue
        target, source = copied.args[:2]
        if not isinstance(source, Ref) or target != Ref(made) or last[storage_of(made.tensors[0])] != at + 1:
            continue
        tensor = _tensor(source)
        same = tensor.dtype == made.tensors[0].dtype and str(tensor.shape) == str(made.tensors[0].shape)
        if same and last.get(storage_of(tensor), -1) <= at and not isinstance(source.of, Source):
            stands_for[id(made)] = stands_for.get(id(source.of), source) if source.item is None else source
            dropped |= {id(made), id(copied)}

    def put(value: Any) -> Any:
        return stands_for.get(id(value.of), value) if isinstance(value, Ref) else value

    if not dropped:
        return
    frame.calls = [call for call in frame.calls if id(call) not in dropped]
    for call in frame.calls:
        call.args, call.kwargs = replaced(call.args, put), replaced(call.kwargs, put)
    frame.outputs = replaced(frame.outputs, put)
