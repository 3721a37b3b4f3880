"""Programs: single-assignment lists of ATen operations, as data (PROGRAM.md is the specification).

A Program is checked when it is built, and so also when it arrives: names are in the table, every reference points
backwards, sizes are within the limits. Whether an operation's arguments fit its schema is checked where it runs, by
compute.table. Imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import msgpack

from compute.operations import NUMBERS, OPERATIONS, suggestions
from compute.wire import MAX_VALUE_DEPTH, Malformed, check_constant, check_value, is_index, shown
from protocol import limits
from protocol.errors import BadProgram, BadTensor, OperationNotAllowed, TooLarge
from protocol.tensors import ITEMSIZE

VERSION: Final = 1
MAX_INPUT_NAME: Final = 256


@dataclass(frozen=True, slots=True)
class Input:
    """One input tensor: its name, and what it must be where that is known.

    `dtype` None: any. `shape` None: any; a dimension None: any size.
    """

    name: str
    dtype: str | None = None
    shape: tuple[int | None, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= MAX_INPUT_NAME or not self.name.isprintable():
            raise BadProgram(f"{shown(self.name)} is no name of an input")
        if self.dtype is not None and (not isinstance(self.dtype, str) or self.dtype not in ITEMSIZE):
            raise BadProgram(f"{shown(self.dtype)} is no dtype of an input")
        if self.shape is None:
            return
        if not isinstance(self.shape, tuple) or len(self.shape) > limits.MAX_NDIM:
            raise BadProgram(f"{shown(self.shape)} is no shape of an input")
        for dim in self.shape:
            if dim is not None and not is_index(dim, limits.MAX_DIM):
                raise BadProgram(f"{shown(dim)} is no dimension of an input")

    def __str__(self) -> str:
        dims = "" if self.shape is None else " [" + ", ".join("?" if d is None else str(d) for d in self.shape) + "]"
        return f"{self.name}: {self.dtype or 'any'}{dims}"


@dataclass(frozen=True, slots=True)
class Node:
    """One operation and its arguments as wire values; `operation` is of the table, or number arithmetic (NUMBERS)."""

    operation: str
    args: list[Any] = field(default_factory=list)
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Program:
    """Inputs, then one value for each node; `outputs` says what comes out.

    Values are numbered: the inputs first, then the nodes. Arguments refer to them by {"node": number}, or
    {"node": number, "item": k} for one value of an operation that gives several; to `constants` by {"constant": k}.
    Outputs are such a reference, a plain value, a list, {"tuple": [...]} or {"map": {name: ...}} of outputs.
    Two programs are equal when their bytes are.

    Raises:
        BadProgram: anything that PROGRAM.md forbids; the message names the node.
        OperationNotAllowed: an operation outside the table.
        TooLarge: more nodes or bytes than allowed.
    """

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: Any
    constants: tuple[Mapping[str, Any], ...] = ()
    _bytes: bytes = field(init=False, repr=False)
    id: str = field(init=False)

    def __post_init__(self) -> None:
        _check(self)
        packed = _pack(self)
        if len(packed) > limits.MAX_PROGRAM:
            raise _too_large("MAX_PROGRAM", len(packed), limits.MAX_PROGRAM, "bytes")
        object.__setattr__(self, "_bytes", packed)
        object.__setattr__(self, "id", hashlib.sha256(packed).hexdigest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and other._bytes == self._bytes

    def __hash__(self) -> int:
        return hash(self.id)

    def to_bytes(self) -> bytes:
        """The canonical bytes: msgpack with sorted keys. `id` is their SHA-256 in hex."""
        return self._bytes

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Program:
        """The program of these bytes, checked in full. They must be the canonical ones: one program, one id."""
        size = memoryview(data).nbytes
        if size > limits.MAX_PROGRAM:
            raise _too_large("MAX_PROGRAM", size, limits.MAX_PROGRAM, "bytes")
        program = _from_wire(_unpack(data))
        if program._bytes != bytes(data):
            raise BadProgram("a program that is not in canonical form: sorted keys, shortest integers, 64-bit floats")
        return program

    @property
    def operations(self) -> frozenset[str]:
        """The names of all operations in it."""
        return frozenset(node.operation for node in self.nodes)

    def __str__(self) -> str:
        lines = [f"program {self.id[:12]}: {len(self.inputs)} inputs, {len(self.nodes)} operations"]
        lines += [f"  %{number} = {given}" for number, given in enumerate(self.inputs)]
        for number, node in enumerate(self.nodes, len(self.inputs)):
            arguments = [_text(value) for value in node.args]
            arguments += [f"{name}={_text(value)}" for name, value in sorted(node.kwargs.items())]
            lines.append(f"  %{number} = {node.operation}({', '.join(arguments)})")
        return "\n".join([*lines, f"  return {_text(self.outputs)}"])


def _check(program: Program) -> None:
    inputs, nodes = program.inputs, program.nodes
    if len(nodes) > limits.MAX_NODES:
        raise _too_large("MAX_NODES", len(nodes), limits.MAX_NODES, "operations")
    if len(inputs) > limits.MAX_NODES or len(program.constants) > limits.MAX_NODES:
        raise _too_large("MAX_NODES", len(inputs), limits.MAX_NODES, "inputs or constants")
    names = {given.name for given in inputs}
    if len(names) < len(inputs):
        raise BadProgram("two inputs of one name")
    for at, constant in enumerate(program.constants):
        _explain(partial(check_constant, constant), f"constant {at}")
    for at, node in enumerate(nodes):
        _check_node(node, at, _references(len(inputs) + at, len(program.constants)))
    refer = _references(len(inputs) + len(nodes), len(program.constants))
    _explain(lambda: _check_output(program.outputs, refer, 0), "the outputs")


def _check_node(node: Node, at: int, refer: Callable[[Mapping[str, Any]], None]) -> None:
    name = node.operation
    if not isinstance(name, str) or (name not in OPERATIONS and name not in NUMBERS):
        near = suggestions(name) if isinstance(name, str) else []
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise OperationNotAllowed(
            f"node {at} asks for {shown(name)}, which is not in the table of operations{hint}", node=at
        )
    if not isinstance(node.args, list) or not isinstance(node.kwargs, Mapping):
        raise BadProgram(f"node {at} ({name}): arguments are a list and a map")
    if name in NUMBERS and (len(node.args) != NUMBERS[name] or node.kwargs):
        raise BadProgram(f"node {at} ({name}) takes {NUMBERS[name]} arguments and none by name")

    def check() -> None:
        for value in node.args:
            check_value(value, refer)
        for key, value in node.kwargs.items():
            if not isinstance(key, str):
                raise Malformed("names of arguments are text")
            check_value(value, refer)

    _explain(check, f"node {at} ({name})")


def _references(end: int, constants: int) -> Callable[[Mapping[str, Any]], None]:
    def check(value: Mapping[str, Any]) -> None:
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

    return check


def _check_output(value: object, refer: Callable[[Mapping[str, Any]], None], depth: int) -> None:
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


def _explain(check: Callable[[], object], where: str) -> None:
    try:
        check()
    except (Malformed, BadTensor, TooLarge) as error:
        raise BadProgram(f"{where}: {error.args[0]}") from None


def _pack(program: Program) -> bytes:
    wire = {
        "constants": list(program.constants),
        "inputs": [
            {"dtype": given.dtype, "name": given.name, "shape": None if given.shape is None else list(given.shape)}
            for given in program.inputs
        ],
        "nodes": [[node.operation, node.args, node.kwargs] for node in program.nodes],
        "outputs": program.outputs,
        "version": VERSION,
    }
    packed: bytes = msgpack.packb(_sorted(wire), use_bin_type=True)
    return packed


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    return value


def _from_wire(wire: object) -> Program:
    if not isinstance(wire, dict) or set(wire) != {"constants", "inputs", "nodes", "outputs", "version"}:
        raise BadProgram("a program is a map of constants, inputs, nodes, outputs and version")
    if wire["version"] != VERSION:
        raise BadProgram(f"a program of version {shown(wire['version'])}; this end runs version {VERSION}")
    for part in ("constants", "inputs", "nodes"):
        if not isinstance(wire[part], list):
            raise BadProgram(f"the {part} of a program are a list")
    return Program(
        inputs=tuple(_input(item) for item in wire["inputs"]),
        nodes=tuple(_node(item, at) for at, item in enumerate(wire["nodes"])),
        outputs=wire["outputs"],
        constants=tuple(wire["constants"]),
    )


def _input(item: object) -> Input:
    if not isinstance(item, dict) or set(item) != {"dtype", "name", "shape"}:
        raise BadProgram("an input is a map of dtype, name and shape")
    shape = item["shape"]
    return Input(item["name"], item["dtype"], tuple(shape) if isinstance(shape, list) else shape)


def _node(item: object, at: int) -> Node:
    if not isinstance(item, list) or len(item) != 3:
        raise BadProgram(f"node {at} is not a list of operation, arguments and named arguments")
    return Node(*item)


def _unpack(data: bytes | bytearray | memoryview) -> object:
    left = limits.MAX_PROGRAM_CONTAINERS

    def spend(container: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise BadProgram(f"a program of more than {limits.MAX_PROGRAM_CONTAINERS} lists and maps")
        return container

    def of_map(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs) or not all(type(key) is str for key in found):
            raise BadProgram("a map with a key twice, or one that is not text")
        return spend(found)  # type: ignore[no-any-return]

    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            list_hook=spend,
            object_pairs_hook=of_map,
            ext_hook=_refuse_ext,
            max_ext_len=0,
            max_array_len=limits.MAX_NODES,
            max_map_len=limits.MAX_ARRAY,
            max_str_len=limits.MAX_PROGRAM,
            max_bin_len=limits.MAX_CONSTANT,
        )
    except BadProgram:
        raise
    except Exception as error:  # msgpack raises ValueError, TypeError, OverflowError, StackError, UnicodeDecodeError...
        raise BadProgram(f"a program that is not msgpack within the limits: {type(error).__name__}") from None


def _refuse_ext(code: int, data: bytes) -> object:
    raise BadProgram(f"msgpack extension type {code}; programs have none")


def _too_large(limit: str, size: int, allowed: int, what: str) -> TooLarge:
    return TooLarge(f"a program of {size} {what}; at most {allowed}", limit=limit, size=size, allowed=allowed)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_text(item) for item in value) + "]"
    if not isinstance(value, Mapping):
        return repr(value)
    if "node" in value:
        return f"%{value['node']}" + (f"[{value['item']}]" if "item" in value else "")
    if "tuple" in value:
        return "(" + ", ".join(_text(item) for item in value["tuple"]) + ")"
    if "map" in value:
        return "{" + ", ".join(f"{key}: {_text(item)}" for key, item in sorted(value["map"].items())) + "}"
    return " ".join(f"{key} {item}" for key, item in value.items())
