"""The operations of a jail's code, each through the table: checked, bounded and laid out as anywhere else.

Below autograd and below every Python function of torch's, so that it makes no difference by which of them an operation
was called. What torch calls inside and the table does not have is said in what it has (compute/rewrites.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from compute.interpreter import Execute
from compute.operations import OPERATIONS, substitute
from compute.rewrites import rewritten
from compute.table import Entry, lookup
from protocol.errors import BadTensor, OperationFailed, OperationNotAllowed

_PLACES: Final = ("device", "layout", "pin_memory")
# They give memory as it was, which operations then fill; here it is filled at once.
_UNFILLED: Final = {
    "aten.empty.memory_format": "aten.zeros.default",
    "aten.empty_like.default": "aten.zeros_like.default",
    "aten.new_empty.default": "aten.new_zeros.default",
}
_NATIVE: Final = {each.__name__: each for each in (IndexError, ValueError, TypeError, NotImplementedError)}
_Way = Callable[[Sequence[Any], Mapping[str, Any]], Any]


class Gate(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, operations run through `execute`.

    Raises (from whatever was called):
        OperationNotAllowed, BadRequest, TooLarge, OperationFailed: as for any operation at a peer.
    """

    def __init__(self, execute: Execute) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._execute = execute
        self._ways: dict[Any, _Way] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        way = self._ways.get(func)
        if way is None:
            way = self._ways[func] = self._way(func)
        kwargs = kwargs or {}
        if any(name in kwargs for name in _PLACES):
            _check_place(kwargs)
            kwargs = {name: value for name, value in kwargs.items() if name not in _PLACES}
        try:
            return way(args, kwargs)
        except OperationFailed as error:
            kind = _NATIVE.get(str(error.fields.get("type")))
            if kind is None:
                raise
            raise kind(error.message) from None  # as torch raises it: code that catches it does so by this name

    def _way(self, func: Any) -> _Way:
        name = f"{func.namespace}.{func._opname}.{func._overloadname}"
        if name in _AS_THEY_ARE:
            return lambda args, kwargs: func(*args, **kwargs)
        if name in _READ:
            return lambda args, kwargs: func(*[self._read(value) for value in args], **kwargs)
        if name in _UNFILLED:
            filled = lookup(_UNFILLED[name])
            return lambda args, kwargs: self._execute(filled, args, _without_format(kwargs, filled))
        if name in OPERATIONS:
            entry = lookup(name)
            return lambda args, kwargs: self._execute(entry, args, kwargs)
        return lambda args, kwargs: self._otherwise(func, name, args, kwargs)

    def _otherwise(self, func: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        other, args, kwargs = substitute(name, args, kwargs)
        if other in OPERATIONS:
            return self._execute(lookup(other), args, kwargs)
        rewrite = rewritten(other)
        with self:
            if rewrite is not None:
                return rewrite(*args, **kwargs)
            if func.namespace == "aten" and (value := func.decompose(*args, **kwargs)) is not NotImplemented:
                return value
        if any(argument.is_out for argument in func._schema.arguments):
            raise OperationNotAllowed(f"out= is not there in a jail: write y = {func._opname}(...)", operation=name)
        lookup(name)  # says so
        raise OperationNotAllowed(f"{name} is not there in a jail", operation=name)

    def _read(self, value: Any) -> Any:
        """Something whose values are read outside the table: as a copy, for which it is checked."""
        if not isinstance(value, torch.Tensor):
            return value
        return self._execute(_CLONE, [value], {})


_CLONE: Final[Entry] = lookup("aten.clone.default")
# No values are read by these, and nothing is made.
_AS_THEY_ARE: Final = frozenset(
    "aten.detach.default aten.lift_fresh.default prim.device.default profiler._record_function_enter_new.default "
    "profiler._record_function_exit.default profiler._record_function_exit._RecordFunction".split()
)
_READ: Final = frozenset(
    {"aten._local_scalar_dense.default", "aten.item.default", "aten.equal.default", "aten.is_nonzero.default"}
)


def _without_format(kwargs: Mapping[str, Any], entry: Entry) -> dict[str, Any]:
    known = {parameter.name for parameter in entry.parameters}
    return {name: value for name, value in kwargs.items() if name in known}


def _check_place(kwargs: Mapping[str, Any]) -> None:
    device = kwargs.get("device")
    if device is not None and torch.device(device).type != "cpu":
        raise BadTensor(f"a jail computes on the CPU; leave device={str(device)!r} out")
