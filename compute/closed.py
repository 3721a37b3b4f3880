"""Functions that hang on nothing but their arguments: read, so that two that read the same do the same.

What a function can reach is read off its code: the names that it looks up outside itself, and what they mean now.
Known are numbers, texts, and lists and dicts of those, by what is in them; functions of torch's that only compute, by
what they are; and the user's own functions, read in the same way. Whatever else it reaches (a tensor, an object, a
class of the user's, a module that is no part of torch) may be another tomorrow: then nothing is read, and nobody may
remember what the function did. Nor may anybody where it reads otherwise afterwards: it has changed what it reaches.
"""

from __future__ import annotations

import builtins
import dis
import functools
import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, Final

import torch

from compute.jail.scope import Namespace, members, modules
from compute.unpatched import is_of_torch, version

_DEEP: Final = 16  # functions that call functions, lists in lists
_MANY: Final = 20_000  # values


class NotClosed(Exception):
    """What is read may be another tomorrow."""


def plain(value: Any) -> Hashable:
    """A number, a text, or a tuple of those, so that only the same one is equal. Raises NotClosed for all else."""
    kind = type(value)
    if kind in _BY_VALUE:
        return kind, value
    if kind is float or kind is complex:
        return kind, repr(value)  # a NaN is one, and 0.0 is not -0.0
    if kind is tuple or kind is torch.Size:
        return kind, tuple([plain(item) for item in value])
    if kind is slice:
        return kind, plain(value.start), plain(value.stop), plain(value.step)
    raise NotClosed


_BY_VALUE: Final = frozenset(
    {bool, int, str, bytes, range, type(None), type(...), type(NotImplemented)}
    | {torch.dtype, torch.device, torch.memory_format, torch.layout}
)


class Reader:
    """Reads one function and what belongs to it.

    Args:
        trusted: functions that only compute, by their ids, beside those of Python and torch.
        unwrapped: what an object is to be read as (a function, a text), or the object.
    """

    def __init__(self, trusted: Mapping[int, Any], unwrapped: Callable[[Any], Any]) -> None:
        self._trusted, self._unwrapped = trusted, unwrapped
        self._seen: dict[FunctionType, int] = {}
        self._numbers: dict[int, int] = {}
        self._count = 0

    def function(self, function: Any, depth: int = 0) -> Hashable:
        """A function, with all that it reaches. Raises NotClosed where that may be another tomorrow."""
        if type(function) is not FunctionType or vars(function):
            raise NotClosed
        if function in self._seen:
            return "again", self._seen[function]
        self._seen[function] = len(self._seen)
        outside = _outside(function.__code__)
        if outside is None:
            raise NotClosed
        try:
            cells = [cell.cell_contents for cell in function.__closure__ or ()]
        except ValueError:  # not assigned yet
            raise NotClosed from None
        named = function.__kwdefaults__ or {}
        return (
            function.__code__,
            tuple(named),
            tuple([self.value(each, depth + 1) for each in (*cells, *(function.__defaults__ or ()), *named.values())]),
            tuple([self.value(_meant(function, path), depth + 1) for path in outside.paths]),
            tuple([self._of_tensors(name) for name in outside.attributes]),
        )

    def _of_tensors(self, name: str) -> Hashable:
        """What an attribute of a tensor is: torch's own, or a number that somebody put there (`surroundings` has seen
        to it that it is no function)."""
        found = getattr(torch.Tensor, name, None)
        return type(found), found if callable(found) or hasattr(found, "__get__") else plain(found)

    def value(self, value: Any, depth: int = 0) -> Hashable:
        """Something that a function reaches."""
        self._count += 1
        if self._count > _MANY or depth > _DEEP:
            raise NotClosed
        if self.is_trusted(value):
            return id(value)  # which lives as long as this process
        kind = type(value)
        if kind is list or kind is tuple:
            return kind, self.number(value), tuple([self.value(item, depth + 1) for item in value])
        if kind is dict:
            return (
                kind,
                self.number(value),
                tuple([(plain(key), self.value(item, depth + 1)) for key, item in value.items()]),
            )
        inner = self._unwrapped(value)
        if type(inner) is FunctionType:
            return kind.__name__, self.function(inner, depth)
        return plain(inner) if inner is value else (kind.__name__, plain(inner))

    def number(self, value: Any) -> int:
        """Which it is of the lists, tuples and dicts that were read: one by two names is not two alike."""
        return self._numbers.setdefault(id(value), len(self._numbers))

    def is_trusted(self, value: Any) -> bool:
        """Whether it is a function, or a class, that only computes."""
        return id(value) in self._trusted or id(value) in _pure()


