"""x[i], where i is a whole number in a tensor at a peer: torch reads the number, which nobody here has.

It is looked up at the peer, and so what it gives is a copy and no view: whoever would change it in place is told to
assign instead, and so is whoever uses it after x was changed. `x[i] = value` and `x[i] += value` write as anywhere. In
a thread that may wait, torch's own way stays: it waits for the number, and gives a view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch

from compute import scalar_indices
from grid.blocking import can_block
from grid.handle import LOOKED_UP, UNSTORED, Handle
from grid.local_forms import LocalForms

_WHOLE: Final = frozenset({torch.int64, torch.int32, torch.int16, torch.int8})
_read: Final[Any] = torch.Tensor.__getitem__
_write: Final[Any] = torch.Tensor.__setitem__


class LookedUp:
    """Mixed into pointers that have rows, before torch.Tensor."""

    _handle: Handle

    def __getitem__(self, index: Any) -> Any:
        if not _has_number(index) or can_block():
            return _read(self, index)
        made = torch.ops.aten.index.Tensor(*_places(self, index))
        unchanged = _unchanged(self)
        for handle in _along(made):
            handle.fixed, handle.looked_up = LOOKED_UP, unchanged
        return made

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, LocalForms):
            value._handle.stored()
        if not _has_number(index) or can_block():
            _write(self, index, value)
            return
        view, places = _places(self, index)
        if not isinstance(value, torch.Tensor):
            value = torch.tensor(value, dtype=view.dtype)
        elif isinstance(value, LocalForms):
            value = value.clone()  # it may be a view of the same memory
        torch.ops.aten.index_put_(view, places, value)


def _unchanged(x: Any) -> Callable[[], bool]:
    """Tells whether x is still as it is now: a view would show what was written to it since."""
    (*_, end) = _along(x)
    memory = end.shared_memory()
    before = memory.writes
    return lambda: memory.writes == before


def _along(pointer: Any) -> Iterator[Handle]:
    """What it points to; of a chain what each of its pointers does, the data themselves last."""
    while pointer is not None:
        yield pointer._handle
        pointer = pointer._handle.target


def _has_number(index: Any) -> bool:
    """Whether such a number is in the index, and nothing else that torch would look up."""
    if type(index) is tuple:
        return any(_is_number(item) for item in index) and scalar_indices.has_scalar(index)
    return _is_number(index)


def _is_number(item: Any) -> bool:
    return isinstance(item, LocalForms) and not item.dim() and item.dtype in _WHOLE  # type: ignore[attr-defined]


def _places(x: Any, index: Any) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """x with the rest of the index applied, and the numbers where aten.index wants them."""
    view, numbers = scalar_indices.split(x, index)
    places: list[torch.Tensor | None] = [None] * (1 + max(dim for dim, _ in numbers))
    for dim, number in numbers:
        places[dim] = number.long()
    return view, places


def _augmented(name: str) -> Callable[[Any, Any], Any]:
    plain = getattr(torch.Tensor, name)

    def augment(self: Any, other: Any) -> Any:
        if self._handle.fixed is not LOOKED_UP:
            return plain(self, other)
        made = plain(self.clone(), other)
        made._handle.fail(UNSTORED)  # until it is assigned, which is what x[i] += other does next
        return made

    return augment


class Augmented:
    """Mixed into Pointer, before torch.Tensor: what x[i] gave is not changed by +=, but what is assigned then."""


for _name in "add sub mul truediv floordiv mod pow and or xor lshift rshift".split():
    setattr(Augmented, f"__i{_name}__", _augmented(f"__i{_name}__"))
