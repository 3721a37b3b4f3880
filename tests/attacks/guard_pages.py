"""Memory for tensors between pages that must not be touched: reading past either end is a signal, and not luck.

Between a tensor and the edge of its pages lie bytes that the caller chooses, so that a short step beyond it shows in
the result as well.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any, Final

import torch

PAGE: Final = mmap.PAGESIZE
_SMALL, _LARGE = 16 * PAGE, 512 * PAGE
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Arena:
    """Slots between forbidden pages: each tensor of one call gets one; `reset` before the next call."""

    def __init__(self, small: int = 64, large: int = 8) -> None:
        self._slots = {_SMALL: _Slots(small, _SMALL), _LARGE: _Slots(large, _LARGE)}
        self.slack = 0

    def reset(self, slack: int) -> None:
        """All slots are free; what lies around the next tensors are bytes of this value."""
        self.slack = slack
        for slots in self._slots.values():
            slots.used = 0

    def place(self, content: torch.Tensor, at_end: bool) -> torch.Tensor:
        """A copy of this 1-d tensor that ends where the forbidden page begins, or begins where the other ends.

        MemoryError where no slot is left.
        """
        nbytes = content.numel() * content.element_size()
        if not nbytes:
            return content.clone()
        for size, slots in self._slots.items():
            if nbytes <= size and slots.used < slots.count:
                start = slots.take() + (size - nbytes if at_end else 0)
                page = start - start % PAGE
                ctypes.memset(slots.address + page, self.slack, -(-(start + nbytes - page) // PAGE) * PAGE)
                raw = torch.frombuffer(slots.region, dtype=torch.uint8, count=nbytes, offset=start)
                raw.copy_(content.view(torch.uint8))
                return raw.view(content.dtype)
        raise MemoryError("no slot is left")


class _Slots:
    def __init__(self, count: int, size: int) -> None:
        self.count, self.size, self.used = count, size, 0
        self.region: Any = mmap.mmap(-1, count * (size + PAGE) + PAGE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.region))
        for number in range(count + 1):
            if _libc.mprotect(self.address + number * (size + PAGE), PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")

    def take(self) -> int:
        """The offset of a free slot in the region."""
        self.used += 1
        return (self.used - 1) * (self.size + PAGE) + PAGE
