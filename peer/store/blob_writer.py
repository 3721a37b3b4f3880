"""One blob file while it is written: from the first reserved byte to its name.

    await begin()     make a temporary file, reserve its whole size, write the header
    await write(..)   as often as there are chunks
    await seal()      sync the file; gives its name and the hashes of its blocks
    await place()     give it that name, sync the folder
    await abort()   at any time instead: remove it

Every failure of the disk is fatal for the file: it can only be aborted. An fsync that failed is never tried
again, because the kernel may since have forgotten the pages that it could not write.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import Final, TypeVar

from peer.store.contents import Contents
from peer.store.fs import Fs, allocate, check_room, disk_errors, start_writeback, sync_folder, write_all
from peer.store.hashes import FileHasher
from protocol import limits
from protocol.errors import BadTensor, StorageError

T = TypeVar("T")

TEMPORARY: Final = "tmp-"
_PUMP: Final = 256 * limits.KIB  # below this a chunk waits for the next one: a thread hop costs as much as writing it


class BlobWriter:
    """Writes `contents` into the folder open as `folder`; the threads of `threads` do the work.

    The temporary file's name is in `live` for as long as there may be such a file.
    Methods are for one task at a time. Cancelling `write` is harmless; the others are to be run undisturbed.

    Attributes:
        taken: payload bytes accepted so far.
    """

    def __init__(self, contents: Contents, *, fs: Fs, folder: int, threads: Executor, live: set[str]) -> None:
        self._fs = fs
        self._folder = folder
        self._threads = threads
        self._header = contents.file_header()
        self._nbytes = contents.nbytes
        self._hashes = FileHasher()
        self._name = ""  # once it is sealed
        self._temporary = TEMPORARY + secrets.token_hex(16)
        self._is_placed = False
        self._live = live
        live.add(self._temporary)
        self._fd: int | None = None
        self._waiting: deque[tuple[bytes | memoryview, int | None]] = deque()
        self.taken = 0  # changed by the loop's thread alone
        self._flushed = 0  # bytes of the file that the disk was told to write
        self._written = 0  # payload bytes written and hashed; changed by the job's thread alone
        self._job: asyncio.Future[None] | None = None

    @property
    def start(self) -> int:
        """Offset of the first tensor in the file."""
        return len(self._header)

    @property
    def nbytes(self) -> int:
        """Size of the whole file."""
        return len(self._header) + self._nbytes

    async def begin(self) -> None:
        """StorageFull if the disk has no room for all of it: before a byte is taken."""
        await self._in_thread(self._begin)

    async def write(
        self, chunk: bytes | bytearray | memoryview, *, is_kept: bool = False, block_hash: int | None = None
    ) -> None:
        """Take the next bytes. Waits only while more than STORE_WRITE_BEHIND bytes wait for the disk.

        The chunk may be reused when this returns; with `is_kept` only when nothing refers to it any more, and then
        nothing is copied. `block_hash`: see StoreWriter. BadTensor for more bytes than the contents have.
        """
        data = _kept(chunk, is_kept)
        if self.taken + len(data) > self._nbytes:
            raise BadTensor(f"more than the {self._nbytes} bytes announced came")
        self._waiting.append((data, block_hash))
        self.taken += len(data)
        if self.taken - self._written >= _PUMP:
            self._pump()
        while self._job is not None and self.taken - self._written > limits.STORE_WRITE_BEHIND:
            await asyncio.wait({self._job})
            self._pump()

    async def seal(self) -> tuple[str, bytes]:
        """All bytes on the disk; the name of the file and its block hashes. BadTensor if bytes are missing."""
        if self.taken != self._nbytes:
            raise BadTensor(f"{self.taken} of {self._nbytes} bytes came")
        if self._job is not None:
            await self._job
        return await self._in_thread(self._seal)

    async def place(self) -> None:
        """Give the sealed file its name, and sync the folder."""
        await self._in_thread(self._place)

    async def abort(self) -> None:
        """Stop and remove the temporary file. What was placed stays. Never fails; the next start sweeps the rest."""
        self._waiting.clear()
        if self._job is not None:
            await asyncio.wait({self._job})
            with suppress(StorageError):
                self._job.result()
        if self._fd is not None:
            await self._in_thread(self._abort)
        self._live.discard(self._temporary)

    def _pump(self) -> None:
        """Have a job at work on what waits; raise what the last one raised."""
        if self._job is not None:
            if not self._job.done():
                return
            self._job.result()
        self._job = self._in_thread(self._drain)

    def _in_thread(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _file(self) -> int:
        if self._fd is None:
            raise StorageError("the writing of this object was given up: send it again")
        return self._fd

    # --- in a thread, one at a time for each writer ---------------------------------------------------------

    def _begin(self) -> None:
        with disk_errors("a new blob file"):
            # Mode 0400 holds for whoever opens the file later: nobody changes a blob by mistake.
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            self._fd = self._fs.open(self._temporary, flags, 0o400, folder=self._folder)
            try:
                check_room(self._fs, self._fd, self.nbytes)
                allocate(self._fs, self._fd, self.nbytes)
                write_all(self._fs, self._fd, self._header)
            except BaseException:
                self._abort()
                raise
            self._hashes.header(self._header)

    def _drain(self) -> None:
        fd = self._file()
        while self._waiting:
            data, block_hash = self._waiting.popleft()
            with disk_errors(f"{len(data)} bytes of a blob file"):
                write_all(self._fs, fd, data)
            self._hashes.payload(data, block_hash)
            before, self._written = self._written, self._written + len(data)
            if before // limits.STORE_WRITEBACK != self._written // limits.STORE_WRITEBACK:
                end = len(self._header) + self._written
                start_writeback(fd, self._flushed, end - self._flushed)
                self._flushed = end

    def _seal(self) -> tuple[str, bytes]:
        self._drain()
        with disk_errors("the syncing of a blob file"):
            self._fs.fsync(self._file())
        self._name = self._hashes.content()
        return self._name, self._hashes.blocks()

    def _place(self) -> None:
        fd = self._file()
        with disk_errors("the naming of a blob file"):
            self._fs.rename(self._temporary, self._name, folder=self._folder)
            self._is_placed = True
            sync_folder(self._fs, self._folder)
            self._fd = None
            self._fs.close(fd)

    def _abort(self) -> None:
        if not self._is_placed:
            with suppress(OSError):
                self._fs.unlink(self._temporary, folder=self._folder)
        fd, self._fd = self._fd, None
        if fd is not None:
            with suppress(OSError):
                self._fs.close(fd)


def _kept(chunk: bytes | bytearray | memoryview, is_kept: bool) -> bytes | memoryview:
    """The chunk as bytes that nobody changes while they wait: itself where that is sure, else a copy."""
    if isinstance(chunk, bytes):
        return chunk
    view = memoryview(chunk).cast("B")
    return view if is_kept or isinstance(view.obj, bytes) else bytes(view)
