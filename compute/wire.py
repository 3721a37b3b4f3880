"""Wire values: what an argument of an operation may be in a message or a program (PROGRAM.md, Values).

Checked here without torch, so that the peer's own process can refuse what its worker would refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from protocol import limits
from protocol.tensors import ITEMSIZE, TensorHeader

MEMORY_FORMATS: Final = ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
MAX_VALUE_DEPTH: Final = 16  # lists in lists; real arguments nest three deep, results of models somewhat deeper
MAX_TEXT: Final = 256  # characters of a word or an einsum equation
_INT_LOW: Final = -(1 << 63)
_INT_HIGH: Final = (1 << 64) - 1

Reference = Callable[[Mapping[str, Any]], None]


class Malformed(Exception):
    """A wire value that is none; the text says why. The caller raises its own error: this one never leaves compute."""


def check_value(value: object, reference: Reference, depth: int = 0) -> None:
    """Malformed unless `value` is a wire value. Maps that refer to something go to `reference`, which raises Malformed
    where they lead nowhere."""
    if depth > MAX_VALUE_DEPTH:
        raise Malformed(f"values nest more than {MAX_VALUE_DEPTH} deep")
    if value is None or isinstance(value, bool | float):
        return
    if isinstance(value, int):
        if not _INT_LOW <= value <= _INT_HIGH:
            raise Malformed("an integer beyond 64 bits")
    elif isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise Malformed(f"text of {len(value)} characters; at most {MAX_TEXT}")
    elif isinstance(value, list):
        for item in value:
            check_value(item, reference, depth + 1)
    elif isinstance(value, Mapping):
        _check_map(value, reference)
    else:
        raise Malformed(f"{type(value).__name__} is no value of a program")


def _check_map(value: Mapping[str, Any], reference: Reference) -> None:
    keys = set(value)
    if keys == {"dtype"}:
        if not isinstance(value["dtype"], str) or value["dtype"] not in ITEMSIZE:
            raise Malformed(f"{shown(value['dtype'])} is no dtype")
    elif keys == {"memory_format"}:
        if value["memory_format"] not in MEMORY_FORMATS:
            raise Malformed(f"{shown(value['memory_format'])} is no memory format")
    elif keys == {"complex"}:
        parts = value["complex"]
        if not isinstance(parts, list) or len(parts) != 2 or not all(type(part) is float for part in parts):
            raise Malformed("a complex number is a list of two floats")
    elif keys <= {"node", "item", "constant"}:
        reference(value)
    else:
        raise Malformed(f"a map with the keys {shown(sorted(map(str, keys)))} is no value")


def check_constant(value: object) -> TensorHeader:
    """The header of a small tensor written out; Malformed, BadTensor or TooLarge for anything else."""
    if not isinstance(value, Mapping) or set(value) != {"dtype", "shape", "data"}:
        raise Malformed("a constant is a map of dtype, shape and data")
    header = TensorHeader.from_wire(value)
    data = value["data"]
    if not isinstance(data, bytes):
        raise Malformed(f"the data of a constant are bytes, not {type(data).__name__}")
    header.check_payload(len(data))
    if header.nbytes > limits.MAX_CONSTANT:
        raise Malformed(f"a constant of {header.nbytes} bytes; at most {limits.MAX_CONSTANT}: make it an input")
    return header


def is_index(value: object, end: int) -> bool:
    """True for an integer from 0 to `end` - 1 (True and 1.0 are none)."""
    return type(value) is int and 0 <= value < end


def shown(value: object) -> str:
    """A stranger's value, safe to print in an error."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of more than 4,300 digits; a list within itself
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
