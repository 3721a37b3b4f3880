"""A store's folder: ours alone while it is open, with a little space kept aside.

lock              held (flock) by the process that has the store open; its process id
objects.sqlite    rows, and the contents of small objects (and -wal, -shm while open)
acknowledged      how many changes were acknowledged (mark.py)
blobs/            the contents of large objects (blobs.py)
reserve           STORE_RESERVE bytes, given up to delete something when the disk is full
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from peer.store.fs import Fs, allocate, check_room, disk_errors
from protocol import limits
from protocol.errors import DataFolderInUse

DATABASE: Final = "objects.sqlite"
BLOBS: Final = "blobs"
MARK: Final = "acknowledged"
_LOCK: Final = "lock"
_RESERVE: Final = "reserve"
_log = logging.getLogger(__name__)


class Folder:
    """An open and locked folder. All methods block."""

    def __init__(self, path: Path, fd: int, fs: Fs) -> None:
        self.path = path
        self.fd = fd
        self.fs = fs
        self._lock = -1
        self._room = 0  # bytes that the disk had left when it was last asked, less those taken since

    @classmethod
    def acquire(cls, path: Path, fs: Fs) -> Folder:
        """Make the folder (mode 0700) if it is not there, and take it. DataFolderInUse names who has it."""
        with disk_errors(f"the folder {path}"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self = cls(path, fd, fs)
            try:
                os.fchmod(fd, 0o700)
                self._take()
            except BaseException:
                self.release()
                raise
        return self

    def _take(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._lock = os.open(_LOCK, flags, 0o600, dir_fd=self.fd)
        try:
            # The kernel lets go of it when the process ends, however it ends; the file itself stays.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise _in_use(self.path, os.pread(self._lock, 32, 0)) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Let the folder go. May be called twice."""
        for fd in (self._lock, self.fd):
            if fd >= 0:
                os.close(fd)
        self._lock = self.fd = -1

    def check_room(self, nbytes: int, unused: Callable[[], int]) -> None:
        """StorageFull if a row of `nbytes` would leave too little room to delete anything.

        For the database's thread, which calls `is_tight` before each commit: the disk is asked then, and the rows
        of the same commit share what it said. `unused`: bytes in the database's file that deleted rows left.
        """
        needed = 2 * nbytes  # once in the log, and once more where that is folded
        if self._room < needed + limits.STORE_RESERVE:
            # Where deleted rows were the file does not grow, and the log is folded before the next commit.
            if nbytes <= unused() and self._room >= nbytes + limits.STORE_RESERVE // 2:
                needed = nbytes
            else:
                with disk_errors(f"{nbytes} bytes of a row"):
                    check_room(self.fs, self.fd, needed)
        self._room -= needed

    def is_tight(self) -> bool:
        """Whether the log should be folded and cut now, for as long as there is room for that."""
        self._room = 0
        try:
            self._room = self.fs.free(self.fd)
            log = os.stat(f"{DATABASE}-wal", dir_fd=self.fd).st_size
            return 0 < log and self._room < log + 2 * limits.STORE_RESERVE
        except OSError:
            return False

    def keep_reserve(self) -> None:
        """Have the reserve on the disk if there is room for it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        try:
            check_room(self.fs, self.fd, limits.STORE_RESERVE)
            fd = self.fs.open(_RESERVE, flags, folder=self.fd)
            try:
                allocate(self.fs, fd, limits.STORE_RESERVE)
            finally:
                self.fs.close(fd)
        except OSError as error:
            self.spend_reserve()
            _log.info("no space can be kept aside in %s: %s", self.path, error.strerror)

    def spend_reserve(self) -> None:
        """Give the reserve's space back to the disk."""
        with suppress(OSError):
            self.fs.unlink(_RESERVE, folder=self.fd)


def _in_use(path: Path, holder: bytes) -> DataFolderInUse:
    pid = int(holder) if holder.isdigit() else None
    who = f"process {pid}" if pid else "another process"
    return DataFolderInUse(
        f"the data folder {path} is in use by {who}: stop that peer, or choose another folder with --data-dir", pid=pid
    )
