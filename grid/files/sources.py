"""Bytes of a tensor that lie in a file, read in pieces: each a `peer.payloads.Payload`, and each can be read again
from any offset, because a transfer that broke goes on where it broke.

    FileRange   a part of a file as it is, or turned to this machine's byte order
    Strided     an array in column order, given in row order
    Streamed    what is only to be had in order (compressed, or text): it is begun again to go back
    Named       another one, with the file's name in its errors
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import zlib
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np

from peer.payloads import Payload
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import BadFile, GridError

Fix = Callable[[bytes], Buffer]
"""Makes whole elements of a file those of the wire, as many bytes."""

_TRUTH: Final = bytes([0]) + bytes([1]) * 255
_WORDS: Final = {2: "H", 4: "I", 8: "Q"}
_BAND: Final = 8 * limits.MIB  # of a Strided: what is turned at once
_TOUCHED: Final = 16 * limits.MIB  # of a Strided: what may be mapped at once, so that memory stays bounded
_FAULT: Final = 2 * limits.MIB  # that the kernel may map around one byte that was touched: a large folio
_KEPT: Final = 2 * limits.WINDOW  # of a Streamed: how far it goes back without beginning again


def truth(data: bytes) -> bytes:
    """Booleans as 0 and 1. A file may hold any byte; computing on one that is neither is undefined."""
    return data.translate(_TRUTH)


def swap(width: int) -> Fix:
    """Turns the bytes of numbers of 2, 4 or 8 bytes round."""

    def swapped(data: bytes) -> Buffer:
        words = array(_WORDS[width], data)
        words.byteswap()
        return memoryview(words).cast("B")

    return swapped


class FileRange:
    """`nbytes` bytes of the file from `start` on. `unit` is the size of what `fix` turns.

    `crc` is that of everything read up to `start`, and that at the end; it is checked where all is read in order.
    Raises BadFile where the file changes while it is read.
    """

    def __init__(
        self,
        path: Path,
        start: int,
        nbytes: int,
        fix: Fix | None = None,
        unit: int = 1,
        crc: tuple[int, int] | None = None,
    ) -> None:
        self.nbytes = nbytes
        self._path = path
        self._start = start
        self._fix = fix
        self._unit = unit
        self._crc = crc
        self._summed = 0
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._first = _stamp(self._fd)
        with contextlib.suppress(OSError, AttributeError):
            os.posix_fadvise(self._fd, start, nbytes, os.POSIX_FADV_SEQUENTIAL)

    async def read(self, offset: int, size: int) -> Buffer:
        if self._fix is None:
            return self._read(offset, size)
        low = offset - offset % self._unit
        high = min(self.nbytes, -(-(offset + size) // self._unit) * self._unit)
        fixed = memoryview(self._fix(self._read(low, high - low)))
        return fixed[offset - low : offset - low + size]

    def _read(self, offset: int, size: int) -> bytes:
        # In the loop: the kernel reads ahead, and handing each piece to a thread costs as much as reading it.
        data = os.pread(self._fd, size, self._start + offset)
        while 0 < len(data) < size and (more := os.pread(self._fd, size - len(data), self._start + offset + len(data))):
            data += more
        if len(data) != size:
            raise BadFile(f"{self._path} became shorter while it was read")
        if self._crc is not None and offset == self._summed:
            self._crc = zlib.crc32(data, self._crc[0]), self._crc[1]
            self._summed += size
        if offset + size == self.nbytes:
            self._check_end()
        return data

    def _check_end(self) -> None:
        if _stamp(self._fd) != self._first:
            raise BadFile(f"{self._path} was changed while it was read: put it again when it is finished")
        if self._crc is not None and self._summed == self.nbytes and self._crc[0] != self._crc[1]:
            raise BadFile(f"{self._path} is damaged: a checksum in it is not that of its bytes")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _stamp(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns


class Strided:
    """An array that lies in column order (Fortran's), given in row order: turned in bands, mapped a part at a time.

    Where a row spans more than a band, much of the file is passed over for each band: right, and slow.
    """

    def __init__(self, fd: int, start: int, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        """Takes the descriptor over."""
        self._map = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
        os.close(fd)
        with contextlib.suppress(AttributeError, OSError):
            self._map.madvise(mmap.MADV_NOHUGEPAGE)  # else a byte that is touched maps two megabytes
        self._array: np.ndarray[Any, Any] | None = np.ndarray(
            tuple(shape), dtype, buffer=self._map, offset=start, order="F"
        )
        self.nbytes = self._array.nbytes
        # The first axes are gone through one by one, `_axis` in groups of `_group`, what is behind it whole.
        inner = [math.prod(shape[axis + 1 :]) * dtype.itemsize for axis in range(len(shape))]
        self._axis = next(axis for axis, nbytes in enumerate(inner) if nbytes <= _BAND)
        self._row = inner[self._axis]
        self._group = max(1, _BAND // self._row)
        self._band: tuple[int, memoryview] = 0, memoryview(b"")

    async def read(self, offset: int, size: int) -> Buffer:
        pieces = []
        while size:
            start, band = self._band
            if not start <= offset < start + len(band):
                self._band = 0, memoryview(b"")  # before the next one is made
                start, band = self._band = self._turn(offset)
            piece = band[offset - start : offset - start + size]
            pieces.append(piece)
            offset, size = offset + len(piece), size - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _turn(self, offset: int) -> tuple[int, memoryview]:
        """The band around an offset, and where it starts."""
        assert self._array is not None
        shape = self._array.shape
        outer, at = divmod(offset // self._row, shape[self._axis])
        at -= at % self._group
        index = np.unravel_index(outer, shape[: self._axis]) if self._axis else ()
        part = self._array[(*index, slice(at, at + self._group))]
        turned = np.empty(part.shape, part.dtype.newbyteorder("="))
        self._copy(turned, part)
        if turned.dtype == np.bool_:
            turned = turned.view(np.uint8) != 0
        return (outer * shape[self._axis] + at) * self._row, turned.reshape(-1).view(np.uint8).data

    def _copy(self, target: np.ndarray[Any, Any], part: np.ndarray[Any, Any]) -> None:
        axis = max((axis for axis, length in enumerate(part.shape) if length > 1), default=None)
        runs = math.prod(part.shape[1:])
        if axis is None or min(runs * _FAULT + part.nbytes, _span(part)) <= _TOUCHED:
            target[...] = part
            self._map.madvise(mmap.MADV_DONTNEED)
            return
        middle = part.shape[axis] // 2
        for half in (slice(None, middle), slice(middle, None)):
            index = (*[slice(None)] * axis, half)
            self._copy(target[index], part[index])

    def close(self) -> None:
        self._array = None
        self._map.close()


def _span(part: np.ndarray[Any, Any]) -> int:
    """From the first byte of a view to its last."""
    steps = zip(part.shape, part.strides, strict=True)
    return int(sum((length - 1) * stride for length, stride in steps) + part.itemsize)


class Streamed:
    """What comes in order. `begin` gives its blocks from the start; together they are exactly `nbytes`.

    A block that ends the whole is asked for once more, so that what is wrong at the end is found.
    """

    def __init__(self, path: Path, begin: Callable[[], Iterator[Buffer]], nbytes: int) -> None:
        self.nbytes = nbytes
        self._path = path
        self._begin = begin
        self._blocks: Iterator[Buffer] | None = None
        self._kept: deque[tuple[int, memoryview]] = deque()
        self._end = 0

    async def read(self, offset: int, size: int) -> Buffer:
        if self._blocks is None or (self._kept and offset < self._kept[0][0]):
            self._rewind()
        while self._end < offset + size:
            self._advance(offset)
        if offset + size == self.nbytes:
            self._check_end()
        starts = [(start, block) for start, block in self._kept if start + len(block) > offset]
        pieces = [block[max(0, offset - start) :] for start, block in starts if start < offset + size]
        return pieces[0][:size] if len(pieces[0]) >= size else b"".join(pieces)[:size]

    def _rewind(self) -> None:
        self._kept.clear()
        self._blocks, self._end = self._begin(), 0

    def _advance(self, wanted: int) -> None:
        """The next block; those far before the byte that is wanted are let go."""
        assert self._blocks is not None
        block = memoryview(next(self._blocks, b"")).cast("B")
        if not block:
            raise BadFile(f"{self._path} says that it holds {self.nbytes} bytes, but only {self._end} follow")
        self._kept.append((self._end, block))
        self._end += len(block)
        while len(self._kept) > 1 and self._kept[1][0] <= min(wanted, self._end - _KEPT):
            self._kept.popleft()

    def _check_end(self) -> None:
        assert self._blocks is not None
        if self._end > self.nbytes or len(next(self._blocks, b"")):
            raise BadFile(f"{self._path} says that it holds {self.nbytes} bytes, but more follow")
        self._blocks = chain(())

    def close(self) -> None:
        self._kept.clear()
        self._blocks = None


class Named:
    """Another payload, whose foreign errors `name` makes the grid's own, with the file that they come from."""

    def __init__(self, inner: Payload, name: Callable[[Exception], GridError]) -> None:
        self._inner = inner
        self._name = name
        self.nbytes = inner.nbytes

    async def read(self, offset: int, size: int) -> Buffer:
        try:
            return await self._inner.read(offset, size)
        except Exception as error:
            raise self._name(error) from None

    def close(self) -> None:
        self._inner.close()
