"""Blob files: the contents of large objects, each under the BLAKE3 of the whole file.

A blob is written under a temporary name, synced, renamed to its hash, and the folder synced (blob_writer.py): a file
under a hash is whole. What is read has been checked, block by block, each time (blob_file.py), so opening one is
quick whatever its size; `measure` reads and hashes all of it. A blob is never changed: an equal one that is written
again takes its name over, which also heals a damaged one.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
import threading
from collections.abc import Callable, Collection, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from peer.store.blob_file import BlobFile, Layout, corrupt
from peer.store.blob_writer import TEMPORARY, BlobWriter
from peer.store.contents import Contents, is_content_name
from peer.store.fs import Fs, disk_errors
from peer.store.hashes import FileHasher
from peer.store.waiting import undisturbed
from protocol import limits
from protocol.errors import BadRequest, StorageError

_PIECE: Final = limits.BLOCK  # bytes hashed between two looks at whether anyone still waits
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """What changes when a file is changed."""

    device: int
    inode: int
    nbytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, state: os.stat_result) -> Identity:
        return cls(state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a blob file was found to hold: its name by its bytes, its first bytes and the hashes of its blocks."""

    content: str
    header: bytes
    blocks: bytes
    identity: Identity


@dataclass(slots=True)
class Listing:
    """What is in the folder that does not belong there, and what is not there that does."""

    missing: set[str] = field(default_factory=set)
    temporaries: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)


