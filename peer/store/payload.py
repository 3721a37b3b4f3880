"""The bytes of a stored object on their way out."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from peer.store.blobs import BlobFile


class BlobPayload:
    """`prefix`, then `nbytes` bytes of an open blob from `start` on, to be read in pieces (peer/payloads.py).

    Takes the file over, and closes it in `close`.
    """

    def __init__(self, file: BlobFile, start: int, nbytes: int, prefix: bytes = b"") -> None:
        self._file = file
        self._start = start
        self._prefix = prefix
        self.nbytes = len(prefix) + nbytes

    async def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on; both within the payload."""
        head = self._prefix[offset : offset + size]
        if len(head) == size:
            return head
        at = self._start + max(0, offset - len(self._prefix))
        rest = await self._file.read(at, size - len(head))
        return head + rest if head else rest

    def close(self) -> None:
        self._file.close()


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
