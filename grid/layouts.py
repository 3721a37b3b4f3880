"""What pointers look like: one object for all of the same dtype, shape, strides and bits (compute/lazy.py).

Calls that were dispatched before are known by what their arguments look like (repeated.py); to ask torch for that, and
to hash and compare it, took longer than all else about a call.
"""

from __future__ import annotations

from typing import Final

import torch

from protocol import limits


class Layout:
    """Compared as the object that it is."""

    __slots__ = ()

    def __deepcopy__(self, memo: object) -> Layout:
        return self


_layouts: Final[dict[tuple[torch.dtype, torch.Size, tuple[int, ...], int], Layout]] = {}


def layout(dtype: torch.dtype, shape: torch.Size, stride: tuple[int, ...], bits: int) -> Layout:
    """The one of all tensors that look like this. Once in a while there is another: that is no error, only news."""
    key = dtype, shape, stride, bits
    found = _layouts.get(key)
    if found is None:
        if len(_layouts) >= limits.MAX_PLANS:
            _layouts.clear()
        found = _layouts[key] = Layout()
    return found
