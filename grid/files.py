"""Files of tensors: read by what their ending says, checked that they are it, written whole or not at all.

    read("digits.npz")         every array in it          read("digits.npz:labels")    one of them
    read("folder")             every readable file in it  write("out.npy", tensor)     never over a file unasked

The formats are in readers.py and writers.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from grid import readers, writers
from protocol.errors import BadFile, GridError

_REFUSED: Final = {
    ".onnx": "ONNX is not read yet; in Python, 'await peer.send(model, ...)' sends a torch module",
    ".pt2": "loading a .pt2 file can run its maker's code; in Python, 'await peer.send(model, ...)' sends a module",
    ".pkl": "unpickling runs code of whoever made the file; save the tensors as .npy or .safetensors",
    ".pickle": "unpickling runs code of whoever made the file; save the tensors as .npy or .safetensors",
}


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A tensor from a file: `name` says which (the file's stem, the key inside it, or both)."""

    name: str
    tensor: torch.Tensor


def read(path: str | os.PathLike[str]) -> list[NamedTensor]:
    """The tensors in a file, or in all readable files of a folder. `FILE:NAME` picks one from a file of several.

    Large .npy, .safetensors and .pt files are mapped, not read: do not change them while the tensors are in use.

    Raises:
        BadFile: it is missing, empty, of an unknown ending, not what its ending says, or has no such NAME. The
            message names what was expected and what was found.
    """
    file, key = _split(os.fspath(path))
    if not file.is_dir():
        return _read_file(file, key)
    if key is not None:
        raise BadFile(f"{file} is a folder: FILE:NAME picks from a file")
    readable = files_in(file)
    if not readable:
        raise BadFile(f"no file in {file} can be read; endings that can: {_endings()}")
    found = []
    for inside in readable:
        prefix = inside.relative_to(file).parent.as_posix()
        for one in _read_file(inside, None):
            found.append(NamedTensor(one.name if prefix == "." else f"{prefix}/{one.name}", one.tensor))
    return found


def files_in(folder: Path) -> list[Path]:
    """The files below `folder` whose endings can be read, in order of their names; hidden ones are left out."""
    found = []
    for path in sorted(folder.rglob("*")):
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not is_hidden and readers.reader_for(path) is not None:
            found.append(path)
    return found


def check_target(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """The path, if a result could be written there: ask before the work whose result it will hold.

    Raises:
        BadFile: unknown ending, a file that is there already, or no such folder.
    """
    target = Path(path)
    if writers.writer_for(target) is None:
        raise BadFile(f"{target} has no ending that can be written; those that can: {', '.join(writers.WRITERS)}")
    if target.is_dir() or (target.exists() and not overwrite):
        raise BadFile(f"{target} is there already: choose another name, or overwrite it with --force")
    if not target.parent.is_dir():
        raise BadFile(f"there is no folder {target.parent}")
    return target


def write(path: str | os.PathLike[str], value: writers.Value, overwrite: bool = False) -> Path:
    """Write a tensor, or several by name, in the format that the ending says. The file appears whole or not at all.

    Raises:
        BadFile: as check_target; or a value that the format cannot hold, or a disk that refuses.
    """
    target = check_target(path, overwrite)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    write_into = writers.writer_for(target)
    assert write_into is not None
    try:
        with temporary.open("x+b") as file:
            write_into(file, value, target)
            file.flush()
            os.fsync(file.fileno())
        _into_place(temporary, target, overwrite)
    except OSError as error:
        raise BadFile(f"{target} cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _into_place(temporary: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        os.replace(temporary, target)
        return
    try:
        os.link(temporary, target)  # unlike a rename, it never replaces a file that came in the meantime
    except FileExistsError:
        raise BadFile(f"{target} has come to be in the meantime; overwrite it with --force") from None
    except OSError:  # a file system without links
        os.replace(temporary, target)


def _split(text: str) -> tuple[Path, str | None]:
    whole = Path(text)
    head, colon, key = text.rpartition(":")
    if colon and key and not whole.exists() and Path(head).exists():
        return Path(head), key
    return whole, None


def _read_file(path: Path, key: str | None) -> list[NamedTensor]:
    reader = _reader(path)
    found = []
    with _as_bad_file(path, reader.expects):
        for name, tensor in reader.read(path):
            if key is None or name == key:
                found.append(NamedTensor(name or reader.stem(path), readers.checked(path, name, tensor)))
    if not found:
        raise BadFile(f"{path} holds no tensor" + ("" if key is None else f" named {key!r}: {_names(path, reader)}"))
    return found


def _reader(path: Path) -> readers.Reader:
    if not path.exists():
        raise BadFile(f"there is no file {path}")
    if not path.is_file():
        raise BadFile(f"{path} is neither a file nor a folder")
    reader = readers.reader_for(path)
    if reader is None:
        refusal = _REFUSED.get(path.suffix.lower())
        raise BadFile(f"{path}: {refusal}" if refusal else f"{path} has no ending that is known: {_endings()}")
    if not path.stat().st_size:
        raise BadFile(f"{path} is empty; {reader.expects} was expected")
    return reader


def _names(path: Path, reader: readers.Reader) -> str:
    names = [name for name, _ in reader.read(path)]
    return "it holds " + ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") if names != [""] else "it is one"


def _endings() -> str:
    return ", ".join(ending for reader in readers.READERS for ending in reader.endings)


@contextlib.contextmanager
def _as_bad_file(path: Path, expects: str) -> Iterator[None]:
    """Whatever a reader trips over becomes BadFile: strangers' files make libraries raise nearly anything."""
    try:
        yield
    except GridError:
        raise
    except OSError as error:
        if not error.strerror:  # a library's own word for a wrong format
            raise BadFile(f"{path} is not {expects}: {_first_line(error)}") from None
        raise BadFile(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:
        raise BadFile(f"{path} is not {expects}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
