"""The record of an object: what describe and search say of it, checked field by field.

A record is a plain dict, as it travels:

    id            bytes, 16           owner         id of the principal that published it
    kind          one of KINDS        labels        ids of those whose leave is needed to take the value
    reveal        ids, or "*": who may learn what secure runs compute from it; only where there are any
    name          str or None         private       bool
    description   str                 published     bool
    tags          list of str, without '#'          created       float, Unix seconds
    dtype         str or None         shape         list of int, or None
    nbytes        int

and, put there by whoever receives it and never by who sends it, `peer` (name of the holder) and `peer_id`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, TypeAlias

from protocol import limits
from protocol.errors import BadRequest, BadTag, BadTensor, TooLarge
from protocol.identity import is_peer_id
from protocol.tensors import ITEMSIZE, TensorHeader
from search.fields import KINDS
from search.tags import parse_tags
from search.text import first_control

Record: TypeAlias = dict[str, Any]

ID_BYTES: Final = 16
_FAR: Final = 1e15  # seconds


def check_record(value: object) -> Record:
    """A fresh record that holds the known fields of `value`, each of the right type and within its limits.

    `name` may be missing and is then None; every other field has to be there. Unknown ones are left out, `peer`
    and `peer_id` among them: who holds an object is not for the sender of a record to say.

    Raises:
        BadRequest: the first field that is wrong, by name.
    """
    if not isinstance(value, Mapping):
        raise BadRequest(f"a record is a map, not {type(value).__name__}")
    if not value.keys() >= _REQUIRED:
        missing = next(name for name in _CHECKS if name in _REQUIRED and name not in value)
        raise BadRequest(f"the record has no {missing}")
    record: Record = {name: check(name, value.get(name)) for name, check in _CHECKS.items()}
    if not record["reveal"]:
        del record["reveal"]
    _check_tensor(record)
    return record


def check_description(name: str, value: object) -> str:
    """`value` if it can be a description; BadRequest says why not, calling it `name`."""
    return _text(name, value, limits.MAX_DESCRIPTION)


def rows_of(record: Mapping[str, Any]) -> int | None:
    """The first dimension; None where there is none."""
    shape = record.get("shape")
    return shape[0] if shape else None


def _id(name: str, value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) != ID_BYTES:
        raise BadRequest(f"{name}: an id is {ID_BYTES} bytes")
    return value


def _kind(name: str, value: object) -> str:
    if not isinstance(value, str) or value not in KINDS:
        raise BadRequest(f"{name}: one of {', '.join(KINDS)}")
    return value


def _principal(name: str, value: object) -> str:
    if not isinstance(value, str) or not is_peer_id(value):
        raise BadRequest(f"{name}: the id of a peer or client is 52 characters a-z 2-7")
    return value


def _tags(name: str, value: object) -> list[str]:
    if not isinstance(value, list | tuple) or len(value) > limits.MAX_TAGS:
        raise BadRequest(f"{name}: a list of at most {limits.MAX_TAGS} tags")
    if not all(isinstance(tag, str) for tag in value):
        raise BadRequest(f"{name}: a tag is text")
    return list(_stored_tags(name, tuple(value)))


@lru_cache(1_024)  # objects that come together have the same ones
def _stored_tags(name: str, tags: tuple[str, ...]) -> tuple[str, ...]:
    try:
        parsed = parse_tags(tags)
    except (BadTag, TooLarge) as error:
        raise BadRequest(f"{name}: {error.message}") from None
    if parsed != tags:
        raise BadRequest(f"{name}: tags are stored without '#', in lower case, and each once")
    return parsed


def _text(name: str, value: object, most: int) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise BadRequest(f"{name}: text of at most {most} characters")
    control = first_control(value)
    if control is not None:
        raise BadRequest(f"{name}: the character {value[control]!a} at {control} cannot be stored; leave it out")
    return value


def _name(name: str, value: object) -> str | None:
    if value is None:
        return None
    text = _text(name, value, limits.MAX_OBJECT_NAME)
    if not text.strip():
        raise BadRequest(f"{name}: a name is not blank; leave it out instead")
    return text


def _dtype(name: str, value: object) -> str | None:
    if value is not None and (not isinstance(value, str) or value not in ITEMSIZE):
        raise BadRequest(f"{name}: one of {', '.join(ITEMSIZE)}, or none")
    return value


def _shape(name: str, value: object) -> list[int] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) > limits.MAX_NDIM:
        raise BadRequest(f"{name}: a list of at most {limits.MAX_NDIM} dimensions, or none")
    if any(type(dim) is not int or not 0 <= dim < limits.MAX_DIM for dim in value):
        raise BadRequest(f"{name}: dimensions run from 0 to {limits.MAX_DIM - 1}")
    return list(value)


def _check_tensor(record: Record) -> None:
    if record["kind"] == "tensor" and (record["dtype"] is None or record["shape"] is None):
        raise BadRequest("kind: a tensor has a dtype and a shape")
    if record["dtype"] is not None and record["shape"] is not None:
        _check_extent(record["dtype"], tuple(record["shape"]))


@lru_cache(1_024)
def _check_extent(dtype: str, shape: tuple[int, ...]) -> None:
    try:
        TensorHeader(dtype, shape)
    except (BadTensor, TooLarge) as error:
        raise BadRequest(f"shape: {error.message}") from None


def _nbytes(name: str, value: object) -> int:
    if type(value) is not int or not 0 <= value <= limits.MAX_OBJECT:
        raise BadRequest(f"{name}: a number of bytes from 0 to {limits.MAX_OBJECT}")
    return value


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise BadRequest(f"{name}: true or false")
    return value


def _labels(name: str, value: object) -> list[str]:
    if not isinstance(value, list | tuple) or len(value) > limits.MAX_ARRAY:
        raise BadRequest(f"{name}: a list of at most {limits.MAX_ARRAY} ids")
    return [_principal(name, label) for label in value]


def _reveal(name: str, value: object) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list | tuple) or len(value) > limits.MAX_REVEAL:
        raise BadRequest(f"{name}: a list of at most {limits.MAX_REVEAL} ids, or *")
    return [each if each == "*" else _principal(name, each) for each in value]


def _moment(name: str, value: object) -> float:
    # Not-a-number fails the comparison too; the bound keeps sums and dates far from overflow.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _FAR:
        raise BadRequest(f"{name}: a time in seconds since 1970")
    return float(value)


_CHECKS: Final[Mapping[str, Callable[[str, object], Any]]] = {
    "id": _id,
    "kind": _kind,
    "name": _name,
    "owner": _principal,
    "tags": _tags,
    "description": check_description,
    "dtype": _dtype,
    "shape": _shape,
    "nbytes": _nbytes,
    "private": _flag,
    "labels": _labels,
    "reveal": _reveal,
    "created": _moment,
    "published": _flag,
}
_REQUIRED: Final = _CHECKS.keys() - {"name", "reveal"}
