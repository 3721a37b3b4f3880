"""What a reader finds in a file, and what it checks of every one."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from peer.payloads import Payload
from protocol import limits
from protocol.errors import BadFile, GridError
from protocol.sizes import check_limit
from protocol.tensors import TensorHeader


@dataclass(frozen=True, slots=True)
class ModelHeader:
    """Of a model: its bytes in all, the first `spec_bytes` of which are its spec (SPEC.md, 12)."""

    spec_bytes: int
    nbytes: int

    def to_wire(self) -> dict[str, int]:
        return {"spec_bytes": self.spec_bytes}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor in a file, or a model: `name` is its key there, or empty where the file holds one. `open` gives its
    bytes, whose reader closes them; nothing of them is in memory before."""

    name: str
    header: TensorHeader | ModelHeader
    open: Callable[[], Payload]

    @property
    def kind(self) -> str:
        """Of the object that it becomes at a peer."""
        return "model" if isinstance(self.header, ModelHeader) else "tensor"


Entries = Iterator[Entry | None]
"""What is in a file; None now and then, where finding out takes long."""


@dataclass(frozen=True, slots=True)
class Reader:
    """`expects` names the format in an error; `pattern` finds its ending in a lower-case file name.

    `entries` may raise anything: what is not the grid's own becomes BadFile.
    """

    endings: tuple[str, ...]
    expects: str
    pattern: re.Pattern[str]
    entries: Callable[[Path], Entries]

    def stem(self, path: Path) -> str:
        return path.name[: self._start(path)] or path.name

    def matches(self, path: Path) -> bool:
        return self.pattern.search(path.name.lower()) is not None

    def _start(self, path: Path) -> int:
        found = self.pattern.search(path.name.lower())
        return found.start() if found is not None else len(path.name)


def check_expansion(path: Path, nbytes: int) -> None:
    """TooLarge for a compressed file that would become absurdly larger."""
    allowed = max(limits.SMALL_EXPANSION, limits.MAX_EXPANSION * path.stat().st_size)
    sentence = "{path} would grow to {size} bytes; at most {allowed} are read from a compressed file of its size"
    check_limit("MAX_EXPANSION", nbytes, sentence, allowed=allowed, path=path)


@contextlib.contextmanager
def as_bad_file(path: Path, expects: str) -> Iterator[None]:
    """Whatever a reader trips over becomes BadFile: strangers' files make libraries raise nearly anything."""
    try:
        yield
    except GridError:
        raise
    except Exception as error:
        raise named(path, expects, error) from None


def named(path: Path, expects: str, error: Exception) -> GridError:
    """An error as one of the grid's, with the file's name."""
    if isinstance(error, GridError):
        return error
    if isinstance(error, OSError) and error.strerror:  # else it is a library's own word for a wrong format
        return BadFile(f"{path} cannot be read: {error.strerror}")
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return BadFile(f"{path} is not {expects}: {line}")
