"""Random programs with loops and branches, and what torch itself makes of them, worked out in the plainest way."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from compute.flow import FLOW
from compute.program import Body, Input, Node, Program
from compute.values import constant_tensor

SHAPES = [(), (3,), (3,), (2, 3), (2, 3), (3, 3), (4, 2, 3), (0, 3)]
DTYPES = [torch.float32, torch.float32, torch.float32, torch.float64, torch.int64, torch.bool]
NAMES = {torch.float32: "float32", torch.float64: "float64", torch.int64: "int64", torch.bool: "bool"}

# T: a value, I: a small integer or a size, F: a float, D: a dtype; [T]: a list of values.
CALLS: list[tuple[str, list[Any]]] = [
    *((f"aten.{name}.default", ["T"]) for name in "relu neg exp abs sin sum mean clone detach t isnan sigmoid".split()),
    *((f"aten.{name}.Tensor", ["T", "T"]) for name in "add sub mul div eq lt".split()),
    *((f"aten.{name}.Scalar", ["T", "F"]) for name in "add mul gt".split()),
    *((f"aten.{name}.default", ["T", "T"]) for name in "maximum mm matmul atan2 bmm".split()),
    ("aten.where.self", ["T", "T", "T"]),
    ("aten.sum.dim_IntList", ["T", ["I"]]),
    ("aten.max.dim", ["T", "I"]),
    ("aten.cumsum.default", ["T", "I"]),
    ("aten.cat.default", [["T", "T"], "I"]),
    ("aten.stack.default", [["T", "T"], "I"]),
    ("aten.split.Tensor", ["T", "I", "I"]),
    ("aten.unbind.int", ["T"]),
    ("aten.view.default", ["T", ["I", "I"]]),
    ("aten.reshape.default", ["T", ["I", "I"]]),
    ("aten.expand.default", ["T", ["I", "I", "I"]]),
    ("aten.permute.default", ["T", ["I", "I"]]),
    ("aten.unsqueeze.default", ["T", "I"]),
    ("aten.squeeze.default", ["T"]),
    ("aten.select.int", ["T", "I", "I"]),
    ("aten.slice.Tensor", ["T", "I", "I", "I"]),
    ("aten.repeat.default", ["T", ["I", "I", "I"]]),
    ("aten.transpose.int", ["T", "I", "I"]),
    ("aten.index_select.default", ["T", "I", "T"]),
    ("aten.gather.default", ["T", "I", "T"]),
    ("aten.to.dtype", ["T", "D"]),
    ("aten.zeros.default", [["I", "I"]]),
    ("aten.nonzero.default", ["T"]),
    ("aten.masked_select.default", ["T", "T"]),
    ("aten.softmax.int", ["T", "I"]),
    ("aten.add_.Tensor", ["T", "T"]),
    ("aten.mul_.Scalar", ["T", "F"]),
    ("aten.zero_.default", ["T"]),
    ("aten.unsqueeze_.default", ["T", "I"]),
    ("aten.sym_size.int", ["T", "I"]),
    ("int.add", ["I", "I"]),
    ("int.mul", ["I", "I"]),
    ("int.floordiv", ["I", "I"]),
]
KINDS = dict(CALLS)
CONSTANT = {"dtype": "float32", "shape": [3], "data": torch.tensor([1.0, -2.0, 0.5]).numpy().tobytes()}
CONSTANTS = [torch.tensor([1.0, -2.0, 0.5])]


class Maker:
    """Makes a random program. Most nodes that torch refuses for some example are left out again, so that some programs
    get through."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.bodies: list[Body] = []
        self._shape = self.chance.choice(SHAPES)

    def program(self) -> Program:
        chance = self.chance
        for _ in range(chance.choice([0, 1, 2, 3])):
            self._add_body()
        given = tuple(self._input(number) for number in range(chance.choice([1, 2, 3])))
        nodes = self._nodes(arguments_for(Program(given, (), None), 0), chance.randrange(1, 9))
        shown = [self._value(len(given) + len(nodes)) for _ in range(chance.choice([1, 2, 3]))]
        outputs = [{"node": number} for number in range(len(given), len(given) + len(nodes))][-2:]
        return Program(given, nodes, {"tuple": [*shown, *outputs]}, (CONSTANT,), tuple(self.bodies))

    def _input(self, number: int) -> Input:
        shape = self._shape if self.chance.random() < 0.7 else self.chance.choice(SHAPES)
        return Input(f"x{number}", NAMES[self.chance.choice(DTYPES)], shape)

    def _add_body(self) -> None:
        count = self.chance.choice([1, 2, 3])
        examples = [torch.randn(self._shape) for _ in range(count)]
        nodes = self._nodes(examples, self.chance.randrange(4))
        outputs = [self._value(count + len(nodes)) for _ in range(self.chance.choice([1, 1, 2]))]
        self.bodies.append(Body(tuple(Input(f"b{at}") for at in range(count)), nodes, outputs))

    def _nodes(self, examples: list[Any], number: int) -> tuple[Node, ...]:
        nodes: list[Node] = []
        values = list(examples)
        for _ in range(number):
            for _ in range(8):
                node = self._node(len(values))
                try:
                    value = evaluate(node, values, CONSTANTS, self.bodies)
                except Exception:
                    value = Wrong
                if value is not Wrong or self.chance.random() < 0.02:
                    nodes.append(node)
                    values.append(value)
                    break
        return tuple(nodes)

    def _node(self, end: int) -> Node:
        if self.bodies and self.chance.random() < 0.35:
            found = self._flow(end)
            if found is not None:
                return found
        name, kinds = self.chance.choice(CALLS)
        return Node(name, [self._argument(kind, end) for kind in kinds])

    def _flow(self, end: int) -> Node | None:
        chance, values = self.chance, [self._value(end) for _ in range(6)]
        body = chance.randrange(len(self.bodies))
        takes, gives = len(self.bodies[body].inputs), len(self.bodies[body].outputs)
        kind = chance.choice(["cond", "repeat", "scan", "map", "while"])
        name = {"body": body}
        if kind == "cond":
            alike = [
                at for at, other in enumerate(self.bodies) if (len(other.inputs), len(other.outputs)) == (takes, gives)
            ]
            predicate = chance.choice([True, False, values[5]])
            return Node("flow.cond", [predicate, name, {"body": chance.choice(alike)}, values[:takes]])
        if kind == "repeat" and takes > gives:
            count = chance.choice([0, 1, 2, 3, 5, values[5]])
            return Node("flow.repeat", [name, count, values[:gives], values[gives : takes - 1]])
        if kind == "map":
            sliced = chance.randrange(1, takes + 1)
            return Node("flow.map", [name, values[:sliced], values[sliced:takes]])
        if kind == "scan":
            carried = chance.randrange(min(takes - 1, gives) + 1)
            sliced = chance.randrange(1, takes - carried + 1)
            rest = values[carried + sliced : takes]
            reverse = {"reverse": True} if chance.random() < 0.3 else {}
            return Node("flow.scan", [name, values[:carried], values[carried : carried + sliced], rest], reverse)
        if kind == "while" and gives == 1:
            steps = [at for at, other in enumerate(self.bodies) if len(other.inputs) == takes]
            step = chance.choice(steps)
            kept = len(self.bodies[step].outputs)
            if kept <= takes:
                args = [name, {"body": step}, values[:kept], values[kept:takes]]
                return Node("flow.while", args, {"limit": 4})
        return None

    def _value(self, end: int) -> dict[str, int]:
        if self.chance.random() < 0.07:
            return {"constant": 0}
        number = max(self.chance.randrange(end), self.chance.randrange(end))
        return (
            {"node": number, "item": self.chance.choice([0, 0, 1])} if self.chance.random() < 0.25 else {"node": number}
        )

    def _argument(self, kind: Any, end: int) -> Any:
        if isinstance(kind, list):
            return [self._argument(item, end) for item in kind]
        if kind == "T":
            return self._value(end)
        if kind == "I":
            return self._value(end) if self.chance.random() < 0.1 else self.chance.choice([0, 0, 1, 1, 2, 3, -1, 6])
        if kind == "F":
            return self.chance.choice([0.5, 2.0, -1.0, 1])
        return {"dtype": self.chance.choice(list(NAMES.values()))}


