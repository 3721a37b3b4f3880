"""Files that are not what their endings say, or would become more than there is: refused by name."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from grid.files import read
from protocol import limits
from protocol.errors import BadFile, BadTensor, TooLarge
from tests.grid.tensor_files import idx, only

pytestmark = pytest.mark.usefixtures("one_reader")


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
    "ragged csv": ("x.csv", b"1,2\n3\n", "line 2 has 1 column, the lines before have 2"),
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
