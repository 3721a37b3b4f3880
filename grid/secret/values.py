"""What a secret tensor's elements are: known to all, to be shared, kept at the parties, or yet to be computed.

A Value never changes what it is, only where it is: what was to be shared, or computed, is kept afterwards. What torch
changes in place gets another Value (memory.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch

if TYPE_CHECKING:
    from grid.pointer import Pointer


@dataclass(frozen=True, slots=True)
class Public:
    """What everybody may know: zeros, a mask that dropout drew."""

    tensor: torch.Tensor


@dataclass(frozen=True, slots=True)
class Local:
    """A tensor of one's own, shared when it is first used. Nobody else holds it, so that it stays as it is."""

    tensor: torch.Tensor


@dataclass(frozen=True, slots=True)
class Held:
    """What a pointer names, shared by its peer when it is first used; `writes` is how often it was written to then."""

    pointer: Pointer
    writes: int


@dataclass(frozen=True, slots=True)
class Kept:
    """Shares at the parties, until this goes."""

    shares: Any


@dataclass(frozen=True, slots=True)
class Pending:
    """What a step will give; `item` where it gives several."""

    step: Step
    item: int | None


Source = Public | Local | Held | Kept | Pending


class Value:
    """The elements of one tensor, wherever they are now."""

    __slots__ = ("__weakref__", "dtype", "shape", "source")

    def __init__(self, source: Source, dtype: torch.dtype, shape: Sequence[int]) -> None:
        self.source = source
        self.dtype = dtype
        self.shape = tuple(shape)

    @staticmethod
    def public(tensor: torch.Tensor) -> Value:
        return Value(Public(tensor), tensor.dtype, tensor.shape)


class Step:
    """One operation that is yet to be computed. Values hold the steps that give them, never the other way round, so
    that what nobody wants any more is not computed.

    Attributes:
        number: in the order in which operations were asked for.
        args, kwargs: wire values (compute/wire.py), with a Value in the place of each tensor.
    """

    __slots__ = ("__weakref__", "_made", "args", "kwargs", "number", "operation")
    _count = 0

    def __init__(self, operation: str, args: list[Any], kwargs: Mapping[str, Any]) -> None:
        self.operation = operation
        self.args = args
        self.kwargs = kwargs
        self._made: list[ref[Value]] = []
        Step._count += 1
        self.number = Step._count

    def gives(self, results: Sequence[torch.Tensor | None], has_items: bool) -> list[Value | None]:
        """Its results, of which dtype and shape are known; None for one that is none."""
        made = [
            None if result is None else Value(Pending(self, item if has_items else None), result.dtype, result.shape)
            for item, result in enumerate(results)
        ]
        self._made = [ref(value) for value in made if value is not None]
        return made

    @property
    def results(self) -> list[Value]:
        """Those that somebody has still."""
        found = (each() for each in self._made)
        return [value for value in found if value is not None and isinstance(value.source, Pending)]

    @property
    def operands(self) -> Iterator[Value]:
        return values_in([self.args, list(self.kwargs.values())])


def values_in(template: Any) -> Iterator[Value]:
    """The Values in wire arguments."""
    if isinstance(template, Value):
        yield template
    elif isinstance(template, list):
        for item in template:
            yield from values_in(item)


def replaced(template: Any, change: Callable[[Value], Any]) -> Any:
    """The same arguments with `change` of each Value."""
    if isinstance(template, Value):
        return change(template)
    return [replaced(item, change) for item in template] if isinstance(template, list) else template


def needed(wanted: Sequence[Value]) -> list[Step]:
    """The steps that have to be taken before these values are there, in order."""
    found: dict[int, Step] = {}
    left = list(wanted)
    while left:
        source = left.pop().source
        if isinstance(source, Pending) and source.step.number not in found:
            found[source.step.number] = source.step
            left += source.step.operands
    return [found[number] for number in sorted(found)]


class Hold:
    """Somebody's hold on a value: as long as it is there, so are the shares."""

    __slots__ = ("__weakref__", "value")

    def __init__(self, value: Value) -> None:
        self.value = value
