"""What a captured function did, frame by frame: the function itself, and each body of a loop or branch in it.

A frame holds inputs, calls, and which tensors they gave. A tensor is known by the memory that it stands for, so that a
view of all of it (`detach`, `.data`) is the same value. What a body uses of the frame around it is lifted: that becomes
an operand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch

LITERAL: Final = "literal"
"""The operation of a call that makes a tensor of numbers that the function wrote out: a copy of a Constant."""


@dataclass(slots=True, eq=False)
class Source:
    """An input of a frame, and the tensor that stands for it while the function runs.

    `outer` is, for an operand of a body, what it is in the frame around it. `may_write`: the function may change it in
    place; what it does then is an output.
    """

    name: str
    tensor: torch.Tensor
    outer: Any = None
    may_write: bool = True


@dataclass(slots=True, eq=False)
class Constant:
    """A tensor that was there before the function ran, or that it wrote out as numbers."""

    tensor: torch.Tensor
    is_outside: bool


@dataclass(slots=True, eq=False)
class Call:
    """One operation: its arguments as wire values in which Ref, Constant and Frame stand for what they name."""

    operation: str
    args: list[Any]
    kwargs: dict[str, Any] = field(default_factory=dict)
    tensors: Sequence[Any] = ()  # what it gave
    written: frozenset[int] = frozenset()  # the storages that it changes
    is_kept: bool = False  # even where nothing uses what it gives


@dataclass(frozen=True, slots=True)
class Ref:
    """A value of a frame: one of its inputs, or what a call gave, or one item of that."""

    of: Source | Call
    item: int | None = None


class Frame:
    """A function or body while it is captured.

    Args:
        parent: the frame around it.
        before: frames of the same body, traced before it: what Python kept of them is known (see compute/steady.py).
    """

    def __init__(self, parent: Frame | None = None, before: Sequence[Frame] = ()) -> None:
        self.parent = parent
        self.before = tuple(before)
        self.inputs: list[Source] = []
        self.operands: list[Source] = []
        self.calls: list[Call] = []
        self.outputs: list[Any] = []
        self.order: list[Source] = []  # of a body that is done: all its inputs
        self.is_smooth = False  # gradients go through what it gives
        self.sizes: dict[Any, Any] = {}
        self.written: set[int] = set()
        self._by_id: dict[int, tuple[Any, int]] = {}
        self._in_storage: dict[int, list[tuple[torch.Tensor, Any]]] = {}

    @property
    def sources(self) -> list[Source]:
        return [*self.inputs, *self.operands]

    def add_input(self, name: str, tensor: torch.Tensor, may_write: bool = True) -> Source:
        source = Source(name, tensor, may_write=may_write)
        self.inputs.append(source)
        self.know(tensor, Ref(source))
        return source

    def add_call(self, call: Call) -> None:
        self.calls.append(call)
        self.written |= call.written
        for number, tensor in enumerate(call.tensors):
            if isinstance(tensor, torch.Tensor):
                self.know(tensor, Ref(call, number if is_item(call) else None))

    def know(self, tensor: torch.Tensor, value: Any) -> None:
        """`tensor` is this value from now on."""
        storage = storage_of(tensor)
        self._by_id[id(tensor)] = value, storage
        self._in_storage.setdefault(storage, []).append((tensor, value))  # alive, so that no other has its id

    def own(self, tensor: torch.Tensor) -> Any:
        """What the tensor is in this very frame; None where it is not of it."""
        found, before = self._by_id.get(id(tensor), (None, 0))
        storage = storage_of(tensor)
        if found is not None and before == storage:
            return found
        known = reversed(self._in_storage.get(storage, ()))
        return next((value for other, value in known if is_same_memory(tensor, other)), None)

    def find(self, tensor: torch.Tensor) -> Any:
        """What the tensor is here: of this frame, or lifted from those around it or before it; None: unknown."""
        found = self.own(tensor)
        if found is not None:
            return found
        outer: Any = self.parent.find(tensor) if self.parent is not None else None
        if isinstance(outer, Constant):
            return outer
        if outer is None:
            for frame in reversed(self.before):
                known = frame.own(tensor)
                if known is not None:
                    outer = Kept(frame, known)
                    break
        if outer is None:
            return None
        source = Source(f"operand.{len(self.operands)}", tensor, outer)
        self.operands.append(source)
        self.know(tensor, Ref(source))
        return Ref(source)

    def take_over(self, other: Frame, bound: Callable[[Any], Any]) -> None:
        """Everything that `other` did happens here instead; `bound` says what its inputs are here."""
        for call in other.calls:
            call.args, call.kwargs = replaced(call.args, bound), replaced(call.kwargs, bound)
        self.calls += other.calls
        self.written |= other.written
        self._by_id |= {key: (replaced(value, bound), storage) for key, (value, storage) in other._by_id.items()}
        for storage, known in other._in_storage.items():
            mine = self._in_storage.setdefault(storage, [])
            mine += [(tensor, replaced(value, bound)) for tensor, value in known]


@dataclass(frozen=True, slots=True)
class Kept:
    """A value of a frame of the same body that was traced before: Python kept it from one iteration to the next."""

    frame: Frame
    value: Any


def is_item(call: Call) -> bool:
    """Whether what the call gives are items, of which there may be one only; a single tensor stands in a tuple."""
    return isinstance(call.tensors, list)


def storage_of(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def is_same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether tensors of one storage are the same elements of it, in the same order."""
    if one.dtype != other.dtype or one.dim() != other.dim():
        return False
    if one.is_conj() != other.is_conj() or one.is_neg() != other.is_neg():
        return False
    places = (
        (*one.shape, *one.stride(), one.storage_offset()),
        (*other.shape, *other.stride(), other.storage_offset()),
    )
    return all(is_same_size(a, b) for a, b in zip(*places, strict=True))


def is_same_size(one: Any, other: Any) -> bool:
    """Whether two sizes are the same in every run; without deciding so, where they are open."""
    if isinstance(one, int) and isinstance(other, int):
        return one == other
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return bool(statically_known_true(one == other))


def replaced(value: Any, bound: Callable[[Any], Any]) -> Any:
    """The same structure with every Ref and Constant in it put through `bound`."""
    if isinstance(value, Ref | Constant):
        return bound(value)
    if type(value) is list:
        return [replaced(item, bound) for item in value]
    if type(value) is dict:
        return {key: replaced(item, bound) for key, item in value.items()}
    return value


def values_in(value: Any) -> Iterator[Any]:
    """Every Ref, Constant and Frame in arguments."""
    if isinstance(value, Ref | Constant | Frame):
        yield value
    elif type(value) is list:
        for item in value:
            yield from values_in(item)
    elif type(value) is dict:
        for item in value.values():
            yield from values_in(item)
