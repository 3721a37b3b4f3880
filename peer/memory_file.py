"""One memory file of a value: its descriptor, what is mapped of it, and the value without a descriptor."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from typing import Final

from peer.worker import memory
from protocol import limits
from protocol.errors import InternalError

_SMALLEST: Final = 64 * limits.KIB


def capacity_for(nbytes: int) -> int:
    """The size class: eighths of a power of two, so that at most an eighth is wasted."""
    if nbytes <= _SMALLEST:
        return _SMALLEST
    step = 1 << max((nbytes - 1).bit_length() - 4, mmap.PAGESIZE.bit_length() - 1)
    return -(-nbytes // step) * step


class MemoryFile:
    """A memory file, its mapping, and how far its pages are there already.

    Attributes:
        fd: None where the file was given up: what it held is in `pages` then.
        pages: what is mapped of it, or a copy.
        is_sealed: whether it is fixed, so that it can be mapped to be read only.
        is_complete: whether it is as it will stay.
    """

    __slots__ = ("capacity", "fd", "is_complete", "is_sealed", "pages", "warm")

    def __init__(self, fd: int, capacity: int, *, is_sealed: bool = False) -> None:
        self.fd: int | None = fd
        self.capacity = capacity
        self.warm = 0
        self.pages: ctypes.Array[ctypes.c_char] | bytes | None = None
        self.is_sealed = self.is_complete = is_sealed

    @property
    def file(self) -> int:
        assert self.fd is not None, "the file was given up"
        return self.fd

    def map(self) -> memoryview:
        """All of it. InternalError."""
        if self.pages is None:
            # A class of sizes: ctypes makes a type for each. Nobody looks behind the end.
            nbytes = capacity_for(self.capacity)
            try:
                self.pages = memory.map_shared(self.file, nbytes, is_writable=not self.is_sealed)
            except OSError as error:
                raise InternalError(f"no memory to map {nbytes} bytes: {error.strerror}") from None
        return memoryview(self.pages).cast("B")

    def has_views(self) -> bool:
        return self.pages is not None and sys.getrefcount(self.pages) > 2  # this object's, and getrefcount's own

    def gave_up(self, nbytes: int) -> bool:
        """Keep its first `nbytes`, all that anybody looks at, without a descriptor. False: there is no memory."""
        try:
            if nbytes <= limits.BUFFER_COPY and not self.has_views():
                self.pages = os.pread(self.file, nbytes, 0)
            elif self.pages is None:
                self.map()
        except (OSError, InternalError):
            return False
        self._close_file()
        return True

    def file_again(self, nbytes: int) -> None:
        """The opposite: a file of its first `nbytes`, which is not sealed. OSError."""
        fd = memory.new_file("grid-buffer")
        try:
            memory.write_all(fd, self.map()[:nbytes])
        except BaseException:
            os.close(fd)
            raise
        self.fd, self.is_sealed = fd, False

    def close(self) -> None:
        """A reader may still have a view: the memory goes with the last of them."""
        self._close_file()
        self.pages = None

    def _close_file(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
