"""What Python keeps in plain numbers and texts around the body of a loop: the epoch of a scheduler, a counter.

A body is written down once for all iterations. Where something of this changes from one iteration to the next, the
iterations may differ later on though the traced ones are alike (a rate that is halved each tenth time).
"""

from __future__ import annotations

import functools
import itertools
import operator
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final

import torch

from compute.refusals import is_users

_DEEP: Final = 12
_MANY: Final = 20_000  # values looked at
_PLAIN: Final = (bool, int, float, complex, str)
_TORCH: Final = ("torch.optim", "torch.nn")  # of torch's own objects these are looked into


def numbers(function: Callable[..., Any]) -> dict[str, Any]:
    """All that a function reaches by its variables from outside, by where it stands: `scheduler.last_epoch`."""
    found: dict[str, Any] = {}
    seen: dict[int, Any] = {}  # alive, so that no other has its id
    left = deque([("", function, 0)])
    while left and len(seen) < _MANY:
        path, value, depth = left.popleft()
        if isinstance(value, _PLAIN):
            found[path] = value
            continue
        if id(value) in seen or isinstance(value, torch.Tensor) or depth > _DEEP:
            continue
        seen[id(value)] = value
        size = _size(value)
        if size is not None:
            found[f"len({path})" if isinstance(size, int) else path] = size
        left.extend((inner, part, depth + 1) for inner, part in _parts(path, value))
    return found


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """The first that is not what it was; None where all are."""
    names = (name for name, value in after.items() if name not in before or not _same(before[name], value))
    return next(names, None)


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and (one == other or one != one)  # a NaN stays one


def _size(value: Any) -> int | str | None:
    if isinstance(value, list | dict | set | deque):
        return len(value)
    if isinstance(value, itertools.count):
        return repr(value)
    if isinstance(value, Iterator) and hasattr(value, "__length_hint__"):
        return operator.length_hint(value)
    return None


def _parts(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, MethodType):
        yield path, value.__func__
        yield "self", value.__self__
    elif isinstance(value, functools.partial):
        yield path, value.func
        yield from _parts(path, [*value.args, *value.keywords.values()])
    elif isinstance(value, FunctionType):
        yield from _variables(value)
    elif isinstance(value, Mapping):
        for key, item in list(value.items()):
            yield f"{path}[{key!r}]" if isinstance(key, str | int) else f"{path}[...]", item
    elif isinstance(value, list | tuple | set | deque):
        for at, item in enumerate(list(value)):
            yield f"{path}[{at}]", item
    elif not isinstance(value, type) and hasattr(value, "__wrapped__"):  # a plan
        yield path, value.__wrapped__
    elif _is_looked_into(value):
        for name, item in list(vars(value).items()):
            yield f"{path}.{name}" if path else name, item


def _variables(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function has from outside, by name; of one that is not the user's the functions that it was given."""
    code = function.__code__
    is_own = is_users(code.co_filename)
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:
            continue  # not assigned yet
        if is_own or isinstance(value, FunctionType | MethodType | functools.partial):
            yield name, value
    for name in _names(code) if is_own else ():
        if name in function.__globals__:
            yield name, function.__globals__[name]


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_looked_into(value: Any) -> bool:
    """Whether it is an object of a class of the user's, or an optimiser, a scheduler, a module."""
    kind = type(value)
    if isinstance(value, type | ModuleType) or not hasattr(value, "__dict__"):
        return False
    if kind.__module__.startswith(_TORCH):
        return True
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return is_users(file) if file else kind.__module__ == "__main__"
