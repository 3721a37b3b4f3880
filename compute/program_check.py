"""Whether a program is one: every reference points backwards, every name is known, nothing is beyond the limits.

Torch-free, so that a peer's own process checks what it is given. What needs torch (whether arguments fit an
operation's schema, and shapes each other) is checked by compute/program_types.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from compute import flow
from compute.flow import FLOW, Flow
from compute.operations import NUMBERS, OPERATIONS, suggestions
from compute.program_parts import Body, Input, Node
from compute.wire import MAX_VALUE_DEPTH, Malformed, check_constant, check_value, is_index, shown
from protocol import limits
from protocol.errors import BadProgram, BadTensor, OperationNotAllowed, TooLarge
from protocol.sizes import check_limit

Refer = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class _Known:
    """A body that was checked. `steps`: nodes that one run of it is at least, loops counted out."""

    inputs: int
    outputs: int
    steps: int
    depth: int


def check(
    inputs: Sequence[Input],
    nodes: Sequence[Node],
    outputs: Any,
    constants: Sequence[Mapping[str, Any]],
    bodies: Sequence[Body],
) -> None:
    """Raises BadProgram, OperationNotAllowed or TooLarge for what is no program; the message names the node."""
    _check_counts(inputs, nodes, constants, bodies)
    for at, constant in enumerate(constants):
        explain(partial(check_constant, constant), f"constant {at}")
    known: list[_Known] = []
    for at, body in enumerate(bodies):
        try:
            known.append(_check_body(body, len(constants), known))
        except (BadProgram, OperationNotAllowed, TooLarge) as error:
            error.message = f"body {at}, {error.message}"
            error.fields["body"] = at
            raise
    _check_block(inputs, nodes, len(constants), known)
    refer = _references(len(inputs) + len(nodes), len(constants))
    explain(lambda: _check_output(outputs, refer, 0), "the outputs")


def _check_counts(inputs: Sequence[Any], nodes: Sequence[Any], constants: Sequence[Any], bodies: Sequence[Any]) -> None:
    if not isinstance(bodies, tuple) or not all(isinstance(body, Body) for body in bodies):
        raise BadProgram("the bodies of a program are sub-programs")
    check_limit("MAX_BODIES", len(bodies), "a program of {size} bodies; at most {allowed}")
    count = len(nodes) + sum(len(body.nodes) for body in bodies)
    check_limit("MAX_NODES", count, "a program of {size} operations; at most {allowed}")
    most = max(len(inputs), len(constants), *(len(body.inputs) for body in bodies), 0)
    check_limit("MAX_NODES", most, "a program of {size} inputs or constants; at most {allowed}")


def _check_body(body: Body, constants: int, known: Sequence[_Known]) -> _Known:
    if any(given.content is not None for given in body.inputs):
        raise BadProgram("an input that names contents; only a program's own inputs may")
    steps, depth = _check_block(body.inputs, body.nodes, constants, known)
    refer = _references(len(body.inputs) + len(body.nodes), constants)

    def check_outputs() -> None:
        if not isinstance(body.outputs, list) or len(body.outputs) > limits.MAX_PARTS:
            raise Malformed(f"the outputs of a body are a list of at most {limits.MAX_PARTS} values")
        for value in body.outputs:
            if value is not None and not _is_reference(value):
                raise Malformed(f"{shown(value)} is no output of a body: a value, a constant, or nil")
            check_value(value, refer)

    explain(check_outputs, "the outputs")
    return _Known(len(body.inputs), len(body.outputs), steps, depth)


def _is_reference(value: object) -> bool:
    return isinstance(value, Mapping) and ("node" in value or "constant" in value)


def _check_block(
    inputs: Sequence[Input], nodes: Sequence[Node], constants: int, known: Sequence[_Known]
) -> tuple[int, int]:
    """Checks inputs and nodes; gives the steps that one run is at least, and how deep bodies run in one another."""
    if len({given.name for given in inputs}) < len(inputs):
        raise BadProgram("two inputs of one name")
    steps, depth = len(nodes), 0
    for at, node in enumerate(nodes):
        refer = _references(len(inputs) + at, constants)
        if isinstance(node.operation, str) and node.operation in FLOW:
            its_steps, its_depth = _check_flow(node, at, refer, known)
            steps, depth = steps + its_steps, max(depth, its_depth)
        else:
            _check_node(node, at, refer)
    check_limit("MAX_STEPS", steps, "a program of {size} steps, its loops counted out; at most {allowed}")
    return steps, depth


def _check_flow(node: Node, at: int, refer: Refer, known: Sequence[_Known]) -> tuple[int, int]:
    name = node.operation
    where = f"node {at} ({name})"
    _check_arguments(node, where)
    found: list[Flow] = []

    def check_it() -> None:
        found.append(read := flow.read(name, node.args, node.kwargs))
        for value in read.values:
            check_value(value, refer)
        for body, taken in zip(read.bodies, read.taken(), strict=True):
            if body >= len(known):
                raise Malformed(f"body {body} does not exist before it")
            if known[body].inputs != taken:
                raise Malformed(f"body {body} takes {known[body].inputs} inputs, but {taken} are given to it")
        read.check_given([known[body].outputs for body in read.bodies])

    explain(check_it, where)
    bodies = [known[body] for body in found[0].bodies]
    depth = 1 + max(body.depth for body in bodies)
    check_limit("MAX_BODY_DEPTH", depth, "a program of {size} bodies in one another; at most {allowed}")
    return _steps(found[0], bodies), depth


def _steps(read: Flow, bodies: Sequence[_Known]) -> int:
    if read.name == "flow.cond":
        return min(body.steps for body in bodies)
    if read.name == "flow.while":
        return bodies[0].steps
    return (read.count or 0) * max(1, bodies[0].steps)


def _check_node(node: Node, at: int, refer: Refer) -> None:
    name = node.operation
    if not isinstance(name, str) or (name not in OPERATIONS and name not in NUMBERS):
        near = suggestions(name) if isinstance(name, str) else []
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise OperationNotAllowed(
            f"node {at} asks for {shown(name)}, which is not in the table of operations{hint}", node=at
        )
    _check_arguments(node, f"node {at} ({name})")
    if name in NUMBERS and (len(node.args) != NUMBERS[name] or node.kwargs):
        raise BadProgram(f"node {at} ({name}) takes {NUMBERS[name]} arguments and none by name")

    def check_it() -> None:
        for value in (*node.args, *node.kwargs.values()):
            check_value(value, refer)

    explain(check_it, f"node {at} ({name})")


def _check_arguments(node: Node, where: str) -> None:
    if not isinstance(node.args, list) or not isinstance(node.kwargs, Mapping):
        raise BadProgram(f"{where}: arguments are a list and a map")
    if not all(isinstance(key, str) for key in node.kwargs):
        raise BadProgram(f"{where}: names of arguments are text")


def _references(end: int, constants: int) -> Refer:
    def check_it(value: Mapping[str, Any]) -> None:
        keys = set(value)
        if keys == {"constant"}:
            if not is_index(value["constant"], constants):
                raise Malformed(f"there is no constant {shown(value['constant'])}")
        elif keys not in ({"node"}, {"node", "item"}):
            raise Malformed("a reference is {node}, {node, item} or {constant}")
        elif not is_index(value["node"], end):
            raise Malformed(f"value {shown(value['node'])} does not exist before it")
        elif not is_index(value.get("item", 0), limits.MAX_PARTS):
            raise Malformed(f"{shown(value['item'])} is no item of a value")

    return check_it


def _check_output(value: object, refer: Refer, depth: int) -> None:
    if depth > MAX_VALUE_DEPTH:
        raise Malformed(f"outputs nest more than {MAX_VALUE_DEPTH} deep")
    inner: list[Any] | None = value if isinstance(value, list) else None
    if isinstance(value, Mapping) and set(value) == {"tuple"}:
        inner = value["tuple"]
        if not isinstance(inner, list):
            raise Malformed("a tuple is written {tuple: [...]}")
    elif isinstance(value, Mapping) and set(value) == {"map"}:
        entries = value["map"]
        if not isinstance(entries, Mapping) or not all(isinstance(key, str) for key in entries):
            raise Malformed("a map is written {map: {name: ...}}")
        inner = list(entries.values())
    if inner is None:
        check_value(value, refer, depth)
        return
    for item in inner:
        _check_output(item, refer, depth + 1)


def explain(check_it: Callable[[], object], where: str) -> None:
    """Runs the check; what is malformed is a BadProgram that says where."""
    try:
        check_it()
    except (Malformed, BadTensor, TooLarge) as error:
        raise BadProgram(f"{where}: {error.args[0]}") from None
