"""Memory for a value that is about to come: its pages are made ready beside the receiving, by another thread.

The system gives fresh memory page by page, when it is first written to, and clears each: that takes longer than the
bytes' way over a local line. Pages of 2 MiB would be faster at best and many times slower at worst, where the system
has to find them first; figures: docs/decisions/0009-the-bulk-path.md.
"""

from __future__ import annotations

import asyncio
import ctypes
import mmap
from typing import Final

from protocol import limits

_LARGE: Final = 4 * limits.MIB  # below this the thread would come too late
_AT_ONCE: Final = 2 * limits.MIB
_MADV_POPULATE_WRITE: Final = 23  # Linux 5.14; others say that they do not know it


def fresh(nbytes: int) -> memoryview:
    """Writable memory of that size; what is in it is 0. It lives as long as any view of it. From a coroutine."""
    if nbytes < _LARGE:
        return memoryview(bytearray(nbytes))
    view = memoryview(mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    asyncio.get_running_loop().run_in_executor(None, _make_ready, view)
    return view


def _make_ready(memory: memoryview) -> None:
    """The system calls leave the interpreter to others. Whoever is faster makes a page; the other finds it there."""
    populate = getattr(ctypes.CDLL(None), "madvise", None)
    if populate is None:
        return
    start = ctypes.c_char.from_buffer(memory)
    address = ctypes.addressof(start)
    for at in range(0, len(memory), _AT_ONCE):
        size = min(_AT_ONCE, len(memory) - at)
        if populate(ctypes.c_void_p(address + at), ctypes.c_size_t(size), _MADV_POPULATE_WRITE):
            return
