"""Files of tensors: what is read is what was written, and what is not what its ending says is refused by name."""

from __future__ import annotations

import asyncio
import errno
import gc
import gzip
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from compute.values import tensor_bytes
from grid.files import Entry, asked, check_target, entries, files_in, read, sources, tables, write
from grid.files.writing import save
from peer.worker.reader import kept
from protocol import limits
from protocol.errors import BadFile, BadTensor, GridError, PeerLost, StorageFull, TooLarge
from protocol.tensors import TensorHeader


@pytest.fixture(autouse=True, scope="module")
def one_reader() -> Iterator[None]:
    """The confined process that opens other makers' files starts once."""
    with kept():
        yield


def idx(values: np.ndarray, kind: int = 0x08) -> bytes:
    header = bytes([0, 0, kind, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(values.dtype.newbyteorder(">")).tobytes()


def rows(shape: tuple[int, ...], dtype: str = "f4") -> np.ndarray:
    return np.arange(int(np.prod(shape)), dtype=dtype).reshape(shape)


def only(path: Path | str) -> torch.Tensor:
    (found,) = read(path)
    return found.tensor


# --- what is read -----------------------------------------------------------------------------------------

ARRAYS = [
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(4, dtype=">i4"),
    np.array(3.5),
    np.zeros((0, 3), np.int16),
    np.array([True, False]),
    np.array([1 + 2j, 3]),
    np.array([1, 2], np.uint16),
]


@pytest.mark.parametrize("values", ARRAYS, ids=lambda values: f"{values.dtype.str}{list(values.shape)}")
def test_npy_gives_the_array_as_it_was_saved(tmp_path: Path, values: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", values)
    (found,) = read(tmp_path / "x.npy")
    assert found.name == "x"
    assert found.tensor.shape == values.shape
    assert (found.tensor.numpy() == values).all()


def test_writing_to_a_tensor_leaves_its_file_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(4))
    only(tmp_path / "x.npy").add_(1)
    assert np.load(tmp_path / "x.npy").sum() == 0


def test_npz_gives_each_array_under_its_name_and_one_where_it_is_asked_for(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", images=np.ones((2, 2)), labels=np.arange(2))
    assert [one.name for one in read(tmp_path / "two.npz")] == ["images", "labels"]
    (labels,) = read(f"{tmp_path}/two.npz:labels")
    assert labels.name == "labels"
    assert labels.tensor.tolist() == [0, 1]


def test_compressed_npz_is_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=np.asfortranarray(np.arange(6).reshape(2, 3)))
    assert only(tmp_path / "x.npz").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_name_that_is_not_in_the_file_is_answered_with_those_that_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", images=np.ones(2), labels=np.ones(2))
    with pytest.raises(BadFile, match="no tensor named 'label': it holds images, labels"):
        read(f"{tmp_path}/two.npz:label")


CSV = {
    "1,2\n3,4\n": ("int64", [[1, 2], [3, 4]]),
    "a,b\n1,2\n": ("int64", [[1, 2]]),
    "1,2\n3,4.5\n": ("float64", [[1, 2], [3, 4.5]]),
    "\ufeffage\n1\n2\n\n": ("int64", [1, 2]),
    "a;b\r\n1;-2e3\r\n": ("float64", [[1, -2000]]),
    "1\t2\n": ("int64", [[1, 2]]),
    '"a","b"\n"1","2"\n': ("int64", [[1, 2]]),
}


@pytest.mark.parametrize("text", CSV)
def test_csv_gives_its_numbers(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.csv").write_text(text, encoding="utf-8", newline="")
    dtype, values = CSV[text]
    tensor = only(tmp_path / "x.csv")
    assert (str(tensor.dtype), tensor.tolist()) == (f"torch.{dtype}", values)


def test_safetensors_gives_each_tensor(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.tensor(True)}
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    found = {one.name: one.tensor for one in read(tmp_path / "x.safetensors")}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_pt_gives_a_tensor_or_the_tensors_of_a_state_dict(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    torch.save(torch.arange(3), tmp_path / "x.pt")
    torch.save({"model": model.state_dict(), "epoch": 3}, tmp_path / "model.pth")
    assert only(tmp_path / "x.pt").tolist() == [0, 1, 2]
    found = {one.name: one.tensor for one in read(tmp_path / "model.pth")}
    assert torch.equal(found["model.weight"], model.weight)
    assert found.keys() == {"model.weight", "model.bias"}
    assert not found["model.weight"].requires_grad


def test_the_old_format_of_torch_save_is_read(tmp_path: Path) -> None:
    torch.save(torch.arange(3), tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert only(tmp_path / "x.pt").tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "x.idx", "train.images-idx3-ubyte.gz", "x.idx3-ubyte"])
def test_idx_is_read_packed_or_not(tmp_path: Path, name: str) -> None:
    values = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    data = idx(values)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    tensor = only(tmp_path / name)
    assert tensor.dtype == torch.uint8
    assert tensor.tolist() == values.tolist()


def test_idx_of_larger_numbers_is_turned_to_this_machines_byte_order(tmp_path: Path) -> None:
    (tmp_path / "x.idx").write_bytes(idx(np.array([1, -2], np.int32), 0x0C))
    (tmp_path / "y.idx").write_bytes(idx(np.array([1.5, -2], np.float32), 0x0D))
    assert only(tmp_path / "x.idx").tolist() == [1, -2]
    assert only(tmp_path / "y.idx").tolist() == [1.5, -2]


def test_the_name_of_an_idx_tensor_is_the_file_without_its_ending(tmp_path: Path) -> None:
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(2, dtype=np.uint8))))
    assert [one.name for one in read(tmp_path / "t10k-labels-idx1-ubyte.gz")] == ["t10k-labels"]


