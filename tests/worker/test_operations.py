"""What a worker does for its principal: operations, their failures, and values in and out."""

from __future__ import annotations

import asyncio
import itertools
import os
from typing import Any

import pytest
import torch

from compute.program import Input, Node, Program
from peer.buffers import Buffer
from peer.worker.remote import Made
from protocol import limits
from protocol.errors import (
    AlreadyExists,
    BadProgram,
    BadRequest,
    BadTensor,
    GridError,
    NotFound,
    OperationFailed,
    OperationNotAllowed,
    ReadOnly,
    TooLarge,
)
from protocol.tensors import ITEMSIZE, TensorHeader
from tests.worker.conftest import Asker, content, header_of, new_id


def test_an_operation_gives_its_header_and_then_its_value(asker: Asker) -> None:
    x, y = asker.send(torch.arange(6.0).view(2, 3)), asker.send(torch.ones(3))
    z = new_id()
    (result,) = asker.run(["aten.add.Tensor", [x, y], {"alpha": 2}, [z]])
    assert result == [header_of(torch.empty(2, 3))]
    assert torch.equal(asker.value(z), torch.arange(6.0).view(2, 3) + 2)


def test_requests_made_at_once_are_done_in_order(asker: Asker) -> None:
    x = asker.send(torch.zeros(8))
    ids = [x] + [new_id() for _ in range(1000)]

    async def work() -> list[Any]:
        worker = asker.worker
        futures = []
        for before, after in itertools.pairwise(ids):
            futures.append(worker.run([["aten.add.Tensor", [before, 1], {}, [after]]]))
            await worker.ready()
        exported = await worker.export(ids[-1])
        assert all(future.done() for future in futures)
        return [exported.data]

    assert asker.do(work()) == [content(torch.full((8,), 1000.0))]


def test_results_of_many_and_of_listed_tensors_come_in_order(asker: Asker) -> None:
    x = asker.send(torch.tensor([[3.0, 1.0], [2.0, 5.0]]))
    values, indices = asker.op("aten.sort.default", x, outs=2)
    assert asker.value(values).tolist() == [[1, 3], [2, 5]]
    assert asker.value(indices).tolist() == [[1, 0], [0, 1]]
    first, second = asker.op("aten.split.Tensor", x, 1, outs=2)
    assert (asker.value(first).tolist(), asker.value(second).tolist()) == ([[3, 1]], [[2, 5]])


def test_a_result_without_an_id_is_not_kept(asker: Asker) -> None:
    x = asker.send(torch.tensor([3.0, 1.0]))
    out = new_id()
    (result,) = asker.run(["aten.sort.default", [x], {}, [None, out]])
    assert not isinstance(result, GridError)
    assert asker.value(out).tolist() == [1, 0]


def test_in_place_changes_the_object_and_its_views(asker: Asker) -> None:
    x = asker.send(torch.zeros(2, 2))
    row = asker.op("aten.select.int", x, 0, 0)
    alias = new_id()
    for outs in ([x], [], [None], [alias]):
        (result,) = asker.run(["aten.add_.Tensor", [x, 1], {}, outs])
        assert result == [header_of(torch.empty(2, 2))]
    assert asker.value(row).tolist() == [4, 4]
    assert asker.value(alias).tolist() == [[4, 4], [4, 4]]


def test_a_failure_has_the_name_of_the_operation_and_what_torch_said(asker: Asker) -> None:
    x = asker.send(torch.ones(2, 3))
    with pytest.raises(OperationFailed) as caught:
        asker.op("aten.mm.default", x, x)
    assert caught.value.operation == "aten.mm.default"
    assert caught.value.fields["type"] == "RuntimeError"
    assert "[2, 3]" in caught.value.message or "2x3" in caught.value.message


def test_what_depends_on_a_failure_fails_for_the_same_reason(asker: Asker) -> None:
    x = asker.send(torch.ones(2, 3))
    bad, worse, worst, fine = (new_id() for _ in range(4))
    results = asker.run(
        ["aten.mm.default", [x, x], {}, [bad]],
        ["aten.relu.default", [bad], {}, [worse]],
        ["aten.cat.default", [[x, worse]], {}, [worst]],
        ["aten.relu.default", [x], {}, [fine]],
    )
    assert [type(result) for result in results] == [OperationFailed, OperationFailed, OperationFailed, list]
    for object_id in (bad, worse, worst):
        with pytest.raises(OperationFailed) as caught:
            asker.value(object_id)
        assert caught.value.operation == "aten.mm.default"
    assert asker.value(fine).tolist() == torch.ones(2, 3).tolist()


