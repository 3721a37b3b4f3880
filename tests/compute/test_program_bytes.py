"""PROGRAM.md is enough: its example, built by hand from it, and read by what is here."""

import hashlib
import re
from pathlib import Path
from typing import Any

import msgpack
import pytest
import torch

import compute
from compute.interpreter import run
from compute.program import Body, Input, Node, Program
from protocol.errors import BadProgram

SPEC = (Path(compute.__file__).parent / "PROGRAM.md").read_text()

BY_HAND: dict[str, Any] = {  # in the order of the keys' code points
    "bodies": [],
    "constants": [],
    "inputs": [{"content": None, "dtype": "float32", "name": "x", "shape": ["rows", 3]}],
    "nodes": [["aten.add.Tensor", [{"node": 0}, 1.0], {}], ["aten.relu.default", [{"node": 1}], {}]],
    "outputs": {"node": 2},
    "version": 1,
}


def hexadecimal() -> bytes:
    """What the example in PROGRAM.md says, left of its comments."""
    block = SPEC.split("```\n86", 1)[1].split("\n```", 1)[0]
    lines = [re.match(r"\s*((?:[0-9a-f]{2,} ?)+)(?: {2}|$)", line + "  ") for line in ("86" + block).splitlines()]
    return bytes.fromhex("".join(found[1].replace(" ", "") for found in lines if found is not None))


def test_the_bytes_of_the_example_are_what_msgpack_makes_of_it() -> None:
    assert hexadecimal() == msgpack.packb(BY_HAND)


def test_the_example_is_a_program_with_the_id_that_is_said() -> None:
    program = Program.from_bytes(hexadecimal())
    assert program.id == hashlib.sha256(hexadecimal()).hexdigest()
    assert f"`{program.id}`" in SPEC
    x = torch.randn(5, 3)
    assert torch.equal(run(program, [x]), (x + 1).relu())


def test_the_example_of_text_is_a_program() -> None:
    text = SPEC.split("```\n@0", 1)[1].split("```", 1)[0]
    program = Program.from_text("@0" + text.replace("64 hexadecimal digits", "0f" * 32))
    assert len(program.bodies) == len(program.constants) == 1
    assert program.inputs[1].content == "0f" * 32


def with_flow(**changes: Any) -> dict[str, Any]:
    """A program with a loop, by hand: x, three times doubled."""
    x = {"content": None, "dtype": None, "name": "x", "shape": None}
    body = {
        "inputs": [{**x, "name": "i"}, x],
        "nodes": [["aten.add.Tensor", [{"node": 1}, {"node": 1}], {}]],
        "outputs": [{"node": 2}],
    }
    nodes = [["flow.repeat", [{"body": 0}, 3, [{"node": 0}], []], {}]]
    outputs = {"item": 0, "node": 1}
    made = {"bodies": [body], "constants": [], "inputs": [x], "nodes": nodes, "outputs": outputs, "version": 1}
    return {**made, **changes}


def test_a_loop_built_by_hand_runs() -> None:
    data = msgpack.packb(with_flow())
    assert run(Program.from_bytes(data), [torch.ones(2)]).tolist() == [8.0, 8.0]


def test_the_same_program_built_from_parts_has_the_same_bytes() -> None:
    body = Body((Input("i"), Input("x")), (Node("aten.add.Tensor", [{"node": 1}, {"node": 1}]),), [{"node": 2}])
    loop = Node("flow.repeat", [{"body": 0}, 3, [{"node": 0}], []])
    program = Program((Input("x"),), (loop,), {"node": 1, "item": 0}, bodies=(body,))
    assert program.to_bytes() == msgpack.packb(with_flow())


X = {"content": None, "dtype": None, "name": "x", "shape": None}
INDEX = {**X, "name": "i"}


def body(*nodes: Any, outputs: Any = None, inputs: Any = None) -> dict[str, Any]:
    return {
        "inputs": [INDEX, X] if inputs is None else inputs,
        "nodes": list(nodes),
        "outputs": [{"node": 1}] if outputs is None else outputs,
    }


def repeat(*args: Any, **kwargs: Any) -> list[Any]:
    return ["flow.repeat", list(args) or [{"body": 0}, 3, [{"node": 0}], []], dict(sorted(kwargs.items()))]


