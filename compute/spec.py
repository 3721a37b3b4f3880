"""The spec of a stored model as bytes: its program, and the tensors whose bytes follow it (SPEC.md, 12). Torch-free.

The peer reads from it only how the tensors lie; what they mean is `compute.model.ModelSpec`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgpack

from protocol import limits
from protocol.errors import BadProgram, BadTensor
from protocol.sizes import check_limit
from protocol.tensors import TensorHeader

MAX_TENSORS: Final = 65_535  # a tensor's number has two bytes in its id

Layout = tuple[tuple[str, TensorHeader], ...]
"""Names and headers of a model's tensors, in the order of their bytes and of their numbers."""


def pack_spec(wire: Mapping[str, Any]) -> bytes:
    """The bytes of `ModelSpec.to_wire()`; TooLarge beyond MAX_PROGRAM."""
    packed: bytes = msgpack.packb(wire)
    check_limit("MAX_PROGRAM", len(packed), "a model of {size} bytes of program; at most {allowed}")
    return packed


def unpack_spec(data: bytes) -> dict[str, Any]:
    """The map in these bytes, for `ModelSpec.from_wire`; BadProgram where they are no spec."""
    try:
        wire = msgpack.unpackb(data, max_array_len=MAX_TENSORS, max_map_len=limits.MAX_ARRAY, max_ext_len=0)
    except Exception as error:  # msgpack raises many kinds; all mean the same here
        raise BadProgram(f"not the spec of a model: {type(error).__name__}") from None
    if not isinstance(wire, dict) or not isinstance(wire.get("slots"), list):
        raise BadProgram("not the spec of a model: it has no slots")
    return wire


def program_of(data: bytes) -> bytes:
    """The program's bytes in a spec; BadProgram where there are none."""
    program = unpack_spec(data).get("program")
    if not isinstance(program, bytes):
        raise BadProgram("the program of a model is bytes")
    return program


def layout_of(data: bytes) -> Layout:
    """How the tensors behind a spec lie: all slots that are not the same as another."""
    layout = []
    for slot in unpack_spec(data)["slots"]:
        if not isinstance(slot, dict) or not isinstance(slot.get("name"), str):
            raise BadProgram("a slot of a model is a map with a name")
        try:
            header = TensorHeader.from_wire(slot)
        except BadTensor as error:
            raise BadProgram(f"slot {slot['name'][:80]!r}: {error.message}") from None
        if slot.get("same_as") is None:
            layout.append((slot["name"], header))
    return tuple(layout)
