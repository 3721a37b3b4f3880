"""What the system has in memory of a file: who read how much of it."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path


def cool(path: Path) -> None:
    """The system forgets what it has read of the file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached(path: Path) -> int:
    """How many bytes of the file it has in memory: what anybody read since `cool`."""
    size = path.stat().st_size
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapping:
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        first = ctypes.c_char.from_buffer(mapping)
        address = ctypes.c_void_p(ctypes.addressof(first))
        assert ctypes.CDLL(None).mincore(address, ctypes.c_size_t(size), pages) == 0
        del first
    return sum(page & 1 for page in bytes(pages)) * mmap.PAGESIZE
