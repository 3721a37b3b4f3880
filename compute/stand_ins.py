"""What stands for a program's values while it is followed on shapes alone: meta tensors that know what memory they lie
in, and Unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from compute import iterating
from compute.cost import NOTHING, Cost
from compute.table import Entry
from compute.unknown import UNKNOWN, Unknown, UnknownList
from protocol import limits


class Books:
    """What the values hold now, and at most; what it has cost so far."""

    __slots__ = ("cost", "left", "live", "memories", "peak")

    def __init__(self) -> None:
        self.live = self.peak = self.memories = 0
        self.cost = NOTHING
        self.left = limits.MAX_FOLLOWED

    def need(self, nbytes: int) -> None:
        self.peak = max(self.peak, self.live + nbytes)

    def spend(self, cost: Cost, times: int = 1) -> None:
        self.cost = Cost(self.cost.work + times * cost.work, self.cost.seconds + times * cost.seconds)


class Memory:
    """What a value, and the views of it, lie in. It counts for as long as one of them is there."""

    __slots__ = ("_books", "nbytes", "number")

    def __init__(self, nbytes: int, books: Books) -> None:
        self.nbytes = nbytes
        self.number = books.memories = books.memories + 1
        self._books = books
        books.live += nbytes

    def __del__(self) -> None:
        self._books.live -= self.nbytes


def stand_in_for(value: Any, books: Books) -> Any:
    return on(Memory(0, books), meta(value)) if isinstance(value, torch.Tensor) else value


def meta(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def on(memory: Memory, tensor: torch.Tensor) -> torch.Tensor:
    tensor.of_program = memory  # type: ignore[attr-defined]  # gone with it: that is how it is counted
    return tensor


def memory_of(tensor: torch.Tensor) -> Memory:
    memory: Memory = tensor.of_program  # type: ignore[attr-defined]
    return memory


def kind_of(value: Any) -> Any:
    return Unknown if isinstance(value, Unknown) else iterating.kind_of(value)


def look_of(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.stride()
    return type(value), None if isinstance(value, Unknown) else value


def tensors_in(values: Sequence[Any]) -> list[torch.Tensor]:
    """Those among these and in lists of them, in order."""
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple) and not isinstance(value, UnknownList):
            found += tensors_in(value)
    return found


def has_unknown(values: Sequence[Any]) -> bool:
    return any(
        isinstance(value, Unknown | UnknownList) or (isinstance(value, list | tuple) and has_unknown(value))
        for value in values
    )


def with_stand_ins(entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments with something of the kind that is wanted in the place of what is unknown: the others can be
    checked then."""
    kinds = {parameter.name: parameter.kind for parameter in entry.parameters}
    by_position = [*kinds.values(), *[""] * len(args)]
    filled = [_filled(value, kind) for value, kind in zip(args, by_position, strict=False)]
    return filled, {name: _filled(value, kinds.get(name, "")) for name, value in kwargs.items()}


def _filled(value: Any, kind: str) -> Any:
    if isinstance(value, UnknownList):
        return []
    if isinstance(value, Unknown):
        if "Tensor" in kind:
            return [_SCALAR] if "List" in kind else _SCALAR
        return [1] if "List" in kind else 1
    if isinstance(value, list):
        inner = kind.replace("List[", "", 1)
        return [_filled(item, inner) for item in value]
    return value


_SCALAR: Final = torch.empty((), device="meta")


def unknown_of(entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if entry.is_inplace:
        return entry.argument(0, args, kwargs)
    if entry.gives_list:
        return UnknownList()
    return UNKNOWN if entry.n_results == 1 else tuple([UNKNOWN] * entry.n_results)
