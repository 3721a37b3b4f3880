"""What Python keeps in plain numbers and texts around the body of a loop: the epoch of a scheduler, a counter.

A body is written down once for all iterations. Where something of this changes from one iteration to the next, the
iterations may differ later on though the traced ones are alike (a rate that is halved each tenth time).
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import operator
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any, Final

import torch

from compute.refusals import is_installed, is_users, refusal

_DEEP: Final = 100  # values in values
_MANY: Final = 300_000  # values looked at: a third of a second
_LARGE: Final = 20_000  # elements of one array of numpy's: more are compared by their hash
_Part = tuple[str, Any, int]  # where it stands, what it is, how deep
_PLAIN: Final = (bool, int, float, complex, str, bytes, range)
_ITERATORS: Final = ("builtins", "itertools")
_TORCH: Final = ("torch.optim", "torch.nn")  # of torch's own objects these are looked into


def numbers(function: Callable[..., Any]) -> dict[str, Any]:
    """All that a function reaches by its variables from outside, by where it stands: `scheduler.last_epoch`. What only
    functions of installed libraries reach (all that a test framework has, say) comes last, as far as there is room.

    Raises:
        CannotCapture: it is more than can be looked at.
    """
    found: dict[str, Any] = {}
    seen: dict[int, Any] = {}  # alive, so that no other has its id
    left, libraries = deque([("", function, 0)]), deque[_Part]()
    looked = 0
    while left or libraries:
        queue = left or libraries
        path, value, depth = queue.popleft()
        looked += 1
        if looked > _MANY or depth > _DEEP:
            if queue is libraries:
                break
            raise refusal(
                f"the body of the loop reaches more than {_MANY:,} values from outside, or deeper than {_DEEP} levels "
                f"({path[:100]}), and whether one of them counts its iterations cannot be told: take what the body "
                "needs of them before the loop, or make a tensor of them"
            )
        plain = _plain(value)
        if plain is not None:
            found[path] = plain
            continue
        if id(value) in seen or isinstance(value, torch.Tensor):
            continue
        seen[id(value)] = value
        size = _size(value)
        if size is not None:
            found[f"len({path})" if isinstance(size, int) else path] = size
        if isinstance(value, FunctionType) and is_installed(value.__code__.co_filename):
            queue = libraries
        queue.extend((inner, part, depth + 1) for inner, part in _parts(path, value))
    return found


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """The first that is not what it was; None where all are."""
    names = (name for name, value in after.items() if name not in before or not _same(before[name], value))
    return next(names, None)


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and (one == other or one != one)  # a NaN stays one


def _plain(value: Any) -> Any:
    """What is compared of a value that has no parts; None for others."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, bytearray):
        return bytes(value)
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.generic | numpy.ndarray) or value.dtype.hasobject:
        return None
    if isinstance(value, numpy.number | numpy.bool_):
        return value.item()
    return value.tobytes() if value.size <= _LARGE else hashlib.blake2b(numpy.ascontiguousarray(value)).digest()


def _size(value: Any) -> int | str | None:
    if isinstance(value, list | dict | set | frozenset | deque):
        return len(value)
    if isinstance(value, itertools.count):
        return repr(value)
    if _is_iterator(value) and hasattr(value, "__length_hint__") and not isinstance(value, itertools.repeat):
        return operator.length_hint(value)
    if isinstance(value, GeneratorType):
        return "over" if value.gi_frame is None else f"at {value.gi_frame.f_lasti}"
    return None


def _is_iterator(value: Any) -> bool:
    return isinstance(value, Iterator) and type(value).__module__ in _ITERATORS


def _parts(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, MethodType):
        yield path, value.__func__
        yield ("cls" if isinstance(value.__self__, type) else "self"), value.__self__
    elif isinstance(value, functools.partial):
        yield path, value.func
        yield from _parts(path, [*value.args, *value.keywords.values()])
    elif isinstance(value, FunctionType):
        yield from _variables(value)
    elif isinstance(value, Mapping):
        for key, item in list(value.items()):
            yield f"{path}[{key!r}]" if isinstance(key, str | int) else f"{path}[...]", item
    elif isinstance(value, list | tuple | set | frozenset | deque):
        for at, item in enumerate(list(value)):
            yield f"{path}[{at}]", item
    elif _is_of_objects(value):
        yield path, value.ravel().tolist()
    elif isinstance(value, GeneratorType):
        yield from (value.gi_frame.f_locals if value.gi_frame is not None else {}).items()
    elif _is_iterator(value):
        yield path, _state(value)
    elif not isinstance(value, type) and inspect.getattr_static(value, "__wrapped__", None) is not None:  # a plan
        yield path, value.__wrapped__
    elif _is_looked_into(value):
        for name, item in _attributes(value):
            yield f"{path}.{name}" if path else name, item


def _is_of_objects(value: Any) -> bool:
    """Whether it is an array of numpy's that holds Python's objects."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray) and value.dtype.hasobject


def _state(iterator: Iterator[Any]) -> Any:
    """What an iterator goes through, and where it is. Of those of itertools Python 3.14 does not tell it any more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            state = iterator.__reduce__()
        except TypeError:
            return None
    return state[1:] if isinstance(state, tuple) else None


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    own = list(getattr(value, "__dict__", {}).items())
    if isinstance(value, type):
        yield from ((name, item) for name, item in own if not name.startswith("__"))
        return
    yield from own
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if hasattr(value, name):
                yield name, getattr(value, name)
    yield "__class__", type(value)


def _variables(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function has from outside, by name; of one that is not the user's the functions that it was given."""
    code = function.__code__
    is_own = is_users(code.co_filename)
    names = list(_names(code)) if is_own else []
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:
            continue  # not assigned yet
        if is_own or isinstance(value, FunctionType | MethodType | functools.partial):
            yield from _named(name, value, names)
    for name in names:
        if name in function.__globals__:
            yield from _named(name, function.__globals__[name], names)
    if is_own:
        yield from vars(function).items()
        yield from _parts(
            function.__name__, [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        )


def _named(name: str, value: Any, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """A variable; of a module of the user's what may be meant by the names in the code, as it has much else."""
    if not isinstance(value, ModuleType):
        yield name, value
    elif is_users(getattr(value, "__file__", None) or ""):
        yield from ((f"{name}.{each}", vars(value)[each]) for each in names if each in vars(value))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_looked_into(value: Any) -> bool:
    """Whether it is a class of the user's or an object of one, or an optimiser, a scheduler, a module."""
    kind = value if isinstance(value, type) else type(value)
    if isinstance(value, ModuleType):
        return False
    if kind.__module__.startswith(_TORCH):
        return kind is not value
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return is_users(file) if file else kind.__module__ == "__main__"
