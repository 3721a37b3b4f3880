"""The wire form of protocol buffers, read by a table of fields; unknown fields are passed over, as the form wants it.

https://protobuf.dev/programming-guides/encoding: a message is fields, each a number and a wire type before its value.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from protocol.errors import BadFile

_MAX_DEPTH: Final = 32  # messages in each other; honest graphs within graphs nest four deep
_MAX_MESSAGES: Final = 2_000_000
_MAX_VARINT: Final = 10  # bytes
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Field:
    """`kind`: "int", "float", "double", "bytes", "text", or the table of a message."""

    name: str
    kind: str | Mapping[int, Field]
    is_many: bool = False


Table = Mapping[int, Field]
Message = dict[str, Any]


class Parser:
    """Reads messages, of which one file may have so many."""

    def __init__(self) -> None:
        self._left = _MAX_MESSAGES

    def read(self, data: memoryview, table: Table, depth: int = 0) -> Message:
        """The fields of a message by name; those that are many are always there, as lists.

        Raises:
            BadFile: it is cut off, nests absurdly, or a field has a wire type that its kind cannot have.
        """
        self._left -= 1
        if self._left < 0 or depth > _MAX_DEPTH:
            raise BadFile("it is no protocol buffer of any model: it has too many messages, or too deep ones")
        found: Message = {field.name: [] for field in table.values() if field.is_many}
        at = 0
        while at < len(data):
            key, at = _varint(data, at)
            value, at = _value(data, at, key & 7)
            field = table.get(key >> 3)
            if field is None:
                continue
            items = self._items(value, key & 7, field, depth)
            if field.is_many:
                found[field.name] += items
            elif items:
                found[field.name] = items[-1]
        return found

    def _items(self, value: Any, wire: int, field: Field, depth: int) -> list[Any]:
        kind = field.kind
        if not isinstance(kind, str):
            return [self.read(_bytes(value, wire, field), kind, depth + 1)]
        if kind == "bytes":
            return [_bytes(value, wire, field)]
        if kind == "text":
            try:
                return [bytes(_bytes(value, wire, field)).decode()]
            except UnicodeDecodeError:
                raise BadFile(f"its {field.name} is not text in UTF-8") from None
        if wire == _LENGTH:  # many numbers, packed
            return _packed(value, kind)
        if kind == "int" and wire == _VARINT:
            return [value - (1 << 64) if value >> 63 else value]
        form = {"float": ("<f", _FIXED32), "double": ("<d", _FIXED64)}.get(kind)
        if form is None or form[1] != wire:
            raise BadFile(f"its {field.name} is written as what it is not")
        return [struct.unpack(form[0], value)[0]]


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    number = 0
    for place in range(_MAX_VARINT):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return number & 0xFFFF_FFFF_FFFF_FFFF, at
    raise BadFile("it is cut off, or no protocol buffer")


def _value(data: memoryview, at: int, wire: int) -> tuple[Any, int]:
    if wire == _VARINT:
        return _varint(data, at)
    if wire == _LENGTH:
        size, at = _varint(data, at)
    elif wire in (_FIXED32, _FIXED64):
        size = 4 if wire == _FIXED32 else 8
    else:
        raise BadFile("it is no protocol buffer")
    if size > len(data) - at:
        raise BadFile("it is cut off, or no protocol buffer")
    return data[at : at + size], at + size


def _bytes(value: Any, wire: int, field: Field) -> memoryview:
    if wire != _LENGTH:
        raise BadFile(f"its {field.name} is written as what it is not")
    return value  # type: ignore[no-any-return]  # _value gives a part of the data for these


def _packed(data: memoryview, kind: str) -> list[Any]:
    if kind != "int":
        form, width = ("f", 4) if kind == "float" else ("d", 8)
        if len(data) % width:
            raise BadFile("its numbers are cut off")
        return list(struct.unpack(f"<{len(data) // width}{form}", data))
    found, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        found.append(value - (1 << 64) if value >> 63 else value)
    return found
