"""The bytes of programs: written in one way only, and read within limits (PROGRAM.md, Bytes). Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgpack

from compute.program_parts import Body, Input, Node
from compute.wire import shown
from protocol import limits
from protocol.errors import BadProgram

VERSION: Final = 1
_KEYS: Final = frozenset({"bodies", "constants", "inputs", "nodes", "outputs", "version"})


class Parts(NamedTuple):
    """What a program is made of, in the order in which Program takes it."""

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: Any
    constants: tuple[Any, ...]
    bodies: tuple[Body, ...]


def pack(parts: Parts) -> bytes:
    """The canonical bytes. BadProgram for text that UTF-8 cannot hold."""
    wire = {
        "bodies": [
            {"inputs": _inputs(body.inputs), "nodes": _nodes(body.nodes), "outputs": body.outputs}
            for body in parts.bodies
        ],
        "constants": list(parts.constants),
        "inputs": _inputs(parts.inputs),
        "nodes": _nodes(parts.nodes),
        "outputs": parts.outputs,
        "version": VERSION,
    }
    try:
        packed: bytes = msgpack.packb(_sorted(wire), use_bin_type=True)
    except UnicodeEncodeError:
        raise BadProgram("text with half a surrogate pair in it, which UTF-8 cannot hold") from None
    return packed


def unpack(data: bytes | bytearray | memoryview) -> Parts:
    """What these bytes say; nothing of it is checked but its outer form. BadProgram for what has another."""
    wire = _map(_unpacked(data), _KEYS, "a program")
    if wire["version"] != VERSION or type(wire["version"]) is not int:
        raise BadProgram(f"a program of version {shown(wire['version'])}; this end runs version {VERSION}")
    for part in ("bodies", "constants"):
        if not isinstance(wire[part], list):
            raise BadProgram(f"the {part} of a program are a list")
    inputs, nodes = _block(wire, "a program")
    return Parts(inputs, nodes, wire["outputs"], tuple(wire["constants"]), tuple(map(_body, wire["bodies"])))


def _inputs(inputs: Sequence[Input]) -> list[Any]:
    return [
        {
            "content": given.content,
            "dtype": given.dtype,
            "name": given.name,
            "shape": None if given.shape is None else list(given.shape),
        }
        for given in inputs
    ]


def _nodes(nodes: Sequence[Node]) -> list[Any]:
    return [[node.operation, node.args, node.kwargs] for node in nodes]


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    return value


def _map(item: object, keys: frozenset[str], what: str) -> dict[str, Any]:
    if not isinstance(item, dict) or set(item) != keys:
        raise BadProgram(f"{what} is a map of {', '.join(sorted(keys))}")
    return item


def _block(wire: dict[str, Any], what: str) -> tuple[tuple[Input, ...], tuple[Node, ...]]:
    for part in ("inputs", "nodes"):
        if not isinstance(wire[part], list):
            raise BadProgram(f"the {part} of {what} are a list")
    return tuple(map(_input, wire["inputs"])), tuple(_node(item, at) for at, item in enumerate(wire["nodes"]))


def _body(item: object) -> Body:
    wire = _map(item, frozenset({"inputs", "nodes", "outputs"}), "a body")
    return Body(*_block(wire, "a body"), wire["outputs"])


def _input(item: object) -> Input:
    wire = _map(item, frozenset({"content", "dtype", "name", "shape"}), "an input")
    shape = wire["shape"]
    return Input(wire["name"], wire["dtype"], tuple(shape) if isinstance(shape, list) else shape, wire["content"])


def _node(item: object, at: int) -> Node:
    if not isinstance(item, list) or len(item) != 3:
        raise BadProgram(f"node {at} is not a list of operation, arguments and named arguments")
    return Node(*item)


def _unpacked(data: bytes | bytearray | memoryview) -> object:
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
