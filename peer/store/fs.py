"""The calls that change the disk, in one small class, so that tests can make the n-th of them fail."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from typing import Final

from protocol import limits
from protocol.errors import StorageError, StorageFull

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# A file system without fallocate says so by one of these; then running out of space shows at a write.
_CANNOT_ALLOCATE: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})

_SYNC_FILE_RANGE_WRITE: Final = 2
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
if _sync_file_range is not None:
    _sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


class Fs:
    """Thin calls of the operating system. They raise OSError and may write short, as the originals do."""

    def open(self, name: str, flags: int, mode: int = 0o600, *, folder: int) -> int:
        return os.open(name, flags | os.O_CLOEXEC, mode, dir_fd=folder)

    def close(self, fd: int) -> None:
        os.close(fd)

    def allocate(self, fd: int, nbytes: int) -> None:
        """Reserve the file's space on the disk; nothing where the platform has no such call."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, nbytes)

    def free(self, fd: int) -> int:
        """Bytes that may still be written to the disk that this file or folder is on."""
        state = os.fstatvfs(fd)
        return state.f_bavail * state.f_frsize

    def write(self, fd: int, data: memoryview) -> int:
        return os.write(fd, data)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def fsync(self, fd: int) -> None:
        if sys.platform == "darwin":
            import fcntl

            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # there, fsync leaves the bytes in the drive's own cache
        else:
            os.fsync(fd)

    def rename(self, source: str, target: str, *, folder: int) -> None:
        os.rename(source, target, src_dir_fd=folder, dst_dir_fd=folder)

    def unlink(self, name: str, *, folder: int) -> None:
        os.unlink(name, dir_fd=folder)


def write_all(fs: Fs, fd: int, data: bytes | memoryview) -> None:
    """Write all of `data`, however short each write is."""
    rest = memoryview(data).cast("B")
    while rest:
        try:
            written = fs.write(fd, rest)
        except InterruptedError:
            continue
        if written == 0:
            raise OSError(errno.EIO, "the disk took no bytes")
        rest = rest[written:]


def allocate(fs: Fs, fd: int, nbytes: int) -> None:
    """Reserve space where the file system can; OSError ENOSPC where there is not enough."""
    try:
        fs.allocate(fd, max(nbytes, 1))
    except OSError as error:
        if error.errno not in _CANNOT_ALLOCATE:
            raise


def start_writeback(fd: int, offset: int, nbytes: int) -> None:
    """Have the kernel start writing this range; fsync of 256 MiB then waits 10 ms instead of 160.

    Where there is no such call, or it fails, fsync has all to do.
    """
    # Not posix_fadvise, which would drop the pages too: who moves an object on would read it from the disk again.
    if _sync_file_range is not None:
        _sync_file_range(fd, offset, nbytes, _SYNC_FILE_RANGE_WRITE)


def sync_folder(fs: Fs, folder: int) -> None:
    fs.fsync(folder)


def check_room(fs: Fs, fd: int, nbytes: int) -> None:
    """OSError ENOSPC if writing `nbytes` would leave less than STORE_RESERVE, which deleting takes."""
    if fs.free(fd) < nbytes + limits.STORE_RESERVE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn an OSError into StorageFull or StorageError; `doing` completes "the disk refused ..."."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(
                f"the disk is full: no room for {doing}; delete objects or free space on this peer's disk"
            ) from error
        reason = error.strerror or type(error).__name__
        raise StorageError(f"the disk refused {doing}: {reason}; look at the disk of this peer") from error
