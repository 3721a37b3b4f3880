"""The bytes of a stored object on their way out."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from peer.asking import forget
from peer.hashing import unpack_hashes
from peer.store.blob_file import BlobFile
from peer.store.waiting import undisturbed
from protocol import limits
from protocol.codec import Buffer

_AHEAD: Final = 8  # pieces that one job of a thread reads: a hop there and back costs as much as half of one


class BlobPayload:
    """`prefix`, then `nbytes` bytes of an open blob from `start` on, to be read in pieces (peer/payloads.py).

    While some pieces are sent, the next are read: whoever reads in order waits for the disk or the network, not for
    both. Takes the file over, and closes it in `close`.
    """

    def __init__(self, file: BlobFile, start: int, nbytes: int, prefix: bytes = b"") -> None:
        self._file = file
        self._start = start
        self._prefix = prefix
        self.nbytes = len(prefix) + nbytes
        self.hashes = None if prefix else _hashes(file, start, nbytes)
        self._ready: deque[Buffer] = deque()  # pieces that were read ahead; the first begins at `_at`
        self._at = 0
        self._ahead: asyncio.Future[list[Buffer]] | None = None  # those behind them, on their way
        self._ahead_at = 0

    async def read(self, offset: int, size: int) -> Buffer:
        """`size` bytes from `offset` on; both within the payload. One at a time."""
        data = self.now(offset, size)
        if data is not None:
            return data
        head = self._prefix[offset : offset + size]
        if len(head) == size:
            return head
        if head:
            return head + bytes(await self._piece(len(self._prefix), size - len(head)))
        return await self._piece(offset, size)

    def now(self, offset: int, size: int) -> Buffer | None:
        """The same of what has been read ahead; None of all else."""
        if not self._ready and self._ahead is not None and self._ahead.done():
            self._arrived()
        if not self._ready or offset != self._at or len(self._ready[0]) != size:
            return None
        self._at += size
        data = self._ready.popleft()
        self._read_on(size)
        return data

    async def _piece(self, offset: int, size: int) -> Buffer:
        if self._ahead is None or self._ahead_at != offset or self._ready:
            await self._settle()
            self._begin(offset, (size,))
        assert self._ahead is not None
        await undisturbed(self._ahead)
        self._arrived()
        if len(self._ready[0]) != size:  # the reader goes on in other pieces than before
            return await self._piece(offset, size)
        data = self.now(offset, size)
        assert data is not None
        return data

    def _arrived(self) -> None:
        assert self._ahead is not None
        ahead, self._ahead = self._ahead, None
        self._ready.extend(ahead.result())
        self._at = self._ahead_at

    def _read_on(self, size: int) -> None:
        """Begin to read what comes behind the pieces that are there."""
        if self._ahead is not None:
            return
        begin = self._at + sum(map(len, self._ready))
        end = min(begin + _AHEAD * size, self.nbytes)
        sizes = [min(size, end - at) for at in range(begin, end, size)]
        if sizes:
            self._begin(begin, sizes)

    def _begin(self, offset: int, sizes: Sequence[int]) -> None:
        self._ahead = self._file.begin_read(self._start + offset - len(self._prefix), sizes)
        self._ahead_at = offset

    async def _settle(self) -> None:
        """Forget what was read ahead."""
        ahead, self._ahead = self._ahead, None
        self._ready.clear()
        if ahead is not None:
            await asyncio.wait({ahead})
            forget(ahead)

    def close(self) -> None:
        self._ready.clear()
        if self._ahead is None:
            self._file.close()
        else:
            self._ahead.add_done_callback(self._close_after)

    def _close_after(self, ahead: asyncio.Future[list[Buffer]]) -> None:
        forget(ahead)
        self._file.close()


def _hashes(file: BlobFile, start: int, nbytes: int) -> Sequence[int] | None:
    """The hashes of the blocks of a span, where they are blocks of the file's payload."""
    layout = file.layout
    at = start - layout.start
    if at % limits.BLOCK or at + nbytes != layout.nbytes or not layout.is_whole():
        return None
    return unpack_hashes(layout.blocks)[at // limits.BLOCK :]


@contextmanager
def memory_file(data: bytes) -> Iterator[int]:
    """The descriptor of a file in memory that holds `data`, for a worker to map; closed at the end."""
    if sys.platform == "linux":
        fd = os.memfd_create("stored", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile(prefix="grid-") as file:
            fd = os.dup(file.fileno())
    try:
        os.pwrite(fd, data, 0)
        yield fd
    finally:
        os.close(fd)
