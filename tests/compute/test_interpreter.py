"""Programs run."""

import weakref
from collections import OrderedDict
from typing import Any

import pytest
import torch

from compute import estimate, prepared
from compute.bounds import Result
from compute.interpreter import execute, run
from compute.program import Input, Node, Program
from compute.sharing import written_inputs
from compute.table import Entry, lookup
from compute.values import inline_tensor
from protocol.errors import BadRequest, OperationFailed, OperationNotAllowed, TooLarge


def program(*nodes: Node, outputs: Any = None, inputs: tuple[Input, ...] = (Input("x"),), **more: Any) -> Program:
    last = {"node": len(inputs) + len(nodes) - 1}
    built = Program(inputs, nodes, last if outputs is None else outputs, **more)
    return Program.from_bytes(built.to_bytes())


X = torch.arange(12.0).reshape(3, 4)


def test_a_program_runs() -> None:
    p = program(
        Node("aten.mul.Tensor", [{"node": 0}, 2.0]),
        Node("aten.sum.dim_IntList", [{"node": 1}, [1]], {"keepdim": True, "dtype": {"dtype": "float64"}}),
    )
    assert torch.equal(run(p, [X]), (X * 2).sum(1, keepdim=True, dtype=torch.float64))


def test_items_of_results_are_picked() -> None:
    p = program(
        Node("aten.max.dim", [{"node": 0}, 1]),
        Node("aten.split.Tensor", [{"node": 0}, 1]),
        outputs=[{"node": 1, "item": 1}, {"node": 2, "item": 2}],
    )
    indices, row = run(p, [X])
    assert indices.tolist() == [3, 3, 3]
    assert torch.equal(row, X[2:])


def test_outputs_keep_their_structure() -> None:
    p = program(
        Node("aten.relu.default", [{"node": 0}]),
        outputs={"map": {"a": {"tuple": [{"node": 1}, None, 3]}, "b": [{"node": 0}, {"node": 1}]}},
    )
    found = run(p, [X])
    assert isinstance(found["a"], tuple)
    assert isinstance(found["b"], list)
    assert found["b"][0] is X
    assert found["a"][1:] == (None, 3)


def test_sizes_are_numbers_of_the_program() -> None:
    p = program(
        Node("aten.sym_size.int", [{"node": 0}, 0]),
        Node("int.mul", [{"node": 1}, 2]),
        Node("int.floordiv", [{"node": 2}, 3]),
        Node("aten.reshape.default", [{"node": 0}, [{"node": 3}, -1]]),
    )
    assert run(p, [X]).shape == (2, 6)
    assert run(p, [torch.ones(6, 2)]).shape == (4, 3)


def test_constants_are_new_in_every_run() -> None:
    p = program(
        Node("aten.add_.Tensor", [{"constant": 0}, 1.0]),
        constants=({"dtype": "float32", "shape": [2], "data": b"\0" * 8},),
    )
    assert run(p, [X]).tolist() == [1.0, 1.0]
    assert run(p, [X]).tolist() == [1.0, 1.0]


def test_gradients_flow_through_a_program() -> None:
    x = X.clone().requires_grad_()
    run(
        program(Node("aten.pow.Tensor_Scalar", [{"node": 0}, 2]), Node("aten.sum.default", [{"node": 1}])), [x]
    ).backward()
    assert x.grad is not None
    assert torch.equal(x.grad, 2 * X)


def test_values_are_freed_after_their_last_use() -> None:
    alive: list[int] = []
    references: list[weakref.ref[Any]] = []

    def watching(entry: Entry, args: Any, kwargs: Any) -> Any:
        value = execute(entry, args, kwargs)
        references.append(weakref.ref(value))
        alive.append(sum(reference() is not None for reference in references))
        return value

    nodes = [Node("aten.add.Tensor", [{"node": at}, 1.0]) for at in range(20)]
    run(program(*nodes), [X], watching)
    assert max(alive) <= 2


def test_a_value_that_nobody_needs_is_freed_at_once() -> None:
    references: list[weakref.ref[Any]] = []

    def watching(entry: Entry, args: Any, kwargs: Any) -> Any:
        assert all(reference() is None for reference in references)
        value = execute(entry, args, kwargs)
        references.append(weakref.ref(value))
        return value

    nodes = [Node("aten.add.Tensor", [{"node": 0}, float(at)]) for at in range(5)]
    run(program(*nodes, outputs={"node": 0}), [X], watching)


