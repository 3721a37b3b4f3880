"""Values into files: whole or not at all, in pieces of any size."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from compute.values import tensor_bytes
from grid.files import check_target, read, write
from grid.files.writing import save
from protocol.errors import BadFile, GridError, PeerLost, StorageFull
from protocol.tensors import TensorHeader
from tests.grid.tensor_files import only

pytestmark = pytest.mark.usefixtures("one_reader")


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