def _meant(function: FunctionType, path: tuple[str, ...]) -> Any:
    """What `torch.nn.functional.relu` in a function means now. Raises NotClosed where it ends at a module, of which
    anything may be asked then."""
    name, *rest = path
    found = function.__globals__.get(name, _MISSING)
    if found is _MISSING:
        untyped: Any = function  # not every typeshed knows of its builtins
        found = untyped.__builtins__.get(name, _MISSING)
    for each in rest:
        if not isinstance(found, ModuleType):
            break
        if type(found) is not ModuleType:
            raise NotClosed  # it may say what it wants
        found = vars(found).get(each, _MISSING)  # a lazy one says what it wants
    if found is _MISSING or isinstance(found, ModuleType):
        raise NotClosed
    return found


_MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class _Outside:
    """What code looks up outside itself: names, each with the attributes that are asked of it there and then, and
    the names of all attributes, which may be asked of tensors."""

    paths: tuple[tuple[str, ...], ...]
    attributes: tuple[str, ...]


_ATTRIBUTES: Final = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_WRITES: Final = frozenset({"STORE_ATTR", "DELETE_ATTR"})  # what is reached reads otherwise then
_INNER: Final = frozenset(
    "LOAD_DEREF LOAD_CLOSURE LOAD_FAST_AND_CLEAR COPY_FREE_VARS MAKE_CELL STORE_DEREF DELETE_DEREF".split()
)
_HARMLESS: Final = frozenset({"KW_NAMES"})
_FRAMES: Final = ("gi_", "cr_", "ag_", "f_", "tb_")  # of generators and errors: they know all globals
_RISKY: Final = (
    "GLOBAL",
    "NAME",
    "DEREF",
    "ATTR",
    "METHOD",
    "IMPORT",
    "CLASS",
    "CLOSURE",
    "SUPER",
    "LOCALS",
    "SPECIAL",
)


@functools.lru_cache(1_024)
def _outside(code: CodeType) -> _Outside | None:
    """None for code that writes to what is outside, or looks it up in ways that cannot be read."""
    paths: dict[tuple[str, ...], None] = {}
    attributes: dict[str, None] = {}
    for inner in _codes(code):
        steps = list(dis.get_instructions(inner))
        at = 0
        while at < len(steps):
            operation, name = steps[at].opname, steps[at].argval
            at += 1
            if operation == "LOAD_GLOBAL":
                path = [name]
                while at < len(steps) and steps[at].opname in _ATTRIBUTES:
                    path.append(steps[at].argval)
                    at += 1
                paths[tuple(path)] = None
                attributes.update(dict.fromkeys(path[1:]))
            elif operation in _ATTRIBUTES or operation in _WRITES:
                attributes[name] = None
            elif operation in _INNER:
                if operation.startswith(("STORE", "DELETE")) and name in code.co_freevars:
                    return None
            elif operation not in _HARMLESS and any(word in operation for word in _RISKY):
                return None
    if any(name.startswith(("__", *_FRAMES)) for name in attributes):
        return None
    return _Outside(tuple(paths), tuple(attributes))


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


# --- what only computes -----------------------------------------------------------------------------------

_BUILTINS: Final = (
    "abs all any bool bytes callable complex dict divmod enumerate filter float format frozenset int isinstance "
    "issubclass iter len list map max min next pow range repr reversed round set slice sorted str sum tuple zip"
).split()
# Of what a jail has of torch: what keeps a state, or is a class whose objects do.
_WITH_STATE: Final = frozenset(
    "Generator get_default_dtype set_default_dtype manual_seed seed initial_seed set_grad_enabled backward".split()
)
_PARTS: Final = frozenset("nn functional init linalg fft special func autograd".split())


@functools.cache
def _pure() -> Mapping[int, Any]:
    """What only computes, by its id: of torch the functions that jails have too."""
    found = [getattr(builtins, name) for name in _BUILTINS]
    found += [value for value in vars(builtins).values() if isinstance(value, type) and issubclass(value, Exception)]
    found += [value for value in vars(math).values() if isinstance(value, BuiltinFunctionType)]
    found += [torch.cond, torch.while_loop, Any, *_of_torch(modules()["torch"])]
    return {id(value): value for value in found if type(value) is not FunctionType or is_of_torch(value)}


def _of_torch(space: Namespace) -> Iterator[Any]:
    for name, value in members(space).items():
        if isinstance(value, Namespace):
            if name in _PARTS:
                yield from _of_torch(value)
        elif name not in _WITH_STATE and callable(value) and not _is_module(value):
            yield value


def _is_module(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, torch.nn.Module)


# --- what torch itself goes by ----------------------------------------------------------------------------


def surroundings() -> Hashable | None:
    """The settings of torch's on which it hangs what a function does; None where something stands between a function
    and torch that may do anything."""
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
        return None
    versions = [version(each) for each in (torch, torch.nn.functional, torch.Tensor)]
    if None in versions:
        return None
    return (
        *versions,
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        torch._C._get_flash_sdp_enabled(),
        torch._C._get_math_sdp_enabled(),
    )
