"""A file that appears whole or not at all: written beside its place under another name, synced, and put there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
from collections.abc import AsyncIterable, Iterator
from pathlib import Path
from typing import IO

from grid.files.formats import ENDINGS, FORMATS, WHOLE, Format, Layout
from protocol.codec import Buffer
from protocol.errors import BadFile, StorageFull


def check_target(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """The path, if a result could be written there: ask before the work whose result it will hold.

    Raises:
        BadFile: unknown ending, a file that is there already, or no such folder.
    """
    target = Path(path)
    if target.suffix.lower() not in ENDINGS:
        raise BadFile(f"{target} has no ending that can be written; those that can: {', '.join(ENDINGS)}")
    if target.is_dir() or (target.exists() and not overwrite):
        raise BadFile(f"{target} is there already: choose another name, or overwrite it with --force")
    if not target.parent.is_dir():
        raise BadFile(f"there is no folder {target.parent}")
    return target


def is_whole(path: Path) -> bool:
    """Whether the value has to be in memory to be written there."""
    return path.suffix.lower() in WHOLE


async def save(path: Path, layout: Layout, pieces: AsyncIterable[Buffer], overwrite: bool = False) -> Path:
    """Write tensors as their bytes come. Nothing is left of it if that fails, or is cancelled.

    Raises:
        BadFile: as check_target; a value that the format cannot hold, or a disk that refuses. StorageFull.
    """
    with appearing(path, overwrite) as file:
        check_room(path, FORMATS[path.suffix.lower()].least_bytes(layout))
        with _format(file, layout, path) as form:
            async for piece in pieces:
                form.write(piece)  # in the loop: the kernel takes it into its cache, as fast as a thread would start
    return path


def write_layout(path: Path, layout: Layout, pieces: Iterator[Buffer], overwrite: bool = False) -> Path:
    """The same of bytes that are there."""
    with appearing(path, overwrite) as file:
        with _format(file, layout, path) as form:
            for piece in pieces:
                form.write(piece)
    return path


@contextlib.contextmanager
def _format(file: IO[bytes], layout: Layout, path: Path) -> Iterator[Format]:
    form = FORMATS[path.suffix.lower()](file, layout, path)
    try:
        yield form
        form.end()
    except BaseException:
        form.abort()
        raise


@contextlib.contextmanager
def appearing(path: Path, overwrite: bool) -> Iterator[IO[bytes]]:
    """A file to be filled, which is at `path` when the block ends well, and nowhere when it does not.

    BadFile, StorageFull: the disk refuses, or is full.
    """
    target = check_target(path, overwrite)
    _sweep(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with temporary.open("x+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # for as long as this process lives: see _sweep
            yield file
            file.flush()
            os.fsync(file.fileno())
        _into_place(temporary, target, overwrite)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(
                f"{target} was not written: its disk is full. Free some space, or choose another"
            ) from None
        if not error.strerror:
            raise
        raise BadFile(f"{target} cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _sweep(target: Path) -> None:
    """Remove what processes that were killed while they wrote this file have left: nobody holds a lock on it."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        with contextlib.suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def check_room(path: Path, nbytes: int) -> None:
    """StorageFull if the disk cannot hold so much: said before an hour is spent on filling it."""
    status = os.statvfs(path.parent)
    free = status.f_bavail * status.f_frsize
    if nbytes > free:
        raise StorageFull(
            f"{path} takes {nbytes} bytes or more, and its disk has {free} left: free some space, or choose another"
        )


def _into_place(temporary: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        os.replace(temporary, target)
    else:
        _link(temporary, target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _link(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)  # unlike a rename, it never replaces a file that came in the meantime
    except FileExistsError:
        raise BadFile(f"{target} has come to be in the meantime; overwrite it with --force") from None
    except OSError:  # a file system without links
        os.replace(temporary, target)