def test_a_folder_gives_every_readable_file_inside(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    np.save(tmp_path / "b.npy", np.ones(1))
    np.save(tmp_path / "deep" / "a.npy", np.ones(2))
    (tmp_path / "README.txt").write_text("not a tensor")
    (tmp_path / ".hidden.csv").write_text("1")
    assert [(one.name, one.tensor.numel()) for one in read(tmp_path)] == [("b", 1), ("deep/a", 2)]
    assert len(files_in(tmp_path)) == 2


# --- in pieces --------------------------------------------------------------------------------------------


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


def tensors(path: Path) -> None:
    safetensors.torch.save_file({"x": torch.arange(1500.0).reshape(50, 30)}, path.with_suffix(".safetensors"))


def idx_packed(path: Path) -> None:
    path.with_suffix(".idx.gz").write_bytes(gzip.compress(idx(rows((50, 30), "i4"), 0x0C)))


def csv(path: Path) -> None:
    np.savetxt(path.with_suffix(".csv"), rows((50, 30)), delimiter=",")


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


# --- what is refused --------------------------------------------------------------------------------------


def evil_pickle() -> bytes:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.mkdir, ("canary",)

    return pickle.dumps(Evil())


def object_array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    return file.getvalue()


def saved(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return file.getvalue()


def described(*spans: tuple[int, int]) -> bytes:
    """A safetensors file of tensors of two bytes each, at these places."""
    fields = {str(at): {"dtype": "U8", "shape": [2], "data_offsets": span} for at, span in enumerate(spans)}
    header = json.dumps(fields).encode()
    return struct.pack("<Q", len(header)) + header + bytes(max(end for _, end in spans))


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "no npy": ("x.npy", b"1,2\n", "is not a NumPy array"),
    "cut npy": ("x.npy", saved(np.ones(9))[:-8], r"72 bytes, but 64 follow"),
    "npy with a tail": ("x.npy", saved(np.ones(9)) + b"x", "72 bytes, but 73 follow"),
    "lying npy": ("x.npy", saved(np.ones(9)).replace(b"(9,), }", b"(9999999,), }"), "but .* follow"),
    "objects": ("x.npy", object_array(), "Python objects"),
    "text array": ("x.npy", saved(np.array(["a"])), "not numbers"),
    "records": ("x.npy", saved(np.zeros(1, [("a", "f4")])), "not numbers"),
    "dates": ("x.npy", saved(np.array(["2020"], "M8[Y]")), "not numbers"),
    "long double": ("x.npy", saved(np.zeros(2, np.longdouble)), "no dtype"),
    "npz that is none": ("x.npz", b"PK nothing", "is not an archive of NumPy arrays"),
    "npz with text": ("x.npz", zipped(a=b"hello"), "is not an archive"),
    "lying npz": ("x.npz", zipped(a=saved(np.ones(9)).replace(b"(9,), }", b"(9999999,), }")), "but .* follow"),
    "objects in npz": ("x.npz", zipped(a=object_array()), "Python objects"),
    "word in csv": ("x.csv", b"a,b\n1,2\n3,oops\n", r"line 3, column 2 \('b'\): 'oops' is not a number"),
    "hole in csv": ("x.csv", b"1,2\n3,\n", "line 2, column 2: the cell is empty"),
    "half a header": ("x.csv", b"a,1\n2,3\n", "line 1, column 1: 'a' is not a number"),
    "ragged csv": ("x.csv", b"1,2\n3\n", "line 2 has 1 columns, the lines before have 2"),
    "only a header": ("x.csv", b"a,b\n", "has no rows of numbers"),
    "wide number": ("x.csv", b"1\n99999999999999999999\n", "line 2 has a whole number beyond 64 bits"),
    "underscores": ("x.csv", b"1\n1_000\n", "line 2, column 1: '1_000' is not a number"),
    "binary csv": ("x.csv", b"\xff\xfe\x00\x01", "not text in UTF-8"),
    "no safetensors": ("x.safetensors", b"hello, world", "is not a safetensors file"),
    "gap in safetensors": ("x.safetensors", described((2, 4)), "overlap, or have gaps"),
    "safetensors over one another": ("x.safetensors", described((0, 2), (1, 3)), "overlap, or have gaps"),
    "safetensors with a tail": ("x.safetensors", described((0, 2)) + b"x", "2 bytes, but 3 follow"),
    "safetensors that lies": ("x.safetensors", described((0, 3)), "2 bytes, not 3"),
    "a header of gigabytes": ("x.safetensors", struct.pack("<Q", 1 << 40) + bytes(99), "its header would have"),
    "endless line": ("x.csv", b"1" * (limits.MAX_LINE + 1), "a line of 2097152 characters or more"),
    "no pt": ("x.pt", b"hello, world", "is not a file of torch.save|Python objects"),
    "pickle as pt": ("x.pt", evil_pickle(), "x.pt"),
    "idx magic": ("x.idx", b"\x89PNG\r\n", "begins with 89 50 4e 47"),
    "cut idx header": ("x.idx", b"\0\0\x08\x03\0\0", "ends within its header"),
    "cut idx": ("x.idx", idx(np.zeros(9, np.uint8))[:-1], "9 bytes, but 8 follow"),
    "cut idx.gz": ("x.idx.gz", gzip.compress(idx(np.zeros(9, np.uint8))[:-1]), "9 bytes, but only 8 follow"),
    "long idx.gz": ("x.idx.gz", gzip.compress(idx(np.zeros(9, np.uint8)) + b"x"), "more follow"),
    "no gzip": ("x.idx.gz", idx(np.zeros(9, np.uint8)), "is not an IDX file"),
    "broken gzip": ("x.idx.gz", gzip.compress(idx(np.zeros(900, np.uint8)))[:-9], "is not an IDX file"),
    "no onnx": ("x.onnx", b"hello, world", "is not an ONNX model"),
    "no pt2": ("x.pt2", b"hello, world", "is not a zip archive"),
    "pt as pt2": ("x.pt2", zipped(a=b""), "is not an archive of torch.export.save"),
    "pickle": ("x.pkl", evil_pickle(), "unpickling runs code"),
    "unknown": ("x.docx", b"1", "no ending that is known: .npy, .npz"),
    "empty": ("x.npy", b"", "is empty; a NumPy array"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_not_what_its_ending_says_is_refused(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, data, message = REFUSED[case]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadFile, match=message):
        read(tmp_path / name)
    assert not (tmp_path / "canary").exists()


def test_a_missing_file_and_a_folder_with_nothing_to_read_say_so(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"there is no file .*gone\.npy"):
        read(tmp_path / "gone.npy")
    with pytest.raises(BadFile, match=r"no file in .* can be read"):
        read(tmp_path)
    with pytest.raises(BadFile, match="is a folder"):
        read(f"{tmp_path}:x")


def test_a_small_file_that_would_become_gigabytes_is_refused_before_it_does(tmp_path: Path) -> None:
    header = bytes([0, 0, 8, 1]) + struct.pack(">I", 1 << 31)
    (tmp_path / "x.idx.gz").write_bytes(gzip.compress(header))
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("a.npy", "w", force_zip64=True) as member:
            for _ in range(300):
                member.write(bytes(1 << 20))
    with zipfile.ZipFile(tmp_path / "x.npz") as source, zipfile.ZipFile(tmp_path / "x.pt", "w", 8) as target:
        target.writestr("x/data.pkl", source.read("a.npy"))
    for name in ("x.idx.gz", "x.npz", "x.pt"):
        with pytest.raises(TooLarge, match="would grow to"):
            read(tmp_path / name)


def test_a_tensor_that_is_terabytes_of_one_element_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(1).expand(1 << 39), tmp_path / "x.pt")
    with pytest.raises(TooLarge):
        read(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_and_quantised_tensors_are_refused(tmp_path: Path) -> None:
    torch.save(torch.eye(2).to_sparse(), tmp_path / "x.pt")
    with pytest.raises(BadFile, match="no dense tensor"):
        read(tmp_path / "x.pt")


def test_a_list_that_holds_itself_ends(tmp_path: Path) -> None:
    loop: list[object] = [torch.ones(1)]
    loop.append(loop)
    torch.save(loop, tmp_path / "x.pt")
    assert [one.name for one in read(tmp_path / "x.pt")] == ["0"]


def test_a_shape_that_no_tensor_can_have_is_refused(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[0,1000000000000000000],"data_offsets":[0,0]}}'
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises((BadTensor, BadFile, TooLarge)):
        read(tmp_path / "x.safetensors")


def test_any_byte_of_a_bool_is_read_as_true_or_false(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}'
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\2\0")
    assert only(tmp_path / "x.safetensors").view(torch.uint8).tolist() == [1, 0]


def test_parquet_says_what_to_install_or_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadFile, match=r"pip install 'peergrid\[parquet\]'|is not a Parquet table"):
        read(tmp_path / "x.parquet")


def test_parquet_gives_its_columns(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"a": [1, 2], "b": [0.5, 1.5]}), tmp_path / "x.parquet")
    assert only(tmp_path / "x.parquet").tolist() == [[1, 0.5], [2, 1.5]]
    parquet.write_table(pyarrow.table({"a": [1, None]}), tmp_path / "x.parquet")
    with pytest.raises(BadFile, match="column 'a': 1 cells are empty"):
        read(tmp_path / "x.parquet")
    parquet.write_table(pyarrow.table({"a": ["x"]}), tmp_path / "x.parquet")
    with pytest.raises(BadFile, match="column 'a' holds string, not numbers"):
        read(tmp_path / "x.parquet")


