"""The peers that run on this machine, found without flags: each keeps a record in a folder of the user's.

A record is a small JSON file on which its peer holds a lock for as long as it lives. The kernel drops the lock
when the process dies, however it dies, so a record without a lock is rubbish and is removed by who finds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from protocol.errors import NameTaken
from protocol.identity import is_peer_id

_PATIENCE: Final = 0.5  # seconds that a reader's momentary lock may stand in a starting peer's way


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One running peer of this machine."""

    name: str
    id: str
    url: str
    pid: int


class Neighbours:
    """The folder of records. A peer calls `announce` once and `withdraw` at its end; anyone calls `list`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None
        self._path: Path | None = None

    def reserve(self, name: str) -> None:
        """Take the name on this machine, before anything else is started.

        Raises:
            NameTaken: a peer of that name runs here already.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / f"{name}.json"
        deadline = time.monotonic() + _PATIENCE
        while (descriptor := self._try_lock(path)) is None:
            if time.monotonic() > deadline:
                raise NameTaken(
                    f"a peer named {name} runs on this machine already{_about(path)}: choose another name, "
                    f"or stop it with 'grid down {name}'"
                )
            time.sleep(0.02)
        os.ftruncate(descriptor, 0)
        self._descriptor, self._path = descriptor, path

    def announce(self, neighbour: Neighbour) -> None:
        """Let the others find us under the reserved name."""
        assert self._descriptor is not None
        os.pwrite(self._descriptor, json.dumps(asdict(neighbour)).encode(), 0)

    def withdraw(self) -> None:
        if self._descriptor is not None and self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
            os.close(self._descriptor)
        self._descriptor = self._path = None

    def list(self) -> list[Neighbour]:
        """The running peers, by name."""
        try:
            paths = sorted(self._folder.glob("*.json"))
        except FileNotFoundError:
            return []
        found = (self._read(path) for path in paths)
        return [neighbour for neighbour in found if neighbour is not None]

    def _try_lock(self, path: Path) -> int | None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        # Someone may have removed the file between our opening and our locking it.
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)
        return None

    def _read(self, path: Path) -> Neighbour | None:
        if path == self._path:
            return _parse(path.read_bytes())
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _parse(os.pread(descriptor, 4096, 0))  # locked: its peer lives
        else:
            _remove(path, descriptor)
            return None
        finally:
            os.close(descriptor)


def _remove(path: Path, descriptor: int) -> None:
    """Remove the record of a peer that is gone. Only under the lock that its peer had: another reader may have
    removed it already, and a new peer may have put its own in its place."""
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
            path.unlink()


def _parse(data: bytes) -> Neighbour | None:
    """The record; None while its peer is still starting."""
    try:
        fields = json.loads(data)
        made = Neighbour(**{name: fields[name] for name in ("name", "id", "url", "pid")})
    except (ValueError, TypeError, KeyError):
        return None
    is_sound = is_peer_id(made.id) and isinstance(made.name, str) and isinstance(made.url, str)
    return made if is_sound and type(made.pid) is int else None


def _about(path: Path) -> str:
    with contextlib.suppress(OSError):
        running = _parse(path.read_bytes())
        if running is not None:
            return f" (process {running.pid}, {running.url})"
    return ""