class Blobs:
    """The folder of blob files. Opened and closed by the store; its waiting methods run in threads of its own."""

    def __init__(self, folder: int, fs: Fs) -> None:
        self._folder = folder
        self._fs = fs
        self._writing = ThreadPoolExecutor(limits.STORE_THREADS, "store-write")
        self._reading = ThreadPoolExecutor(limits.STORE_THREADS, "store-read")
        self._checking = ThreadPoolExecutor(2, "store-check")  # of whole blobs: no reader waits behind them
        self._is_closing = threading.Event()
        self._live: set[str] = set()  # temporary names that a writer has

    @classmethod
    def at(cls, path: Path, fs: Fs) -> Blobs:
        """The blobs in folder `path`, made with mode 0700 if it is not there. Blocks."""
        with disk_errors(f"the folder {path}"):
            path.mkdir(mode=0o700, exist_ok=True)
            # Through this descriptor and bare names alone is anything opened: no name leads out of the folder.
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            os.fchmod(folder, 0o700)
        return cls(folder, fs)

    def close(self) -> None:
        """Wait for the threads and let go of the folder. Blocks."""
        self._is_closing.set()
        for threads in (self._writing, self._reading, self._checking):
            threads.shutdown()
        os.close(self._folder)

    def writer(self, contents: Contents) -> BlobWriter:
        return BlobWriter(contents, fs=self._fs, folder=self._folder, threads=self._writing, live=self._live)

    async def open(self, content: str, layout: Layout) -> BlobFile:
        """The blob for reading; what is read from it is checked then. The caller closes it.

        Raises:
            BadRequest: not the name of a blob.
            Corrupt: missing, not a plain file of our own, or not of the size that was stored.
        """
        check_name(content)
        work = asyncio.get_running_loop().run_in_executor(self._reading, self._open, content, layout)
        return await undisturbed(work, drop=BlobFile.close)

    async def measure(
        self, content: str, start: int = 0, progress: Callable[[int], object] = lambda nbytes: None
    ) -> Measured:
        """Read and hash all of a blob whose payload begins at `start`.

        `progress` is called from a thread with the bytes of each piece. BadRequest, Corrupt as `open`; that the bytes
        are not those stored shows in the result. A cancelled caller stops the reading, and so does `close`.
        """
        check_name(content)
        stop = threading.Event()

        def is_wanted() -> bool:
            return not stop.is_set() and not self._is_closing.is_set()

        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._checking, self._measure, content, start, is_wanted, progress)
        return await undisturbed(work, hurry=stop.set)

    async def identity(self, content: str) -> Identity | None:
        """The state of the file under this name now; None if there is none."""
        return await asyncio.get_running_loop().run_in_executor(self._reading, self._identity, content)

    async def remove(self, name: str) -> int:
        """Unlink the blob; the bytes that this frees, 0 if it is not there."""
        check_name(name)
        freed = await asyncio.get_running_loop().run_in_executor(self._writing, self._remove, name)
        return freed or 0

    async def look_through(self, named: Set[str]) -> Listing:
        """What does not belong here, where rows name the blobs `named`; temporaries of live writers do."""
        return await asyncio.get_running_loop().run_in_executor(self._checking, self._look_through, named)

    async def remove_temporaries(self, names: Collection[str]) -> tuple[int, int]:
        """Unlink those of these that no writer has; how many, and the bytes that this frees."""
        return await asyncio.get_running_loop().run_in_executor(self._writing, self._remove_all, names, self._live)

    async def remove_all(self, names: Collection[str]) -> tuple[int, int]:
        """Unlink these blobs, for the start alone, when nobody else can name them; how many, and the bytes."""
        return await asyncio.get_running_loop().run_in_executor(self._writing, self._remove_all, names, ())

    # --- in a thread ----------------------------------------------------------------------------------------

    def _open(self, content: str, layout: Layout) -> BlobFile:
        fd, state = self._open_plain(content)
        with _closed_on_error(fd):
            if state.st_size != layout.start + layout.nbytes or not layout.is_whole():
                raise corrupt(content, "is not of the size that was stored")
        return BlobFile(content, fd, layout, self._reading)

    def _open_plain(self, content: str) -> tuple[int, os.stat_result]:
        # NONBLOCK: a pipe planted under the name must not hold the thread.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = self._fs.open(content, flags, folder=self._folder)
        except FileNotFoundError:
            raise corrupt(content, "is missing") from None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise corrupt(content, "is a link or a device") from None
            raise StorageError(f"blob {content[:12]} cannot be opened: {error.strerror}") from error
        with _closed_on_error(fd):
            state = os.fstat(fd)
            # A hard link to some other file is a plain file too; its hashes give it away.
            if not stat.S_ISREG(state.st_mode):
                raise corrupt(content, "is not a plain file")
        return fd, state

    def _measure(
        self, content: str, start: int, is_wanted: Callable[[], bool], progress: Callable[[int], object]
    ) -> Measured:
        fd, state = self._open_plain(content)
        try:
            with disk_errors("the reading of a blob file"):
                header = os.pread(fd, start, 0)
                hasher = FileHasher()
                hasher.header(header)
                for nbytes in _hash_payload(fd, len(header), hasher):
                    if not is_wanted():
                        raise StorageError("the check was given up: nobody waits for it, or the store was closed")
                    progress(nbytes)
            return Measured(hasher.content(), header, hasher.blocks(), Identity.of(state))
        finally:
            os.close(fd)

    def _identity(self, content: str) -> Identity | None:
        try:
            return Identity.of(os.stat(content, dir_fd=self._folder, follow_symlinks=False))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"blob {content[:12]} cannot be looked at: {error.strerror}") from error

    def _remove(self, name: str) -> int | None:
        """The bytes freed; None if there was no such file."""
        try:
            with disk_errors("the removal of a blob file"):
                nbytes = os.stat(name, dir_fd=self._folder, follow_symlinks=False).st_size
                self._fs.unlink(name, folder=self._folder)
                return nbytes
        except StorageError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            return None

    def _remove_all(self, names: Collection[str], spared: Collection[str]) -> tuple[int, int]:
        count = freed = 0
        for name in names:
            if name in spared:
                continue
            try:
                nbytes = self._remove(name)
            except StorageError as error:  # no reason not to go on
                _log.warning("%s stays among the blobs: %s", name[:80], error)
                continue
            if nbytes is not None:
                count, freed = count + 1, freed + nbytes
        return count, freed

    def _look_through(self, named: Set[str]) -> Listing:
        with disk_errors("the listing of the blob folder"):
            present = set(os.listdir(self._folder))
        found = Listing(missing=set(named - present))
        for name in present - named:
            if name.startswith(TEMPORARY):
                found.temporaries.append(name)
            elif is_content_name(name):
                found.unnamed.append(name)
            else:
                _log.warning("a file that is not ours among the blobs: %r", name[:80])
        return found


def is_blob_folder_used(path: Path) -> bool:
    """Whether `path` holds any blob. Blocks."""
    with disk_errors(f"the folder {path}"):
        if not path.is_dir():
            return False
        with os.scandir(path) as entries:
            return any(is_content_name(entry.name) for entry in entries)


def check_name(content: str) -> None:
    """BadRequest unless this can name a blob."""
    if not is_content_name(content):
        raise BadRequest(f"{content!r:.80} is not the name of a blob: 64 lowercase hexadecimal digits")


def _hash_payload(fd: int, offset: int, hasher: FileHasher) -> Iterator[int]:
    """Hash the file from `offset` on; gives the size of each piece when it is done."""
    piece = memoryview(bytearray(_PIECE))
    while count := os.preadv(fd, [piece], offset):
        hasher.payload(piece[:count])
        offset += count
        yield count


@contextmanager
def _closed_on_error(fd: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(fd)
        raise
