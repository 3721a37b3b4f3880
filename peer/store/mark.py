"""How far the database had got when it last acknowledged a change, kept outside of the database.

SQLite recovers a write-ahead log up to its last whole commit and calls that success: a log that was cut short after
commits had been acknowledged loses them in silence. So every commit counts itself in the database, and then here; a
database that knows of fewer changes than this file has lost some. The file is not synced, so after a power cut it
may lag behind, and tell less; it is written after the commit is on the disk, so it never runs ahead.
"""

from __future__ import annotations

import hashlib
import logging
import os
from typing import Final

from peer.store.fs import Fs, disk_errors, sync_folder

_SIZE: Final = 16  # the count as u64 little-endian, and the first 8 bytes of its SHA-256
_log = logging.getLogger(__name__)


class Mark:
    """The file `name` in the folder open as `folder`."""

    def __init__(self, name: str, *, folder: int, fs: Fs) -> None:
        self._name = name
        self._folder = folder
        self._fs = fs
        self._fd: int | None = None
        self._is_failing = False

    def read(self) -> int | None:
        """Changes acknowledged so far; None where nothing was written yet, or what was is damaged. Blocks."""
        with disk_errors(f"the reading of {self._name}"):
            try:
                fd = os.open(self._name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._folder)
            except FileNotFoundError:
                return None
            try:
                entry = os.read(fd, _SIZE + 1)
            finally:
                os.close(fd)
        count = int.from_bytes(entry[:8], "little")
        if entry != _entry(count):
            _log.warning("%s is damaged; it is made anew, and lost changes cannot be told this time", self._name)
            return None
        return count

    def open(self, count: int) -> None:
        """Make the file durable with `count` in it, ready for `set`. Blocks."""
        with disk_errors(f"the file {self._name}"):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            self._fd = self._fs.open(self._name, flags, folder=self._folder)
            self._fs.pwrite(self._fd, _entry(count), 0)
            self._fs.fsync(self._fd)
            sync_folder(self._fs, self._folder)

    def set(self, count: int) -> None:
        """`count` changes are committed. Never fails: the commit stands whether or not it is noted here."""
        if self._fd is None:
            return
        try:
            self._fs.pwrite(self._fd, _entry(count), 0)
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                _log.warning("%s cannot be written: %s", self._name, error.strerror)
            self._is_failing = True

    def close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def _entry(count: int) -> bytes:
    number = count.to_bytes(8, "little")
    return number + hashlib.sha256(number).digest()[:8]
