"""Files of tensors: read by what their ending says, checked that they are it, written whole or not at all; in pieces
both ways, so that a file may be larger than memory, and without torch. Formats that can do more than hold numbers
(.pt .pt2 .onnx) are opened in confinement. Files in import order:

    sources.py   bytes that lie in a file, as payloads that can be sent
    entries.py   what a reader finds in a file; foreign errors in the grid's words
    arrays.py    .npy .npz IDX
    tables.py    .csv .parquet
    tensors.py   .safetensors
    confined.py  .pt .pt2 .onnx
    reading.py   FILE, FILE:NAME, folders
    formats.py   one writer for each format: headers and bytes in, a file out
    writing.py   the file that appears whole or not at all
    values.py    tensors in memory, from and to files
    models.py    models from files, and into them

    entries(Asked(path))     every tensor in a file, its bytes still there
    read("digits.npz")       every array in it           read("digits.npz:labels")    one of them
    read("folder")           every readable file in it   write("out.npy", tensor)     never over a file unasked
"""

from typing import TYPE_CHECKING, Any

from grid.files.entries import Entry
from grid.files.reading import Asked, asked, entries, files_in
from grid.files.writing import check_target

if TYPE_CHECKING:
    from grid.files.values import NamedTensor, read, write

__all__ = ["Asked", "Entry", "NamedTensor", "asked", "check_target", "entries", "files_in", "read", "write"]


def __getattr__(name: str) -> Any:
    if name not in ("NamedTensor", "read", "write"):
        raise AttributeError(f"module 'grid.files' has no attribute {name!r}")
    from grid.files import values  # it needs torch

    return getattr(values, name)
