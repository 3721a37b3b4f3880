"""Programs as data: what is one, what is not, and its bytes."""

import hashlib
import random
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.operations import NUMBERS, OPERATIONS
from compute.program import Input, Node, Program
from protocol import limits
from protocol.errors import BadProgram, GridError, OperationNotAllowed, TooLarge
from protocol.tensors import ITEMSIZE

ADD = "aten.add.Tensor"


def small() -> Program:
    return Program(
        inputs=(Input("x", "float32", (None, 4)), Input("model.weight")),
        nodes=(
            Node("aten.sym_size.int", [{"node": 0}, 0]),
            Node("int.mul", [{"node": 2}, 2]),
            Node("aten.split.Tensor", [{"node": 0}, 2, 1]),
            Node(ADD, [{"node": 4, "item": 1}, {"constant": 0}], {"alpha": 0.5}),
        ),
        outputs={"map": {"loss": {"node": 5}, "rest": {"tuple": [[{"node": 1}], None, 3, {"node": 3}]}}},
        constants=({"dtype": "float32", "shape": [2], "data": b"\0" * 8},),
    )


def test_a_program_survives_the_round_trip() -> None:
    program = small()
    there = Program.from_bytes(program.to_bytes())
    assert there == program
    assert there.id == program.id
    assert there.to_bytes() == program.to_bytes()
    assert hash(there) == hash(program)


def test_the_id_is_the_hash_of_the_bytes() -> None:
    program = small()
    assert program.id == hashlib.sha256(program.to_bytes()).hexdigest()


def test_the_order_of_keys_does_not_change_the_bytes() -> None:
    one = Program((Input("x"),), (Node(ADD, [], {"self": {"node": 0}, "other": {"node": 0}}),), {"node": 1})
    two = Program((Input("x"),), (Node(ADD, [], {"other": {"node": 0}, "self": {"node": 0}}),), {"node": 1})
    assert one.to_bytes() == two.to_bytes()


def test_programs_that_differ_have_other_ids() -> None:
    ids = {Program((Input("x"),), (Node(ADD, [{"node": 0}, v]),), {"node": 1}).id for v in (1, 1.0, True, -0.0, 0.0)}
    assert len(ids) == 5


def test_the_text_is_readable() -> None:
    assert str(small()).splitlines()[1:] == [
        '@0 = float32 [2] "AAAAAAAAAAA="',
        "program",
        "  %0 = input x: float32 [?, 4]",
        "  %1 = input model.weight",
        "  %2 = aten.sym_size.int(%0, 0)",
        "  %3 = int.mul(%2, 2)",
        "  %4 = aten.split.Tensor(%0, 2, 1)",
        "  %5 = aten.add.Tensor(%4[1], @0, alpha=0.5)",
        "  return {loss: %5, rest: ([%1], None, 3, %3)}",
    ]


def test_operations_are_known_before_it_runs() -> None:
    assert small().operations == {"aten.sym_size.int", "int.mul", "aten.split.Tensor", ADD}


# --- property ---------------------------------------------------------------------------------------------

names = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8)
specials = (
    st.builds(lambda name: {"dtype": name}, st.sampled_from(sorted(ITEMSIZE)))
    | st.just({"memory_format": "channels_last"})
    | st.builds(lambda a, b: {"complex": [a, b]}, st.floats(), st.floats())
)


@st.composite
def programs(draw: Any) -> Program:
    inputs = tuple(
        Input(name, draw(st.none() | st.sampled_from(sorted(ITEMSIZE))), draw(st.none() | st.just((None, 3))))
        for name in draw(st.lists(names, min_size=1, max_size=4, unique=True))
    )
    operations = sorted(OPERATIONS)
    nodes: list[Node] = []
    for at in range(draw(st.integers(0, 6))):
        known = st.builds(lambda n: {"node": n}, st.integers(0, len(inputs) + at - 1))
        item = st.builds(lambda n, k: {"node": n, "item": k}, st.integers(0, len(inputs) + at - 1), st.integers(0, 9))
        value = st.recursive(scalars | specials | known | item, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
        args = draw(st.lists(value, max_size=4))
        nodes.append(Node(draw(st.sampled_from(operations)), args, draw(st.dictionaries(names, value, max_size=2))))
    known = st.builds(lambda n: {"node": n}, st.integers(0, len(inputs) + len(nodes) - 1))
    outputs = st.recursive(
        scalars | known,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.builds(lambda items: {"tuple": items}, st.lists(inner, max_size=3))
            | st.builds(lambda items: {"map": items}, st.dictionaries(names, inner, max_size=3))
        ),
        max_leaves=8,
    )
    return Program(inputs, tuple(nodes), draw(outputs))


@settings(max_examples=100, deadline=None)
@given(programs())
def test_any_program_survives_the_round_trip(program: Program) -> None:
    there = Program.from_bytes(program.to_bytes())
    assert there == program
    assert there.id == program.id
    assert str(there) == str(program)


