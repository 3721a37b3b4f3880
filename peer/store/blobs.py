"""Blob files: the contents of large objects, each under the SHA-256 of the whole file.

A blob is written under a temporary name, synced, renamed to its hash, and the folder synced (blob_writer.py): a file
under a hash is whole. What is read has been checked: at its first opening in the life of a process a blob is hashed,
and the verdict holds for as long as the file's inode, size and times stay what they were; a write through the file
system changes them, so it is found at the next opening. (Bits that rot on the disk while the kernel still holds the
good pages are found at the next start, or by `verify`.) A blob is never changed: an equal one that is written again
takes its name over, which also heals a damaged one.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import re
import stat
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from peer.store.blob_writer import TEMPORARY, BlobWriter
from peer.store.contents import Contents
from peer.store.fs import Fs, disk_errors
from peer.store.waiting import KeyLocks, undisturbed
from protocol import limits
from protocol.errors import BadRequest, Corrupt, StorageError

_NAME: Final = re.compile(r"[0-9a-f]{64}")
_PIECE: Final = limits.MIB  # bytes hashed between two looks at whether anyone still waits
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


class BlobFile:
    """A checked blob, open for reading. The file stays readable until `close`, even if the object is deleted.

    Attributes:
        sha256: its name.
        nbytes: size of the whole file.
    """

    __slots__ = ("_fd", "_threads", "nbytes", "sha256")

    def __init__(self, sha256: str, fd: int, nbytes: int, threads: ThreadPoolExecutor) -> None:
        self.sha256 = sha256
        self.nbytes = nbytes
        self._fd = fd
        self._threads = threads

    def fileno(self) -> int:
        """The descriptor: read-only, close-on-exec; to be mapped or sent to a worker, not to be closed."""
        if self._fd < 0:
            raise ValueError("the blob is closed")
        return self._fd

    async def read(self, offset: int, nbytes: int) -> bytes:
        """Exactly `nbytes` from `offset` on. BadRequest outside of the file."""
        return await undisturbed(self.begin_read(offset, nbytes))

    def begin_read(self, offset: int, nbytes: int) -> asyncio.Future[bytes]:
        """The same, begun at once. The file is to stay open until the future is done."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise BadRequest(f"{nbytes} bytes from {offset} on are not within a blob of {self.nbytes}")
        return asyncio.get_running_loop().run_in_executor(self._threads, self._read, offset, nbytes)

    def _read(self, offset: int, nbytes: int) -> bytes:
        with disk_errors("the reading of a blob file"):
            data = os.pread(self.fileno(), nbytes, offset)
            while len(data) < nbytes:
                more = os.pread(self.fileno(), nbytes - len(data), offset + len(data))
                if not more:
                    raise Corrupt(f"blob {self.sha256[:12]} was cut short; restore it from another holder")
                data += more
        return data

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> BlobFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<BlobFile {self.sha256[:12]} {self.nbytes} bytes{' closed' if self._fd < 0 else ''}>"


