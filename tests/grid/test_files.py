"""Files of tensors: what is read is what was written, and what is not what its ending says is refused by name."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from grid.files import check_target, files_in, read, write
from protocol.errors import BadFile, BadTensor, GridError, TooLarge


def idx(values: np.ndarray, kind: int = 0x08) -> bytes:
    header = bytes([0, 0, kind, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(values.dtype.newbyteorder(">")).tobytes()


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


def test_npy_is_mapped_and_writing_to_the_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
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
    "no pt": ("x.pt", b"hello, world", "is not a file of torch.save|Python objects"),
    "pickle as pt": ("x.pt", evil_pickle(), "x.pt"),
    "idx magic": ("x.idx", b"\x89PNG\r\n", "begins with 89 50 4e 47"),
    "cut idx header": ("x.idx", b"\0\0\x08\x03\0\0", "ends within its header"),
    "cut idx": ("x.idx", idx(np.zeros(9, np.uint8))[:-1], "9 bytes, but 8 follow"),
    "cut idx.gz": ("x.idx.gz", gzip.compress(idx(np.zeros(9, np.uint8))[:-1]), "9 bytes, but only 8 follow"),
    "long idx.gz": ("x.idx.gz", gzip.compress(idx(np.zeros(9, np.uint8)) + b"x"), "more follow"),
    "no gzip": ("x.idx.gz", idx(np.zeros(9, np.uint8)), "is not an IDX file"),
    "broken gzip": ("x.idx.gz", gzip.compress(idx(np.zeros(900, np.uint8)))[:-9], "is not an IDX file"),
    "onnx": ("x.onnx", b"1", "ONNX is not read yet"),
    "pt2": ("x.pt2", b"1", "can run its maker's code"),
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


CANNOT_HOLD = {
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