def arguments_for(program: Program, seed: int) -> list[torch.Tensor]:
    """Tensors that are as its inputs are declared."""
    torch.manual_seed(seed)
    by_name = {name: dtype for dtype, name in NAMES.items()}
    made = []
    for given in program.inputs:
        assert given.shape is not None
        assert given.dtype is not None
        made.append((torch.randn([int(dim or 0) for dim in given.shape]) * 2).to(by_name[given.dtype]))
    return made


# --- what torch makes of it -----------------------------------------------------------------------------------


class Wrong(Exception):
    """A rule of PROGRAM.md is broken."""


def expected(program: Program, inputs: Sequence[torch.Tensor]) -> Any:
    """The program's outputs, by torch and PROGRAM.md alone; any exception where it has none."""
    return block(program, inputs, [constant_tensor(constant) for constant in program.constants], program.bodies)


def block(of: Body | Program, given: Sequence[Any], constants: Sequence[torch.Tensor], bodies: Sequence[Body]) -> Any:
    values = list(given)
    for node in of.nodes:
        values.append(evaluate(node, values, constants, bodies))
    return argument(of.outputs, values, constants)


def evaluate(node: Node, values: Sequence[Any], constants: Sequence[torch.Tensor], bodies: Sequence[Body]) -> Any:
    def body(number: int, given: Sequence[Any]) -> list[Any]:
        own = [value.clone() if isinstance(value, torch.Tensor) else value for value in given]
        found = list(block(bodies[number], own, [constant.clone() for constant in constants], bodies))
        if any(isinstance(value, list | tuple) for value in (*given, *found)):
            raise Wrong("a list")
        return found

    args = [argument(value, values, constants) for value in node.args]
    if node.operation in FLOW:
        given = flow(node.operation, args, dict(node.kwargs), body)
        return [value.clone() if isinstance(value, torch.Tensor) else value for value in given]
    if node.operation.startswith("int."):
        return number(node.operation, *args)
    check_kinds(args, KINDS[node.operation])
    if "_." in node.operation and not isinstance(args[0], torch.Tensor):
        raise Wrong("torch makes a tensor of a number, and writes that")
    if node.operation == "aten.repeat.default" and min(args[1]) < 0:
        raise Wrong("torch repeats nothing less than never")
    found = operator(node.operation)(*args)
    if isinstance(found, torch.Tensor) and any(size < 0 for size in found.shape):
        raise Wrong("torch.zeros(()).expand(0, -1) is no tensor")
    return found


