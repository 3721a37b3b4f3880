"""Which files are meant, and what is in them: `FILE`, `FILE:NAME`, or a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from grid.files.arrays import idx_entries, npy_entries, npz_entries
from grid.files.confined import onnx_entries, pt2_entries, pt_entries
from grid.files.entries import Entries, Entry, Reader, as_bad_file
from grid.files.tables import csv_entries, parquet_entries
from grid.files.tensors import safetensors_entries
from protocol.errors import BadFile

READERS: Final = (
    Reader((".npy",), "a NumPy array (.npy)", re.compile(r"\.npy$"), npy_entries),
    Reader((".npz",), "an archive of NumPy arrays (.npz)", re.compile(r"\.npz$"), npz_entries),
    Reader((".csv",), "a table of numbers (.csv)", re.compile(r"\.csv$"), csv_entries),
    Reader((".parquet",), "a Parquet table", re.compile(r"\.parquet$"), parquet_entries),
    Reader((".safetensors",), "a safetensors file", re.compile(r"\.safetensors$"), safetensors_entries),
    Reader((".pt", ".pth"), "a file of torch.save", re.compile(r"\.pth?$"), pt_entries),
    Reader((".pt2",), "an archive of torch.export.save", re.compile(r"\.pt2$"), pt2_entries),
    Reader((".onnx",), "an ONNX model", re.compile(r"\.onnx$"), onnx_entries),
    Reader(
        (".idx", "-idx3-ubyte", "-idx3-ubyte.gz"),
        "an IDX file",
        re.compile(r"([.-]idx\d+-[a-z0-9]+|\.idx)(\.gz)?$"),
        idx_entries,
    ),
)
_REFUSED: Final = {
    ".pkl": "unpickling runs code of whoever made the file; save the tensors as .npy or .safetensors",
    ".pickle": "unpickling runs code of whoever made the file; save the tensors as .npy or .safetensors",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """One file to be read: `key` picks one tensor in it; `prefix` is the folder below that which was named."""

    path: Path
    key: str | None = None
    prefix: str = ""

    def name_of(self, entry: Entry) -> str:
        """What the tensor is called: its key in the file, or the file's stem; below a folder with the path there."""
        reader = reader_for(self.path)
        name = entry.name or (reader.stem(self.path) if reader is not None else self.path.name)
        return f"{self.prefix}/{name}" if self.prefix else name

    def __str__(self) -> str:
        return f"{self.path}:{self.key}" if self.key is not None else str(self.path)


def reader_for(path: Path) -> Reader | None:
    """The reader that the file's name asks for."""
    return next((reader for reader in READERS if reader.matches(path)), None)


def asked(path: str | os.PathLike[str]) -> list[Asked]:
    """The files that a path stands for: one, or all readable ones of a folder.

    Raises:
        BadFile: a folder with nothing in it that can be read.
    """
    file, key = _split(os.fspath(path))
    if not file.is_dir():
        return [Asked(file, key)]
    if key is not None:
        raise BadFile(f"{file} is a folder: FILE:NAME picks from a file")
    readable = files_in(file)
    if not readable:
        raise BadFile(f"no file in {file} can be read; endings that can: {_endings()}")
    prefixes = [inside.relative_to(file).parent.as_posix() for inside in readable]
    return [Asked(inside, None, "" if at == "." else at) for inside, at in zip(readable, prefixes, strict=True)]


def files_in(folder: Path) -> list[Path]:
    """The files below `folder` whose endings can be read, in order of their names; hidden ones are left out."""
    found = []
    for path in sorted(folder.rglob("*")):
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not is_hidden and reader_for(path) is not None:
            found.append(path)
    return found


def entries(file: Asked) -> Entries:
    """What is in a file; None now and then, where that takes long.

    Raises:
        BadFile: it is missing, empty, of an unknown ending, not what its ending says, or has no tensor of that key.
            The message names what was expected and what was found.
        TooLarge, BadTensor: what no peer would take.
    """
    reader = _reader(file.path)
    names: list[str] = []
    is_found = False
    with as_bad_file(file.path, reader.expects):
        for entry in reader.entries(file.path):
            if entry is None:
                yield None
                continue
            names.append(entry.name)
            if file.key is None or entry.name == file.key:
                is_found = True
                yield entry
    if not is_found:
        raise BadFile(f"{file.path} holds no tensor" + _named_otherwise(file.key, names))


def _split(text: str) -> tuple[Path, str | None]:
    whole = Path(text)
    head, colon, key = text.rpartition(":")
    if colon and key and not whole.exists() and Path(head).exists():
        return Path(head), key
    return whole, None


def _reader(path: Path) -> Reader:
    if not path.exists():
        raise BadFile(f"there is no file {path}")
    if not path.is_file():
        raise BadFile(f"{path} is neither a file nor a folder")
    reader = reader_for(path)
    if reader is None:
        refusal = _REFUSED.get(path.suffix.lower())
        raise BadFile(f"{path}: {refusal}" if refusal else f"{path} has no ending that is known: {_endings()}")
    if not path.stat().st_size:
        raise BadFile(f"{path} is empty; {reader.expects} was expected")
    return reader


def _named_otherwise(key: str | None, names: list[str]) -> str:
    if key is None:
        return ""
    if names == [""]:
        return f" named {key!r}: it is one"
    return f" named {key!r}: it holds " + ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def _endings() -> str:
    return ", ".join(ending for reader in READERS for ending in reader.endings)


def every(files: list[Asked]) -> Iterator[tuple[Asked, Entry]]:
    """All entries of several files; the first error ends it."""
    for file in files:
        for entry in entries(file):
            if entry is not None:
                yield file, entry
