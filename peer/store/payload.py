"""The bytes of a stored object on their way out."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from peer.store.blob_file import BlobFile
from peer.store.waiting import undisturbed


class BlobPayload:
    """`prefix`, then `nbytes` bytes of an open blob from `start` on, to be read in pieces (peer/payloads.py).

    While one piece is sent, the next is read: whoever reads in order waits for the disk or the network, not for
    both. Takes the file over, and closes it in `close`.
    """

    def __init__(self, file: BlobFile, start: int, nbytes: int, prefix: bytes = b"") -> None:
        self._file = file
        self._start = start
        self._prefix = prefix
        self.nbytes = len(prefix) + nbytes
        self._next: tuple[int, int] | None = None  # offset and size of the piece that is being read ahead
        self._ahead: asyncio.Future[bytes] | None = None

    async def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on; both within the payload. One at a time."""
        head = self._prefix[offset : offset + size]
        if len(head) == size:
            return head
        if head:
            return head + await self._piece(len(self._prefix), size - len(head))
        return await self._piece(offset, size)

    async def _piece(self, offset: int, size: int) -> bytes:
        reading = self._ahead if self._next == (offset, size) else None
        if reading is None:
            await self._settle()
            reading = self._begin(offset, size)
        data = await undisturbed(reading)
        self._ahead = self._next = None
        rest = min(size, self.nbytes - offset - size)
        if rest:
            self._next = (offset + size, rest)
            self._ahead = self._begin(*self._next)
        return data

    def _begin(self, offset: int, size: int) -> asyncio.Future[bytes]:
        return self._file.begin_read(self._start + offset - len(self._prefix), size)

    async def _settle(self) -> None:
        ahead, self._ahead, self._next = self._ahead, None, None
        if ahead is not None:
            await asyncio.wait({ahead})
            _look_at(ahead)

    def close(self) -> None:
        if self._ahead is None:
            self._file.close()
        else:
            self._ahead.add_done_callback(self._close_after)

    def _close_after(self, ahead: asyncio.Future[bytes]) -> None:
        _look_at(ahead)
        self._file.close()


def _look_at(ahead: asyncio.Future[bytes]) -> None:
    """Nobody wants this piece any more, nor to hear why it could not be read."""
    if not ahead.cancelled():
        ahead.exception()


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
