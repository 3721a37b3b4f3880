"""Runs of a program on inputs that look like those of an earlier run: what was found out is not found out again, and
what hangs on values still is."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from compute import estimate, interpreter, known
from compute.cost import ALLOWED
from compute.interpreter import run
from compute.program import Input, Node, Program
from protocol import limits
from protocol.errors import BadRequest, GridError, TooLarge
from tests.compute.flows import aten, body, cond, n, program, repeat


@pytest.fixture(autouse=True)
def unlimited() -> Iterator[None]:
    yield
    ALLOWED.limit(None, None)


def chain(length: int = 5) -> Program:
    return program("x", *(aten("add.Tensor", n(at), 1.0) for at in range(length)), outputs=n(length))


def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operations that are checked from now on."""
    seen: list[str] = []
    whole = interpreter.checked

    def checked(entry: Any, args: Any, kwargs: Any) -> Any:
        seen.append(entry.name)
        return whole(entry, args, kwargs)

    monkeypatch.setattr(interpreter, "checked", checked)
    return seen


def test_the_second_run_is_not_checked_node_by_node(monkeypatch: pytest.MonkeyPatch) -> None:
    p = chain()
    run(p, [torch.zeros(3)])
    seen = checks(monkeypatch)
    assert run(p, [torch.ones(3)]).tolist() == [6.0] * 3
    assert seen == []