# --- what is written --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".npy", ".npz", ".csv", ".safetensors", ".pt"])
def test_what_is_written_reads_back(tmp_path: Path, ending: str) -> None:
    values = torch.tensor([[0.1, -2], [3, 1e-7]])
    written = write(tmp_path / f"x{ending}", values)
    assert torch.equal(only(written).to(torch.float32), values)
    assert os.listdir(tmp_path) == [f"x{ending}"]


@pytest.mark.parametrize("ending", [".npz", ".safetensors", ".pt"])
def test_a_module_is_written_as_its_state_dict(tmp_path: Path, ending: str) -> None:
    model = torch.nn.Linear(2, 2)
    model.bias = torch.nn.Parameter(model.weight[0])
    write(tmp_path / f"x{ending}", model)
    found = {one.name: one.tensor for one in read(tmp_path / f"x{ending}")}
    assert torch.equal(found["weight"], model.weight)
    assert torch.equal(found["bias"], model.bias)


@pytest.mark.parametrize("value", [torch.tensor(3), torch.tensor([True, False]), torch.arange(3)])
def test_scalars_and_vectors_are_written_as_csv(tmp_path: Path, value: torch.Tensor) -> None:
    write(tmp_path / "x.csv", value)
    assert only(tmp_path / "x.csv").reshape(value.shape).tolist() == value.to(torch.int64).tolist()


