"""Arguments and results of jails as plain values: tensors are numbers in a list beside them. Torch-free.

nil, true, 3, 2.5, "text"                 themselves; integers of 64 bits
{"tensor": k}                             the k-th tensor
{"complex": [re, im]}
{"list": [...]}   {"tuple": [...]}   {"dict": [[key, value], ...]}      keys are text or integers
{"called": [kind, code, [[name, k], ...]]}                              an argument: a stored model or plan
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from protocol import limits
from protocol.errors import BadRequest

_INT: Final = 1 << 63


@dataclass(frozen=True, slots=True, eq=False)
class Called:
    """A model or plan that is called in a jail: its spec (SPEC.md, Programs and models) or its program in bytes, and
    the tensors that it holds by the names of its program's inputs. `kind` is "model" or "plan"."""

    kind: str
    code: bytes
    held: Mapping[str, Any]


Make = Callable[[Called], Any]


def encode(value: object, tensor: Callable[[Any], int | None], depth: int = 0) -> Any:
    """The plain value of `value`; `tensor` gives the number of what is a tensor, and None for all else.

    Raises:
        BadRequest: something that cannot travel; the message says what to do.
    """
    if value is None or isinstance(value, str):
        return None if value is None else str(value)
    number = tensor(value)
    if number is not None:
        return {"tensor": number}
    if isinstance(value, bool | int | float | complex):
        return _number(value)
    if depth >= limits.JAIL_DEPTH:
        raise BadRequest(f"lists, tuples and dicts of a jail nest at most {limits.JAIL_DEPTH} deep")
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [encode(item, tensor, depth + 1) for item in value]}
    if isinstance(value, Called):
        return {"called": [value.kind, value.code, [[name, tensor(item)] for name, item in value.held.items()]]}
    if isinstance(value, Mapping):
        return {"dict": [[_key(key), encode(item, tensor, depth + 1)] for key, item in value.items()]}
    raise BadRequest(
        f"{type(value).__name__} does not leave or enter a jail: use tensors, numbers, text, and lists, tuples and "
        "dicts of them (of a module its state_dict())"
    )


def _number(value: bool | int | float | complex) -> Any:
    if isinstance(value, bool):
        return bool(value)
    if isinstance(value, int):
        if not -_INT <= value < _INT:
            raise BadRequest("an integer of more than 64 bits does not leave or enter a jail; send it as text")
        return int(value)
    return {"complex": [value.real, value.imag]} if isinstance(value, complex) else float(value)


def _key(key: object) -> str | int:
    if isinstance(key, str) or (type(key) is int and -_INT <= key < _INT):
        return key
    raise BadRequest(f"a key of a dict is text or an integer, not {type(key).__name__}")


def decode(value: Any, tensor: Callable[[int], Any], depth: int = 0, make: Make | None = None) -> Any:
    """What a plain value stands for. BadRequest for what is none; `tensor` raises for a number that there is not.
    `make` makes a function of what is called; without it there is none."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is not dict or len(value) != 1 or depth > limits.JAIL_DEPTH:
        raise BadRequest("this is no argument or result of a jail (SPEC.md, Jails)")
    ((kind, inner),) = value.items()
    if kind == "tensor" and type(inner) is int and inner >= 0:
        return tensor(inner)
    if type(inner) is list:
        if kind == "complex" and [type(part) for part in inner] == [float, float]:
            return complex(*inner)
        if kind in ("list", "tuple"):
            items = [decode(item, tensor, depth + 1, make) for item in inner]
            return items if kind == "list" else tuple(items)
        if kind == "dict" and all(_is_entry(item) for item in inner):
            return {key: decode(item, tensor, depth + 1, make) for key, item in inner}
        if kind == "called" and make is not None and [type(part) for part in inner] == [str, bytes, list]:
            return make(Called(inner[0], inner[1], _held(inner[2], tensor)))
    raise BadRequest("this is no argument or result of a jail (SPEC.md, Jails)")


def _held(items: list[Any], tensor: Callable[[int], Any]) -> dict[str, Any]:
    if not all(_is_entry(item) and type(item[0]) is str and type(item[1]) is int and item[1] >= 0 for item in items):
        raise BadRequest("what a model or plan holds is a list of names and numbers of tensors")
    return {name: tensor(number) for name, number in items}


def _is_entry(item: Any) -> bool:
    return type(item) is list and len(item) == 2 and type(item[0]) in (str, int)


def check(value: Any, count: int) -> None:
    """BadRequest unless it is a plain value about tensors 0 to `count` - 1."""

    def known(number: int) -> None:
        if number >= count:
            raise BadRequest(f"there is no tensor {number}: {count} came")

    decode(value, known)
