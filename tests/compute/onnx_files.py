"""ONNX files written by hand, byte by byte: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Self

Payload = int | float | bytes


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def field(number: int, value: Payload) -> bytes:
    """One field of a message: a number, a float32, or what has a length."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def text(value: str) -> bytes:
    return value.encode()


def tensor(shape: Sequence[int], data: bytes, dtype: int = 1, name: str = "") -> bytes:
    return b"".join(field(1, size) for size in shape) + field(2, dtype) + field(8, text(name)) + field(9, data)


class Graph:
    """A model under construction; each method adds to it and gives it back."""

    def __init__(self, version: int = 18) -> None:
        self._fields = b""
        self._version = version

    def raw(self, number: int, value: bytes) -> Self:
        self._fields += field(number, value)
        return self

    def given(self, name: str, shape: Sequence[int | str], dtype: int = 1) -> Self:
        dims = [field(1, field(2, text(size)) if isinstance(size, str) else field(1, size)) for size in shape]
        kind = field(1, field(1, dtype) + field(2, b"".join(dims)))
        return self.raw(11, field(1, text(name)) + field(2, kind))

    def gives(self, *names: str) -> Self:
        for name in names:
            self.raw(12, field(1, text(name)))
        return self

    def constant(self, name: str, shape: Sequence[int], data: bytes, dtype: int = 1) -> Self:
        return self.raw(5, tensor(shape, data, dtype, name))

    def node(self, op: str, inputs: Sequence[str], *outputs: str, domain: str = "", **attributes: Any) -> Self:
        made = b"".join(field(1, text(name)) for name in inputs) + b"".join(field(2, text(name)) for name in outputs)
        made += field(4, text(op)) + field(7, text(domain))
        for name, value in attributes.items():
            made += field(5, field(1, text(name)) + _attribute(value))
        return self.raw(1, made)

    def model(self) -> bytes:
        return field(1, 8) + field(8, field(2, self._version)) + field(7, self._fields)


def _attribute(value: Any) -> bytes:
    if isinstance(value, float):
        return field(2, value) + field(20, 1)
    if isinstance(value, int):
        return field(3, value) + field(20, 2)
    if isinstance(value, str):
        return field(4, text(value)) + field(20, 3)
    if isinstance(value, bytes):  # a tensor
        return field(5, value) + field(20, 4)
    if value and isinstance(value[0], float):
        return b"".join(field(7, item) for item in value) + field(20, 6)
    return b"".join(field(8, item) for item in value) + field(20, 7)