@settings(max_examples=150, deadline=None)
@given(programs(), st.randoms(use_true_random=False))
def test_a_changed_byte_is_another_program_or_none(program: Program, chance: random.Random) -> None:
    data = bytearray(program.to_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    try:
        there = Program.from_bytes(bytes(data))
    except (BadProgram, OperationNotAllowed, TooLarge):
        return
    assert there.to_bytes() == bytes(data)
    assert there.id != program.id


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_our_words(data: bytes) -> None:
    with pytest.raises(GridError):
        Program.from_bytes(data)


# --- hostile ----------------------------------------------------------------------------------------------


def wire(**changes: Any) -> dict[str, Any]:
    good = {
        "version": 1,
        "bodies": [],
        "inputs": [{"name": "x", "dtype": None, "shape": None, "content": None}],
        "constants": [],
        "nodes": [[ADD, [{"node": 0}, 1], {}]],
        "outputs": {"node": 1},
    }
    return {key: value for key, value in sorted({**good, **changes}.items()) if value is not ...}


def canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: canonical(value[key]) for key in sorted(value)}
    return [canonical(item) for item in value] if isinstance(value, list) else value


def one(*args: Any, **kwargs: Any) -> list[Any]:
    return [[ADD, list(args), kwargs]]


def x(**changes: Any) -> list[Any]:
    return [{"name": "x", "dtype": None, "shape": None, "content": None, **changes}]


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


