"""torch as it came: whether somebody put functions of their own into it, and when it was last another.

What a module or a function of torch's does hangs on all of torch that it calls, which nobody reads off its code. So
the code of torch is known by what stands in it, and where somebody else's stands there it is not known at all.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any, Final

_HOMES: Final = sys.stdlib_module_names | {"torch", "typing_extensions"}  # a decorator of which is in torch
_COUNT: Final = itertools.count()
_KNOWN: dict[int, _Known] = {}


@dataclass(slots=True)
class _Known:
    """What stands in a class or a module; it is held, so that its ids are no others'."""

    owner: type | ModuleType
    values: tuple[Any, ...]
    number: int | None


def version(owner: type | ModuleType) -> int | None:
    """Of a class or a module of torch's: another number whenever something else stands in it. None: some of that is
    not torch's. What is in its modules does not count, some of which come when they are needed."""
    if not _KNOWN:
        importlib.import_module("torch._dynamo")  # a capture needs it, and it wraps functions of torch's
    now = tuple(vars(owner).values())
    known = _KNOWN.get(id(owner))
    if known is None:
        known = _KNOWN[id(owner)] = _Known(owner, now, _number(now))
    elif not _same(known.values, now):
        if not _same(
            *[tuple([each for each in values if type(each) is not ModuleType]) for values in (known.values, now)]
        ):
            known.number = _number(now)
        known.values = now
    return known.number


def _number(values: tuple[Any, ...]) -> int | None:
    return None if any(map(_is_foreign, values)) else next(_COUNT)


def is_of_torch(function: FunctionType) -> bool:
    """Whether it was written in torch, or wrapped there by something of Python's."""
    return str(function.__globals__.get("__name__")).split(".")[0] in _HOMES


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    try:
        return one == other  # those that are the same object are not asked
    except Exception:  # nothing of torch's own
        return False


def _is_foreign(value: Any) -> bool:
    if isinstance(value, classmethod | staticmethod):
        value = value.__func__
    if isinstance(value, property):
        return any(_is_foreign(each) for each in (value.fget, value.fset, value.fdel))
    return type(value) is FunctionType and not is_of_torch(value)
