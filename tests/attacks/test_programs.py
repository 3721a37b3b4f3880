"""Hostile programs (threats T12, T16): refused with the right error, and before anything runs."""

import hashlib
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
import torch

from compute.cost import ALLOWED
from compute.forecast import check_program
from compute.interpreter import run
from compute.program import Body, Input, Node, Program
from compute.program_types import check_types
from protocol import limits
from protocol.errors import BadProgram, GridError, OperationNotAllowed, TooLarge
from tests.compute.flows import aten, body, cond, loop, n, program, repeat, scan


@pytest.fixture(autouse=True)
def a_worker() -> Iterator[None]:
    ALLOWED.limit(1 << 30, 600.0)
    yield
    ALLOWED.limit(None, None)


def canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: canonical(value[key]) for key in sorted(value)}
    return [canonical(item) for item in value] if isinstance(value, list) else value


def wire(**changes: Any) -> bytes:
    good = {
        "bodies": [],
        "constants": [],
        "inputs": [{"content": None, "dtype": None, "name": "x", "shape": None}],
        "nodes": [["aten.relu.default", [{"node": 0}], {}]],
        "outputs": {"node": 1},
        "version": 1,
    }
    packed: bytes = msgpack.packb(canonical({**good, **changes}))
    return packed


def received(data: bytes, *inputs: torch.Tensor) -> Any:
    """What a worker does with what comes."""
    program = Program.from_bytes(data)
    check_types(program)
    check_program(program, inputs)
    return run(program, inputs)


# --- forward references, and what else would never end ----------------------------------------------------

STEP = {
    "inputs": [
        {"content": None, "dtype": None, "name": "i", "shape": None},
        {"content": None, "dtype": None, "name": "x", "shape": None},
    ],
    "nodes": [["flow.repeat", [{"body": 0}, 2, [{"node": 1}], []], {}]],
    "outputs": [{"item": 0, "node": 2}],
}


@pytest.mark.parametrize(
    "changes",
    [
        {"nodes": [["aten.relu.default", [{"node": 1}], {}]]},
        {"nodes": [["aten.relu.default", [{"node": 2}], {}], ["aten.relu.default", [{"node": 0}], {}]]},
        {"bodies": [STEP]},
        {"bodies": [STEP, {**STEP, "nodes": [["flow.repeat", [{"body": 1}, 2, [{"node": 1}], []], {}]]}]},
    ],
)
def test_what_refers_to_itself_or_forward_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadProgram, match="does not exist before it"):
        Program.from_bytes(wire(**changes))


def test_ten_million_nodes_are_refused_before_they_are_read() -> None:
    # a list that says it has 10**7 items, and nothing behind it
    data = wire().replace(b"\xa5nodes\x91", b"\xa5nodes\xdd" + (10**7).to_bytes(4, "big"))
    with pytest.raises(BadProgram, match="within the limits"):
        Program.from_bytes(data)


# --- growth -----------------------------------------------------------------------------------------------


def test_sixty_sums_with_itself_are_fine() -> None:
    p = program("x", *(aten("add.Tensor", n(at), n(at)) for at in range(60)), outputs=n(60))
    assert received(p.to_bytes(), torch.ones(1, dtype=torch.float64)).item() == 2.0**60


@pytest.mark.parametrize("declared", [Input("x"), Input("x", "float32", (1,)), Input("x", "float32", ("any",))])
def test_sixty_doublings_are_refused(declared: Input) -> None:
    nodes = (aten("cat.default", [n(at), n(at)]) for at in range(60))
    with pytest.raises(TooLarge):
        received(program((declared,), *nodes, outputs=n(60)).to_bytes(), torch.ones(1))


def test_doublings_in_bodies_are_refused() -> None:
    """16 bodies, each of which runs the one before it twice: 2**15 times eight doublings."""
    bodies = [body("x", *(aten("cat.default", [n(at), n(at)]) for at in range(8)), outputs=[n(8)])]
    for at in range(15):
        bodies.append(body("x", cond(True, at, at, n(0)), cond(True, at, at, n(1, 0)), outputs=[n(2, 0)]))
    p = program("x", cond(True, 15, 15, n(0)), bodies=tuple(bodies))
    with pytest.raises(TooLarge):
        received(p.to_bytes(), torch.ones(1))


