"""One writer for each file format: the headers first, then the bytes of the tensors in pieces, in order, as the wire
has them. Only what a piece holds is in memory; torch is needed by .pt (values.py), .pt2 and .onnx (models.py) alone."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from peer.store.contents import Contents
from protocol.codec import Buffer
from protocol.errors import BadFile
from protocol.tensors import TensorHeader

Layout = Sequence[tuple[str, TensorHeader]]
"""Names and headers of the tensors, in the order of their bytes."""


class Format:
    """Made with (open file, layout, path for errors); that raises BadFile for what the format cannot hold. Then `write`
    with the bytes of all tensors one after another, cut anywhere, and one of `end` and `abort`."""

    def __init__(self, file: IO[bytes], layout: Layout, path: Path) -> None:
        raise NotImplementedError

    @classmethod
    def least_bytes(cls, layout: Layout) -> int:
        """What the file takes at least."""
        return sum(header.nbytes for _, header in layout)

    def write(self, data: Buffer) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """All bytes were written."""

    def abort(self) -> None:
        """No more will be; the file is to be thrown away."""


MODELS: Final = (".pt2", ".onnx")
"""Those that hold a model with its program."""

ENDINGS: Final = (".npy", ".npz", ".csv", ".safetensors", ".pt", ".pth", *MODELS)
"""Those that `grid get -o` writes."""

WHOLE: Final = (".pt", ".pth", *MODELS)
"""Those of which the value is held in memory before."""


def _only(layout: Layout, path: Path) -> TensorHeader:
    if len(layout) != 1:
        raise BadFile(f"{path} holds one tensor, and there are {len(layout)}; write .npz, .safetensors or .pt")
    return layout[0][1]


def _numpy_dtype(header: TensorHeader, path: Path) -> np.dtype[Any]:
    try:
        return np.dtype(header.dtype).newbyteorder("<")
    except TypeError:
        raise BadFile(f"NumPy has no {header.dtype}, so {path} cannot hold it; write .safetensors or .pt") from None


def _npy_header(file: IO[bytes], header: TensorHeader, path: Path) -> None:
    descr = np.lib.format.dtype_to_descr(_numpy_dtype(header, path))
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": header.shape})


class Npy(Format):
    """One array."""

    def __init__(self, file: IO[bytes], layout: Layout, path: Path) -> None:
        self._file = file
        _npy_header(file, _only(layout, path), path)

    def write(self, data: Buffer) -> None:
        self._file.write(data)


class Npz(Format):
    """Each array a member, uncompressed."""

    def __init__(self, file: IO[bytes], layout: Layout, path: Path) -> None:
        for _, header in layout:
            _numpy_dtype(header, path)
        self._archive = zipfile.ZipFile(file, "w")
        self._layout = list(layout)
        self._path = path
        self._member: IO[bytes] | None = None
        self._left = 0
        self._next()

    def _next(self) -> None:
        """The member whose bytes come now; those without any are written on the way."""
        while not self._left:
            if self._member is not None:
                self._member.close()
                self._member = None
            if not self._layout:
                return
            name, header = self._layout.pop(0)
            self._member = self._archive.open(f"{name}.npy", "w", force_zip64=True)
            _npy_header(self._member, header, self._path)
            self._left = header.nbytes

    def write(self, data: Buffer) -> None:
        view = memoryview(data)
        while view and self._member is not None:
            piece = view[: self._left]
            self._member.write(piece)
            self._left -= len(piece)
            view = view[len(piece) :]
            self._next()

    def end(self) -> None:
        self._archive.close()

    def abort(self) -> None:
        self._archive.fp = None  # else it would write its directory when it is collected, into a file that is closed


class Csv(Format):
    """A row of the file for each row of the table; one that is cut off waits for its rest."""

    def __init__(self, file: IO[bytes], layout: Layout, path: Path) -> None:
        header = _only(layout, path)
        if len(header.shape) > 2 or header.dtype.startswith("complex"):
            raise BadFile(f"{path} holds a table of real numbers, not {header.dtype} {list(header.shape)}; write .npy")
        self._file = file
        self._dtype = np.dtype("u1") if header.dtype == "bool" else _numpy_dtype(header, path)
        self._columns = header.shape[1] if len(header.shape) == 2 else 1
        self._rows = header.shape[0] if header.shape else 1
        self._rest = b""

    @classmethod
    def least_bytes(cls, layout: Layout) -> int:
        """Of text, which depends on the values: as if each were the shortest there is, `0.0,` or `0,`."""
        return sum(header.numel * (4 if "float" in header.dtype else 2) for _, header in layout)

    def write(self, data: Buffer) -> None:
        data = self._rest + bytes(data)
        width = self._columns * self._dtype.itemsize
        whole = len(data) - len(data) % width if width else 0
        self._rest = data[whole:]
        rows = np.frombuffer(data[:whole], self._dtype).reshape(-1, self._columns)
        # str of a number is the shortest text that reads back as the same value; of a narrow one, NumPy's own is.
        is_wide = self._dtype.kind in "iu" or self._dtype.itemsize == 8
        for row in rows.tolist() if is_wide else rows:
            self._file.write((",".join(map(str, row)) + "\n").encode())

    def end(self) -> None:
        if not self._columns:
            self._file.write(b"\n" * self._rows)


class Safetensors(Format):
    """The tensors one after another."""

    def __init__(self, file: IO[bytes], layout: Layout, path: Path) -> None:
        self._file = file
        file.write(Contents(tuple(layout)).file_header())

    def write(self, data: Buffer) -> None:
        self._file.write(data)


FORMATS: Final[dict[str, type[Format]]] = {
    ".npy": Npy,
    ".npz": Npz,
    ".csv": Csv,
    ".safetensors": Safetensors,
}