def test_execution_can_be_replaced() -> None:
    seen: list[str] = []

    def counting(entry: Entry, args: Any, kwargs: Any) -> Any:
        seen.append(entry.name)
        return ("share of", args, kwargs)

    p = program(Node("aten.add.Tensor", [{"node": 0}, 1], {"alpha": 2}))
    assert run(p, ["secret"], counting) == ("share of", ["secret", 1], {"alpha": 2})
    assert seen == ["aten.add.Tensor"]


def test_tensor_subclasses_run() -> None:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode():
        fake = torch.empty(3, 4)
    found = run(
        program(
            Node("aten.matmul.default", [{"node": 0}, {"node": 1}]),
            Node("aten.relu.default", [{"node": 2}]),
            inputs=(Input("x"), Input("y")),
        ),
        [fake, fake.t()],
    )
    assert isinstance(found, FakeTensor)
    assert found.shape == (3, 3)


# --- refusals ---------------------------------------------------------------------------------------------


def test_a_failing_node_is_named() -> None:
    p = program(Node("aten.relu.default", [{"node": 0}]), Node("aten.mm.default", [{"node": 1}, {"node": 1}]))
    with pytest.raises(OperationFailed, match="must have same reduction dim") as caught:
        run(p, [X])
    assert caught.value.operation == "aten.mm.default"
    assert caught.value.fields == {"type": "RuntimeError", "node": 1}


def test_our_own_errors_keep_their_class_and_get_the_node() -> None:
    p = program(Node("aten.zeros.default", [[1_000_000, 1_000_000]]), inputs=())
    with pytest.raises(TooLarge) as caught:
        run(p, [])
    assert caught.value.fields["node"] == 0
    assert caught.value.operation == "aten.zeros.default"


def test_exponential_growth_is_refused() -> None:
    nodes = [Node("aten.cat.default", [[{"node": at}, {"node": at}]]) for at in range(60)]
    with pytest.raises(TooLarge) as caught:
        run(program(*nodes), [torch.ones(1024).expand(1 << 13, 1024)], execute_small)
    assert caught.value.fields["node"] < 20


def execute_small(entry: Entry, args: Any, kwargs: Any) -> Any:
    from compute.estimate import check_size

    bound, named = entry.bind(args, kwargs)
    check_size(entry, bound, named, allowed=128 << 20)
    return entry.overload(*bound, **named)


def test_sixty_doublings_in_place_are_fine() -> None:
    nodes = [Node("aten.add.Tensor", [{"node": at}, {"node": at}]) for at in range(60)]
    assert run(program(*nodes), [torch.ones(1, dtype=torch.float64)]).item() == 2.0**60


