"""What secret tensors share memory, as torch's do: views see what is written to the whole, and the other way round.

Nothing at the parties is ever changed. A Memory has the value that all of it is now; what is written to it is another
value. A view is the way from the whole to it (`steps`), gone anew when the whole has changed; what is written to a view
is put back along the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import ref

import torch

from grid.secret.team import Secrets
from grid.secret.values import Value
from protocol.errors import BadRequest

Record = Callable[..., Value]
"""`record(operation, *args)`: the value that an operation gives."""

PLACES: Final = "places"
"""A step of a view to elements at places of the whole, which are its argument."""

_RESHAPES: Final = frozenset(
    f"aten.{name}"
    for name in (
        *("view.default", "_unsafe_view.default", "reshape.default", "squeeze.default", "squeeze.dim", "squeeze.dims"),
        *("unsqueeze.default", "flatten.using_ints", "unflatten.int", "_reshape_alias.default", "expand.default"),
        *("narrow.default", "view_as.default", "ravel.default"),
    )
)


@dataclass(frozen=True, slots=True)
class Way:
    """One step from what has the shape `source` to a view of it of the shape `shape`."""

    operation: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    source: tuple[int, ...]
    shape: tuple[int, ...]


class Memory:
    """Memory that one or more secret tensors share.

    Attributes:
        whole: a tensor without values (device meta): the shape and strides of all of it.
        version: how often it was written to.
    """

    __slots__ = ("_hold", "secrets", "version", "whole")

    def __init__(self, secrets: Secrets, value: Value, whole: torch.Tensor) -> None:
        self.secrets = secrets
        self.whole = whole
        self.version = 0
        self._hold = secrets.hold(value)

    @property
    def value(self) -> Value:
        """All of it, now."""
        return self._hold.value

    def write(self, value: Value) -> None:
        self._hold.value = value
        self.version += 1


@dataclass(slots=True)
class View:
    """A tensor's part of its memory.

    Attributes:
        meta: its shape, strides and offset, in the memory of `memory.whole`; without values.
        ways: from the whole to it; empty for the whole itself.
    """

    memory: Memory
    meta: torch.Tensor
    ways: tuple[Way, ...] = ()
    _seen: tuple[int, ref[Value]] | None = field(default=None)

    @staticmethod
    def whole(secrets: Secrets, value: Value, meta: torch.Tensor) -> View:
        """All of memory of its own."""
        return View(Memory(secrets, value, meta), meta)

    def then(self, meta: torch.Tensor, operation: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> View:
        """A view of this one. `args` are those after the tensor; `meta` is what it gives."""
        if operation not in _KNOWN:
            return View(self.memory, meta, (View(self.memory, meta)._by_places(),))
        way = Way(operation, tuple(args), dict(kwargs), tuple(self.meta.shape), tuple(meta.shape))
        return View(self.memory, meta, (*self.ways, way))

    def read(self, record: Record) -> Value:
        """Its elements, now."""
        memory = self.memory
        if not self.ways:
            return memory.value
        known = self._seen[1]() if self._seen is not None and self._seen[0] == memory.version else None
        if known is None:
            known = memory.value
            for way in self.ways:
                known = _along(way, known, record)
            self._seen = memory.version, ref(known)
        return known

    def write(self, value: Value, record: Record) -> None:
        """It has these elements from now on, and so have all that share memory with it.

        Raises:
            BadRequest: some of its elements share memory with each other, as those of an expanded tensor do.
        """
        if any(step == 0 and size > 1 for size, step in zip(self.meta.shape, self.meta.stride(), strict=True)):
            raise BadRequest(
                "more than one element of the secret that is changed in place are the same memory (expand() made it): "
                "clone() it first"
            )
        ways = self.ways
        if any(way.operation == "aten.expand.default" for way in ways):
            ways = (self._by_places(),)
        sources = [self.memory.value]
        for way in ways[:-1]:
            sources.append(_along(way, sources[-1], record))
        for way, source in zip(reversed(ways), reversed(sources), strict=False):
            value = _back(way, source, value, record)
        self.memory.write(value)

    def _by_places(self) -> Way:
        whole = self.memory.whole
        return Way(PLACES, (_places(whole, self.meta),), {}, tuple(whole.shape), tuple(self.meta.shape))


def _along(way: Way, source: Value, record: Record) -> Value:
    """The view's elements."""
    if way.operation == PLACES:
        flat = record("aten.reshape.default", source, [-1])
        return record("aten.index.Tensor", flat, [Value.public(way.args[0])])
    if way.operation in _RESHAPES and way.operation not in ("aten.expand.default", "aten.narrow.default"):
        return record("aten.reshape.default", source, list(way.shape))
    return record(way.operation, source, *way.args, **way.kwargs)


def _back(way: Way, source: Value, value: Value, record: Record) -> Value:
    """`source` with the view's elements replaced by those of `value`."""
    args = way.args
    match way.operation:
        case "aten.select.int":
            return record("aten.select_scatter.default", source, value, *args, **way.kwargs)
        case "aten.slice.Tensor":
            return record("aten.slice_scatter.default", source, value, *args, **way.kwargs)
        case "aten.diagonal.default":
            return record("aten.diagonal_scatter.default", source, value, *args, **way.kwargs)
        case "aten.t.default":
            return record(way.operation, value)
        case "aten.transpose.int":
            return record(way.operation, value, *args)
        case "aten.permute.default":
            order = [dim % len(way.shape) for dim in args[0]]
            return record(way.operation, value, [order.index(dim) for dim in range(len(order))])
        case "places":
            flat = record("aten.reshape.default", source, [-1])
            given = record("aten.reshape.default", value, [-1])
            made = record("aten.index_put.default", flat, [Value.public(args[0].flatten())], given)
            return record("aten.reshape.default", made, list(way.source))
    return record("aten.reshape.default", value, list(way.source))


_KNOWN: Final = _RESHAPES - {"aten.narrow.default"} | {
    *("aten.select.int", "aten.slice.Tensor", "aten.diagonal.default"),
    *("aten.t.default", "aten.transpose.int", "aten.permute.default"),
}


def _places(whole: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """Where a view's elements are among those of the whole, counted row by row."""
    extent = 1 + max(
        each.storage_offset() + sum((size - 1) * step for size, step in zip(each.shape, each.stride(), strict=True))
        for each in (whole, view)
    )
    numbers = torch.full((extent,), -1)
    count = torch.arange(whole.numel()).view(whole.shape)
    numbers.as_strided(whole.shape, whole.stride(), whole.storage_offset()).copy_(count)
    places = numbers.as_strided(view.shape, view.stride(), view.storage_offset()).clone()
    if places.numel() and int(places.min()) < 0:
        raise BadRequest("this view reaches beyond the elements of the secret")
    return places
