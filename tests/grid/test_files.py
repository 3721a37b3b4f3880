"""Files of tensors: what is read is what was written."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from grid.files import files_in, read
from protocol.errors import BadFile
from tests.grid.tensor_files import idx, only

pytestmark = pytest.mark.usefixtures("one_reader")

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