class Blobs:
    """The folder of blob files. Opened and closed by the store; its waiting methods run in threads of its own."""

    def __init__(self, folder: int, fs: Fs) -> None:
        self._folder = folder
        self._fs = fs
        self._writing = ThreadPoolExecutor(limits.STORE_THREADS, "store-write")
        self._reading = ThreadPoolExecutor(limits.STORE_THREADS, "store-read")
        self._verdicts: dict[str, tuple[Identity, bool]] = {}
        self._judging = threading.Lock()  # readers judge in several threads
        self._checks = KeyLocks()

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
        self._writing.shutdown()
        self._reading.shutdown()
        os.close(self._folder)

    def writer(self, contents: Contents) -> BlobWriter:
        return BlobWriter(contents, fs=self._fs, folder=self._folder, threads=self._writing)

    def placed(self, sha256: str, state: os.stat_result) -> None:
        """A writer has just hashed and placed this file: it needs no other check."""
        self._judge(sha256, Identity.of(state), True)

    async def open(self, sha256: str) -> BlobFile:
        """The blob, checked. The caller closes it.

        Raises:
            BadRequest: not the name of a blob.
            Corrupt: missing, not a plain file of our own, or not the bytes that were stored.
        """
        return await self._open(sha256, again=False)

    async def verify(self, sha256: str) -> None:
        """Hash the blob again, whatever is remembered of it; Corrupt if it is not what was stored."""
        (await self._open(sha256, again=True)).close()

    async def remove(self, sha256: str) -> None:
        """Unlink the blob; nothing if it is not there."""
        _check_name(sha256)
        with self._judging:
            self._verdicts.pop(sha256, None)
        await asyncio.get_running_loop().run_in_executor(self._writing, self._remove, sha256)

    async def sweep(self, named: Collection[str]) -> set[str]:
        """Remove temporary files and blobs that no row names; the names in rows that have no file."""
        return await asyncio.get_running_loop().run_in_executor(self._writing, self._sweep, named)

    async def _open(self, sha256: str, *, again: bool) -> BlobFile:
        _check_name(sha256)
        loop, stop = asyncio.get_running_loop(), threading.Event()
        async with self._checks.hold(sha256):  # so that many who want one large blob hash it once
            work = loop.run_in_executor(self._reading, self._open_checked, sha256, again, stop)
            return await undisturbed(work, hurry=stop.set, drop=BlobFile.close)

    # --- in a thread ----------------------------------------------------------------------------------------

    def _open_checked(self, sha256: str, again: bool, stop: threading.Event) -> BlobFile:
        fd, identity = self._open_plain(sha256)
        with _closed_on_error(fd):
            known, good = self._verdicts.get(sha256, (None, False))
            if again or known != identity:
                good = _hash_of(fd, stop) == sha256
                # Meanwhile another equal file may have taken the name over, which shows in this one's times.
                if Identity.of(os.fstat(fd)) == identity:
                    self._judge(sha256, identity, good)
            if not good:
                raise _corrupt(sha256, "is not the bytes that were stored")
        return BlobFile(sha256, fd, identity.nbytes, self._reading)

    def _open_plain(self, sha256: str) -> tuple[int, Identity]:
        # NONBLOCK: a pipe planted under the name must not hold the thread.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = self._fs.open(sha256, flags, folder=self._folder)
        except FileNotFoundError:
            raise _corrupt(sha256, "is missing") from None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise _corrupt(sha256, "is a link or a device") from None
            raise StorageError(f"blob {sha256[:12]} cannot be opened: {error.strerror}") from error
        with _closed_on_error(fd):
            state = os.fstat(fd)
            # A hard link to some other file is a plain file too; its hash gives it away.
            if not stat.S_ISREG(state.st_mode):
                raise _corrupt(sha256, "is not a plain file")
        return fd, Identity.of(state)

    def _judge(self, sha256: str, identity: Identity, good: bool) -> None:
        with self._judging:
            self._verdicts.pop(sha256, None)
            if len(self._verdicts) >= limits.STORE_VERDICTS:
                del self._verdicts[next(iter(self._verdicts))]  # the oldest
            self._verdicts[sha256] = (identity, good)

    def _remove(self, name: str) -> None:
        try:
            with disk_errors("the removal of a blob file"):
                self._fs.unlink(name, folder=self._folder)
        except StorageError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise

    def _sweep(self, named: Collection[str]) -> set[str]:
        missing = set(named)
        with disk_errors("the listing of the blob folder"):
            present = os.listdir(self._folder)
        for name in present:
            if name in missing:
                missing.discard(name)
            elif name.startswith(TEMPORARY) or _NAME.fullmatch(name):
                self._sweep_away(name)
            else:
                _log.warning("a file that is not ours among the blobs: %r", name[:80])
        return missing

    def _sweep_away(self, name: str) -> None:
        try:
            self._remove(name)
        except StorageError as error:  # no reason not to start
            _log.warning("%s stays among the blobs: %s", name[:80], error)


def is_blob_folder_used(path: Path) -> bool:
    """Whether `path` holds any blob. Blocks."""
    with disk_errors(f"the folder {path}"):
        return path.is_dir() and any(_NAME.fullmatch(name) for name in os.listdir(path))


def _check_name(sha256: str) -> None:
    if not isinstance(sha256, str) or not _NAME.fullmatch(sha256):
        raise BadRequest(f"{sha256!r:.80} is not the name of a blob: 64 lowercase hexadecimal digits")


def _corrupt(sha256: str, what: str) -> Corrupt:
    return Corrupt(f"blob {sha256[:12]} {what}; take the object from another holder or delete it", blob=sha256)


def _hash_of(fd: int, stop: threading.Event) -> str:
    digest, piece, offset = hashlib.sha256(), memoryview(bytearray(_PIECE)), 0
    with disk_errors("the reading of a blob file"):
        while (count := os.preadv(fd, [piece], offset)) and not stop.is_set():
            digest.update(piece[:count])
            offset += count
    if stop.is_set():
        raise StorageError("nobody waits for this check any more")
    return digest.hexdigest()


@contextmanager
def _closed_on_error(fd: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(fd)
        raise
