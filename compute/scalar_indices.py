"""x[i], where i is a whole number in a tensor, as torch.Tensor indexes: torch itself reads the number, which a function
that is captured has not. Selected by index_select, whose shape tells nothing of i.
"""

from __future__ import annotations

from types import EllipsisType
from typing import Any

import torch

_INTEGERS = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8})


def has_scalar(index: Any) -> bool:
    """Whether there is such a number in the index, beside slices, numbers, None and ... only."""
    items = index if isinstance(index, tuple) else (index,)
    plain = (int, torch.SymInt, slice, EllipsisType, type(None))
    is_number = [isinstance(item, torch.Tensor) and _is_number(item) for item in items]
    return any(is_number) and all(
        number or (isinstance(item, plain) and not isinstance(item, bool))
        for item, number in zip(items, is_number, strict=True)
    )


def _is_number(item: torch.Tensor) -> bool:
    return item.dim() == 0 and item.dtype in _INTEGERS


def taken(x: torch.Tensor, index: Any) -> torch.Tensor:
    """x[index]."""
    view, numbers = split(x, index)
    for dim, number in reversed(numbers):
        view = view.index_select(dim, _place(number, view.shape[dim])).squeeze(dim)
    return view


def put(x: torch.Tensor, index: Any, value: Any) -> bool:
    """x[index] = value; False, and nothing is done, where more than one number is in a tensor."""
    view, numbers = split(x, index)
    if len(numbers) > 1:
        return False
    ((dim, number),) = numbers
    shape = (*view.shape[:dim], *view.shape[dim + 1 :])
    plain = value.to(view.dtype) if isinstance(value, torch.Tensor) else torch.full((), value, dtype=view.dtype)
    while plain.dim() > len(shape) and plain.shape[0] == 1:
        plain = plain.squeeze(0)
    view.index_copy_(dim, _place(number, view.shape[dim]), plain.expand(shape).unsqueeze(dim))
    return True


def split(x: torch.Tensor, index: Any) -> tuple[torch.Tensor, list[tuple[int, torch.Tensor]]]:
    """x with the rest of the index applied, and at which of its dimensions which number is to be taken."""
    items = list(index) if isinstance(index, tuple) else [index]
    used = sum(1 for item in items if item is not None and item is not Ellipsis)
    if not any(item is Ellipsis for item in items):
        items.append(Ellipsis)
    at, numbers = 0, []
    for item in items:
        if item is Ellipsis:
            at += x.dim() - used
        elif isinstance(item, torch.Tensor):
            numbers.append((at, item))
            at += 1
        elif isinstance(item, slice) or item is None:
            at += 1
    rest = [slice(None) if isinstance(item, torch.Tensor) else item for item in items]
    return x if all(item is Ellipsis or item == slice(None) for item in rest) else x[tuple(rest)], numbers


def _place(number: torch.Tensor, size: Any) -> torch.Tensor:
    number = number.to(torch.int64)
    return torch.where(number < 0, number + size, number).reshape(1)