def test_many_results_that_are_kept_are_refused_together() -> None:
    nodes = [aten("add.Tensor", n(0), 1.0) for _ in range(500)]
    p = program("x", *nodes, outputs=[n(at) for at in range(1, 501)])
    with pytest.raises(TooLarge) as caught:
        received(p.to_bytes(), torch.ones(1 << 20))  # 4 MiB each: no single one is too large
    assert caught.value.fields["limit"] == "worker_memory"


def test_what_a_loop_keeps_is_refused_together() -> None:
    step = body("part", aten("exp.default", n(0)))
    p = program("x", scan(0, [], [n(0)]), bodies=(step,), outputs=n(1, 0))
    with pytest.raises(TooLarge) as caught:
        received(p.to_bytes(), torch.ones(1).expand(1000, 1 << 20))
    assert caught.value.fields["limit"] == "worker_memory"


# --- loops ------------------------------------------------------------------------------------------------


def nested(count: Any, depth: int, *work: Node) -> Program:
    last = n(1) if not work else n(1 + len(work))
    bodies = [body("i x", *work, outputs=[last])]
    for at in range(depth - 1):
        bodies.append(body("i x", repeat(at, count, [n(1)]), outputs=[n(2, 0)]))
    return program("x", repeat(depth - 1, count, [n(0)]), bodies=tuple(bodies))


def test_a_million_cubed_is_refused_when_it_is_built() -> None:
    with pytest.raises(TooLarge) as caught:
        nested(10**6, 3)
    assert caught.value.fields["limit"] == "MAX_STEPS"


def test_a_million_cubed_by_sizes_is_refused_before_it_starts() -> None:
    bodies = [body("i x c", aten("add.Scalar", n(1), 1.0))]
    for at in range(2):
        bodies.append(body("i x c", aten("sym_size.int", n(2), 0), repeat(at, n(3), [n(1)], n(2)), outputs=[n(4, 0)]))
    count = aten("sym_size.int", n(1), 0)
    p = program("x c", count, repeat(2, n(2), [n(0)], n(1)), bodies=tuple(bodies))
    with pytest.raises(TooLarge) as caught:
        received(p.to_bytes(), torch.ones(1), torch.zeros(1).expand(10**6))
    assert caught.value.fields["limit"] in ("MAX_OPERATION", "worker_seconds")


def test_a_loop_that_takes_too_long_at_best_is_refused_before_it_starts() -> None:
    product = aten("mm.default", n(1), n(1))
    with pytest.raises(TooLarge) as caught:
        received(nested(1000, 2, product).to_bytes(), torch.ones(1000, 1000))
    assert caught.value.fields["limit"] in ("MAX_OPERATION", "worker_seconds")


def test_a_loop_without_end_is_ended() -> None:
    always = body("x", aten("ge.Scalar", n(0), 0.0), aten("all.default", n(1)))
    p = program("x", loop(0, 1, [n(0)], limit=1000), bodies=(always, body("x", aten("mul.Tensor", n(0), 1.0))))
    with pytest.raises(TooLarge) as caught:
        received(p.to_bytes(), torch.ones(1))
    assert caught.value.fields["limit"] == "MAX_ITERATIONS"


def test_a_loop_that_takes_too_long_is_ended_as_it_goes() -> None:
    ALLOWED.limit(1 << 30, 0.3)
    always = body("x", aten("ge.Scalar", n(0), 0.0), aten("all.default", n(1)))
    p = program("x", loop(0, 1, [n(0)]), bodies=(always, body("x", aten("mul.Tensor", n(0), 1.0))))
    check_program(p, [torch.ones(1)])
    with pytest.raises(TooLarge) as caught:
        run(p, [torch.ones(1)])
    assert caught.value.fields["limit"] == "worker_seconds"


