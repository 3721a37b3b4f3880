"""Attacks of a principal on its worker, each with its verdict: a fault, and the worker goes on working."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from peer.worker.operation import name_of
from protocol.errors import BadRequest, GridError, NotFound, OperationNotAllowed, TooLarge
from tests.worker.conftest import Asker, new_id

NOT_OPERATIONS = [
    "aten.from_file",
    "aten.from_file.default",
    "aten.save.default",
    "aten.empty.memory_format",
    "aten.resize_.default",
    "aten.set_.source_Storage",
    "torch.os.system",
    "torch.ops.load_library",
    "torch.load",
    "debugprims.load_tensor.default",
    "_c10d_functional.all_reduce.default",
    "prims._sink_tokens.default",
    "aten._stack",
    "aten.__class__.default",
    "aten.add.__class__",
    "aten.__dict__.default",
    "__class__",
    "__import__('os').system",
    "aten.add.Tensor.__call__",
    "aten..Tensor",
    "aten.add.",
    "aten.add",
    "add.Tensor",
    "",
    "x" * 5000,
    "aten.add.Tensor\x00",
]


def works(asker: Asker) -> bool:
    x = asker.send(torch.ones(2))
    return asker.value(asker.op("aten.neg.default", x)).tolist() == [-1, -1]


@pytest.mark.parametrize("name", NOT_OPERATIONS, ids=lambda name: name[:40] or "empty")
def test_what_is_not_in_the_table_does_not_run(asker: Asker, name: str) -> None:
    x = asker.send(torch.ones(2))
    (result,) = asker.run([name, [x], {}, [new_id()]])
    assert isinstance(result, OperationNotAllowed)
    assert len(str(result)) < 600


def test_all_of_them_leave_the_worker_alive(asker: Asker) -> None:
    for name in [*NOT_OPERATIONS, None, 7, [], {}, b"aten.add.Tensor", True]:
        (result,) = asker.run([name, [], {}, []])
        assert isinstance(result, OperationNotAllowed | BadRequest)
    assert works(asker)


HUGE: list[list[Any]] = [
    ["aten.zeros.default", [[10**9, 10**3]], {}],
    ["aten.ones.default", [[1 << 31, 1 << 31]], {}],
    ["aten.full.default", [[1 << 30, 1 << 10], 1.0], {}],
    ["aten.eye.default", [10**6], {}],
    ["aten.arange.default", [10**12], {}],
    ["aten.linspace.default", [0, 1, 2**31 - 1], {"dtype": {"dtype": "complex128"}}],
    ["aten.repeat.default", ["x", [10**6, 10**6]], {}],
    ["aten.constant_pad_nd.default", ["x", [0, 2**31 - 1, 0, 2**31 - 1]], {}],
    ["aten.one_hot.default", ["i", 2**31], {}],
    ["aten.randperm.default", [2**31], {}],
]


@pytest.mark.parametrize("operation", HUGE, ids=lambda operation: operation[0])
def test_what_would_be_huge_is_refused_before_it_is_made(asker: Asker, operation: list[Any]) -> None:
    known = {"x": asker.send(torch.ones(4, 4)), "i": asker.send(torch.arange(1000))}
    name, args, kwargs = operation
    args = [known.get(arg, arg) if isinstance(arg, str) else arg for arg in args]
    (result,) = asker.run([name, args, kwargs, [new_id()]])
    assert isinstance(result, GridError)
    assert isinstance(result, TooLarge | BadRequest), result
    assert works(asker)


def test_a_shape_that_no_header_can_hold_is_a_fault_even_without_elements(asker: Asker) -> None:
    (result,) = asker.run(["aten.zeros.default", [[0, 1 << 31, 1 << 31]], {}, [new_id()]])
    assert isinstance(result, GridError)
    assert works(asker)


def test_a_huge_view_is_free_and_its_copy_refused(asker: Asker) -> None:
    x = asker.send(torch.ones(1))
    wide = asker.op("aten.expand.default", x, [1 << 18, 1 << 20])
    with pytest.raises(TooLarge):
        asker.op("aten.clone.default", wide)
    with pytest.raises(TooLarge):
        asker.value(wide)
    assert works(asker)


MALFORMED: list[Any] = [
    None,
    7,
    [],
    "aten.neg.default",
    ["aten.neg.default"],
    ["aten.neg.default", None, {}, []],
    ["aten.neg.default", [], None, []],
    ["aten.neg.default", [], {}, None],
    ["aten.neg.default", [], {}, [b"short"]],
    ["aten.neg.default", [], {}, [7]],
    ["aten.neg.default", [], {}, ["x" * 16]],
    ["aten.neg.default", [], {}, [[b"x" * 16]]],
    ["aten.neg.default", {}, [], []],
    ["aten.neg.default", [{"dtype": "os"}], {}, []],
    ["aten.neg.default", [{"tensor": {"dtype": "float32", "shape": [1 << 40], "data": b""}}], {}, []],
    ["aten.neg.default", [{"tensor": {"dtype": "float32", "shape": [2], "data": b"1"}}], {}, []],
    ["aten.neg.default", [{"complex": ["a", 1]}], {}, []],
    ["aten.neg.default", [{"what": 1}], {}, []],
    ["aten.neg.default", [{}], {}, []],
    ["aten.neg.default", ["text"], {}, []],
    ["aten.neg.default", [b"7 bytes"], {}, []],
    ["aten.neg.default", [], {"self": "text"}, []],
    ["aten.neg.default", [], {"out": b"x" * 16}, []],
    ["aten.neg.default", [1, 2, 3, 4, 5, 6], {}, []],
]


@pytest.mark.parametrize("operation", MALFORMED, ids=repr)
def test_a_malformed_operation_is_a_fault(asker: Asker, operation: Any) -> None:
    results = asker.run(operation, ["aten.zeros.default", [[1]], {}, [new_id()]])
    assert isinstance(results[0], GridError)
    assert not isinstance(results[1], GridError)


def test_an_argument_nested_deeper_than_the_stack_is_refused_at_the_peer(asker: Asker) -> None:
    nested: list[Any] = []
    for _ in range(2000):
        nested = [nested]
    with pytest.raises(BadRequest):
        asker.run(["aten.cat.default", [nested], {}, [new_id()]])
    for _ in range(1500):
        nested = nested[0]
    (result,) = asker.run(["aten.cat.default", [nested], {}, [new_id()]])
    assert isinstance(result, GridError)
    assert works(asker)


def test_an_object_of_another_principal_is_not_there(asker: Asker) -> None:
    other = asker.workplace.asker()
    x = other.send(torch.ones(2))
    with pytest.raises(NotFound):
        asker.op("aten.neg.default", x)


def test_no_memory_of_before_is_shown(asker: Asker) -> None:
    canary = 7.25e11
    x = asker.op("aten.full.default", [200_000], canary)
    for _ in range(20):
        asker.op("aten.mul.Tensor", x, 1)
    asker.drop(*asker.worker._held)
    for name in ("aten.empty.memory_format", "aten.new_empty.default", "aten.empty_strided.default"):
        out = new_id()
        (result,) = asker.run([name, [[200_000]], {}, [out]])
        if not isinstance(result, GridError):  # if it is allowed at all, it is filled
            assert not (asker.value(out) == canary).any()
    y = asker.send(torch.ones(3))
    grown = new_id()
    (result,) = asker.run(["aten.resize_.default", [y, [200_000]], {}, [grown]])
    assert isinstance(result, GridError)


def test_a_worker_has_no_secret_in_its_environment_and_no_descriptor_but_its_channel(asker: Asker) -> None:
    asker.send(torch.ones(2))
    asker.op("aten.zeros.default", [1])
    pid = asker.pid
    if os.geteuid() == 0:  # it is not dumpable: its /proc belongs to root
        assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2", "3"]
        names = {line.split(b"=")[0] for line in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if line}
        assert names <= {
            *(b"PATH", b"LD_LIBRARY_PATH", b"LANG", b"LC_ALL", b"TZ", b"TMPDIR", b"PYTHONPATH"),
            *(b"OMP_NUM_THREADS", b"MKL_NUM_THREADS", b"OPENBLAS_NUM_THREADS", b"NUMEXPR_NUM_THREADS"),
            b"OMP_WAIT_POLICY",
        }
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Threads:\t1\n" in status
    assert "0 " in Path(f"/proc/{pid}/limits").read_text().split("Max core file size")[1].lstrip()[:2]


def test_a_name_that_comes_into_the_log_is_on_one_line() -> None:
    assert name_of(["x\n2026-01-01 ERROR all is lost\x1b[2J", [], {}, []]) == "x 2026-01-01 ERROR all is lost [2J"
