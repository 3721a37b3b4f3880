"""An operation that looks like one before goes a shorter way in the worker, and no check is left out on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from compute.cost import ALLOWED
from peer.worker import repeated
from peer.worker.execution import execute
from peer.worker.objects import Objects
from protocol import limits
from protocol.errors import BadRequest, GridError, NotFound, OperationFailed, ReadOnly, TooLarge
from protocol.tensors import TensorHeader
from tests.worker.conftest import new_id


@pytest.fixture
def objects() -> Iterator[Objects]:
    repeated._plans.clear()
    yield Objects()
    ALLOWED.limit(None, None)


def _put(objects: Objects, value: torch.Tensor) -> bytes:
    id = new_id()
    objects.put(id, value)
    return id


def _run(objects: Objects, name: str, args: list[Any], kwargs: dict[str, Any] | None = None, outs: int = 1) -> Any:
    """The results, or the error."""
    return execute(objects, [name, args, kwargs or {}, [new_id() for _ in range(outs)]])


def _checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operations that go the long way from now on."""
    found: list[str] = []
    original = Objects().execute

    def note(entry: Any, args: Any, kwargs: Any) -> Any:
        found.append(entry.name)
        return original(entry, args, kwargs)

    monkeypatch.setattr("compute.interpreter.execute", note)
    return found


def test_the_same_again_goes_the_shorter_way_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    long_way = _checks(monkeypatch)
    repeated._plans.clear()
    objects = Objects()
    value = torch.randn(3, 4)
    x = _put(objects, value)
    for number in range(3):
        (made,) = _run(objects, "aten.mul.Tensor", [x, number / 7])
        assert torch.equal(made, value * (number / 7))
    assert long_way == ["aten.mul.Tensor"]


@pytest.mark.parametrize("factors", [(1, 1.0, True), (True, 1, 1.0)])
def test_numbers_that_are_equal_and_of_another_type_are_another_operation(
    objects: Objects, factors: tuple[float, ...]
) -> None:
    whole = torch.arange(4)
    x = _put(objects, whole)
    for _ in range(2):
        for factor in factors:
            (made,) = _run(objects, "aten.mul.Tensor", [x, factor])
            assert made.dtype == (whole * factor).dtype
    _run(objects, "aten.sum.dim_IntList", [x, [0], True])
    assert isinstance(_run(objects, "aten.sum.dim_IntList", [x, [0], 1]), BadRequest)  # a truth value is none of those
    assert isinstance(_run(objects, "aten.sum.dim_IntList", [x, [False], True]), BadRequest)


def test_another_integer_is_checked_anew(objects: Objects) -> None:
    x = _put(objects, torch.randn(2, 3))
    for _ in range(2):
        assert isinstance(_run(objects, "aten.view.default", [x, [6]]), list)
        assert isinstance(_run(objects, "aten.view.default", [x, [7]]), OperationFailed)
        assert isinstance(_run(objects, "aten.view.default", [x, [limits.MAX_INT + 1]]), TooLarge)


def test_a_tensor_of_other_strides_is_checked_anew(objects: Objects) -> None:
    x, turned = _put(objects, torch.randn(3, 3)), _put(objects, torch.randn(3, 3).t())
    assert isinstance(_run(objects, "aten.view.default", [x, [9]]), list)
    assert isinstance(_run(objects, "aten.view.default", [turned, [9]]), OperationFailed)
    for value in (objects.get(x), objects.get(turned)):
        (made,) = _run(objects, "aten.add.Tensor", [_put(objects, value), 1])
        assert made.stride() == value.stride()


def test_a_tensor_of_another_dtype_is_checked_anew(objects: Objects) -> None:
    single, double = _put(objects, torch.ones(1000)), _put(objects, torch.ones(1000).double())
    assert isinstance(_run(objects, "aten.neg.default", [single]), list)
    ALLOWED.limit(memory=6000, seconds=None)
    assert isinstance(_run(objects, "aten.neg.default", [double]), TooLarge)
    assert isinstance(_run(objects, "aten.neg.default", [single]), list)


