"""Programs as text, and back to the same bytes."""

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.operations import OPERATIONS
from compute.program import Body, Input, Node, Program
from protocol.errors import BadProgram, GridError
from protocol.tensors import ITEMSIZE

# Everything that may be in a program, strange names and numbers among it.
names = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=6)
words = st.sampled_from(
    ["x", "a.b", "inf", "nan", "None", "True", "complex", "input", "content", "any", "7", "a b", "#"]
)
bits = st.binary(min_size=8, max_size=8).map(lambda data: struct.unpack(">d", data)[0])
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | bits
    | st.text(st.characters(codec="utf-8"), max_size=8)
)
specials = (
    st.builds(lambda name: {"dtype": name}, st.sampled_from(sorted(ITEMSIZE)))
    | st.just({"memory_format": "channels_last"})
    | st.builds(lambda a, b: {"complex": [a, b]}, bits, st.floats())
)
dims = st.none() | st.integers(0, 2**40 - 1) | st.sampled_from(["batch", "n", "_x9"])


@st.composite
def inputs(draw: Any, *, most: int, may_be_stored: bool = False) -> tuple[Input, ...]:
    return tuple(
        Input(
            name,
            draw(st.none() | st.sampled_from(sorted(ITEMSIZE))),
            draw(st.none() | st.lists(dims, max_size=3).map(tuple)),
            draw(st.none() | st.just("0f" * 32)) if may_be_stored else None,
        )
        for name in draw(st.lists(names | words, min_size=1, max_size=most, unique=True))
    )


@st.composite
def nodes(draw: Any, count: int, bodies: tuple[Body, ...], constants: int) -> tuple[Node, ...]:
    found: list[Node] = []
    for at in range(draw(st.integers(0, 4))):
        value = arguments(count + at, constants)
        reference = references(count + at, constants)
        if bodies and draw(st.booleans()):
            body = draw(st.integers(0, len(bodies) - 1))
            operands = [draw(reference) for _ in bodies[body].inputs]
            found.append(Node("flow.cond", [draw(st.booleans() | reference), {"body": body}, {"body": body}, operands]))
            continue
        args = draw(st.lists(value, max_size=3))
        kwargs = draw(st.dictionaries(names | words, value, max_size=2))
        found.append(Node(draw(st.sampled_from(sorted(OPERATIONS))), args, kwargs))
    return tuple(found)


def references(end: int, constants: int) -> Any:
    known = st.builds(lambda n: {"node": n}, st.integers(0, end - 1))
    item = st.builds(lambda n, k: {"node": n, "item": k}, st.integers(0, end - 1), st.integers(0, 9))
    return known | item | (st.just({"constant": 0}) if constants else known)


def arguments(end: int, constants: int) -> Any:
    leaves = scalars | specials | references(end, constants)
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=3), max_leaves=5)


@st.composite
def programs(draw: Any) -> Program:
    constants = draw(st.just(()) | st.just(({"dtype": "uint8", "shape": [3], "data": b"\x00\xff\n"},)))
    bodies: tuple[Body, ...] = ()
    for _ in range(draw(st.integers(0, 2))):
        given = draw(inputs(most=2))
        its = draw(nodes(len(given), bodies, len(constants)))
        outputs = draw(st.lists(st.none() | references(len(given) + len(its), len(constants)), max_size=2))
        bodies = (*bodies, Body(given, its, outputs))
    given = draw(inputs(most=3, may_be_stored=True))
    its = draw(nodes(len(given), bodies, len(constants)))
    outputs = st.recursive(
        arguments(len(given) + len(its), len(constants)),
        lambda inner: (
            st.builds(lambda items: {"tuple": items}, st.lists(inner, max_size=3))
            | st.builds(lambda items: {"map": items}, st.dictionaries(names | words, inner, max_size=3))
        ),
        max_leaves=6,
    )
    return Program(given, its, draw(outputs), constants, bodies)


@settings(max_examples=100, deadline=None)
@given(programs())
def test_the_text_of_any_program_gives_the_same_bytes_back(program: Program) -> None:
    assert Program.from_text(str(program)).to_bytes() == program.to_bytes()
    assert Program.from_bytes(program.to_bytes()).to_bytes() == program.to_bytes()


@settings(max_examples=100, deadline=None)
@given(programs())
def test_comments_do_not_change_it(program: Program) -> None:
    text = program.text(lambda body, number: f"{body} {number} \" ' ( # %1 = ")
    assert Program.from_text(text + "\n\n# the end\n").id == program.id


@settings(max_examples=100, deadline=None)
@given(programs(), st.data())
def test_text_that_was_changed_is_read_or_refused_in_our_words(program: Program, data: st.DataObject) -> None:
    text = str(program)
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from('%@&"(){}[]:,=?#.-0a \n'))
    try:
        Program.from_text(text[:at] + other + text[at + 1 :])
    except GridError:
        pass


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=100))
def test_any_text_is_refused_in_our_words(text: str) -> None:
    with pytest.raises(GridError):
        Program.from_text("program\n" + text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "before `return`"),
        ("program\n  %0 = input x", "before `return`"),
        ("program\n  %1 = input x\n  return %0", "line 2: %1 where %0 is next"),
        ("program\n  %0 = input x\n  return %0 %0", "line 3: '%0' behind"),
        ("program\n  %0 = aten.relu.default(1\n  return %0", "line 2: '\\)' is missing"),
        ("program\n  %0 = aten.zeros.default([2], dtype=float32)\n  return %0", "line 2: 'float32' is no value"),
        ("program\n  %0 = aten.zeros.default(dtype=None, [2])\n  return %0", "without a name after"),
        ("program\n  return %0", "value 0 does not exist"),
        ("program\n  %0 = os.system()\n  return %0", "not in the table"),
        ("program\n  $\n", "line 2: nothing begins with"),
        ('@0 = float32 [2] "###"\nprogram\n  return None', "line 1: the data of a constant are not base64"),
        ('@0 = float32 [2] "AAAA"\nprogram\n  return None', "constant 0"),
        ("body &1\n  return []\nprogram\n return None", "&1 where &0 is next"),
        ("program\n  return " + "[" * 100, "deep"),
        ("program\n  return " + "9" * 500, "a number of 500"),
        ("program\n  return 1 2", "behind what should be the end"),
        ("program\n  return {a: 1, a: 2}", "two entries of the name"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, words: str) -> None:
    with pytest.raises(GridError, match=words):
        Program.from_text(text)


def test_a_program_of_text_is_checked() -> None:
    with pytest.raises(BadProgram):
        Program.from_text("program\n  %0 = input x: float99 [2]\n  return %0")


@pytest.mark.parametrize("packed", ["7ff8000000000000", "fff8000000000000", "7ff8000000000001", "7ff0000000000000"])
def test_strange_numbers_keep_their_bits(packed: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(packed))
    program = Program((Input("x"),), (Node("aten.add.Tensor", [{"node": 0}, number]),), {"complex": [number, -0.0]})
    assert bytes.fromhex(packed) in program.to_bytes()
    assert Program.from_text(str(program)).to_bytes() == program.to_bytes()


@pytest.mark.parametrize(
    "name", ["None", "True", "False", "inf", "nan", "complex", "input", "any", "a b", "@0", "#", "7"]
)
def test_names_that_mean_something_else_are_names(name: str) -> None:
    node = Node("aten.relu.default", [], {name: {"node": 0}})
    program = Program((Input(name),), (node,), {"map": {name: {"node": 1}}})
    assert Program.from_text(str(program)).to_bytes() == program.to_bytes()