def test_an_in_place_failure_spoils_the_object(asker: Asker) -> None:
    for outs in (lambda x: [x], lambda x: []):
        x = asker.send(torch.ones(2))
        y = asker.send(torch.ones(3))
        asker.run(["aten.add_.Tensor", [x, y], {}, outs(x)])
        with pytest.raises(OperationFailed) as caught:
            asker.op("aten.relu.default", x)
        assert caught.value.operation == "aten.add_.Tensor"


def test_an_unknown_in_place_operation_spoils_the_object_too(asker: Asker) -> None:
    x = asker.send(torch.ones(2))
    asker.run(["aten.explode_.default", [x], {}, [x]])
    with pytest.raises(OperationNotAllowed):
        asker.value(x)


def test_a_dropped_failure_is_forgotten(asker: Asker) -> None:
    x = asker.send(torch.ones(2, 3))
    bad = new_id()
    asker.run(["aten.mm.default", [x, x], {}, [bad]])
    asker.drop(bad)
    with pytest.raises(NotFound):
        asker.value(bad)


def test_a_published_object_refuses_to_be_changed_and_stays_good(asker: Asker, memory_file: Any) -> None:
    data = torch.arange(20_000.0)
    small = asker.send(torch.ones(4), read_only=True)
    large = asker.send(data, read_only=True, fd=memory_file(content(data)))
    for x in (small, large):
        view = asker.op("aten.view.default", x, [2, -1])
        for target in (x, view):
            (result,) = asker.run(["aten.mul_.Scalar", [target, 2], {}, [target]])
            assert isinstance(result, ReadOnly)
            assert "x.clone()" in str(result)
        copy = asker.op("aten.clone.default", x)
        asker.run(["aten.mul_.Scalar", [copy, 0], {}, [copy]])
        assert asker.value(asker.op("aten.sum.default", copy)).item() == 0
        assert asker.is_as_provided(x)
    assert asker.value(asker.op("aten.sum.default", large)).item() == data.sum().item()


def test_running_statistics_of_a_published_model_are_not_moved(asker: Asker) -> None:
    x, w, b = asker.send(torch.randn(4, 3)), asker.send(torch.ones(3)), asker.send(torch.zeros(3))
    mean, var = asker.send(torch.zeros(3), read_only=True), asker.send(torch.ones(3), read_only=True)
    training = ["aten.native_batch_norm.default", [x, w, b, mean, var, True, 0.1, 1e-5], {}, [new_id() for _ in "123"]]
    (result,) = asker.run(training)
    assert isinstance(result, ReadOnly)
    training[1][5] = False
    (result,) = asker.run(training)
    assert isinstance(result, list)


def test_writing_to_what_the_peer_gave_leaves_the_peers_copy_alone(asker: Asker, memory_file: Any) -> None:
    data = torch.arange(50_000.0)
    fd = memory_file(content(data))
    x = asker.send(data, fd=fd)
    assert asker.is_as_provided(x)
    asker.run(["aten.mul_.Scalar", [x, -1], {}, [x]])
    assert torch.equal(asker.value(x), -data)
    assert os.pread(fd, data.nbytes, 0) == content(data)


def test_a_view_written_to_means_that_its_base_has_changed(asker: Asker, memory_file: Any) -> None:
    data = torch.zeros(50_000)
    x = asker.send(data, fd=memory_file(content(data)))
    last = asker.op("aten.slice.Tensor", x, 0, 49_999)
    asker.run(["aten.fill_.Scalar", [last, 7.0], {}, []])
    assert asker.value(x)[-1].item() == 7


def test_a_value_in_the_middle_of_a_file_is_found(asker: Asker, memory_file: Any) -> None:
    data = torch.arange(1000, dtype=torch.float64)
    for offset in (8, 4096, 5000, 12_345):
        x = asker.send(data, fd=memory_file(bytes(offset) + content(data) + b"behind"), offset=offset)
        assert torch.equal(asker.value(asker.op("aten.clone.default", x)), data)


def test_a_value_beyond_the_end_of_its_file_fails_and_kills_nobody(asker: Asker, memory_file: Any) -> None:
    data = torch.ones(1000)
    fd = memory_file(content(data))
    for offset in (8, -8, 1 << 40):
        x = asker.send(data, fd=fd, offset=offset)
        with pytest.raises(BadTensor):
            asker.value(x)


@pytest.mark.parametrize("dtype", ITEMSIZE)
def test_every_dtype_goes_in_and_comes_out(asker: Asker, dtype: str, memory_file: Any) -> None:
    kind = getattr(torch, dtype)
    raw = [number % 2 for number in range(12 * ITEMSIZE[dtype])]
    data = torch.tensor(raw, dtype=torch.uint8).view(kind).view(3, 4)
    x = asker.send(data)
    y = asker.send(data, fd=memory_file(content(data)))
    for object_id in (x, y):
        view = asker.op("aten.alias.default", object_id)
        result = asker.value(view)
        assert result.dtype == kind
        assert content(result) == content(data)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,) * 16])