def test_what_is_left_of_the_budget_is_looked_at_each_time(objects: Objects) -> None:
    x = _put(objects, torch.ones(1000))
    for _ in range(3):
        assert isinstance(_run(objects, "aten.add.Tensor", [x, 1]), list)
    ALLOWED.limit(memory=1000, seconds=None)
    assert isinstance(_run(objects, "aten.add.Tensor", [x, 1]), TooLarge)
    ALLOWED.limit(memory=None, seconds=1e-12)
    assert isinstance(_run(objects, "aten.add.Tensor", [x, 1]), TooLarge)
    ALLOWED.limit(None, None)
    assert isinstance(_run(objects, "aten.add.Tensor", [x, 1]), list)


def test_values_are_looked_at_each_time(objects: Objects) -> None:
    scores, one = _put(objects, torch.randn(2, 3)), _put(objects, torch.ones(()))
    for _ in range(2):
        for target, is_good in (([0, 2], True), ([0, 3], False), ([-1, 2], False), ([-100, 2], True)):
            call = [one, scores, _put(objects, torch.tensor(target)), None, 1, -100, one]
            result = _run(objects, "aten.nll_loss_backward.default", call)
            assert isinstance(result, list) if is_good else isinstance(result, BadRequest), target


def test_what_is_read_only_is_not_written_by_an_operation_that_ran_on_another(objects: Objects) -> None:
    mine, theirs = _put(objects, torch.ones(4)), new_id()
    objects.provide(theirs, TensorHeader("float32", (4,)), torch.ones(4).numpy().tobytes(), read_only=True)
    for _ in range(2):
        assert isinstance(execute(objects, ["aten.add_.Tensor", [mine, 1], {}, []]), list)
        assert isinstance(execute(objects, ["aten.add_.Tensor", [theirs, 1], {}, []]), ReadOnly)
    assert objects.get(mine).tolist() == [3.0] * 4 and objects.get(theirs).tolist() == [1.0] * 4


def test_a_tensor_that_is_not_there_is_told_as_before(objects: Objects) -> None:
    x, lost = _put(objects, torch.ones(2)), new_id()
    assert isinstance(_run(objects, "aten.add.Tensor", [x, x]), list)
    assert isinstance(_run(objects, "aten.add.Tensor", [x, new_id()]), NotFound)
    objects.fail(lost, GridError("why"))
    for call in ("aten.add.Tensor", [x, lost]), ("aten.cat.default", [[x, lost]]):
        assert _run(objects, *call).message == "why"


def test_a_factory_remembers_its_floats(objects: Objects) -> None:
    for stop in (3.0, 5.0, 3.0):
        (made,) = _run(objects, "aten.arange.default", [stop])
        assert made.shape == (int(stop),)
    ALLOWED.limit(memory=1000, seconds=None)
    assert isinstance(_run(objects, "aten.arange.default", [1e6]), TooLarge)


def test_a_scale_by_which_a_kernel_reads_is_looked_at_each_time(objects: Objects) -> None:
    """Beside the image, where it does not lead to the size that is asked for."""
    image = _put(objects, torch.rand(1, 1, 4, 4))
    for scale, is_good in (2.0, True), (2.0, True), (0.3, False), (1e-6, False), (float("nan"), False), (2.0, True):
        result = _run(objects, "aten._upsample_bilinear2d_aa.default", [image, [8, 8], False, scale, scale])
        assert isinstance(result, list) if is_good else isinstance(result, BadRequest), scale


def test_all_is_forgotten_when_it_is_too_much(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PLANS", 8)
    x = _put(objects, torch.randn(40))
    for stop in range(1, 40):
        (made,) = _run(objects, "aten.slice.Tensor", [x, 0, 0, stop])
        assert made.shape == (stop,) and len(repeated._plans) <= 8