def check_kinds(args: Any, kinds: Any) -> None:
    """Torch takes a tensor for an integer, and reads it; programs do not."""
    for value, kind in zip(args, kinds, strict=True):
        if isinstance(kind, list):
            check_kinds(value, kind)
        elif kind == "I" and type(value) is not int:
            raise Wrong("no integer")


def operator(name: str) -> Any:
    _, base, overload = name.split(".")
    return getattr(getattr(torch.ops.aten, base), overload)


def number(name: str, one: Any, other: Any) -> Any:
    if type(one) is not int or type(other) is not int:
        raise Wrong("no number")
    return {"int.add": one + other, "int.mul": one * other}[name] if name != "int.floordiv" else one // other


def argument(value: Any, values: Sequence[Any], constants: Sequence[torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [argument(item, values, constants) for item in value]
    if not isinstance(value, dict):
        return value
    if "node" in value:
        found = values[value["node"]]
        if "item" not in value:
            return found
        if not isinstance(found, list | tuple):
            raise Wrong("no items")
        return found[value["item"]]
    if "constant" in value:
        return constants[value["constant"]]
    if "dtype" in value:
        return {name: dtype for dtype, name in NAMES.items()}[value["dtype"]]
    if "body" in value:
        return value["body"]
    return tuple(argument(item, values, constants) for item in value["tuple"])


def flow(name: str, args: list[Any], kwargs: dict[str, Any], body: Any) -> list[Any]:
    if name == "flow.cond":
        return list(body(args[1] if truth(args[0]) else args[2], args[3]))
    if name == "flow.while":
        test, step, carried, operands = args
        for _ in range(kwargs["limit"] + 1):
            if not truth(body(test, [*carried, *operands])[0]):
                return list(carried)
            carried = kept(carried, body(step, [*carried, *operands]))
        raise Wrong("it goes on")
    if name == "flow.repeat":
        step, count, carried, operands = args
        if type(count) is not int or count < 0:
            raise Wrong("no count")
        for at in range(count):
            carried = kept(carried, body(step, [torch.tensor(at), *carried, *operands]))
        return list(carried)
    step, carried, sliced, operands = args if name == "flow.scan" else (args[0], [], *args[1:])
    (length,) = {len(value) for value in sliced if torch.is_tensor(value) or _wrong("no tensor")}
    rows: list[list[Any]] = []
    for at in reversed(range(length)) if kwargs.get("reverse") else range(length):
        given = body(step, [*carried, *(value[at] for value in sliced), *operands])
        carried, row = kept(carried, given[: len(carried)]), given[len(carried) :]
        rows.append(row)
    rows = rows[::-1] if kwargs.get("reverse") else rows
    return [*carried, *(torch.stack([row[at] for row in rows]) for at in range(len(rows[0])))]


def _wrong(what: str) -> bool:
    raise Wrong(what)


def kept(before: Sequence[Any], after: Sequence[Any]) -> list[Any]:
    for one, other in zip(before, after, strict=True):
        if type(one) is not type(other):
            raise Wrong("another kind")
        if isinstance(one, torch.Tensor) and (one.dtype, one.shape) != (other.dtype, other.shape):
            raise Wrong("another shape")
    return list(after)


def truth(value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    if not isinstance(value, torch.Tensor) or value.dtype is not torch.bool or value.numel() != 1:
        raise Wrong("no truth value")
    return bool(value)


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit, in dtype and shape too."""
    if isinstance(one, torch.Tensor):
        if not isinstance(other, torch.Tensor) or (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        return (
            torch.allclose(one, other, rtol=0, atol=0, equal_nan=True) if one.is_floating_point() else one.equal(other)
        )
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)
