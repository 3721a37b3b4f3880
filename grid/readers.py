"""One reader for each file format: a path in, names and tensors out, nothing allocated that the file cannot fill.

A reader yields ("", tensor) where the format holds one, and the names in the file where it may hold several. It
may raise anything: files.py makes BadFile of it.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import math
import re
import zipfile
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import torch

from protocol import limits
from protocol.errors import BadFile, GridError, TooLarge
from protocol.tensors import ITEMSIZE, TensorHeader

Named = Iterator[tuple[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Reader:
    """`expects` names the format in an error; `pattern` finds its ending in a lower-case file name."""

    endings: tuple[str, ...]
    expects: str
    pattern: re.Pattern[str]
    read: Callable[[Path], Named]

    def stem(self, path: Path) -> str:
        return path.name[: self._start(path)] or path.name

    def matches(self, path: Path) -> bool:
        return self.pattern.search(path.name.lower()) is not None

    def _start(self, path: Path) -> int:
        found = self.pattern.search(path.name.lower())
        return found.start() if found is not None else len(path.name)


def reader_for(path: Path) -> Reader | None:
    """The reader that the file's name asks for."""
    return next((reader for reader in READERS if reader.matches(path)), None)


def checked(path: Path, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, if it can travel: strided, dense, on the CPU, of a known dtype and an honest size."""
    what = f"{path}: {name or 'its tensor'}"
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise BadFile(f"{what} is no dense tensor: call .to_dense(), .dequantize() or .cpu() on it before saving")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in ITEMSIZE:
        raise BadFile(f"{what} has dtype {dtype}, which cannot travel")
    TensorHeader(dtype, tuple(tensor.shape))
    plain = tensor.detach().as_subclass(torch.Tensor)
    # A file may hold any byte for a bool; computing on one that is neither 0 nor 1 is undefined.
    return plain.view(torch.uint8) != 0 if plain.dtype is torch.bool and plain.dim() else plain


def _check_expansion(path: Path, nbytes: int) -> None:
    """TooLarge for a compressed file that would become absurdly larger."""
    allowed = max(limits.SMALL_EXPANSION, limits.MAX_EXPANSION * path.stat().st_size)
    if nbytes > allowed:
        raise TooLarge(
            f"{path} would grow to {nbytes} bytes; at most {allowed} are read from a compressed file of its size",
            limit="MAX_EXPANSION",
            size=min(nbytes, limits.MAX_ID),
            allowed=allowed,
        )


# --- NumPy ------------------------------------------------------------------------------------------------


def _read_npy(path: Path) -> Named:
    with path.open("rb") as file:
        shape, is_fortran, dtype = _npy_header(path, file)
        start = file.tell()
    _check_size(path, shape, dtype, path.stat().st_size - start)
    yield "", _from_numpy(path, _mapped(path, shape, is_fortran, dtype, start))


def _read_npz(path: Path) -> Named:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_expansion(path, sum(member.file_size for member in members))
        for member in members:
            if not member.filename.endswith(".npy"):
                raise BadFile(f"{path} holds {member.filename!r}, which is no array")
            with archive.open(member) as file:
                yield member.filename.removesuffix(".npy"), _read_member(path, file, member.file_size)


def _read_member(path: Path, file: IO[bytes], size: int) -> torch.Tensor:
    # The header is checked first: NumPy's own reader allocates what it announces.
    stream = io.BytesIO(file.read(limits.MAX_HEADER))
    shape, is_fortran, dtype = _npy_header(path, stream)
    _check_size(path, shape, dtype, size - stream.tell())
    data = bytearray(stream.read() + file.read())
    order: Any = "F" if is_fortran else "C"
    return _from_numpy(path, np.frombuffer(data, dtype).reshape(shape, order=order))


def _npy_header(path: Path, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise BadFile(f"{path} holds Python objects, not numbers; reading them could run code. Save a numeric array")
    if dtype.kind not in "biufc":
        raise BadFile(f"{path} holds {dtype}, not numbers")
    return shape, is_fortran, dtype


def _check_size(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], there: int) -> None:
    wanted = math.prod(shape) * dtype.itemsize
    if wanted != there:
        raise BadFile(f"{path} says that it is {dtype} {list(shape)}, {wanted} bytes, but {there} follow")


def _mapped(path: Path, shape: tuple[int, ...], is_fortran: bool, dtype: np.dtype[Any], start: int) -> Any:
    order: Any = "F" if is_fortran else "C"
    if not math.prod(shape):
        return np.empty(shape, dtype, order=order)
    # "c": copy on write. The tensor is writable, as torch wants it, and the file stays as it is.
    return np.memmap(path, dtype, mode="c", offset=start, shape=shape, order=order)


def _from_numpy(path: Path, values: np.ndarray[Any, Any]) -> torch.Tensor:
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    try:
        return torch.from_numpy(values)
    except TypeError:
        raise BadFile(f"{path} holds {values.dtype}, for which torch has no dtype") from None


# --- tables -----------------------------------------------------------------------------------------------


def _read_csv(path: Path) -> Named:
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            table = _Table(path)
            delimiter = _delimiter(file)
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            for row in rows:
                if row:
                    table.add(row, rows.line_num)
        except UnicodeDecodeError:
            raise BadFile(f"{path} is not text in UTF-8, so it is no table") from None
    yield "", table.tensor()


def _delimiter(file: IO[str]) -> str:
    line = next((line for line in file if line.strip()), "")
    file.seek(0)
    return max(",;\t", key=line.count)


class _Table:
    """Rows of numbers: whole ones as int64 as long as all are whole, otherwise all float64."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._header: list[str] | None = None
        self._width = 0
        self._values: array[Any] = array("q")

    def add(self, row: list[str], line: int) -> None:
        if not self._width:
            self._width = len(row)
            if not any(map(_is_number, row)) and any(row):
                self._header = row
                return
        if len(row) != self._width:
            raise BadFile(f"{self._path} line {line} has {len(row)} columns, the lines before have {self._width}")
        if self._values.typecode == "q":
            try:
                self._values.extend(_whole_numbers(row))
                return
            except ValueError:
                pass
            except OverflowError:
                raise BadFile(f"{self._path} line {line} has a whole number beyond 64 bits") from None
        self._add_fractions(row, line)

    def _add_fractions(self, row: list[str], line: int) -> None:
        for column, cell in enumerate(row):
            if not _is_number(cell):
                name = f" ({self._header[column]!r})" if self._header else ""
                found = f"{cell[:40]!r} is not a number" if cell.strip() else "the cell is empty"
                raise BadFile(f"{self._path} line {line}, column {column + 1}{name}: {found}")
        if self._values.typecode == "q":
            self._values = array("d", self._values)
        self._values.extend(map(float, row))

    def tensor(self) -> torch.Tensor:
        """[rows, columns], or [rows] where there is one column."""
        if not self._values:
            raise BadFile(f"{self._path} has no rows of numbers")
        dtype = torch.int64 if self._values.typecode == "q" else torch.float64
        flat = torch.frombuffer(self._values, dtype=dtype)
        return flat if self._width == 1 else flat.view(-1, self._width)


def _whole_numbers(row: list[str]) -> array[int]:
    if any("_" in cell for cell in row):
        raise ValueError
    return array("q", map(int, row))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # Python reads 1_000 as a number; nobody else does


def _read_parquet(path: Path) -> Named:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise BadFile(
            f"{path}: .parquet needs pyarrow, which is not installed: pip install 'peergrid[parquet]'"
        ) from None
    file = parquet.ParquetFile(path)
    _check_expansion(path, file.metadata.num_rows * file.metadata.num_columns * 8)
    table = file.read()
    columns = [_numeric_column(path, table, name) for name in table.column_names]
    if not columns:
        raise BadFile(f"{path} has no columns")
    values = _from_numpy(path, np.column_stack(columns))
    yield "", values[:, 0] if len(columns) == 1 else values


def _numeric_column(path: Path, table: Any, name: str) -> np.ndarray[Any, Any]:
    column = table.column(name)
    if column.null_count:
        raise BadFile(f"{path}, column {name!r}: {column.null_count} cells are empty")
    values: np.ndarray[Any, Any] = column.to_numpy()
    if values.dtype.kind not in "biuf":
        raise BadFile(f"{path}, column {name!r} holds {column.type}, not numbers")
    return values


# --- tensors ----------------------------------------------------------------------------------------------


def _read_safetensors(path: Path) -> Named:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in file.keys():
            yield name, file.get_tensor(name)


def _read_pt(path: Path) -> Named:
    is_mapped = False
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        _check_expansion(path, sum(member.file_size for member in members))
        is_mapped = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    try:
        # Without the check, sparse tensors with wrong indices load, and corrupt the heap when they are used.
        with torch.sparse.check_sparse_tensor_invariants():  # type: ignore[no-untyped-call]
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except GridError:
        raise
    except Exception as error:
        if "weights_only" not in str(error):
            raise
        raise BadFile(
            f"{path} holds Python objects besides tensors, and reading those could run code: "
            "save a tensor or model.state_dict()"
        ) from None
    total = 0
    for name, tensor in _tensors_in(value, "", set()):
        total += tensor.numel() * tensor.element_size()  # stride 0 makes terabytes out of one element
        _check_expansion(path, total)
        yield name, tensor


def _tensors_in(value: object, name: str, seen: set[int]) -> Named:
    """The tensors in nested maps and lists, with dotted names; what else is there (epochs, settings) is passed over."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
        seen.add(id(value))  # pickled lists can hold themselves
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inside in items:
            yield from _tensors_in(inside, f"{name}.{key}" if name else str(key), seen)


# --- IDX, as MNIST is shipped -----------------------------------------------------------------------------

_IDX_TYPES: Final = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def _read_idx(path: Path) -> Named:
    is_packed = path.name.lower().endswith(".gz")
    opened: Any = gzip.open(path) if is_packed else path.open("rb")
    with opened as file:
        shape, dtype = _idx_header(path, file)
        start, wanted = 4 + 4 * len(shape), math.prod(shape) * dtype.itemsize
        if not is_packed:
            _check_size(path, shape, dtype, path.stat().st_size - start)
            yield "", _from_numpy(path, _mapped(path, shape, False, dtype, start))
            return
        _check_expansion(path, wanted)
        data = bytearray(file.read(wanted))
        if len(data) != wanted or file.read(1):
            there = f"only {len(data)}" if len(data) != wanted else "more"
            raise BadFile(f"{path} says that it is {list(shape)}, {wanted} bytes, but {there} follow")
    yield "", _from_numpy(path, np.frombuffer(data, dtype).reshape(shape))


def _idx_header(path: Path, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_TYPES or magic[3] > limits.MAX_NDIM:
        raise BadFile(f"{path} is no IDX file: it begins with {magic.hex(' ') or 'nothing'}, not with 00 00 TYPE NDIM")
    dims = file.read(4 * magic[3])
    if len(dims) < 4 * magic[3]:
        raise BadFile(f"{path} ends within its header")
    shape = tuple(int.from_bytes(dims[at : at + 4], "big") for at in range(0, len(dims), 4))
    return shape, np.dtype(_IDX_TYPES[magic[2]])


READERS: Final = (
    Reader((".npy",), "a NumPy array (.npy)", re.compile(r"\.npy$"), _read_npy),
    Reader((".npz",), "an archive of NumPy arrays (.npz)", re.compile(r"\.npz$"), _read_npz),
    Reader((".csv",), "a table of numbers (.csv)", re.compile(r"\.csv$"), _read_csv),
    Reader((".parquet",), "a Parquet table", re.compile(r"\.parquet$"), _read_parquet),
    Reader((".safetensors",), "a safetensors file", re.compile(r"\.safetensors$"), _read_safetensors),
    Reader((".pt", ".pth"), "a file of torch.save", re.compile(r"\.pth?$"), _read_pt),
    Reader(
        (".idx", "-idx3-ubyte", "-idx3-ubyte.gz"),
        "an IDX file",
        re.compile(r"([.-]idx\d+-[a-z0-9]+|\.idx)(\.gz)?$"),
        _read_idx,
    ),
)
