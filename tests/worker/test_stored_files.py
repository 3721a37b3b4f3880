"""Stored files in a worker, larger than any memory: only what is used is read, it is checked, and nothing stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from xxhash import xxh3_64_intdigest

from compute.program import Input, Node, Program
from peer.buffers import Buffer
from peer.worker.framing import encode
from peer.worker.guards import BlockHashes
from peer.worker.remote import Span
from protocol import limits
from protocol.errors import (
    BadTensor,
    Corrupt,
    GridError,
    InternalError,
    OperationFailed,
    ReadOnly,
    TooLarge,
    WorkerLost,
)
from protocol.tensors import TensorHeader
from tests.page_cache import cached, cool
from tests.waiting import PATIENCE
from tests.worker.conftest import Asker, header_of, new_id, tensor_of
from tests.worker.test_remote import impostor

MIB = limits.MIB
START = 128  # of the payload in its file
GROWTH = 64 * MIB  # what a worker may have above idle


class StoredFile:
    """A file as the store has it: a header, a payload, and the hashes of its blocks."""

    def __init__(self, path: Path, nbytes: int, hashes: bytes) -> None:
        self.path = path
        self.nbytes = nbytes
        self.hashes = BlockHashes(START, nbytes, hashes)
        self.fd = os.open(path, os.O_RDWR)

    @classmethod
    def of(cls, path: Path, payload: bytes) -> StoredFile:
        path.write_bytes(bytes(START) + payload)
        return cls(path, len(payload), b"".join(map(_hash, _blocks(payload))))

    @classmethod
    def sparse(cls, path: Path, nbytes: int) -> StoredFile:
        """Zeros that take no room on the disk."""
        with path.open("wb") as file:
            file.truncate(START + nbytes)
        return cls(path, nbytes, _hash(bytes(limits.BLOCK)) * (nbytes // limits.BLOCK))

    def flip(self, at: int) -> None:
        (byte,) = os.pread(self.fd, 1, START + at)
        os.pwrite(self.fd, bytes([byte ^ 1]), START + at)


def _blocks(payload: bytes) -> Iterator[bytes]:
    return (payload[at : at + limits.BLOCK] for at in range(0, len(payload), limits.BLOCK))


def _hash(block: bytes) -> bytes:
    return xxh3_64_intdigest(block).to_bytes(8, "little")


@dataclass
class Memory:
    """Of a process, in bytes: its own, and pages of files that it has mapped; and the most that it ever had."""

    own: int
    files: int
    peak: int

    @classmethod
    def of(cls, pid: int) -> Memory:
        text = Path(f"/proc/{pid}/status").read_text()
        kib = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines() if line.endswith("kB")}
        return cls((kib["RssAnon"] + kib["RssShmem"]) * 1024, kib["RssFile"] * 1024, kib["VmHWM"] * 1024)


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Callable[..., StoredFile]]:
    made: list[StoredFile] = []

    def make(payload: bytes | int) -> StoredFile:
        path = tmp_path / f"blob{len(made)}"
        made.append(StoredFile.sparse(path, payload) if isinstance(payload, int) else StoredFile.of(path, payload))
        return made[-1]

    yield make
    for one in made:
        os.close(one.fd)


def give(asker: Asker, file: StoredFile, dtype: str, shape: tuple[int, ...], at: int = 0) -> bytes:
    """Provides a tensor of the file, as the peer does; its id."""
    id = new_id()

    async def work() -> None:
        header = TensorHeader(dtype, shape)
        asker.worker.provide(id, header, file.fd, START + at, True, hashes=file.hashes, origin=("file", at))

    asker.do(work())
    return id


def export(asker: Asker, id: bytes, *, in_memory: bool = False) -> Any:
    async def work() -> Any:
        return (await asker.worker.export(id, in_memory=in_memory)).data

    return asker.do(work())


def failing(asker: Asker, name: str, *args: Any, outs: int = 1) -> GridError:
    (result,) = asker.run([name, list(args), {}, [new_id() for _ in range(outs)]])
    assert isinstance(result, GridError)
    return result


def noise(nbytes: int) -> bytes:
    return os.urandom(nbytes)


# --- what is read --------------------------------------------------------------------------------------------


def test_a_slice_of_a_file_of_100_gb_is_read_and_nothing_else(asker: Asker, stored: Callable[..., StoredFile]) -> None:
    file = stored(100 << 30)
    asker.op("aten.zeros.default", [1])
    before = Memory.of(asker.pid)
    x = give(asker, file, "float32", (25 << 20, 1 << 10))
    part = asker.op("aten.slice.Tensor", x, 0, 24 << 20, (24 << 20) + 5)
    row = asker.op("aten.select.int", x, 0, -1)
    total = asker.op("aten.sum.default", part)
    assert asker.value(total).item() == 0 and asker.value(row).shape == (1 << 10,)
    after = Memory.of(asker.pid)
    assert after.own - before.own < 8 * MIB and after.files - before.files < 8 * MIB


def test_a_slice_leaves_the_rest_of_the_file_on_the_disk(asker: Asker, stored: Callable[..., StoredFile]) -> None:
    payload = noise(64 * MIB)
    file = stored(payload)
    cool(file.path)
    assert cached(file.path) < MIB
    x = give(asker, file, "uint8", (64, MIB))
    part = asker.op("aten.slice.Tensor", x, 0, 30, 31)
    assert cached(file.path) < MIB  # a view reads nothing
    assert asker.value(asker.op("aten.sum.default", part)).item() == sum(payload[30 * MIB : 31 * MIB])
    assert MIB <= cached(file.path) < 8 * MIB  # some is read ahead


def test_columns_of_a_wide_tensor_leave_what_lies_between_them(asker: Asker, stored: Callable[..., StoredFile]) -> None:
    payload = noise(64 * MIB)
    file = stored(payload)
    cool(file.path)
    x = give(asker, file, "uint8", (4, 16 * MIB))
    part = asker.op("aten.slice.Tensor", x, 1, 3 * MIB, 3 * MIB + 10)
    assert asker.value(part).tolist() == [list(payload[row * 16 * MIB + 3 * MIB :][:10]) for row in range(4)]
    assert cached(file.path) < 24 * MIB


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("aten.index.Tensor", ["x", ["rows"]]),
        ("aten.index_select.default", ["x", 0, "rows"]),
        ("aten.embedding.default", ["x", "rows"]),
    ],
)
def test_rows_taken_by_number_leave_the_others_on_the_disk(
    asker: Asker, stored: Callable[..., StoredFile], name: str, args: list[Any]
) -> None:
    payload = noise(64 * MIB)
    file = stored(payload)
    cool(file.path)
    x = give(asker, file, "uint8", (256, MIB // 4))

    def call(*rows: int) -> list[Any]:
        ids = {"x": x, "rows": asker.send(torch.tensor(rows))}
        return [[ids[arg[0]]] if isinstance(arg, list) else ids.get(arg, arg) for arg in args]

    taken = asker.op("aten.select.int", asker.op(name, *call(3, 200, 3, 77)), 1, 9)
    assert asker.value(taken).tolist() == [payload[row * MIB // 4 + 9] for row in (3, 200, 3, 77)]
    assert cached(file.path) < 8 * MIB
    file.flip(40 * MIB)  # row 160
    assert isinstance(failing(asker, name, *call(4, 161)), Corrupt)


def test_rows_that_are_not_there_are_refused_by_the_operation(asker: Asker, stored: Callable[..., StoredFile]) -> None:
    x = give(asker, stored(noise(2 * MIB)), "uint8", (2, MIB))
    refused = failing(asker, "aten.index_select.default", x, 0, asker.send(torch.tensor([7])))
    assert isinstance(refused, OperationFailed)


def test_a_mask_reads_all_rows(asker: Asker, stored: Callable[..., StoredFile]) -> None:
    file = stored(noise(2 * MIB))
    file.flip(0)
    x = give(asker, file, "uint8", (2, MIB))
    assert isinstance(failing(asker, "aten.index.Tensor", x, [asker.send(torch.tensor([False, True]))]), Corrupt)


def test_what_was_read_does_not_stay_in_the_worker(asker: Asker, stored: Callable[..., StoredFile]) -> None:
    file = stored(512 * MIB)
    asker.op("aten.zeros.default", [1])
    before = Memory.of(asker.pid)
    x = give(asker, file, "float32", (512, MIB // 4))
    assert asker.value(asker.op("aten.sum.default", x)).item() == 0
    for name, args in (("aten.select.int", [1, 7]), ("aten.slice.Tensor", [1, 0, 9])):
        columns = asker.op(name, x, *args)
        assert not asker.value(asker.op("aten.clone.default", columns)).any()
        assert not asker.value(columns).any()
    asker.drop(columns)
    after = Memory.of(asker.pid)
    assert after.own - before.own < 16 * MIB and after.files - before.files < GROWTH


def test_a_large_part_is_exported_in_pieces(asker: Asker, stored: Callable[..., StoredFile]) -> None:
    """Neither the value nor what it reaches over is ever in the worker as a whole; not by far, because the system may
    have taken pages of libraries away before, and gives them back meanwhile."""
    file = stored(512 * MIB)
    x = give(asker, file, "uint8", (512, MIB))
    half = asker.op("aten.slice.Tensor", x, 1, 0, MIB // 2)
    asker.op("aten.zeros.default", [1])
    with contextlib.suppress(PermissionError):
        Path(f"/proc/{asker.pid}/clear_refs").write_text("5")  # the most ever starts anew
    before = Memory.of(asker.pid)
    data = export(asker, half)
    assert isinstance(data, Buffer) and data.nbytes == 256 * MIB
    data.release()
    peak = Memory.of(asker.pid).peak
    assert peak - (before.own + before.files) < 128 * MIB


# --- where the peer has it itself ----------------------------------------------------------------------------


def test_a_large_view_in_one_piece_is_named_and_not_copied(asker: Asker, stored: Callable[..., StoredFile]) -> None:
    payload = noise(8 * MIB)
    file = stored(payload)
    x = give(asker, file, "int16", (4, MIB // 2), at=3 * MIB)
    part = asker.op("aten.slice.Tensor", x, 0, 1, 4)
    assert export(asker, part) == Span(("file", 3 * MIB), MIB, 3 * MIB)
    flat = asker.op("aten.view.default", part, [3 * MIB // 2])
    assert export(asker, asker.op("aten.slice.Tensor", flat, 0, 5)) == Span(("file", 3 * MIB), MIB + 10, 3 * MIB - 10)
    data = export(asker, part, in_memory=True)
    assert bytes(data.view()) == payload[4 * MIB : 7 * MIB]
    data.release()
    assert export(asker, x) is None


def test_results_and_views_in_several_pieces_are_values_of_their_own(
    asker: Asker, stored: Callable[..., StoredFile]
) -> None:
    payload = noise(8 * MIB)
    x = give(asker, stored(payload), "uint8", (2, 4 * MIB))
    here = torch.frombuffer(bytearray(payload), dtype=torch.uint8).view(2, 4 * MIB)
    for name, args, expected in (
        ("aten.slice.Tensor", [1, 1, 2 * MIB + 1], here[:, 1 : 2 * MIB + 1]),
        ("aten.t.default", [], here.t()),
        ("aten.clone.default", [], here),
        ("aten.expand.default", [[3, 2, 4 * MIB]], here.expand(3, 2, 4 * MIB)),
    ):
        data = export(asker, asker.op(name, x, *args))
        assert isinstance(data, Buffer)
        assert torch.equal(tensor_of(header_of(expected), bytes(data.view())), expected)
        data.release()


def test_a_view_outlives_the_object_that_it_is_of(asker: Asker, stored: Callable[..., StoredFile]) -> None:
    payload = noise(4 * MIB)
    file = stored(payload)
    x = give(asker, file, "uint8", (4 * MIB,))
    part = asker.op("aten.slice.Tensor", x, 0, 0, 2 * MIB)
    asker.drop(x)
    again = give(asker, file, "uint8", (2 * MIB,), at=MIB)
    assert export(asker, part) == Span(None, 0, 2 * MIB)  # of what, the peer has let go
    data = export(asker, part, in_memory=True)
    assert bytes(data.view()) == payload[: 2 * MIB]
    data.release()
    del again


@pytest.mark.parametrize(
    "data",
    [[1, MIB + 1], [1, -1], [1, True], [1, 0.0], [1], [1, 0, 0], ["1", 0], [None, 0], [1, 1 << 62]],
    ids=str,
)
def test_a_worker_that_names_what_is_not_there_is_ended(data: list[Any]) -> None:
    async def main() -> None:
        async with impostor() as (worker, theirs):
            fd = os.memfd_create("test")
            os.ftruncate(fd, 3 * MIB)
            worker.provide(new_id(), TensorHeader("uint8", (3 * MIB,)), fd, 0, True, origin="file")
            os.close(fd)
            future = worker.export(new_id())
            theirs.sendall(encode(["done", 1, "uint8", [2 * MIB], data]))
            with pytest.raises((WorkerLost, InternalError)):
                await asyncio.wait_for(future, PATIENCE)
            assert worker.is_lost

    asyncio.run(main())


def test_a_worker_that_names_a_file_where_the_value_was_wanted_is_ended() -> None:
    async def main() -> None:
        async with impostor() as (worker, theirs):
            future = worker.export(new_id(), in_memory=True)
            theirs.sendall(encode(["done", 1, "uint8", [2 * MIB], [1, 0]]))
            with pytest.raises((WorkerLost, InternalError)):
                await asyncio.wait_for(future, PATIENCE)
            assert worker.is_lost

    asyncio.run(main())


# --- what is checked -----------------------------------------------------------------------------------------


def test_a_flipped_bit_is_found_by_what_reads_it_and_by_nothing_else(
    asker: Asker, stored: Callable[..., StoredFile]
) -> None:
    file = stored(noise(8 * MIB))
    file.flip(5 * MIB + 17)
    given = give(asker, file, "uint8", (8, MIB))
    x = asker.op("aten.alias.default", given)
    row, whole = asker.op("aten.select.int", x, 0, 5), asker.op("aten.view.default", x, [8 * MIB])
    assert asker.op("aten.sum.default", asker.op("aten.slice.Tensor", x, 0, 0, 5))
    for reading in (
        failing(asker, "aten.sum.default", row),
        failing(asker, "aten.sum.default", whole),
        failing(asker, "aten.clone.default", x),
        failing(asker, "aten.contiguous.default", asker.op("aten.t.default", x)),
        failing(asker, "aten.cat.default", [row, row]),
    ):
        assert isinstance(reading, Corrupt)
        shown = f"block {5 * MIB // limits.BLOCK} of object {given.hex()[:12]} is not what was stored"
        assert reading.message == f"{shown}: take the object from another holder, or delete it"
        assert reading.fields == {"object": given.hex(), "block": 5 * MIB // limits.BLOCK}
    with pytest.raises(Corrupt):
        export(asker, asker.op("aten.slice.Tensor", row, 0, 0, 100))
    with pytest.raises(Corrupt):
        export(asker, asker.op("aten.slice.Tensor", x, 1, 0, MIB // 2))
    assert asker.op("aten.sum.default", asker.op("aten.slice.Tensor", x, 0, 6))


def test_a_result_of_bad_bytes_fails_whoever_uses_it(asker: Asker, stored: Callable[..., StoredFile]) -> None:
    file = stored(noise(2 * MIB))
    file.flip(0)
    x, out = give(asker, file, "uint8", (2, MIB)), new_id()
    asker.run(["aten.sum.default", [x], {}, [out]])
    assert isinstance(failing(asker, "aten.neg.default", out), Corrupt)


def test_a_bad_object_is_asked_for_anew(asker: Asker, stored: Callable[..., StoredFile]) -> None:
    file = stored(noise(2 * MIB))
    x, y = give(asker, file, "uint8", (2, MIB)), give(asker, file, "uint8", (MIB,))
    file.flip(MIB)

    async def held() -> tuple[bool, bool]:
        return asker.worker.holds(x), asker.worker.holds(y)

    asker.op("aten.sum.default", y)
    assert asker.do(held()) == (True, True)
    failing(asker, "aten.sum.default", x)
    assert asker.do(held()) == (False, True)


def test_a_program_reads_no_bad_bytes_either(asker: Asker, stored: Callable[..., StoredFile]) -> None:
    file = stored(noise(2 * MIB))
    x = give(asker, file, "uint8", (2, MIB))
    file.flip(MIB)
    program = Program(
        inputs=(Input("x"),),
        nodes=(
            Node("aten.select.int", [{"node": 0}, 0, 1]),
            Node("aten.sum.default", [{"node": 1}]),
        ),
        outputs={"node": 2},
    )
    data = program.to_bytes()

    async def work() -> Any:
        made: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        asker.worker.run_program(made, bytes.fromhex(program.id), data, [x], [new_id()])
        return await made

    with pytest.raises(Corrupt, match=f"block {MIB // limits.BLOCK} of"):
        asker.do(work())


def test_a_file_that_shrank_fails_what_needs_it(asker: Asker, stored: Callable[..., StoredFile]) -> None:
    file = stored(noise(4 * MIB))
    x = give(asker, file, "uint8", (4, MIB))
    asker.op("aten.select.int", x, 0, 0)
    os.ftruncate(file.fd, START + MIB)
    assert isinstance(failing(asker, "aten.sum.default", asker.op("aten.select.int", x, 0, 3)), Corrupt)
    assert asker.op("aten.zeros.default", [1])


def test_bools_are_checked_where_they_are_used(asker: Asker, stored: Callable[..., StoredFile]) -> None:
    payload = bytearray(4 * MIB)
    payload[3 * MIB] = 9
    x = give(asker, stored(bytes(payload)), "bool", (4, MIB))
    assert not asker.value(asker.op("aten.any.default", asker.op("aten.slice.Tensor", x, 0, 0, 3))).item()
    assert isinstance(failing(asker, "aten.any.default", x), BadTensor)


def test_a_stored_tensor_is_not_written_in_place(asker: Asker, stored: Callable[..., StoredFile]) -> None:
    payload = noise(MIB)
    file = stored(payload)
    x = give(asker, file, "uint8", (MIB,))
    for target in (x, asker.op("aten.slice.Tensor", x, 0, 0, 9)):
        assert isinstance(failing(asker, "aten.add_.Tensor", target, 1, outs=0), ReadOnly)
    asker.op("aten.sum.default", x)
    assert file.path.read_bytes()[START:] == payload


def test_a_misaligned_tensor_of_a_model_is_copied_and_checked(asker: Asker, stored: Callable[..., StoredFile]) -> None:
    payload = noise(4 * MIB)
    file = stored(payload)
    x = give(asker, file, "int32", (MIB // 4,), at=MIB + 1)
    flat = torch.frombuffer(bytearray(payload[MIB + 1 : 2 * MIB + 1]), dtype=torch.int32)
    assert torch.equal(asker.value(asker.op("aten.neg.default", x)), -flat)
    file.flip(2 * MIB)
    with pytest.raises(Corrupt, match=f"block {2 * MIB // limits.BLOCK} of"):
        export(
            asker, give(asker, StoredFile(file.path, file.nbytes, file.hashes.hashes), "int32", (9,), at=2 * MIB + 1)
        )
    huge = stored(9 << 30)
    assert isinstance(failing(asker, "aten.neg.default", give(asker, huge, "int32", ((9 << 28) - 1,), at=1)), TooLarge)