def test_scalars_and_empty_tensors_go_in_and_come_out(asker: Asker, shape: tuple[int, ...]) -> None:
    data = torch.ones(shape)
    x = asker.send(data, read_only=True)
    assert torch.equal(asker.value(asker.op("aten.clone.default", x)), data)


def test_what_is_not_contiguous_comes_out_in_row_major_order(asker: Asker) -> None:
    data = torch.arange(6.0).view(2, 3)
    x = asker.op("aten.t.default", asker.send(data))
    assert torch.equal(asker.value(x), data.t())
    c = asker.send(torch.tensor([1 + 2j, 3 - 4j]))
    assert asker.value(asker.op("aten._conj.default", c)).tolist() == [1 - 2j, 3 + 4j]


def test_a_bool_that_is_not_0_or_1_is_refused(asker: Asker) -> None:
    x = new_id()

    async def work() -> None:
        asker.worker.provide(x, header_of(torch.ones(3, dtype=torch.bool)), b"\x00\x02\x01")

    asker.do(work())
    with pytest.raises(BadTensor):
        asker.value(x)


def test_a_slice_carries_its_own_bytes_and_nothing_of_the_rest(asker: Asker) -> None:
    x = asker.send(torch.arange(1000.0))
    first = asker.op("aten.slice.Tensor", x, 0, 0, 1)

    async def export() -> Any:
        return await asker.worker.export(first)

    exported = asker.do(export())
    assert exported.data == content(torch.zeros(1))
    large = asker.op("aten.zeros.default", [40, 10_000])
    part = asker.op("aten.slice.Tensor", large, 1, 0, 1000)
    assert asker.value(part).shape == (40, 1000)


def test_large_values_come_as_sealed_memory(asker: Asker) -> None:
    x = asker.op("aten.arange.default", 1_000_000)
    assert torch.equal(asker.value(x), torch.arange(1_000_000))
    assert asker.pool.buffers.statistics().used == 0


def test_the_id_of_another_object_is_not_taken_for_a_result(asker: Asker) -> None:
    x, y = asker.send(torch.ones(2)), asker.send(torch.zeros(2))
    (result,) = asker.run(["aten.neg.default", [x], {}, [y]])
    assert isinstance(result, AlreadyExists)
    assert asker.value(asker.op("aten.clone.default", y)).tolist() == [0, 0]


def test_a_wrong_number_of_result_ids_is_refused(asker: Asker) -> None:
    x = asker.send(torch.ones(2))
    for ids in ([], [new_id(), new_id()]):
        (result,) = asker.run(["aten.neg.default", [x], {}, ids])
        assert isinstance(result, BadRequest)
        assert "gives 1 tensors" in result.message


def test_provided_again_is_replaced(asker: Asker) -> None:
    x = asker.send(torch.ones(2))

    async def again() -> None:
        asker.worker.provide(x, header_of(torch.ones(3)), content(torch.full((3,), 5.0)))

    asker.do(again())
    assert asker.value(asker.op("aten.neg.default", x)).tolist() == [-5, -5, -5]


def test_usage_tells_what_is_held(asker: Asker) -> None:
    x = asker.send(torch.ones(100))
    asker.op("aten.view.default", x, [10, 10])

    async def usage() -> Any:
        return await asker.worker.usage()

    usage = asker.do(usage())
    assert (usage.objects, usage.bytes_held, usage.operations) == (2, 400, 1)


def test_too_many_operations_at_once_are_refused_at_the_peer(asker: Asker) -> None:
    async def work() -> None:
        asker.worker.run([["aten.zeros.default", [[1]], {}, [new_id()]]] * (limits.MAX_BATCH + 1))

    with pytest.raises(TooLarge) as caught:
        asker.do(work())
    assert caught.value.fields["limit"] == "MAX_BATCH"


def test_the_same_worker_draws_other_random_numbers_than_the_next(asker: Asker) -> None:
    other = asker.workplace.asker()
    drawn = [someone.value(someone.op("aten.rand.default", [4])).tolist() for someone in (asker, other)]
    assert drawn[0] != drawn[1]


PROGRAM = Program(
    inputs=(Input("x"), Input("y", "float32")),
    nodes=(
        Node("aten.mul.Tensor", [{"node": 0}, {"node": 1}]),
        Node("aten.sort.default", [{"node": 2}]),
        Node("aten.add_.Scalar", [{"node": 0}, 1]),
    ),
    outputs={"map": {"product": {"node": 2}, "order": {"node": 3, "item": 1}, "three": 3}},
)
PROGRAM_ID = bytes.fromhex(PROGRAM.id)


