"""The document of torch.export.save: its fields, each checked when it is read.

The format: torch/_export/serde/schema.py of torch 2.9 to 2.13 (schema version 8).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from compute.dtypes import DTYPE_OF
from compute.wire import shown
from protocol import limits
from protocol.errors import BadFile

VERSION: Final = 8
STRIDED: Final = 7

_SCALAR_TYPES: Final = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16", 34: "uint32", 35: "uint64",
}  # fmt: skip
_MEMORY_FORMATS: Final = {1: "contiguous_format", 2: "channels_last", 3: "channels_last_3d", 4: "preserve_format"}
_SYMBOL: Final = re.compile(
    r"(?:Symbol\('([A-Za-z_][A-Za-z0-9_]{0,40})'(?:, (?:positive|integer|nonnegative)=True)*\)|([A-Za-z_]\w{0,40}))"
)


def mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadFile(f"{what} is no map")
    return value


def items(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadFile(f"{what} is no list")
    return value


def text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise BadFile(f"{what} has no name")
    return value


def name(value: object, what: str) -> str:
    """Of a map that has one, as references to values are."""
    return text(mapping(value, what).get("name"), what)


def union(value: object, what: str) -> tuple[str, Any]:
    """Which of several forms it is: a map of one entry."""
    if not isinstance(value, dict) or len(value) != 1:
        raise BadFile(f"{what} is a map of one entry, and this is {shown(value)}")
    found: tuple[str, Any] = next(iter(value.items()))
    return found


def plain(value: object, kind: type) -> Any:
    if type(value) is not kind:
        raise BadFile(f"an argument in it is {shown(value)}, and was to be {kind.__name__}")
    return value


def number(value: object) -> float:
    if value in ("Infinity", "-Infinity", "NaN"):
        return float(str(value))
    if type(value) not in (int, float):
        raise BadFile(f"an argument in it is {shown(value)}, and was to be a number")
    return float(value)  # type: ignore[arg-type]  # its type was just looked at


def dtype(value: object) -> str:
    found = _SCALAR_TYPES.get(value) if type(value) is int else None
    if found is None or found not in DTYPE_OF:
        raise BadFile(f"a tensor in it has dtype {shown(value)}, which cannot travel")
    return found


def memory_format(value: object) -> str:
    found = _MEMORY_FORMATS.get(value) if type(value) is int else None
    if found is None:
        raise BadFile(f"{shown(value)} is no memory format")
    return found


def whole(value: object, what: str) -> int:
    """A size, stride or offset of a tensor that is in the archive."""
    kind, inner = union(value, what)
    if kind != "as_int" or type(inner) is not int or not 0 <= inner < limits.MAX_DIM:
        raise BadFile(f"{what} has sizes that are no whole numbers")
    return inner


def hint(value: object) -> int | None:
    """The size of an input that it was exported with."""
    kind, inner = union(value, "a size")
    if kind == "as_expr":
        told = inner.get("hint") if isinstance(inner, dict) else None
        inner = told.get("as_int") if isinstance(told, dict) else None
    return inner if type(inner) is int else None


def size(value: object) -> int | None:
    """Of an input: a number, or open. What a size is computed from is never evaluated."""
    kind, inner = union(value, "a size")
    if kind == "as_int" and type(inner) is int:
        return inner
    found = mapping(inner, "a size").get("expr_str") if kind == "as_expr" else None
    if not isinstance(found, str) or not _SYMBOL.fullmatch(found):
        raise BadFile(f"a size of an input is neither a number nor a name, but {shown(found)}")
    return None