OTHER = [{**X, "name": "a"}]
HOSTILE: dict[str, dict[str, Any]] = {
    "bodies that are nil": {"bodies": None},
    "bodies that are a map": {"bodies": {}},
    "a body that is a list": {"bodies": [[]]},
    "a body without outputs": {"bodies": [{"inputs": [], "nodes": []}]},
    "a body with more": {"bodies": [{**body(), "version": 1}]},
    "a body whose outputs are no list": {"bodies": [body(outputs={"node": 0})]},
    "a body that gives a number": {"bodies": [body(outputs=[7])]},
    "a body that gives a list": {"bodies": [body(outputs=[[{"node": 0}]])]},
    "a body that gives what is not there": {"bodies": [body(outputs=[{"node": 2}])]},
    "a body that names itself": {"bodies": [body(repeat({"body": 0}, 3, [{"node": 1}], []))]},
    "a body that names a later one": {"bodies": [body(repeat({"body": 1}, 3, [{"node": 1}], [])), body()]},
    "a body that refers forward": {"bodies": [body(["aten.relu.default", [{"node": 2}], {}])]},
    "a body whose input names contents": {"bodies": [body(inputs=[INDEX, {**X, "content": "00" * 32}])]},
    "a body with two inputs of one name": {"bodies": [body(inputs=[X, X])]},
    "contents that are no name": {"inputs": [{**X, "content": "00" * 31}]},
    "contents in capitals": {"inputs": [{**X, "content": "AB" * 32}]},
    "contents that are bytes": {"inputs": [{**X, "content": bytes(32)}]},
    "a size whose name is none": {"inputs": [{**X, "shape": ["a b"]}]},
    "a size without a name": {"inputs": [{**X, "shape": [""]}]},
    "a size that is code": {"inputs": [{**X, "shape": ["__import__('os')"]}]},
    "a body that does not exist": {"nodes": [repeat({"body": 1}, 3, [{"node": 0}], [])]},
    "a body as an argument elsewhere": {"nodes": [["aten.relu.default", [{"body": 0}], {}]]},
    "a body as an operand": {"nodes": [repeat({"body": 0}, 3, [{"body": 0}], [])]},
    "a body as an output": {"outputs": {"body": 0}},
    "a body by its name": {"nodes": [repeat("0", 3, [{"node": 0}], [])]},
    "a body that is true": {"nodes": [repeat({"body": True}, 3, [{"node": 0}], [])]},
    "a negative body": {"nodes": [repeat({"body": -1}, 3, [{"node": 0}], [])]},
    "too few arguments": {"nodes": [repeat({"body": 0}, 3, [{"node": 0}])]},
    "carried values that are no list": {"nodes": [repeat({"body": 0}, 3, {"node": 0}, [])]},
    "too few inputs of the body": {"nodes": [repeat({"body": 0}, 3, [{"node": 0}, {"node": 0}], [])]},
    "too few outputs of the body": {"bodies": [body(outputs=[])]},
    "a count that is negative": {"nodes": [repeat({"body": 0}, -1, [{"node": 0}], [])]},
    "a count that is a float": {"nodes": [repeat({"body": 0}, 3.0, [{"node": 0}], [])]},
    "a count that is true": {"nodes": [repeat({"body": 0}, True, [{"node": 0}], [])]},
    "a count that is nil": {"nodes": [repeat({"body": 0}, None, [{"node": 0}], [])]},
    "a count that refers forward": {"nodes": [repeat({"body": 0}, {"node": 1}, [{"node": 0}], [])]},
    "an absurd count": {"nodes": [repeat({"body": 0}, 10**7, [{"node": 0}], [])]},
    "an operand that refers forward": {"nodes": [repeat({"body": 0}, 3, [{"node": 1}], [])]},
    "a repeat with a limit": {"nodes": [repeat(limit=3)]},
    "a cond whose branches differ": {
        "bodies": [body(inputs=OTHER, outputs=[{"node": 0}]), body(inputs=OTHER, outputs=[])],
        "nodes": [["flow.cond", [True, {"body": 0}, {"body": 1}, [{"node": 0}]], {}]],
        "outputs": None,
    },
    "a cond on a number": {
        "bodies": [body(inputs=OTHER, outputs=[])],
        "nodes": [["flow.cond", [1, {"body": 0}, {"body": 0}, [{"node": 0}]], {}]],
        "outputs": None,
    },
    "a while that tests nothing": {
        "bodies": [body(inputs=OTHER, outputs=[])],
        "nodes": [["flow.while", [{"body": 0}, {"body": 0}, [{"node": 0}], []], {}]],
        "outputs": None,
    },
    "a while with an absurd limit": {
        "bodies": [body(inputs=OTHER, outputs=[{"node": 0}])],
        "nodes": [["flow.while", [{"body": 0}, {"body": 0}, [{"node": 0}], []], {"limit": 1 << 60}]],
        "outputs": None,
    },
    "a scan of nothing": {
        "bodies": [body(inputs=OTHER, outputs=[{"node": 0}])],
        "nodes": [["flow.scan", [{"body": 0}, [{"node": 0}], [], []], {}]],
        "outputs": None,
    },
    "a scan that gives less than it carries": {
        "bodies": [body(outputs=[])],
        "nodes": [["flow.scan", [{"body": 0}, [{"node": 0}], [{"node": 0}], []], {}]],
        "outputs": None,
    },
    "a scan with a number for reverse": {
        "bodies": [body()],
        "nodes": [["flow.scan", [{"body": 0}, [{"node": 0}], [{"node": 0}], []], {"reverse": 1}]],
        "outputs": None,
    },
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_program_with_bodies_is_refused(attack: str) -> None:
    with pytest.raises(BadProgram) as caught:
        Program.from_bytes(msgpack.packb(canonical(with_flow(**HOSTILE[attack]))))
    assert len(str(caught.value)) < 400
    assert "canonical" not in str(caught.value)


def canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: canonical(value[key]) for key in sorted(value)}
    return [canonical(item) for item in value] if isinstance(value, list) else value


def test_a_refusal_names_the_body_and_the_node() -> None:
    wrong = body(["aten.relu.default", [{"node": 0}], {}], ["aten.relu.default", [{"node": 9}], {}])
    with pytest.raises(BadProgram, match=r"body 1, node 1 \(aten\.relu\.default\): value 9 does not exist") as caught:
        Program.from_bytes(msgpack.packb(canonical(with_flow(bodies=[body(), wrong]))))
    assert caught.value.fields["body"] == 1
