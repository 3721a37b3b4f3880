"""What each type of an operator's schema accepts: one small checker a type, built once for each argument.

Integers are sizes, strides, dimensions or indices in almost every operation, and torch trusts them further than it
should: they are bounded by MAX_INT, save where the name says that they are values or mere bounds of a slice.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import torch

from compute.dtypes import NAME_OF
from protocol import limits


class Refused(Exception):
    """An argument that its operation does not take; the text says what was expected. Never leaves compute."""


class Beyond(Refused):
    """A size that no operation takes, MAX_INT being the most."""

    def __init__(self, text: str, size: int) -> None:
        super().__init__(text)
        self.size = size


Check = Callable[[object], object]

_INT64: Final = 1 << 63
# Integer arguments that are values or clamped bounds, not sizes: any int64 will do.
_FREE_INTEGERS: Final = frozenset({"start", "end", "low", "high", "from", "to", "ignore_index"})

_PATTERNS: Final = {
    "equation": re.compile(r"[A-Za-z.,\-> ]{1,256}"),  # 'ij,jk->ik'
    "api_name": re.compile(r"[a-z_.]{1,64}"),  # stands in an error's text
}
_WORDS: Final[dict[str, frozenset[str]]] = {
    "rounding_mode": frozenset({"trunc", "floor"}),
    "interpolation": frozenset({"linear", "lower", "higher", "midpoint", "nearest"}),
    "UPLO": frozenset({"L", "U"}),
    "driver": frozenset({"gels", "gelsd", "gelss", "gelsy"}),
    "mode": frozenset({"reduced", "complete", "r", "constant", "reflect", "replicate", "circular"}),
    "indexing": frozenset({"ij", "xy"}),
    "padding_side": frozenset({"left", "right"}),
    "reduce": frozenset({"sum", "prod", "mean", "amax", "amin", "add", "multiply"}),
    "side": frozenset({"left", "right"}),
    "padding": frozenset({"same", "valid"}),
    "approximate": frozenset({"none", "tanh"}),
}


def checker(kind: str, name: str, is_written: bool) -> Check:
    """The check of an argument of schema type `kind` called `name`: returns the value to pass, or raises Refused."""
    if kind.startswith("Optional["):
        return _optional(checker(kind[len("Optional[") : -1], name, is_written))
    if kind == "List[Optional[Tensor]]":
        return _list_of(_optional(_tensor), "a list of tensors and None")
    if kind == "Tensor":
        return _tensor if is_written else _tensor_or_number
    if kind in ("int", "List[int]"):
        whole = _integer if name not in _FREE_INTEGERS else _free_integer
        return whole if kind == "int" else _one_or_list(whole)
    if kind == "str":
        pattern = _PATTERNS.get(name)
        return _word(_WORDS[name]) if pattern is None else _matching(pattern)
    return _PLAIN[kind]


def _tensor(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value
    raise Refused(f"is a tensor, not {_shown(value)}")


def _tensor_or_number(value: object) -> object:
    # torch hands `x * 2` to mul.Tensor with a plain 2, and takes it back in the same place.
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, int | float | complex):
        return _number(value)
    raise Refused(f"is a tensor or a number, not {_shown(value)}")


def _integer(value: object) -> object:
    if type(value) is not int:
        raise Refused(f"is an integer, not {_shown(value)}")
    if value > limits.MAX_INT:
        raise Beyond(f"is {_shown(value)}; at most {limits.MAX_INT}", value)
    if value < -limits.MAX_INT:
        raise Refused(f"is {_shown(value)}; integers run from -{limits.MAX_INT} to {limits.MAX_INT}")
    return value


def _free_integer(value: object) -> object:
    if type(value) is not int:
        raise Refused(f"is an integer, not {_shown(value)}")
    if not -_INT64 <= value < _INT64:
        raise Refused(f"is {_shown(value)}, beyond 64 bits")
    return value


def _float(value: object) -> object:
    if type(value) not in (float, int):
        raise Refused(f"is a number, not {_shown(value)}")
    return _number(value)


def _number(value: object) -> object:
    if type(value) not in (bool, int, float, complex):
        raise Refused(f"is a number, not {_shown(value)}")
    if type(value) is int and not -_INT64 <= value < 2 * _INT64:
        raise Refused(f"is {_shown(value)}, beyond 64 bits")
    return value


def _bool(value: object) -> object:
    if type(value) is not bool:
        raise Refused(f"is true or false, not {_shown(value)}")
    return value


def _dtype(value: object) -> object:
    if not isinstance(value, torch.dtype) or value not in NAME_OF:
        raise Refused(f"is a dtype of a dense tensor, not {_shown(value)}")
    return value


def _memory_format(value: object) -> object:
    if not isinstance(value, torch.memory_format):
        raise Refused(f"is a memory format, not {_shown(value)}")
    return value


def _nothing(value: object) -> object:
    if value is not None:
        raise Refused("is the peer's own affair and cannot be given")
    return None


def _matching(pattern: re.Pattern[str]) -> Check:
    def check(value: object) -> object:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise Refused(f"is text of the form {pattern.pattern}, not {_shown(value)}")
        return value

    return check


def _word(words: frozenset[str]) -> Check:
    def check(value: object) -> object:
        if not isinstance(value, str) or value not in words:
            raise Refused(f"is one of {', '.join(sorted(words)) or 'nothing'}; not {_shown(value)}")
        return value

    return check


def _optional(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _list_of(check: Check, expected: str) -> Check:
    def check_list(value: object) -> object:
        if not isinstance(value, list | tuple):
            raise Refused(f"is {expected}, not {_shown(value)}")
        if len(value) > limits.MAX_ARRAY:
            raise Refused(f"has {len(value)} items; at most {limits.MAX_ARRAY}")
        return [check(item) for item in value]

    return check_list


def _one_or_list(check: Check) -> Check:
    several = _list_of(check, "a list of integers")
    return lambda value: check(value) if type(value) is int else several(value)


_PLAIN: Final[dict[str, Check]] = {
    "number": _number,
    "float": _float,
    "bool": _bool,
    "ScalarType": _dtype,
    "MemoryFormat": _memory_format,
    "Layout": _nothing,
    "Device": _nothing,
    "Generator": _nothing,
    "List[Tensor]": _list_of(_tensor, "a list of tensors"),
    "List[float]": _list_of(_float, "a list of numbers"),
    "List[bool]": _list_of(_bool, "a list of true and false"),
    "List[number]": _list_of(_number, "a list of numbers"),
}


def _shown(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return "a tensor"
    if isinstance(value, int) and abs(value) >= 1 << 128:
        return "a number of more than 128 bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
