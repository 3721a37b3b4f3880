"""A worker's device, as far as it can be tried without one: a CPU that is said to lack kernels."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from xxhash import xxh3_64_intdigest

from compute.table import lookup
from peer.folders import Folders
from peer.peer import Peer, Settings
from peer.pool_settings import PoolSettings
from peer.worker.device import Device, unavailable
from peer.worker.guards import BlockHashes
from peer.worker.objects import Objects
from peer.workers import Settings as WorkerSettings
from peer.workers import WorkerPool
from protocol import limits
from protocol.errors import BadRequest, Corrupt, ReadOnly, SetupError, TooLarge
from protocol.tensors import TensorHeader
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("real_zygotes")

_ID = bytes(16)


class _Elsewhere(Device):
    """The CPU under another name, which lacks some kernels and notes what is asked of it."""

    def __init__(self, *lacking: str) -> None:
        self.asked: list[str] = []
        self.moved: list[torch.Tensor] = []

        def has_kernel(name: str) -> bool:
            self.asked.append(name)
            return name not in lacking

        super().__init__(torch.device("cpu"), has_kernel)

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        self.moved.append(tensor)
        return super()._moved(tensor)


def run(device: Device, name: str, *args: object, **kwargs: object) -> object:
    return device.execute(lookup(name), args, kwargs)


def test_the_cpu_is_no_device_of_its_own() -> None:
    assert Device.of("cpu") is None
    assert unavailable("cpu") is None


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch is built with CUDA")
def test_a_torch_without_cuda_says_so() -> None:
    reason = unavailable("cuda")
    assert reason is not None
    assert "without CUDA" in reason


def test_every_tensor_among_the_arguments_is_brought_there() -> None:
    device = _Elsewhere()
    one, two = torch.ones(2), torch.zeros(3)
    result = run(device, "aten.cat.default", [one, two])
    assert [id(tensor) for tensor in device.moved] == [id(one), id(two)]
    torch.testing.assert_close(result, torch.tensor([1.0, 1, 0, 0, 0]))


def test_what_is_made_from_nothing_is_made_there() -> None:
    device = Device(torch.device("meta"), lambda name: True)
    for name, args in (("aten.zeros.default", ([2],)), ("aten.rand.default", ([2],)), ("aten.arange.default", (3,))):
        made = run(device, name, *args)
        assert isinstance(made, torch.Tensor)
        assert made.device.type == "meta"


def test_whether_there_is_a_kernel_is_asked_once() -> None:
    device = _Elsewhere()
    run(device, "aten.add.Tensor", torch.ones(2), torch.ones(2))
    run(device, "aten.add.Tensor", torch.ones(3), 2)
    assert device.asked == ["aten::add.Tensor"]


def test_an_operation_without_a_kernel_there_runs_on_the_cpu_and_its_result_goes_back() -> None:
    device = _Elsewhere("aten::add.Tensor")
    result = run(device, "aten.add.Tensor", torch.ones(2), torch.ones(2))
    torch.testing.assert_close(result, torch.full((2,), 2.0))


def test_what_such_an_operation_writes_in_place_is_written_back() -> None:
    device = _Copying("aten::add_.Tensor", "aten::native_batch_norm")
    target = torch.ones(2)
    assert run(device, "aten.add_.Tensor", target, torch.ones(2)) is target
    torch.testing.assert_close(target, torch.full((2,), 2.0))
    mean, var = torch.zeros(3), torch.ones(3)
    given = torch.randn(8, 3) + 5
    run(device, "aten.native_batch_norm.default", given, None, None, mean, var, True, 1.0, 1e-5)
    torch.testing.assert_close(mean, given.mean(0))


class _Copying(_Elsewhere):
    """`cpu()` of a tensor on the CPU is the tensor: here it is a copy, as it would be of one on a device."""

    def execute(self, entry: object, args: object, kwargs: object) -> object:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "cpu", torch.Tensor.clone)
            return super().execute(entry, args, kwargs)  # type: ignore[arg-type]


def test_arguments_are_checked_as_everywhere() -> None:
    device = _Elsewhere()
    with pytest.raises(BadRequest):
        run(device, "aten.add.Tensor", torch.ones(2))
    with pytest.raises(TooLarge):
        run(device, "aten.zeros.default", [1 << 20, 1 << 20])


class _Copies(Device):
    """A device that has copies of its own of what it is brought."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), lambda name: True)

    def bring(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()


def test_what_the_peer_provides_is_copied_there() -> None:
    objects = Objects(_Copies())
    before = objects.held
    objects.provide(_ID, TensorHeader("float32", (2,)), bytes(8), read_only=False)
    torch.testing.assert_close(objects.get(_ID), torch.zeros(2))
    assert objects.held == before + objects.get(_ID).untyped_storage().nbytes()
    assert objects.is_as_provided(_ID)


def test_a_published_object_is_read_only_there_and_so_are_its_views_as_long_as_there_is_one() -> None:
    objects = Objects(_Copies())
    objects.provide(_ID, TensorHeader("float32", (2,)), bytes(8), read_only=True)
    view = objects.get(_ID)[1:]
    objects.drop([_ID])
    gc.collect()
    with pytest.raises(ReadOnly):
        objects.check_writable(view)
    address = view.untyped_storage().data_ptr()
    assert address in objects._provided
    del view
    gc.collect()
    assert address not in objects._provided


def test_of_a_stored_file_all_blocks_are_checked_before_it_is_copied(tmp_path: Path) -> None:
    content = bytearray(torch.arange(300_000, dtype=torch.float32).numpy().tobytes())
    blocks = [content[at : at + limits.BLOCK] for at in range(0, len(content), limits.BLOCK)]
    known = b"".join(xxh3_64_intdigest(bytes(block)).to_bytes(8, "little") for block in blocks)
    hashes = BlockHashes(0, len(content), known)
    content[-1] ^= 1
    path = tmp_path / "blob"
    path.write_bytes(content)
    objects = Objects(_Copies())
    with path.open("rb") as file, pytest.raises(Corrupt):
        objects.provide(_ID, TensorHeader("float32", (300_000,)), (file.fileno(), 0), read_only=True, hashes=hashes)


async def test_a_peer_says_at_its_start_that_there_is_no_such_device(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    workers = PoolSettings(WorkerSettings(device="cuda"))
    with pytest.raises(SetupError, match="--device cuda"):
        await Peer.start(Settings("alice", port=0, folders=Folders.under(tmp_path), workers=workers))


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch is built with CUDA")
async def test_a_zygote_that_ends_because_there_is_no_device_says_no_more_than_that(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nobody reads of workers that are gone where there never was one."""
    pool = WorkerPool(PoolSettings(WorkerSettings(device="cuda")))
    await pool.start()
    try:
        with pytest.raises(SetupError, match="without CUDA"):
            await pool.ready()
        await until(lambda: pool.statistics().zygote is None)
        assert not [record for record in caplog.records if record.levelname == "WARNING"]
    finally:
        await pool.close()