HOSTILE: dict[str, dict[str, Any]] = {
    "unknown field": wire(extra=1),
    "missing field": wire(outputs=...),
    "another version": wire(version=2),
    "a version that is true": wire(version="1"),
    "nodes that are a map": wire(nodes={}),
    "inputs that are nil": wire(inputs=None),
    "a node refers to itself": wire(nodes=one({"node": 1}, 1)),
    "a node refers forward": wire(nodes=[*one({"node": 2}, 1), *one({"node": 0}, 1)]),
    "a negative reference": wire(nodes=one({"node": -1}, 1)),
    "a reference that is true": wire(nodes=one({"node": True}, 1)),
    "a reference that is a float": wire(nodes=one({"node": 0.0}, 1)),
    "a reference that is text": wire(nodes=one({"node": "0"}, 1)),
    "a negative item": wire(nodes=one({"node": 0, "item": -1}, 1)),
    "a huge item": wire(nodes=one({"node": 0, "item": 1 << 40}, 1)),
    "an item without a node": wire(nodes=one({"item": 0}, 1)),
    "a reference with more": wire(nodes=one({"node": 0, "x": 0}, 1)),
    "a constant that is not there": wire(nodes=one({"node": 0}, {"constant": 0})),
    "an empty map": wire(nodes=one({}, 1)),
    "an object id": wire(nodes=one(b"0123456789abcdef", 1)),
    "a dtype that is code": wire(nodes=one({"node": 0}, {"dtype": "load"})),
    "a dtype that is a number": wire(nodes=one({"node": 0}, {"dtype": 6})),
    "a memory format that is none": wire(nodes=one({"node": 0}, {"memory_format": "sparse"})),
    "a memory format that is a list": wire(nodes=one({"node": 0}, {"memory_format": []})),
    "a complex number of integers": wire(nodes=one({"node": 0}, {"complex": [1, 2]})),
    "a long text": wire(nodes=one({"node": 0}, "x" * 257)),
    "deep nesting": wire(nodes=one({"node": 0}, nested(20))),
    "very deep nesting": wire(nodes=one({"node": 0}, nested(300))),
    "a node of two parts": wire(nodes=[[ADD, []]]),
    "a node of four parts": wire(nodes=[[ADD, [], {}, 0]]),
    "a node that is a map": wire(nodes=[{"operation": ADD}]),
    "arguments that are a map": wire(nodes=[[ADD, {}, {}]]),
    "named arguments that are a list": wire(nodes=[[ADD, [], []]]),
    "arithmetic with too many": wire(nodes=[["int.add", [1, 2, 3], {}]]),
    "arithmetic with a name": wire(nodes=[["int.add", [1], {"b": 2}]]),
    "two inputs of one name": wire(inputs=x() + x()),
    "an input without a name": wire(inputs=x(name="")),
    "an input with a long name": wire(inputs=x(name="x" * 257)),
    "an input with control characters": wire(inputs=x(name="a\x1b[2J")),
    "an input with a number for a name": wire(inputs=x(name=7)),
    "an input with an unknown dtype": wire(inputs=x(dtype="qint8")),
    "an input with a list for a dtype": wire(inputs=x(dtype=["float32"])),
    "an input with a negative dimension": wire(inputs=x(shape=[-1])),
    "an input with a dimension that is true": wire(inputs=x(shape=[True])),
    "an input with a huge dimension": wire(inputs=x(shape=[1 << 62])),
    "an input with 17 dimensions": wire(inputs=x(shape=[1] * 17)),
    "an input with a shape that is text": wire(inputs=x(shape="34")),
    "an input with more": wire(inputs=x(layout="sparse")),
    "an input that is text": wire(inputs=["x"]),
    "a constant that lies": wire(constants=[{"dtype": "float32", "shape": [2], "data": b"\0" * 7}]),
    "a constant that is large": wire(constants=[{"dtype": "uint8", "shape": [4096, 4096], "data": b""}]),
    "a constant of a huge shape": wire(constants=[{"dtype": "uint8", "shape": [2**39, 2**39], "data": b""}]),
    "a constant that is text": wire(constants=["x"]),
    "outputs that are not there": wire(outputs={"node": 2}),
    "outputs of bytes": wire(outputs=b"x"),
    "outputs in an odd map": wire(outputs={"x": {"node": 0}}),
    "a tuple that is none": wire(outputs={"tuple": {"node": 0}}),
    "a map that is none": wire(outputs={"map": [1]}),
    "deep outputs": wire(outputs=nested(40)),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_program_is_refused(attack: str) -> None:
    data = msgpack.packb(canonical(HOSTILE[attack]))
    with pytest.raises(BadProgram) as caught:
        Program.from_bytes(data)
    assert len(str(caught.value)) < 400
    assert "canonical" not in str(caught.value)


def test_the_program_that_the_attacks_change_is_good() -> None:
    assert Program.from_bytes(msgpack.packb(canonical(wire()))).outputs == {"node": 1}


@pytest.mark.parametrize(
    "name",
    [
        "aten.from_file.default",
        "torch.os.system",
        "aten.empty.memory_format",
        "__class__",
        "",
        7,
        None,
        ["aten"],
        "int.exec",
    ],
)
def test_unknown_operations_are_refused_by_name(name: Any) -> None:
    with pytest.raises(OperationNotAllowed) as caught:
        Program.from_bytes(msgpack.packb(canonical(wire(nodes=[[name, [], {}]]))))
    assert caught.value.fields["node"] == 0


def test_the_refusal_names_the_node() -> None:
    with pytest.raises(BadProgram, match=r"node 1 \(aten\.add\.Tensor\): value 9 does not exist"):
        Program.from_bytes(msgpack.packb(canonical(wire(nodes=one({"node": 0}, 1) + one({"node": 9}, 1)))))


@pytest.mark.parametrize(
    "data",
    [
        msgpack.packb(dict(reversed(list(canonical(wire()).items())))),  # keys in another order
        msgpack.packb(canonical(wire())).replace(b"\x01", b"\xcc\x01", 1),  # an integer written long
        msgpack.packb(canonical(wire(nodes=one({"node": 0}, 1.5))), use_single_float=True),
    ],
)
def test_bytes_that_are_not_canonical_are_refused(data: bytes) -> None:
    with pytest.raises(BadProgram, match="canonical"):
        Program.from_bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x90",
        b"\xdd\xff\xff\xff\xff",  # a list of 2**32 - 1
        b"\xc6\xff\xff\xff\xff",  # bytes of 4 GiB
        b"\x91" * 2000 + b"\x90",
        b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\xc7\x01\x05x",  # an extension
        b"\x82\xa1a\x01\xa1a\x02",  # a key twice
        b"\x81\x01\x02",  # a key that is no text
        b"\xa2\xff\xfe",  # text that is none
        msgpack.packb(wire()) + b"\x00",
    ],
)
def test_bytes_that_are_no_msgpack_of_ours_are_refused(data: bytes) -> None:
    with pytest.raises(BadProgram):
        Program.from_bytes(data)


def test_too_many_nodes_are_refused() -> None:
    nodes = tuple(Node("aten.relu.default", [{"node": 0}]) for _ in range(limits.MAX_NODES + 1))
    with pytest.raises(TooLarge) as caught:
        Program((Input("x"),), nodes, None)
    assert caught.value.fields["limit"] == "MAX_NODES"


def test_too_many_bytes_are_refused_unread() -> None:
    with pytest.raises(TooLarge) as caught:
        Program.from_bytes(bytes(limits.MAX_PROGRAM + 1))
    assert caught.value.fields["limit"] == "MAX_PROGRAM"


def test_a_bomb_of_empty_lists_is_refused_early() -> None:
    inner = b"\xdc\x27\x0f" + b"\x90" * 9999
    bomb = b"\xdc\x03\x00" + inner * 768
    assert len(bomb) < limits.MAX_PROGRAM
    with pytest.raises(BadProgram, match="lists and maps"):
        Program.from_bytes(bomb)


def test_every_number_operation_may_stand_in_a_program() -> None:
    nodes = tuple(Node(name, [3] * count) for name, count in NUMBERS.items())
    assert len(Program((), nodes, {"node": 0}).nodes) == len(NUMBERS)
