"""Programs as text: one line for each value (PROGRAM.md, Text); program_parser.py reads it again. Torch-free."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from compute.program_parts import Input, Node
from compute.program_wire import Parts

Note = Callable[[int | None, int], str]
"""A comment for a value: by the number of its body (None: the program itself) and its own number; "" for none."""

_BARE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_NOT_BARE: Final = frozenset({"None", "True", "False", "inf", "nan", "complex"})
_PLAIN_NAN: Final = struct.pack(">d", float("nan"))


def to_text(parts: Parts, title: str, note: Note | None = None) -> str:
    """The program's lines; `title` and what `note` says are comments."""
    lines = [f"# {title}"]
    lines += [f"@{number} = {_constant(constant)}" for number, constant in enumerate(parts.constants)]
    for number, body in enumerate(parts.bodies):
        lines += [f"body &{number}", *_block(body.inputs, body.nodes, body.outputs, _noting(note, number))]
    lines += ["program", *_block(parts.inputs, parts.nodes, parts.outputs, _noting(note, None))]
    return "\n".join(lines)


def _noting(note: Note | None, body: int | None) -> Callable[[int], str]:
    def of(number: int) -> str:
        found = note(body, number) if note is not None else ""
        return f"  # {found}" if found else ""

    return of


def _block(inputs: Sequence[Input], nodes: Sequence[Node], outputs: Any, note: Callable[[int], str]) -> Iterator[str]:
    for number, given in enumerate(inputs):
        yield f"  %{number} = {_input(given)}{note(number)}"
    for number, node in enumerate(nodes, len(inputs)):
        arguments = [_value(value) for value in node.args]
        arguments += [f"{_name(name)}={_value(value)}" for name, value in sorted(node.kwargs.items())]
        yield f"  %{number} = {node.operation}({', '.join(arguments)}){note(number)}"
    yield f"  return {_value(outputs)}"


def _constant(constant: Mapping[str, Any]) -> str:
    data = base64.b64encode(constant["data"]).decode()
    return f'{constant["dtype"]} {_value(list(constant["shape"]))} "{data}"'


def _input(given: Input) -> str:
    text = f"input {_name(given.name)}"
    if given.dtype is not None or given.shape is not None:
        text += f": {given.dtype or 'any'}"
    if given.shape is not None:
        text += f" [{', '.join('?' if dim is None else str(dim) for dim in given.shape)}]"
    return text if given.content is None else f'{text} content "{given.content}"'


def _name(name: str) -> str:
    return name if _BARE.fullmatch(name) and name not in _NOT_BARE else json.dumps(name)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, Mapping):
        return _map(value)
    if isinstance(value, str):
        return json.dumps(value)
    return _float(value) if isinstance(value, float) else repr(value)


def _float(value: float) -> str:
    packed = struct.pack(">d", value)
    return f"nan:{packed.hex()}" if value != value and packed != _PLAIN_NAN else repr(value)


def _map(value: Mapping[str, Any]) -> str:
    if "node" in value:
        return f"%{value['node']}" + (f"[{value['item']}]" if "item" in value else "")
    ((key, inner),) = value.items()
    if key in _SIGNS:
        return f"{_SIGNS[key]}{inner}"
    if key == "tuple":
        return "(" + ", ".join(map(_value, inner)) + (",)" if len(inner) == 1 else ")")
    if key == "map":
        return "{" + ", ".join(f"{_name(name)}: {_value(inner[name])}" for name in sorted(inner)) + "}"
    if key == "complex":
        return f"complex({_float(inner[0])}, {_float(inner[1])})"
    return f"{key}.{inner}"


_SIGNS: Final = {"constant": "@", "body": "&"}
