"""Operations as they come: their form, the objects that they name, and those that they change in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from compute.writes import written_positions
from peer.objects import Held, Temporary, check_id, show_id
from protocol.errors import BadRequest
from protocol.ids import ID_BYTES
from protocol.sizes import check_limit

Operation = list[Any]
"""[name, args, kwargs, outs], checked (SPEC.md, Values in operations)."""


def check_count(operations: Sequence[Any]) -> None:
    check_limit("MAX_BATCH", len(operations), "{size} operations in one request, at most {allowed}: send several")


def check_operation(value: object) -> Operation:
    """BadRequest unless it has the form of an operation. Its name and values are the worker's to check."""
    if not isinstance(value, list) or len(value) != 4:
        raise BadRequest("an operation is [name, args, kwargs, outs]")
    name, args, kwargs, outs = value
    if not isinstance(name, str) or not isinstance(args, list) or not isinstance(kwargs, dict):
        raise BadRequest("an operation is [text, list, map, list of ids]")
    if not isinstance(outs, list):
        raise BadRequest("the outs of an operation are a list of ids")
    for out in outs:
        if type(out) is not bytes or len(out) != ID_BYTES:  # as check_id has it, without a call
            check_id(out)
    if len(outs) > 1 and len(set(outs)) != len(outs):
        raise BadRequest("the outs of an operation are different object ids")
    return value


def references(value: Any) -> Iterator[bytes]:
    """The object ids in a wire value, in order."""
    if isinstance(value, bytes):
        yield check_id(value)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)
    elif isinstance(value, dict) and "tensor" not in value:
        for item in value.values():
            yield from references(item)


def flat_references(args: list[Any], kwargs: dict[str, Any]) -> list[bytes]:
    """`references`, without generators where the arguments are flat, as most are."""
    found: list[bytes] = []
    for value in args:
        kind = type(value)
        if kind is bytes:
            found.append(value if len(value) == ID_BYTES else check_id(value))
        elif kind is list or kind is dict:
            found.extend(references(value))
    if kwargs:
        found.extend(references(kwargs))
    return found


def written_by(name: str, args: list[Any], kwargs: dict[str, Any], inputs: dict[bytes, Held]) -> list[Temporary]:
    """The temporaries that an operation changes in place.

    Raises:
        BadRequest: an argument that it may change is not given by position; so there is no second way to name one.
    """
    positions = written_positions(name)
    if positions and len(args) <= max(positions) and any(True for _ in references(kwargs)):
        raise BadRequest(f"{name}: give the tensors that it changes by position, not by name")
    given = [args[position] for position in positions if position < len(args)]
    changed = [inputs.get(value) for value in given if isinstance(value, bytes)]
    written = [held for held in changed if isinstance(held, Temporary)]
    for held in written:
        if held.is_being_published:
            raise BadRequest(f"{name}: {show_id(held.id)} is being published, and what is published is not changed")
    return written
