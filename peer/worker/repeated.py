"""Operations that ran before: what their checks found out then holds for each that looks the same.

Two operations look the same where nothing differs but which tensors they name, and the values of floats on which no
check hangs: dtypes, shapes and strides, types and values of integers, truth values and texts are the same. So the
schema takes both or neither, and their results are as large and cost as much. What hangs on data, on one tensor, or on
how much is left of a budget is looked at each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn

from compute import values
from compute.estimate import Estimate, check_allowed, guarded, hangs_on_floats, infer
from compute.interpreter import call
from compute.table import Entry
from compute.value_guards import VALUE_GUARDS, is_readable
from protocol import limits


class Reading(NamedTuple):
    """An operation as it was read: what it looks like, and its arguments."""

    key: tuple[Any, ...]
    args: list[Any]
    kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known of an operation that looks like one that ran; `guard` looks at values, each time."""

    estimate: Estimate
    guard: Any


_PLAIN: Final = frozenset({int, float, bool, str, type(None)})
_WHOLE: Final[tuple[set[type], ...]] = ({int}, {bool}, set())
_plans: Final[dict[tuple[Any, ...], Plan]] = {}


def read(entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Mapping[bytes, Any]) -> Reading | None:
    """None for an operation that is to be looked at each time: a tensor is not there, or other arguments are among it
    than tensors, numbers, truth values, names, and lists of one of those."""
    varies = not hangs_on_floats(entry.name)
    key: list[Any] = [entry.name]
    given: list[Any] = []
    named: dict[str, Any] = {}
    for value in args:
        type_ = type(value)
        if type_ is bytes:
            tensor = tensors.get(value)
            if tensor is None:
                return None
            key += (tensor.dtype, tensor.shape, tensor.stride())
            given.append(tensor)
        elif type_ is float and varies:
            key.append(float)
            given.append(value)
        elif type_ in _PLAIN:
            key += (type_, value)
            given.append(value)
        else:
            item = _read_other(value, key, tensors)
            if item is None:
                return None
            given.append(item)
    for argument, value in kwargs.items():
        key.append(argument)
        type_ = type(value)
        if type_ is float and varies:
            key.append(float)
        elif type_ in _PLAIN:
            key += (type_, value)
        else:
            value = _read_other(value, key, tensors)
            if value is None:
                return None
        named[argument] = value
    return Reading(tuple(key), given, named)


def _read_other(value: Any, key: list[Any], tensors: Mapping[bytes, Any]) -> Any:
    """A list of one kind of items, the name of a dtype or memory format; None for anything else."""
    if type(value) is dict:
        if len(value) != 1:
            return None
        ((kind, name),) = value.items()
        if type(name) is not str:
            return None
        key += (dict, kind, name)
        return values.decode(value, _no_tensor)
    if type(value) is not list:
        return None
    types = set(map(type, value))
    if types in _WHOLE:
        key += (list, *types, tuple(value))
        return value
    if types != {bytes}:
        return None
    found = [tensors.get(item) for item in value]
    key += (list, bytes, len(found))
    for tensor in found:
        if tensor is None:
            return None
        key += (tensor.dtype, tensor.shape, tensor.stride())
    return found


def find(reading: Reading) -> Plan | None:
    return _plans.get(reading.key)


def learn(entry: Entry, reading: Reading) -> None:
    """An operation that looks like this was checked, and ran."""
    if entry.category == "size":
        return  # it is no tensor
    if len(_plans) >= limits.MAX_PLANS:
        _plans.clear()
    _plans[reading.key] = Plan(infer(entry, reading.args, reading.kwargs), VALUE_GUARDS.get(entry.name))


def execute(plan: Plan, entry: Entry, reading: Reading) -> Any:
    """As compute.interpreter.execute, and raises the same."""
    args, kwargs = reading.args, reading.kwargs
    check_allowed(entry.name, plan.estimate)
    if plan.guard is not None and is_readable((*args, *kwargs.values())):
        guarded(entry.name, plan.guard, entry.named(args, kwargs))
    return call(entry, args, kwargs, plan.estimate.results)


def _no_tensor(_: bytes) -> NoReturn:
    raise AssertionError("names have no tensors in them")
