"""Tables of numbers: .csv and .parquet. A csv is read twice: once to know its size and type and that it holds numbers
alone, and once for its values; so what is in memory does not grow with it."""

from __future__ import annotations

import csv
import importlib
from array import array
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from grid.files.entries import Entries, Entry, check_expansion
from grid.files.sources import Streamed
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import BadFile
from protocol.tensors import ITEMSIZE, TensorHeader

_TICK: Final = 2_000  # rows between two signs of life
_BLOCK: Final = 64 * limits.KIB  # cells in one block of a table that is read for its values


# --- csv --------------------------------------------------------------------------------------------------


def csv_entries(path: Path) -> Entries:
    scan = _Scan(path)
    try:
        for number, row in enumerate(scan.rows.numbers()):
            scan.add(row)
            if not number % _TICK:
                yield None
    except UnicodeDecodeError:
        raise BadFile(f"{path} is not text in UTF-8, so it is no table") from None
    header = scan.header()
    yield Entry("", header, partial(Streamed, path, partial(_values, path, scan.code), header.nbytes))


class _Rows:
    """The rows of a csv below its header. `numbers` goes through them once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._has_underscore = False
        self.header: list[str] | None = None
        self.width = 0
        self.line = 0

    def numbers(self) -> Iterator[list[str]]:
        with self._path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(self._lines(file), delimiter=self._delimiter(file), strict=True)
            for row in rows:
                self.line = rows.line_num
                if row and not self._is_header(row):
                    if len(row) != self.width:
                        raise self.bad(f"has {_columns(len(row))}, the lines before have {self.width}")
                    if self._has_underscore:
                        self.check_cells(row)
                    self._has_underscore = False
                    yield row

    def _lines(self, file: IO[str]) -> Iterator[str]:
        while line := file.readline(limits.MAX_LINE):
            if len(line) >= limits.MAX_LINE:
                raise BadFile(f"{self._path} has a line of {limits.MAX_LINE} characters or more: is it a table?")
            # Python reads 1_000 as a number; nobody else does. Cells are looked at one by one only where it matters.
            self._has_underscore |= "_" in line
            yield line

    def _delimiter(self, file: IO[str]) -> str:
        line = next((line for line in self._lines(file) if line.strip()), "")
        file.seek(0)
        self._has_underscore = False
        return max(",;\t", key=line.count)

    def _is_header(self, row: list[str]) -> bool:
        if self.width:
            return False
        self.width = len(row)
        if any(map(_is_number, row)) or not any(row):
            return False
        self.header = row
        return True

    def check_cells(self, row: list[str]) -> None:
        """BadFile that names the first cell that is not a number."""
        for column, cell in enumerate(row):
            if not _is_number(cell):
                name = f" ({self.header[column]!r})" if self.header else ""
                found = f"{cell[:40]!r} is not a number" if cell.strip() else "the cell is empty"
                raise BadFile(f"{self._path} line {self.line}, column {column + 1}{name}: {found}")

    def bad(self, what: str) -> BadFile:
        return BadFile(f"{self._path} line {self.line} {what}")


class _Scan:
    """What the first reading finds out. Whole numbers are int64 as long as all are whole, otherwise all float64."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows = _Rows(path)
        self.code = "q"
        self._count = 0

    def add(self, row: list[str]) -> None:
        self._count += 1
        if self.code == "q":
            try:
                array("q", map(int, row))
                return
            except ValueError:
                self.code = "d"
            except OverflowError:
                raise self.rows.bad("has a whole number beyond 64 bits") from None
        try:
            array("d", map(float, row))
        except ValueError:
            self.rows.check_cells(row)
            raise

    def header(self) -> TensorHeader:
        """[rows, columns], or [rows] where there is one column."""
        if not self._count:
            raise BadFile(f"{self._path} has no rows of numbers")
        dtype = "int64" if self.code == "q" else "float64"
        return TensorHeader(dtype, (self._count,) if self.rows.width == 1 else (self._count, self.rows.width))


def _columns(count: int) -> str:
    return f"{count} column{'s' * (count != 1)}"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _values(path: Path, code: str) -> Iterator[Buffer]:
    convert: Any = int if code == "q" else float
    values = array(code)
    for row in _Rows(path).numbers():
        values.extend(map(convert, row))
        if len(values) >= _BLOCK:
            yield memoryview(values).cast("B")
            values = array(code)
    if values:
        yield memoryview(values).cast("B")


# --- parquet ----------------------------------------------------------------------------------------------


def parquet_entries(path: Path) -> Entries:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise BadFile(
            f"{path}: .parquet needs pyarrow, which is not installed: pip install 'peergrid[parquet]'"
        ) from None
    with parquet.ParquetFile(path) as file:
        rows, fields = file.metadata.num_rows, list(file.schema_arrow)
        if not fields:
            raise BadFile(f"{path} has no columns")
        check_expansion(path, rows * len(fields) * 8)
        dtype = np.result_type(*(_dtype(path, field) for field in fields))
        if dtype.name not in ITEMSIZE:
            raise BadFile(f"{path} holds {dtype}, for which torch has no dtype")
        # What is missing is found before anything is sent: the second reading is for the values.
        for batch in _batches(file, len(fields)):
            _check_whole(path, batch)
            yield None
    header = TensorHeader(dtype.name, (rows,) if len(fields) == 1 else (rows, len(fields)))
    yield Entry("", header, partial(Streamed, path, partial(_table, path, dtype, len(fields)), header.nbytes))


def _batches(file: Any, width: int) -> Iterator[Any]:
    """The rows, a megabyte or so at once."""
    rows: Iterator[Any] = file.iter_batches(batch_size=max(1, 2 * _BLOCK // width))
    return rows


def _dtype(path: Path, field: Any) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.dtype(field.type.to_pandas_dtype())
    except (NotImplementedError, TypeError):
        dtype = np.dtype(object)
    if dtype.kind not in "biuf":
        raise BadFile(f"{path}, column {field.name!r} holds {field.type}, not numbers")
    return dtype


def _check_whole(path: Path, batch: Any) -> None:
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if column.null_count:
            raise BadFile(f"{path}, column {name!r}: {column.null_count} cells are empty")


def _table(path: Path, dtype: np.dtype[Any], width: int) -> Iterator[Buffer]:
    parquet: Any = importlib.import_module("pyarrow.parquet")
    with parquet.ParquetFile(path) as file:
        for batch in _batches(file, width):
            columns = [column.to_numpy(zero_copy_only=False) for column in batch.columns]
            values = np.empty((len(columns[0]), width), dtype)
            for number, column in enumerate(columns):
                values[:, number] = column
            if values.size:
                yield values.reshape(-1).view(np.uint8).data
