"""What should have been changed in place and was not: nothing that shares its memory is read as if nothing were."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from compute.cost import ALLOWED
from compute.program import Input, Node, Program
from peer.worker import repeated
from peer.worker.execution import execute
from peer.worker.objects import Objects
from peer.worker.programs import Programs, Wanted
from peer.worker.runtime import Runtime
from protocol.errors import GridError, OperationFailed, ReadOnly, TooLarge
from protocol.tensors import TensorHeader
from tests.worker.conftest import content, new_id


class Table:
    """What one worker holds, and operations on that."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    def put(self, value: torch.Tensor) -> bytes:
        id = new_id()
        self.objects.put(id, value)
        return id

    def op(self, name: str, *args: Any, outs: int = 1) -> Any:
        """The id of its result, or their ids, whatever became of it."""
        ids = [new_id() for _ in range(outs)]
        execute(self.objects, [name, list(args), {}, ids])
        return ids[0] if outs == 1 else ids

    def write(self, name: str, *args: Any) -> GridError:
        """One that changes its first argument, and fails."""
        error = execute(self.objects, [name, list(args), {}, []])
        assert isinstance(error, GridError)
        return error

    def row(self, x: bytes) -> bytes:
        return bytes(self.op("aten.select.int", x, 0, 0))

    def assert_spoiled(self, error: GridError, *ids: bytes) -> None:
        for id in ids:
            for used in (id, self.op("aten.neg.default", id), self.row(id)):
                with pytest.raises(type(error)) as caught:
                    self.objects.get(used)
                assert (caught.value.message, caught.value.operation) == (error.message, error.operation)


@pytest.fixture
def table() -> Iterator[Table]:
    held = ALLOWED.held
    repeated._plans.clear()
    yield Table(Objects())
    ALLOWED.limit(None, None)
    ALLOWED.held = held


def test_a_failed_write_spoils_whatever_shares_the_memory(table: Table) -> None:
    x, other, index = table.put(torch.zeros(2, 3)), table.put(torch.ones(2, 3)), table.put(torch.tensor([7]))
    row, turned = table.row(x), table.op("aten.t.default", x)
    part = table.op("aten.slice.Tensor", turned, 0, 1, 3)
    before = table.op("aten.clone.default", x)
    error = table.write("aten.index_put_.default", row, [index], table.put(torch.ones(1)))
    assert isinstance(error, OperationFailed)
    table.assert_spoiled(error, x, row, turned, part)
    assert table.objects.get(before).tolist() == [[0.0] * 3] * 2
    assert table.objects.get(other).tolist() == [[1.0] * 3] * 2
    assert table.objects.held == ALLOWED.held == 4 * (6 + 6) + 8 + 4, "the memory itself is let go of"


def test_one_that_failed_for_another_spoils_with_the_reason_of_that(table: Table) -> None:
    x, bad = (
        table.put(torch.zeros(2, 2)),
        table.op("aten.mm.default", table.put(torch.ones(2, 3)), table.put(torch.ones(2))),
    )
    with pytest.raises(OperationFailed) as caught:
        table.objects.get(bad)
    table.write("aten.copy_.default", table.row(x), bad)
    table.assert_spoiled(caught.value, x)


def test_what_overlaps_itself_is_spoiled(table: Table) -> None:
    c = table.put(torch.zeros(2))
    wide = table.op("aten.expand.default", c, [3, 2])
    table.assert_spoiled(table.write("aten.add_.Tensor", wide, table.put(torch.ones(3, 2))), c, wide)


def test_what_is_in_no_table_spoils_by_its_name(table: Table) -> None:
    x = table.put(torch.zeros(2, 2))
    table.assert_spoiled(table.write("aten.explode_.default", table.row(x)), x)


def test_what_is_read_only_stays_good(table: Table) -> None:
    x, value = new_id(), torch.zeros(2, 2)
    table.objects.provide(x, TensorHeader("float32", (2, 2)), content(value), read_only=True)
    row = table.row(x)
    assert isinstance(table.write("aten.add_.Scalar", row, 1), ReadOnly)
    assert isinstance(table.write("aten.add_.Tensor", row, table.op("aten.mm.default", x, row)), OperationFailed)
    assert table.objects.get(x).tolist() == value.tolist() and table.objects.get(row).tolist() == [0, 0]


def test_what_an_inverse_is_seen_through_is_as_bad_as_it(table: Table) -> None:
    inverse, info = table.op("aten.linalg_inv_ex.default", table.put(torch.zeros(2, 2)), outs=2)
    row = table.row(inverse)
    error = execute(table.objects, ["aten._linalg_check_errors.default", [info, "linalg.inv"], {"is_matrix": True}, []])
    assert isinstance(error, GridError)
    table.assert_spoiled(error, inverse, row)


def test_a_write_through_a_view_that_was_not_made_spoils_what_it_would_have_been_of(table: Table) -> None:
    x = table.put(torch.zeros(2, 3))
    half, other = table.op("aten.slice.Tensor", x, 0, 1, 2), table.put(torch.zeros(2))
    lost = table.op("aten.view.default", x, [7])
    inner = table.row(lost)
    table.objects.drop([x, lost])
    assert table.objects.get(half).tolist() == [[0, 0, 0]]
    error = table.write("aten.add_.Scalar", inner, 1)
    assert error.operation == "aten.view.default"
    table.assert_spoiled(error, half)
    assert table.objects.get(other).tolist() == [0, 0]


def test_a_view_that_was_not_made_and_nobody_writes_to_spoils_nothing(table: Table) -> None:
    x = table.put(torch.zeros(2))
    lost = table.op("aten.view.default", x, [7])
    table.op("aten.neg.default", lost)
    assert table.objects.get(x).tolist() == [0, 0]
    table.objects.drop([lost])
    assert not table.objects._unmade and not table.objects._failures.keys() & {lost}


def test_what_was_to_be_changed_by_an_operation_that_never_came(table: Table) -> None:
    runtime = Runtime(lambda message, _: None)
    table = Table(runtime._objects)
    x = table.put(torch.zeros(2, 2))
    row, error = table.row(x), TooLarge("no", operation="aten.add_.Tensor")
    runtime.handle(["spoil", [row], error.to_fault()], [])
    table.assert_spoiled(error, x, row)


PROGRAM = Program(
    inputs=(Input("x"), Input("index")),
    nodes=(
        Node("aten.select.int", [{"node": 0}, 0, 0]),
        Node("aten.index_fill_.int_Scalar", [{"node": 2}, 0, {"node": 1}, 1.0]),
        Node("aten.neg.default", [{"node": 0}]),
    ),
    outputs={"node": 4},
)


def test_a_step_of_a_program_that_fails_spoils_what_it_was_to_change(table: Table) -> None:
    programs = Programs(table.objects)
    for at, is_good in ((0, True), (1, True), (7, False), (2, True), (7, False)):
        x, index, other = table.put(torch.zeros(2, 3)), table.put(torch.tensor([at])), table.put(torch.zeros(2, 3))
        row, out = table.op("aten.select.int", x, 0, 1), new_id()
        wanted = Wanted(0, b"p" * 32, PROGRAM.to_bytes(), [x, index], [out], False, False)
        if is_good:
            programs.run(wanted, lambda _: None, lambda *_: None)
            assert table.objects.get(x)[0, at] == 1
            continue
        with pytest.raises(OperationFailed) as caught:
            programs.run(wanted, lambda _: None, lambda *_: None)
        table.assert_spoiled(caught.value, x, row, out)
        assert table.objects.get(other).tolist() == [[0.0] * 3] * 2