def test_bodies_as_deep_as_the_stack_are_refused() -> None:
    with pytest.raises(TooLarge) as caught:
        nested(1, limits.MAX_BODY_DEPTH + 1)
    assert caught.value.fields["limit"] == "MAX_BODY_DEPTH"
    assert run(nested(1, limits.MAX_BODY_DEPTH), [torch.ones(1)]).item() == 1.0


def test_too_many_bodies_are_refused() -> None:
    bodies = tuple(Body((), (), []) for _ in range(limits.MAX_BODIES + 1))
    with pytest.raises(TooLarge) as caught:
        Program((Input("x"),), (), n(0), (), bodies)
    assert caught.value.fields["limit"] == "MAX_BODIES"


def test_nodes_of_bodies_count() -> None:
    half = body("x", *[aten("relu.default", n(0))] * (limits.MAX_NODES // 2))
    with pytest.raises(TooLarge) as caught:
        Program((Input("x"),), half.nodes + half.nodes[:1], n(0), (), (half,))
    assert caught.value.fields["limit"] == "MAX_NODES"


# --- what is not in the table ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    "aten.from_file.default torch.os.system ops.load_library aten._stack.default __class__ flow.exec flow. "
    "flow.cond.default aten.empty.memory_format aten.resize_.default".split(),
)
def test_operations_outside_the_table_are_refused_in_bodies_too(name: str) -> None:
    bad = [[name, [{"node": 0}], {}]]
    with pytest.raises(OperationNotAllowed):
        Program.from_bytes(wire(nodes=bad))
    with pytest.raises(OperationNotAllowed) as caught:
        Program.from_bytes(wire(bodies=[{**STEP, "nodes": bad, "outputs": []}]))
    assert caught.value.fields == {"node": 0, "body": 0}


@pytest.mark.parametrize("dtype", [6, 1000, -1, True, 0.0, "qint8", "torch.float32", "__reduce__", None, [], {}])
def test_a_dtype_is_one_of_our_names(dtype: Any) -> None:
    for nodes in (
        [["aten.to.dtype", [{"node": 0}, {"dtype": dtype}], {}]],
        [["aten.sum.default", [{"node": 0}], {"dtype": {"dtype": dtype}}]],
    ):
        with pytest.raises(BadProgram):
            Program.from_bytes(wire(nodes=nodes))
    if not isinstance(dtype, str) and dtype is not None:
        with pytest.raises(BadProgram):
            received(wire(nodes=[["aten.to.dtype", [{"node": 0}, dtype], {}]]), torch.ones(1))


@pytest.mark.parametrize("number", [2**31 + 1, -(2**31) - 1, 2**63 - 1, -(2**63), 2**64 - 1])
def test_absurd_sizes_are_refused(number: int) -> None:
    with pytest.raises(GridError):
        received(wire(nodes=[["aten.zeros.default", [[number]], {}]]), torch.ones(1))
    with pytest.raises(GridError):
        received(wire(nodes=[["aten.expand.default", [{"node": 0}, [number, 1]], {}]]), torch.ones(1))


# --- changed bytes ----------------------------------------------------------------------------------------


def test_no_other_bytes_have_the_same_id() -> None:
    """Every byte of a program with a loop, changed in every bit: another program, or none."""
    p = nested(3, 2, aten("add.Scalar", n(1), 1.5))
    data = p.to_bytes()
    assert hashlib.sha256(data).hexdigest() == p.id
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            try:
                other = Program.from_bytes(changed)
            except GridError:
                continue
            assert other.id != p.id
            assert other.to_bytes() == bytes(changed)


@pytest.mark.parametrize(
    "other",
    [
        lambda data: data + b"\x00",
        lambda data: data[:-1],
        lambda data: data.replace(b"\x86", b"\xde\x00\x06", 1),  # the map's length written long
        lambda data: data.replace(b"\xa6bodies", b"\xd9\x06bodies", 1),  # a text's
        lambda data: data.replace(b"\x90", b"\xdc\x00\x00", 1),  # a list's
    ],
)
def test_there_is_one_way_to_write_a_program(other: Any) -> None:
    assert Program.from_bytes(wire())
    with pytest.raises(BadProgram):
        Program.from_bytes(other(wire()))