def run_program(asker: Asker, inputs: list[bytes], outs: list[bytes], program: bytes | None) -> list[TensorHeader]:
    async def work() -> list[TensorHeader]:
        made: asyncio.Future[Made] = asyncio.get_running_loop().create_future()
        asker.worker.run_program(made, PROGRAM_ID, program, inputs, outs)
        return (await made).headers

    return asker.do(work())


def test_a_program_runs_as_one_request_and_is_known_by_its_id_afterwards(asker: Asker) -> None:
    x, y = asker.send(torch.tensor([1.0, -2.0])), asker.send(torch.tensor([3.0, 3.0]))
    with pytest.raises(NotFound):
        run_program(asker, [x, y], [new_id(), new_id()], None)
    for program in (PROGRAM.to_bytes(), None):
        outs = [new_id(), new_id()]
        before = asker.value(asker.op("aten.clone.default", x))
        headers = run_program(asker, [x, y], outs, program)
        assert [header.dtype for header in headers] == ["int64", "float32"]  # sorted by name
        assert asker.value(outs[0]).tolist() == [1, 0]
        assert torch.equal(asker.value(outs[1]), before * 3)
        assert torch.equal(asker.value(x), before + 1)


def test_a_program_does_not_write_to_a_published_object(asker: Asker) -> None:
    x, y = asker.send(torch.ones(2), read_only=True), asker.send(torch.ones(2))
    outs = [new_id(), new_id()]
    with pytest.raises(ReadOnly):
        run_program(asker, [x, y], outs, PROGRAM.to_bytes())
    with pytest.raises(ReadOnly):
        asker.value(outs[0])
    assert asker.is_as_provided(x)


def test_a_program_that_does_not_check_fails_and_so_do_its_results(asker: Asker) -> None:
    x = asker.send(torch.ones(2))
    for _ in range(2):  # the second time by its id
        out = new_id()
        with pytest.raises(BadProgram):
            run_program(asker, [x], [out], b"\x93no program")
        with pytest.raises(BadProgram):
            asker.value(out)


def test_a_program_with_the_wrong_number_of_results_or_inputs_is_refused(asker: Asker) -> None:
    x = asker.send(torch.ones(2))
    with pytest.raises(BadRequest, match="gives 2 tensors, but 1 result ids"):
        run_program(asker, [x, x], [new_id()], PROGRAM.to_bytes())
    with pytest.raises(BadRequest, match="takes 2 inputs"):
        run_program(asker, [x], [new_id(), new_id()], None)


def test_an_operation_after_a_failed_program_fails_for_the_same_reason(asker: Asker) -> None:
    x = asker.send(torch.ones(2))
    y = asker.send(torch.ones(3))
    out, after = new_id(), new_id()

    async def work() -> Any:
        failed: asyncio.Future[Made] = asyncio.get_running_loop().create_future()
        asker.worker.run_program(failed, PROGRAM_ID, PROGRAM.to_bytes(), [x, y], [out, new_id()])
        return await asker.worker.run([["aten.neg.default", [out], {}, [after]]])

    (result,) = asker.do(work())
    assert isinstance(result, OperationFailed)
    assert result.operation == "aten.mul.Tensor"


def test_large_values_go_from_stream_to_worker_to_worker_without_the_peer_copying(asker: Asker) -> None:
    other = asker.workplace.asker()
    data = torch.arange(100_000.0)
    header = header_of(data)
    x, y, z = new_id(), new_id(), new_id()

    async def work() -> tuple[Any, Any]:
        buffer = asker.pool.buffers.take(header.nbytes)
        for start in range(0, header.nbytes, 70_000):
            buffer.append(content(data)[start : start + 70_000])
        asker.worker.provide(x, header, buffer.share())
        asker.worker.run([["aten.add_.Scalar", [x, 1], {}, [x]], ["aten.mul.Scalar", [x, 2], {}, [y]]])
        exported = await asker.worker.export(y)
        assert isinstance(exported.data, Buffer)
        other.worker.provide(y, exported.header, exported.data.share(), read_only=True)
        other.worker.run([["aten.sum.default", [y], {}, [z]]])
        total = await other.worker.export(z)
        exported.data.release()
        assert bytes(buffer.view()) == content(data)
        buffer.release()
        return total.data, asker.pool.buffers.statistics()

    total, statistics = asker.do(work())
    assert total == content(((data + 1) * 2).sum())
    assert (statistics.used, statistics.warm) == (0, 0)
    other.end()
