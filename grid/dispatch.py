"""ATen operations on pointers: each is queued at the peer of its pointers, and its results are pointers at once.

The shapes of the results come from the shapes of the inputs (compute/estimate.py); no data are needed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch

from compute.bounds import Result
from compute.estimate import infer
from compute.operations import substitute
from compute.table import Entry, lookup
from compute.values import encode_call, inline_tensor
from grid.handle import Handle
from grid.ids import fresh_id
from protocol.errors import BadRequest, NeedsAwait, NotCollocated

if TYPE_CHECKING:
    from grid.pointer import Pointer
    from grid.remote import RemotePeer

_SAME_OBJECT: Final = frozenset({"aten.detach.default", "aten.alias.default", "aten.lift_fresh.default"})
_PLAIN_VALUES: Final = {
    "aten._local_scalar_dense.default": ".item()",
    "aten.item.default": ".item()",
    "aten.is_nonzero.default": "bool()",
    "aten.equal.default": "torch.equal()",
    "aten.allclose.default": "torch.allclose()",
}
_PLACES: Final = frozenset({"device", "layout", "pin_memory", "non_blocking"})  # the peer decides where and how
_names: dict[Any, str] = {}


class Dispatch:
    """What becomes of an operation; `kind` is the class of pointers. Called as `dispatch(function, args, kwargs)`.

    Raises:
        NotCollocated: the pointers are at different peers, or one argument is here.
        NeedsAwait: the result is a plain value, or its shape depends on data.
        OperationNotAllowed, BadRequest, OperationFailed: as the peer would refuse it.
    """

    def __init__(self, kind: type[Pointer]) -> None:
        self._kind = kind

    def __call__(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        name = _name(function)
        if name in _SAME_OBJECT and isinstance(args[0], self._kind):
            return self._share(args[0])
        pointers = self._pointers(args, kwargs)
        if name in _PLAIN_VALUES:
            pointers[0]._needs_await(_PLAIN_VALUES[name])
        home = pointers[0]._handle.home
        for pointer in pointers:
            handle = pointer._handle
            if handle.target is not None:
                return self._through_chain(function, args, kwargs, pointers)
            if handle.home is not home:
                home = _home(name, pointers)
        if kwargs:
            kwargs = {key: value for key, value in kwargs.items() if key not in _PLACES}
        name, args, kwargs = substitute(name, args, kwargs)
        return self._post(home, name, args, kwargs)

    def _post(self, home: RemotePeer, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        entry = lookup(name)
        bound, named = entry.bind(args, kwargs)
        estimate = infer(entry, bound, named)
        if not estimate.is_exact:
            raise NeedsAwait(
                f"the shape of what {name} gives depends on the data, which are at {home.name}: compute it inside a "
                "plan (grid.run), or await the values first",
                operation=name,
            )
        wire_args, wire_kwargs = encode_call(args, kwargs, _Reference(self._kind, home))
        if entry.is_inplace:
            changed = args[0]
            _check_keeps_shape(name, changed, estimate.results[0])
            home.outbox.post([name, wire_args, wire_kwargs, []], (changed._handle,))
            return changed
        if entry.n_results == 1 and not entry.writes and not entry.gives_list and (result := estimate.results[0]):
            handle = Handle(home, fresh_id(), owns=True)
            home.outbox.post([name, wire_args, wire_kwargs, [handle.id]], (handle,))
            return self._kind.of(handle, result.dtype, result.shape, result.stride)
        made = [self._result(home, result) for result in estimate.results]
        handles = [pointer._handle for pointer in made if pointer is not None]
        written = [pointer._handle for pointer in self._written(entry, args, kwargs)]
        home.outbox.post([name, wire_args, wire_kwargs, [handle.id for handle in handles]], (*handles, *written))
        if entry.gives_list:
            return made
        return made[0] if entry.n_results == 1 else tuple(made)

    def _share(self, pointer: Pointer) -> Pointer:
        """A second tensor for the same object: what detach() and alias() are."""
        return self._kind.of(pointer._handle, pointer.dtype, pointer.shape, pointer.stride())

    def _result(self, home: RemotePeer, result: Result | None) -> Pointer | None:
        if result is None:
            return None
        return self._kind.of(Handle(home, fresh_id(), owns=True), result.dtype, result.shape, result.stride)

    def _written(self, entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Pointer]:
        if not entry.writes:
            return []
        call = entry.named(args, kwargs)
        values = [call[entry.parameters[position].name] for position in entry.writes]
        return [value for value in values if isinstance(value, self._kind)]

    def _pointers(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Pointer]:
        kind = self._kind
        found: list[Pointer] = []
        for value in (*args, *kwargs.values()) if kwargs else args:
            if isinstance(value, kind):
                found.append(value)
            elif isinstance(value, list | tuple):
                found.extend(item for item in value if isinstance(item, kind))
        return found

    def _through_chain(
        self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], pointers: list[Pointer]
    ) -> Any:
        """On pointers to pointers: the operation runs where the data are, and each hop points to its result."""
        hop = _home(_name(function), pointers)
        inner = self(
            function, _map(args, self._target), {key: _map(value, self._target) for key, value in kwargs.items()}
        )
        if _name(function).split(".")[1].endswith("_"):
            return args[0]
        return _map(inner, lambda value: hop.link_soon(value) if isinstance(value, self._kind) else value)

    def _target(self, value: Any) -> Any:
        if not isinstance(value, self._kind):
            return value
        if value._handle.target is None:
            raise NotCollocated(
                f"{value!r} holds its data itself, the others are pointers to pointers: pull those first "
                "(await pointer.remote_get())"
            )
        return value._handle.target


class _Reference:
    """How a tensor among the arguments is written: a pointer by its id, a local tensor of no dimensions by value."""

    def __init__(self, kind: type[Pointer], home: RemotePeer) -> None:
        self._kind = kind
        self._home = home

    def __call__(self, tensor: torch.Tensor) -> Any:
        if isinstance(tensor, self._kind):
            tensor._handle.check()
            return tensor._handle.id
        if tensor.dim() == 0:
            return inline_tensor(tensor)
        raise NotCollocated(
            f"one tensor, {list(tensor.shape)}, is here and the others are at {self._home.name}: send it there first "
            f"(await g[{self._home.name!r}].send(tensor))"
        )


def _check_keeps_shape(name: str, changed: Pointer, result: Result | None) -> None:
    if result is not None and (result.shape != tuple(changed.shape) or result.dtype != changed.dtype):
        plain = name.split(".")[1].rstrip("_")
        raise BadRequest(
            f"{plain}_() would change the shape of a pointer in place: write x = x.{plain}(...) instead", operation=name
        )


def _home(name: str, pointers: list[Pointer]) -> RemotePeer:
    first = pointers[0]
    for other in pointers:
        if other._handle.home is not first._handle.home:
            here, there = first.location.name, other.location.name
            raise NotCollocated(
                f"{first!r} is at {here}, {other!r} is at {there}: bring them together first, for example "
                f"'y = await y.move(g[{here!r}])'",
                operation=name,
            )
    return first._handle.home


def _map(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_map(item, change) for item in value)
    return change(value)


def _name(function: Any) -> str:
    name = _names.get(function)
    if name is None:
        name = _names[function] = f"{function.namespace}.{function._opname}.{function._overloadname}"
    return name
