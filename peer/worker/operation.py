"""One eager operation as it travels: [name, arguments, keyword arguments, result ids]. Torch-free.

A result id is 16 bytes, or nil for a result that is not kept. An operation that writes its argument may name none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from protocol.errors import BadRequest


def unpacked(operation: Any) -> tuple[Any, list[Any], dict[str, Any], list[Any]]:
    """Its four parts. BadRequest if it has not this form; what the parts hold is checked where they are used."""
    if not isinstance(operation, list | tuple) or len(operation) != 4:
        raise _malformed("this is not such a list")
    name, args, kwargs, outs = operation
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise _malformed("the arguments are a list and a map")
    if not isinstance(outs, list):
        raise _malformed("the result ids are a list")
    for out in outs:
        if out is not None and not _is_id(out):
            raise _malformed("a result id is 16 bytes, or nil for a result that is not kept")
    return name, args, kwargs, outs


def result_ids(operation: Any) -> Iterator[bytes]:
    """The ids that its results get; works on malformed ones too."""
    if isinstance(operation, list | tuple) and len(operation) == 4 and isinstance(operation[3], list):
        yield from (out for out in operation[3] if _is_id(out))


def name_of(operation: Any) -> str | None:
    """Its name, shortened for a message, and on one line, as it may come into a log; None if it has none."""
    has_name = isinstance(operation, list | tuple) and operation and isinstance(operation[0], str)
    return "".join(sign if sign.isprintable() else " " for sign in operation[0][:80]) if has_name else None


def _is_id(value: Any) -> bool:
    return isinstance(value, bytes) and len(value) == 16


def _malformed(what: str) -> BadRequest:
    return BadRequest(f"an operation is [name, arguments, keyword arguments, result ids]; {what}")