def test_a_file_that_is_there_is_only_replaced_on_demand(tmp_path: Path) -> None:
    write(tmp_path / "x.npy", torch.zeros(1))
    with pytest.raises(BadFile, match="--force"):
        write(tmp_path / "x.npy", torch.ones(1))
    assert only(tmp_path / "x.npy").item() == 0
    write(tmp_path / "x.npy", torch.ones(1), overwrite=True)
    assert only(tmp_path / "x.npy").item() == 1


@pytest.mark.parametrize("ending", [".npy", ".npz", ".csv", ".safetensors"])
async def test_a_value_may_come_in_pieces_of_any_size(tmp_path: Path, ending: str) -> None:
    whole = bytes(tensor_bytes(torch.arange(60.0).reshape(20, 3)))
    layout = [("value", TensorHeader("float32", (20, 3)))]

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(whole), 7):
            yield whole[at : at + 7]

    await save(tmp_path / f"x{ending}", layout, pieces())
    assert only(tmp_path / f"x{ending}").tolist() == torch.arange(60.0).reshape(20, 3).tolist()
    assert os.listdir(tmp_path) == [f"x{ending}"]


async def test_several_arrays_come_one_after_another_and_empty_ones_between(tmp_path: Path) -> None:
    layout = [("a", TensorHeader("uint8", (3,))), ("b", TensorHeader("uint8", (0,))), ("c", TensorHeader("uint8", ()))]

    async def pieces() -> AsyncIterator[bytes]:
        yield bytes([1, 2])
        yield bytes([3, 4])

    for ending in (".npz", ".safetensors"):
        await save(tmp_path / f"x{ending}", layout, pieces())
        found = {one.name: one.tensor.tolist() for one in read(tmp_path / f"x{ending}")}
        assert found == {"a": [1, 2, 3], "b": [], "c": 4}


