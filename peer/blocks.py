"""Memory for blocks on their way in: limits.CHUNK bytes each, used again as soon as nobody looks at them any more.

Fresh memory for every chunk would cost as much as the copy out of the kernel. A block is taken as a memoryview; when
the last view of it is gone, whoever had it, its memory is the next taker's.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Final

from protocol import limits

_KEPT: Final = 2 * limits.WINDOW // limits.CHUNK  # free blocks that are kept warm: two streams' worth

_Owner = ctypes.c_ubyte * limits.CHUNK  # a bytearray takes no weak reference; this, laid over one, does


class Blocks:
    """A bounded stock of blocks. There is no limit to what is taken: the windows of the streams bound that."""

    def __init__(self, keep: int = _KEPT) -> None:
        self._keep = keep
        self._free: list[bytearray] = []
        self._lent = 0

    def take(self) -> memoryview:
        """A block of limits.CHUNK bytes, writable. What is in it is some earlier holder's."""
        memory = self._free.pop() if self._free else bytearray(limits.CHUNK)
        owner = _Owner.from_buffer(memory)
        weakref.finalize(owner, self._take_back, memory).atexit = False
        self._lent += 1
        return memoryview(owner).cast("B")

    def _take_back(self, memory: bytearray) -> None:
        self._lent -= 1
        if len(self._free) < self._keep:
            self._free.append(memory)

    @property
    def lent(self) -> int:
        """How many blocks somebody still has a view of."""
        return self._lent

    @property
    def free(self) -> int:
        """How many are kept for the next takers."""
        return len(self._free)


_stock = Blocks()


def take() -> memoryview:
    """A block of this process's stock; see Blocks.take."""
    return _stock.take()
