"""Arrays in binary files: NumPy's .npy and .npz, and IDX, as MNIST is shipped."""

from __future__ import annotations

import gzip
import io
import math
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from grid.files.entries import Entries, Entry, check_expansion
from grid.files.sources import FileRange, Fix, Streamed, Strided, swap, truth
from peer.payloads import Payload
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import BadFile
from protocol.tensors import ITEMSIZE, TensorHeader

_LOCAL_HEADER: Final = 30  # bytes before the name of a member of a zip file


@dataclass(frozen=True, slots=True)
class _Array:
    """What the header in a file says."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_turned(self) -> bool:
        """Whether its order is not the wire's."""
        return self.is_fortran and sum(dim > 1 for dim in self.shape) > 1

    def header(self, path: Path) -> TensorHeader:
        if self.dtype.name not in ITEMSIZE:
            raise BadFile(f"{path} holds {self.dtype}, for which torch has no dtype")
        return TensorHeader(self.dtype.name, self.shape)

    @property
    def fix(self) -> Fix | None:
        if self.dtype.kind == "b":
            return truth
        width = self.dtype.itemsize // (2 if self.dtype.kind == "c" else 1)
        return None if self.dtype.isnative or width == 1 else swap(width)

    def check_size(self, path: Path, there: int) -> None:
        if self.nbytes != there:
            raise BadFile(
                f"{path} says that it is {self.dtype} {list(self.shape)}, {self.nbytes} bytes, but {there} follow"
            )

    def in_file(self, path: Path, start: int, crc: tuple[int, int] | None = None) -> Payload:
        """Its bytes, which lie in a file as they are."""
        if self.is_turned and self.nbytes:
            return Strided(os.open(path, os.O_RDONLY | os.O_CLOEXEC), start, self.shape, self.dtype)
        return FileRange(path, start, self.nbytes, self.fix, self.dtype.itemsize, crc)

    def fixed(self, blocks: Iterator[bytes]) -> Iterator[Buffer]:
        """Blocks of whole elements, as the wire has them."""
        fix = self.fix
        for block in blocks:
            yield block if fix is None else fix(block)


def blocks_of(file: IO[bytes], unit: int = 1) -> Iterator[bytes]:
    """What is left in a file, in blocks of whole units; the last may lack some."""
    size = limits.CHUNK - limits.CHUNK % unit
    while block := file.read(size):
        while len(block) % unit and (more := file.read(size - len(block))):
            block += more
        yield block


# --- NumPy ------------------------------------------------------------------------------------------------


def npy_entries(path: Path) -> Entries:
    with path.open("rb") as file:
        described = _npy_header(path, file)
        start = file.tell()
    described.check_size(path, path.stat().st_size - start)
    yield Entry("", described.header(path), partial(described.in_file, path, start))


def _npy_header(path: Path, file: IO[bytes]) -> _Array:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise BadFile(f"{path} holds Python objects, not numbers; reading them could run code. Save a numeric array")
    if dtype.kind not in "biufc":
        raise BadFile(f"{path} holds {dtype}, not numbers")
    return _Array(shape, is_fortran, dtype)


def npz_entries(path: Path) -> Entries:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        check_expansion(path, sum(member.file_size for member in members))
        for member in members:
            if not member.filename.endswith(".npy"):
                raise BadFile(f"{path} holds {member.filename!r}, which is no array")
            yield from _member_entries(path, archive, member)


def _member_entries(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Entries:
    with archive.open(member) as file:
        # NumPy's own reader of arrays allocates what the header announces; this reads the header alone.
        head = file.read(limits.MAX_HEADER)
    stream = io.BytesIO(head)
    described = _npy_header(path, stream)
    described.check_size(path, member.file_size - stream.tell())
    header, name, skip = described.header(path), member.filename.removesuffix(".npy"), stream.tell()
    opening: Callable[[], Payload]
    if member.compress_type == zipfile.ZIP_STORED:
        start = _data_start(path, member) + skip
        opening = partial(described.in_file, path, start, (zlib.crc32(head[:skip]), member.CRC))
    elif described.is_turned and described.nbytes:
        spool = yield from _spooled(path, member)
        opening = partial(spool.array, skip, described)
    else:
        opening = partial(Streamed, path, partial(_inflated, path, member, skip, described), described.nbytes)
    yield Entry(name, header, opening)


def _data_start(path: Path, member: zipfile.ZipInfo) -> int:
    with path.open("rb") as file:
        file.seek(member.header_offset)
        local = file.read(_LOCAL_HEADER)
    start = member.header_offset + _LOCAL_HEADER + int.from_bytes(local[26:28], "little")
    start += int.from_bytes(local[28:30], "little")
    if start + member.file_size > path.stat().st_size:
        raise BadFile(f"{path} ends within {member.filename}")
    return start


def _inflated(path: Path, member: zipfile.ZipInfo, skip: int, described: _Array) -> Iterator[Buffer]:
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        file.read(skip)
        yield from described.fixed(blocks_of(file, described.dtype.itemsize))


class _Spool:
    """A temporary file without a name: gone when nothing refers to it, however this process ends."""

    def __init__(self) -> None:
        self.fd, path = tempfile.mkstemp(prefix="grid-")
        os.unlink(path)

    def __del__(self) -> None:
        os.close(self.fd)

    def array(self, start: int, described: _Array) -> Payload:
        return Strided(os.dup(self.fd), start, described.shape, described.dtype)


def _spooled(path: Path, member: zipfile.ZipInfo) -> Generator[None, None, _Spool]:
    """A member in column order, inflated into a temporary file: what is to be turned must be read out of order."""
    spool = _Spool()
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        for block in blocks_of(file):
            try:
                _write_all(spool.fd, block)
            except OSError as error:
                raise BadFile(
                    f"{path}: {member.filename} is in column order and compressed; to inflate it takes "
                    f"{member.file_size} bytes in {tempfile.gettempdir()} ({error.strerror}): "
                    "set $TMPDIR to a disk that has them"
                ) from None
            yield None
    return spool


def _write_all(fd: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(fd, view) :]


# --- IDX --------------------------------------------------------------------------------------------------

_IDX_TYPES: Final = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def idx_entries(path: Path) -> Entries:
    is_packed = path.name.lower().endswith(".gz")
    opened: Any = gzip.open(path) if is_packed else path.open("rb")
    with opened as file:
        described = _idx_header(path, file)
    start = 4 + 4 * len(described.shape)
    if not is_packed:
        described.check_size(path, path.stat().st_size - start)
        yield Entry("", described.header(path), partial(described.in_file, path, start))
        return
    check_expansion(path, described.nbytes)
    begin = partial(_unpacked, path, start, described)
    yield Entry("", described.header(path), partial(Streamed, path, begin, described.nbytes))


def _unpacked(path: Path, start: int, described: _Array) -> Iterator[Buffer]:
    with gzip.open(path) as file:
        file.read(start)
        yield from described.fixed(blocks_of(file, described.dtype.itemsize))  # type: ignore[arg-type]


def _idx_header(path: Path, file: IO[bytes]) -> _Array:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_TYPES or magic[3] > limits.MAX_NDIM:
        raise BadFile(f"{path} is no IDX file: it begins with {magic.hex(' ') or 'nothing'}, not with 00 00 TYPE NDIM")
    dims = file.read(4 * magic[3])
    if len(dims) < 4 * magic[3]:
        raise BadFile(f"{path} ends within its header")
    shape = tuple(int.from_bytes(dims[at : at + 4], "big") for at in range(0, len(dims), 4))
    return _Array(shape, False, np.dtype(_IDX_TYPES[magic[2]]))