@pytest.mark.parametrize(
    ("given", "inputs", "words"),
    [
        (Input("x"), [], "takes 1 inputs"),
        (Input("x"), [X, X], "2 were given"),
        (Input("x", "int64"), [X], "'x' is int64, but torch.float32"),
        (Input("x", None, (3, 5)), [X], r"x: any\[3, 5\] was given as \[3, 4\]"),
        (Input("x", None, (None,)), [X], "was given as"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(given: Input, inputs: list[Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        run(program(outputs={"node": 0}, inputs=(given,)), inputs)


def test_open_dimensions_take_any_size() -> None:
    p = program(outputs={"node": 0}, inputs=(Input("x", "float32", (None, 4)),))
    for size in (0, 1, 7):
        assert run(p, [torch.ones(size, 4)]).shape == (size, 4)


@pytest.mark.parametrize(
    ("name", "args", "kind"),
    [
        ("int.floordiv", [1, 0], OperationFailed),
        ("int.mod", [1, 0], OperationFailed),
        ("float.div", [1.0, 0], OperationFailed),
        ("float.sqrt", [-1.0], OperationFailed),
        ("int.from_float", [float("inf")], OperationFailed),
        ("int.mul", [(1 << 62), 4], OperationFailed),
        ("int.add", [{"node": 0}, 1], BadRequest),
        ("int.add", ["a", "b"], BadRequest),
        ("int.add", [[1], [2]], BadRequest),
        ("int.mul", ["a" * 200, 1 << 40], BadRequest),
        ("int.add", [True, 1], BadRequest),
    ],
)
def test_arithmetic_is_on_numbers_within_64_bits(name: str, args: list[Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        run(program(Node(name, args)), [X])


def test_an_item_that_is_not_there_is_refused() -> None:
    for nodes, output in (
        ([Node("aten.max.dim", [{"node": 0}, 1])], {"node": 1, "item": 2}),
        ([Node("aten.relu.default", [{"node": 0}]), Node("aten.relu.default", [{"node": 1, "item": 0}])], {"node": 2}),
    ):
        with pytest.raises(BadRequest, match="has no item"):
            run(program(*nodes, outputs=output), [X])


def test_a_tensor_where_a_number_belongs_is_refused() -> None:
    with pytest.raises(BadRequest, match="is an integer"):
        run(program(Node("aten.select.int", [{"node": 0}, 0, {"node": 0}])), [X])


def test_an_operation_that_this_torch_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from compute import operations, table
    from compute import program_check as programs

    names = {**operations.OPERATIONS, "aten.not_yet_made.default": "activation"}
    monkeypatch.setattr(programs, "OPERATIONS", names)
    monkeypatch.setattr(table, "OPERATIONS", names)
    with pytest.raises(OperationNotAllowed, match="does not exist in torch"):
        run(program(Node("aten.not_yet_made.default", [{"node": 0}])), [X])


# --- writes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "written"),
    [
        ([Node("aten.add.Tensor", [{"node": 0}, 1])], ()),
        ([Node("aten.add_.Tensor", [{"node": 0}, 1])], (0,)),
        ([Node("aten.view.default", [{"node": 0}, [12]]), Node("aten.add_.Tensor", [{"node": 1}, 1])], (0,)),
        ([Node("aten.split.Tensor", [{"node": 0}, 1]), Node("aten.add_.Tensor", [{"node": 1, "item": 0}, 1])], (0,)),
        ([Node("aten.clone.default", [{"node": 0}]), Node("aten.add_.Tensor", [{"node": 1}, 1])], ()),
        ([Node("aten.dropout.default", [{"node": 0}, 0.5, False]), Node("aten.add_.Tensor", [{"node": 1}, 1])], (0,)),
        ([Node("aten.linear.default", [{"node": 0}, {"node": 0}]), Node("aten.relu_.default", [{"node": 1}])], ()),
        ([Node("aten.contiguous.default", [{"node": 0}]), Node("aten.relu_.default", [{"node": 1}])], (0,)),
    ],
)
def test_inputs_that_a_program_writes_are_found(nodes: list[Node], written: tuple[int, ...]) -> None:
    assert written_inputs(program(*nodes)) == written


def test_preparation_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    p = program(Node("aten.relu.default", [{"node": 0}]))
    run(p, [X])
    monkeypatch.setattr(prepared, "decode_argument", None)
    run(p, [X])


def test_one_operation_costs_microseconds_where_it_was_seen_before() -> None:
    import timeit

    entry = lookup("aten.add.Tensor")

    def check() -> None:
        from compute.estimate import check_size

        bound, named = entry.bind([X, X], {})
        check_size(entry, bound, named)

    assert min(timeit.repeat(check, number=1000, repeat=5)) / 1000 < 100e-6  # measured: 3 us


def test_a_constant_outlives_the_inference_mode_in_which_a_program_first_ran() -> None:
    p = program(
        Node("aten.mul.Tensor", [{"node": 0}, {"constant": 0}]), constants=(inline_tensor(torch.tensor(2.0))["tensor"],)
    )
    with torch.inference_mode():
        assert torch.equal(run(p, [X]), X * 2)
    x = X.clone().requires_grad_()
    run(p, [x]).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.full((3, 4), 2.0))


def test_a_result_of_another_dtype_than_was_said_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Result.contiguous(torch.float64, (3, 4))
    monkeypatch.setattr(estimate, "_seen", OrderedDict())
    monkeypatch.setattr(estimate, "BOUNDS", {"aten.relu.default": lambda call: (said,)})
    with pytest.raises(OperationFailed, match="gave float32, and of such arguments float64"):
        execute(lookup("aten.relu.default"), [X], {})


def test_a_program_that_reads_pairs_takes_conjugates() -> None:
    p, given = program(Node("aten.view_as_real.default", [{"node": 0}])), torch.tensor([1 + 2j, 3j])
    for value in (given, given.conj(), given, given.conj()):
        assert torch.equal(run(p, [value]), torch.view_as_real(value.resolve_conj()))


def test_a_program_that_writes_to_a_conjugate_and_reads_pairs_is_refused() -> None:
    p = program(
        Node("aten.view_as_real.default", [{"node": 0}]),
        Node("aten.zero_.default", [{"node": 2}]),
        Node("aten.sum.default", [{"node": 1}]),
        inputs=(Input("x"), Input("y")),
    )
    given, other = torch.tensor([1 + 2j, 3j]), torch.tensor([1 + 1j, 1 - 1j])
    for x, y in ((given.conj(), other), (given, given.conj())):
        with pytest.raises(BadRequest, match="resolve_conj"):
            run(p, [x, y])
    assert run(p, [given, other.conj()]) == 2 and not given.any()
