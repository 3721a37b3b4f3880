"""A blob open for reading: nothing leaves it whose block has not been checked."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from types import TracebackType
from typing import Any

from peer import blocks
from peer.hashing import HASH_BYTES, block_count, block_hash_at, hash_of
from peer.store.fs import disk_errors
from peer.store.waiting import undisturbed
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import BadRequest, Corrupt, StorageError


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the payload of a blob file is: `nbytes` from `start` on, with the hashes of its blocks."""

    start: int
    nbytes: int
    blocks: bytes

    def is_whole(self) -> bool:
        """Whether there is a hash for each block."""
        return len(self.blocks) == HASH_BYTES * block_count(self.nbytes)


class BlobFile:
    """A blob, open for reading. The file stays readable until `close`, even if the object is deleted.

    Attributes:
        content: its name.
        layout: where its payload is, and its block hashes.
    """

    __slots__ = ("_fd", "_last", "_threads", "content", "layout")

    def __init__(self, content: str, fd: int, layout: Layout, threads: ThreadPoolExecutor) -> None:
        self.content = content
        self.layout = layout
        self._fd = fd
        self._threads = threads
        self._last: tuple[int, memoryview] | None = None  # a block whose end was not asked for yet

    def fileno(self) -> int:
        """The descriptor: read-only, close-on-exec; to be mapped or sent to a worker, not to be closed.

        What is read through it has not been checked.
        """
        if self._fd < 0:
            raise ValueError("the blob is closed")
        return self._fd

    async def read(self, offset: int, nbytes: int) -> Buffer:
        """Exactly `nbytes` of the payload from `offset` in the file on, each block of them checked.

        BadRequest outside of the payload; Corrupt, which names the block, where they are not what was stored.
        """
        (data,) = await undisturbed(self.begin_read(offset, (nbytes,)))
        return data

    def begin_read(self, offset: int, sizes: Sequence[int]) -> asyncio.Future[list[Buffer]]:
        """The same of several pieces, one after another, begun at once. The file is to stay open until it is done."""
        at, nbytes = offset - self.layout.start, sum(sizes)
        if at < 0 or min(sizes) < 0 or at + nbytes > self.layout.nbytes:
            raise BadRequest(f"{nbytes} bytes from {offset} on are not within the payload of a blob")
        try:
            return asyncio.get_running_loop().run_in_executor(self._threads, self._read_all, at, sizes)
        except RuntimeError:  # that there are no threads any more
            raise StorageError("the store is closed") from None

    def _read_all(self, at: int, sizes: Sequence[int]) -> list[Buffer]:
        return [self._read(start, size) for start, size in zip(accumulate(sizes, initial=at), sizes, strict=False)]

    def _read(self, at: int, nbytes: int) -> Buffer:
        """Whole blocks are read, so that they can be checked; the rest of the last one is kept for the next reading."""
        end = at + nbytes
        pieces: list[Buffer] = []
        for number in range(at // limits.BLOCK, -(-end // limits.BLOCK) if nbytes else 0):
            low = number * limits.BLOCK
            block = self._block(number)
            self._last = (number, block) if end < low + len(block) else None
            is_part = at > low or end < low + len(block)
            pieces.append(memoryview(block)[max(at - low, 0) : end - low] if is_part else block)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _block(self, number: int) -> memoryview:
        last = self._last
        if last is not None and last[0] == number:
            return last[1]
        low = number * limits.BLOCK
        data = self._pread(min(limits.BLOCK, self.layout.nbytes - low), self.layout.start + low)
        if hash_of(data) != block_hash_at(self.layout.blocks, number):
            raise corrupt(self.content, f"has a damaged block {number}", block=number)
        return data

    def _pread(self, nbytes: int, offset: int) -> memoryview:
        data, done = blocks.take()[:nbytes], 0
        with disk_errors("the reading of a blob file"):
            while done < nbytes:
                count = os.preadv(self.fileno(), [data[done:]], offset + done)
                if not count:
                    raise corrupt(self.content, "was cut short")
                done += count
        return data

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        self._last = None
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> BlobFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<BlobFile {self.content[:12]} {self.layout.nbytes} bytes{' closed' if self._fd < 0 else ''}>"


def corrupt(content: str, what: str, **fields: Any) -> Corrupt:
    """The error for a blob that is not what was stored."""
    return Corrupt(
        f"blob {content[:12]} {what}; take the object from another holder or delete it", blob=content, **fields
    )