@pytest.mark.parametrize(
    "other",
    [torch.zeros(4), torch.zeros(3, dtype=torch.float64), torch.zeros(6)[::2], torch.zeros(3, 1), torch.tensor(0.0)],
)
def test_a_run_on_inputs_that_look_otherwise_is_checked(other: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    p = chain()
    run(p, [torch.zeros(3)])
    seen = checks(monkeypatch)
    found = run(p, [other])
    assert len(seen) == 5
    assert torch.equal(found, other + 5)
    assert found.dtype == other.dtype


def test_iterations_of_a_loop_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = checks(monkeypatch)
    p = program("x", repeat(0, 50, [n(0)]), bodies=(body("i x", aten("add.Tensor", n(1), n(0))),))
    assert run(p, [torch.tensor(0)]).item() == 1225
    assert seen == ["aten.add.Tensor"]


def test_sizes_are_those_of_this_run() -> None:
    p = program(
        "x", aten("sym_size.int", n(0), 0), Node("int.mul", [n(1), 10]), aten("add.Scalar", n(0), n(2)), outputs=n(3)
    )
    for rows in (1, 2, 1, 3, 2):
        assert run(p, [torch.zeros(rows)]).tolist() == [10.0 * rows] * rows


def test_what_hangs_on_data_is_looked_at_each_time() -> None:
    p = program(
        "x", aten("nonzero.default", n(0)), aten("add.Scalar", n(1), 1), aten("sum.default", n(2)), outputs=[n(2), n(3)]
    )
    for values in ([1, 0, 1], [1, 0, 1], [1, 1, 1], [0, 0, 0], [1, 0, 1]):
        rows, total = run(p, [torch.tensor(values)])
        expected = torch.tensor(values).nonzero() + 1
        assert torch.equal(rows, expected)
        assert total == expected.sum()


def test_sizes_that_hang_on_data_are_those_of_this_run() -> None:
    p = program(
        "x",
        aten("nonzero.default", n(0)),
        aten("sym_size.int", n(1), 0),
        aten("zeros.default", [n(2)]),
        outputs=n(3),
    )
    for values in ([1, 0, 1], [1, 0, 1], [1, 1, 1], [0, 0, 0], [1, 0, 1]):
        assert run(p, [torch.tensor(values)]).shape == (sum(values),)


def test_values_that_a_kernel_would_not_survive_are_refused_each_time() -> None:
    p = program("a b", aten("div.Tensor_mode", n(0), n(1), rounding_mode="trunc"), outputs=n(2))
    lowest = torch.tensor([-(2**63)])
    assert run(p, [torch.tensor([9]), torch.tensor([-1])]).item() == -9
    with pytest.raises(BadRequest, match="lowest integer"):
        run(p, [lowest, torch.tensor([-1])])


def test_memory_that_is_left_is_looked_at_each_time() -> None:
    p = chain(1)
    ALLOWED.limit(5_000, None)
    run(p, [torch.zeros(1000)])
    ALLOWED.held = 2_000
    with pytest.raises(TooLarge) as caught:
        run(p, [torch.zeros(1000)])
    assert caught.value.fields["limit"] == "worker_memory"


def test_memory_that_writing_takes_is_looked_at_before_the_next_operation() -> None:
    from compute.interpreter import execute

    class Grows:
        """Writing takes memory, as it does where a file is mapped."""

        def __call__(self, *call: Any) -> Any:
            return execute(*call)

        def again(self, *call: Any) -> Any:
            ALLOWED.held += 4_000
            return interpreter.again(*call)

        is_free = staticmethod(interpreter.is_free)

    p = program("x", aten("add_.Scalar", n(0), 1), aten("add.Tensor", n(1), 1.0), outputs=n(2))
    ALLOWED.limit(5_000, None)
    run(p, [torch.zeros(1000)], Grows())
    with pytest.raises(TooLarge):
        run(p, [torch.zeros(1000)], Grows())


def test_a_node_that_fails_in_a_later_run_is_named() -> None:
    p = program("x i", aten("relu.default", n(0)), aten("index_select.default", n(2), 0, n(1)), outputs=n(3))
    x = torch.ones(3)
    run(p, [x, torch.tensor([1])])
    with pytest.raises(GridError) as caught:
        run(p, [x, torch.tensor([7])])
    assert caught.value.fields["node"] == 1
    assert caught.value.operation == "aten.index_select.default"


def test_other_branches_are_other_bodies() -> None:
    p = program(
        "x p",
        cond(n(1), 0, 1, n(0)),
        aten("add.Tensor", n(2, 0), 1.0),
        bodies=(body("x", aten("mul.Tensor", n(0), 2.0)), body("x", aten("t.default", n(0)))),
        outputs=n(3),
    )
    x = torch.arange(4.0).reshape(2, 2)
    for chosen in (True, False, True, False):  # the second gives other strides
        assert torch.equal(run(p, [x, torch.tensor(chosen)]), (x * 2 if chosen else x.t()) + 1)


def test_strides_are_part_of_how_inputs_look() -> None:
    p = program("x", aten("view.default", n(0), [4]), outputs=n(1))
    x = torch.arange(4.0).reshape(2, 2)
    assert run(p, [x]).tolist() == [0, 1, 2, 3]
    with pytest.raises(GridError):
        run(p, [x.t()])
    assert run(p, [x]).tolist() == [0, 1, 2, 3]


def test_runs_are_the_same_for_tensors_that_are_no_plain_ones() -> None:
    p = chain()
    run(p, [torch.zeros(3)])
    assert run(p, [torch.nn.Parameter(torch.zeros(3))]).tolist() == [5.0] * 3
    assert run(p, [torch.empty(3, device="meta")]).is_meta
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode() as mode:
        assert isinstance(run(p, [mode.from_tensor(torch.zeros(3))]), FakeTensor)


def test_another_executor_sees_every_operation_every_time() -> None:
    seen: list[str] = []

    def watching(entry: Any, args: Any, kwargs: Any) -> Any:
        seen.append(entry.name)
        return interpreter.execute(entry, args, kwargs)

    p = chain()
    for _ in range(3):
        run(p, [torch.zeros(3)], watching)
    assert len(seen) == 15


def test_how_much_is_remembered_is_bounded() -> None:
    from compute.prepared import prepare

    p = chain(1)
    for size in range(2 * limits.MAX_LOOKS):
        run(p, [torch.zeros(size)])
    assert len(prepare(p).main.known) <= limits.MAX_LOOKS


def test_constants_that_stay_as_they_are_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from compute import prepared

    data = {"dtype": "float32", "shape": [1], "data": bytes(4)}
    p = Program((Input("x"),), (aten("add.Tensor", n(0), {"constant": 0}),), n(1), (data,))
    run(p, [torch.ones(1)])
    monkeypatch.setattr(prepared, "constant_tensor", None)
    assert run(p, [torch.ones(1)]).item() == 1.0


def test_constants_that_come_out_are_new_ones() -> None:
    data = {"dtype": "float32", "shape": [1], "data": bytes(4)}
    p = Program((), (aten("view.default", {"constant": 0}, [1, 1]),), n(0), (data,))
    run(p, []).add_(1)
    assert run(p, []).item() == 0.0


def test_estimates_are_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    p = chain()
    run(p, [torch.zeros(3)])
    monkeypatch.setattr(estimate, "infer", None)
    monkeypatch.setattr(known, "infer", None)
    assert run(p, [torch.zeros(3)]).tolist() == [5.0] * 3


def test_one_tensor_that_is_given_twice_is_looked_at_as_one() -> None:
    """What changes the shape of one of the two changes the other's: of it statistics are read that are not there."""
    norm = aten("native_batch_norm.default", n(0), n(2), n(2), n(2), n(2), False, 0.1, 1e-5)
    p = program("x y one", aten("t_.default", n(1)), norm, outputs=[{"node": 4, "item": 0}])
    one = torch.ones(1)
    for _ in range(2):
        assert run(p, [torch.rand(40, 1), torch.rand(40, 1), one])[0].shape == (40, 1)
    with pytest.raises(GridError):
        run(p, [twice := torch.rand(40, 1), twice, one])
