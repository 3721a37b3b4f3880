"""Files of tensors larger than memory: any piece of one is read, again and again."""

from __future__ import annotations

import gzip
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from compute.values import tensor_bytes
from grid.files import Entry, asked, entries, read, sources, tables
from protocol.errors import BadFile
from tests.grid.tensor_files import idx, only

pytestmark = pytest.mark.usefixtures("one_reader")


def rows(shape: tuple[int, ...], dtype: str = "f4") -> np.ndarray:
    return np.arange(int(np.prod(shape)), dtype=dtype).reshape(shape)


def npy(path: Path) -> None:
    np.save(path.with_suffix(".npy"), rows((50, 30)))


def npy_of_bytes_turned_round(path: Path) -> None:
    np.save(path.with_suffix(".npy"), rows((50, 30), ">f8"))


def npy_of_complex_numbers_turned_round(path: Path) -> None:
    np.save(path.with_suffix(".npy"), (rows((50, 30)) + 1j).astype(">c16"))


def npy_of_truths(path: Path) -> None:
    np.save(path.with_suffix(".npy"), rows((50, 30)) % 3 == 0)


def npy_in_columns(path: Path) -> None:
    np.save(path.with_suffix(".npy"), np.asfortranarray(rows((20, 7, 11), ">i4")))


def npy_in_columns_with_long_rows(path: Path) -> None:
    np.save(path.with_suffix(".npy"), np.asfortranarray(rows((2, 3, 200), "i2")))


def npz(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), x=rows((50, 30)))


def npz_in_columns(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), x=np.asfortranarray(rows((50, 30))))


def npz_packed(path: Path) -> None:
    np.savez_compressed(path.with_suffix(".npz"), x=rows((50, 30), ">i8"))


def npz_packed_in_columns(path: Path) -> None:
    np.savez_compressed(path.with_suffix(".npz"), x=np.asfortranarray(rows((50, 30))))


def idx_packed(path: Path) -> None:
    path.with_suffix(".idx.gz").write_bytes(gzip.compress(idx(rows((50, 30), "i4"), 0x0C)))


def csv(path: Path) -> None:
    np.savetxt(path.with_suffix(".csv"), rows((50, 30)), delimiter=",")


def tensors(path: Path) -> None:
    safetensors.torch.save_file({"x": torch.arange(1500.0).reshape(50, 30)}, path.with_suffix(".safetensors"))


def parquet(path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(
        pyarrow.table({str(n): np.arange(50) * (n + 0.5) for n in range(3)}), path.with_suffix(".parquet")
    )


PIECES = [
    npy,
    npy_of_bytes_turned_round,
    npy_of_complex_numbers_turned_round,
    npy_of_truths,
    npy_in_columns,
    npy_in_columns_with_long_rows,
    npz,
    npz_in_columns,
    npz_packed,
    npz_packed_in_columns,
    tensors,
    idx_packed,
    csv,
    parquet,
]


def the_entry(folder: Path) -> Entry:
    (file,) = asked(folder)
    (entry,) = [entry for entry in entries(file) if entry is not None]
    return entry


@pytest.mark.parametrize("make", PIECES)
async def test_any_piece_can_be_read_again(
    tmp_path: Path, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_BAND", 256)
    monkeypatch.setattr(sources, "_TOUCHED", 100)
    monkeypatch.setattr(sources, "_KEPT", 300)
    monkeypatch.setattr(tables, "_BLOCK", 16)
    make(tmp_path / "x")
    whole = bytes(tensor_bytes(only(tmp_path)))
    source = the_entry(tmp_path).open()
    chance = random.Random(1)
    assert source.nbytes == len(whole)
    at, jumps = 0, 20
    while at < len(whole):
        size = chance.randint(1, min(200, len(whole) - at))
        assert bytes(await source.read(at, size)) == whole[at : at + size], (at, size)
        # Mostly on, and now and then back, as a transfer that broke goes on.
        is_back = jumps > 0 and chance.random() < 0.2
        at, jumps = (chance.randrange(at + 1), jumps - 1) if is_back else (at + size, jumps)
    source.close()


MEMORY = """
import asyncio, resource, sys
from pathlib import Path
from types import SimpleNamespace
from grid.files import asked, entries

def used():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

async def main():
    (file,) = asked(sys.argv[1])
    (entry,) = [one for one in entries(file) if one is not None]
    source, before = entry.open(), used()
    for offset in range(0, source.nbytes, 1 << 20):
        await source.read(offset, min(1 << 20, source.nbytes - offset))
    assert "torch" not in sys.modules
    print(used() - before)

asyncio.run(main())
"""


def of_rows(path: Path) -> Path:
    np.lib.format.open_memmap(path / "x.npy", "w+", np.float32, (1 << 16, 1 << 10))
    return path / "x.npy"


def of_columns(path: Path) -> Path:
    np.lib.format.open_memmap(path / "x.npy", "w+", np.float32, (1 << 16, 1 << 10), fortran_order=True)
    return path / "x.npy"


def of_tensors(path: Path) -> Path:
    header = b'{"a":{"dtype":"BOOL","shape":[268435456],"data_offsets":[0,268435456]}}'
    (path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path / "x.safetensors", 8 + len(header) + (1 << 28))
    return path / "x.safetensors"


def packed(path: Path) -> Path:
    with gzip.open(path / "x.idx.gz", "wb", compresslevel=1) as file:
        file.write(bytes([0, 0, 8, 1]) + struct.pack(">I", 1 << 27))
        for _ in range(128):
            file.write(bytes(1 << 20))
    return path / "x.idx.gz"


def table(path: Path) -> Path:
    (path / "x.csv").write_bytes(b"1.5,2,3,4,5,6,7,8\n" * 200_000)
    return path / "x.csv"


@pytest.mark.parametrize("make", [of_rows, of_columns, of_tensors, packed, table])
def test_a_large_file_is_read_in_little_memory_and_without_torch(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    root = Path(sources.__file__).parents[2]
    command = [sys.executable, "-c", MEMORY, str(make(tmp_path))]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True, cwd=root).stdout
    assert int(printed) <= 64


async def test_a_file_that_changes_while_it_is_read_is_not_taken_for_whole(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows((100, 10)))
    source = the_entry(tmp_path).open()
    await source.read(0, 2000)
    os.utime(tmp_path / "x.npy", ns=(1, 1))
    with pytest.raises(BadFile, match="was changed while it was read"):
        await source.read(2000, 2000)
    os.truncate(tmp_path / "x.npy", 300)
    with pytest.raises(BadFile, match="became shorter"):
        await source.read(0, 2000)
    source.close()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_with_a_flipped_bit_is_refused(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "x.npz", x=np.random.default_rng(0).integers(0, 255, 10_000, np.uint8))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[5_000] ^= 1
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(BadFile, match=r"damaged|is not an archive"):
        read(tmp_path / "x.npz")
