"""Operations that take rows of a tensor by their numbers: of a stored file they need these rows checked, not all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from compute import table
from peer.worker.mapped import Guarded

_MOST: Final = 16_384  # rows that are looked at one by one
_AROUND: Final = 64 * 1024  # bytes that the system maps around a page that is read

# operation -> the names of its parameters: rows of what, and which
_PICKING: Final = {
    "aten.index_select.default": ("self", "index"),
    "aten.embedding.default": ("weight", "indices"),
    "aten.index.Tensor": ("self", "indices"),
    "aten._unsafe_index.Tensor": ("self", "indices"),
}


def picked(
    entry: table.Entry, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The tensor that the operation takes rows of, and their numbers; None where it reads more than a few rows."""
    names = _PICKING.get(entry.name)
    if names is None:
        return None
    call = entry.named(args, kwargs)
    rows, numbers = call[names[0]], call[names[1]]
    if isinstance(numbers, list | tuple):
        numbers = numbers[0] if len(numbers) == 1 else None
    if not isinstance(rows, torch.Tensor) or not isinstance(numbers, torch.Tensor) or not rows.dim():
        return None
    if call.get("dim", 0) not in (0, -rows.dim()) or numbers.numel() > _MOST:
        return None
    return (rows, numbers) if numbers.dtype in (torch.int64, torch.int32) else None


def check_rows(whole: Guarded, numbers: torch.Tensor) -> None:
    """Check the rows of these numbers, and count them as read. Those that are not there are the operation's to refuse.

    Raises:
        Corrupt, BadTensor: as Guarded.check.
    """
    count = whole.tensor.shape[0]
    for number in torch.unique(numbers).tolist():
        if -count <= number < count:
            Guarded(whole.tensor[number], whole.guard).check()
            whole.guard.read(_AROUND)