@pytest.mark.parametrize("ending", [".npy", ".npz", ".csv", ".safetensors"])
@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (asyncio.CancelledError(), asyncio.CancelledError),
        (PeerLost("gone"), PeerLost),
        (OSError(errno.ENOSPC, "No space left on device"), StorageFull),
        (OSError(errno.EIO, "Input/output error"), BadFile),
    ],
)
async def test_what_breaks_off_leaves_no_file(
    tmp_path: Path, ending: str, error: BaseException, seen: type[BaseException]
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield bytes(8)
        raise error

    with pytest.raises(seen):
        await save(tmp_path / f"x{ending}", [("value", TensorHeader("float32", (20, 3)))], pieces())
    gc.collect()
    assert not os.listdir(tmp_path)


async def test_a_disk_that_is_too_small_is_said_before_anything_comes(tmp_path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        raise AssertionError
        yield b""

    with pytest.raises(StorageFull, match="takes 1099511627776 bytes or more, and its disk has"):
        await save(tmp_path / "x.npy", [("value", TensorHeader("uint8", (1 << 20, 1 << 20)))], pieces())
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(("dtype", "least"), [("uint8", 2_000), ("bool", 2_000), ("int64", 2_000), ("float64", 4_000)])
@pytest.mark.parametrize("is_enough", [True, False])
async def test_of_text_the_disk_must_hold_what_the_shortest_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, least: int, is_enough: bool
) -> None:
    header, free = TensorHeader(dtype, (1_000,)), least - 1 + is_enough
    monkeypatch.setattr("os.statvfs", lambda _: SimpleNamespace(f_bavail=free, f_frsize=1))

    async def zeros() -> AsyncIterator[bytes]:
        yield bytes(header.nbytes)

    saving = save(tmp_path / "x.csv", [("value", header)], zeros())
    if is_enough:
        assert (await saving).stat().st_size == least
    else:
        with pytest.raises(StorageFull, match=f"takes {least} bytes or more, and its disk has {free} left"):
            await saving
        assert not os.listdir(tmp_path)


CANNOT_HOLD: dict[str, Any] = {
    "x.npy": torch.zeros(1, dtype=torch.bfloat16),
    "x.csv": torch.zeros(1, 1, 1),
    "y.csv": torch.zeros(1, dtype=torch.complex64),
    "y.npy": {"a": torch.zeros(1), "b": torch.zeros(1)},
}


@pytest.mark.parametrize("name", CANNOT_HOLD)
def test_a_value_that_the_format_cannot_hold_leaves_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadFile, match="write"):
        write(tmp_path / name, CANNOT_HOLD[name])
    assert not os.listdir(tmp_path)


def test_a_target_is_checked_before_there_is_anything_to_write(tmp_path: Path) -> None:
    for name, message in (("x.doc", "no ending"), ("no/x.npy", "there is no folder")):
        with pytest.raises(GridError, match=message):
            check_target(tmp_path / name)
