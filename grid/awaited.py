"""Operations whose result's shape depends on the data: queued like any other; what they give is to be awaited.

In a thread that may wait they give pointers at once (grid/blocking.py); where what decides is here (a mask that is a
local tensor), the shape is known here too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch

from compute.bounds import Result
from compute.nested import flat
from compute.table import Entry, lookup
from grid.arguments import Arguments, known_result, with_local_masks
from grid.blocking import block, can_block
from grid.handle import Handle
from grid.ids import fresh_id
from grid.unsized import Call, Shape, Unsized, described, results_of, results_of_unsized

if TYPE_CHECKING:
    from grid.pointer import Pointer
    from grid.remote import RemotePeer

Post = Callable[..., Any]

# How the first result lies in memory follows from strides in ways that only the kernel knows.
_ANY_LAYOUT: Final = frozenset(
    f"aten.{name}" for name in ("index.Tensor", "unique_dim.default", "unique_consecutive.default")
)


class Awaited:
    """`kind` is the class of pointers; `post(home, function, name, args, kwargs)` queues an operation."""

    def __init__(self, kind: type[Pointer], post: Post) -> None:
        self._kind = kind
        self._kinds = (kind, Unsized)
        self._post = post

    def post(
        self, home: RemotePeer, function: Any, entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """An operation whose result's shape the inputs' shapes do not tell."""
        name = entry.name
        if entry.gives_list:  # in inference mode `where` comes here whole
            return function.decompose(*args, **kwargs)
        positions = with_local_masks(name, args, self._kinds)
        if positions is not args:
            return self._post(home, function, name, positions, kwargs)
        call = entry.named(args, kwargs)
        known = known_result(name, call, self._kinds)
        if known is not None:
            return self._pointer(self._ask(home, entry, args, kwargs, 1)[0], known)
        return self._results(home, function, entry, args, kwargs, results_of(name, call, entry.n_results))

    def of_unsized(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """An operation of TAKES_UNSIZED on something that has no known shape."""
        name = str(function)
        first: Any = next(value for value in flat(args) if isinstance(value, self._kinds))
        if name in ("aten.detach.default", "aten.alias.default"):
            return Unsized.of(first._handle, first.dtype, first._sizes, first._operation)
        home, entry = first._handle.home, lookup(name)
        if name.startswith("aten.index_put"):
            return self._put(home, entry, args, kwargs)
        made = self._results(home, function, entry, args, kwargs, results_of_unsized(name, args))
        return [made] if entry.gives_list and not isinstance(made, tuple) else made

    def _put(self, home: RemotePeer, entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Assignment: its result is as large as what is assigned to."""
        changed, indices, value = args[:3]
        for each in (changed, value):
            if isinstance(each, Unsized):
                each._needs_await("an assignment")
        if has_history([value]):
            next(index for index in indices if isinstance(index, Unsized))._needs_await("a gradient")
        arguments = Arguments(self._kinds, home)
        wire_args, wire_kwargs = arguments.write(entry, args, kwargs)
        if entry.is_inplace:
            concerned = changed._handle.write(entry.name)
            home.outbox.post([entry.name, wire_args, wire_kwargs, []], concerned)
            return changed
        handle = Handle(home, fresh_id(), owns=True)
        home.outbox.post([entry.name, wire_args, wire_kwargs, [handle.id]], (handle,))
        return self._pointer(handle, Result.contiguous(changed.dtype, tuple(changed.shape)))

    def _results(
        self,
        home: RemotePeer,
        function: Any,
        entry: Entry,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        sizes: list[tuple[torch.dtype, Shape]],
    ) -> Any:
        handles = self._ask(home, entry, args, kwargs, len(sizes))
        made: list[Any] = []
        if can_block():
            made = [self._described(handle, entry.name) for handle in handles]
        else:
            is_traced = has_history(args)
            call = Call(function, args, kwargs) if is_traced and len(sizes) == 1 else None
            for handle, (dtype, shape) in zip(handles, sizes, strict=True):
                is_differentiated = is_traced and (dtype.is_floating_point or dtype.is_complex)
                its = call if is_differentiated else None
                made.append(Unsized.of(handle, dtype, shape, entry.name, its, is_differentiated=is_differentiated))
        return made[0] if len(made) == 1 else tuple(made)

    def _ask(
        self, home: RemotePeer, entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any], count: int
    ) -> list[Handle]:
        arguments = Arguments(self._kinds, home)
        wire_args, wire_kwargs = arguments.write(entry, args, kwargs)
        handles = [Handle(home, fresh_id(), owns=True) for _ in range(count)]
        home.outbox.post([entry.name, wire_args, wire_kwargs, [handle.id for handle in handles]], handles)
        if entry.name not in _ANY_LAYOUT or _has_plain_layout(args):
            return handles
        laid = Handle(home, fresh_id(), owns=True)
        kept = {"memory_format": {"memory_format": "contiguous_format"}}
        home.outbox.post(["aten.clone.default", [handles[0].id], kept, [laid.id]], (laid,))
        return [laid, *handles[1:]]

    def _described(self, handle: Handle, operation: str) -> Pointer:
        return self._pointer(handle, block(handle.home, lambda: described(handle, operation)))

    def _pointer(self, handle: Handle, result: Result) -> Pointer:
        return self._kind.of(handle, result.dtype, result.shape, result.stride)


def has_history(args: Sequence[Any]) -> bool:
    """Whether what is made of these is part of a graph."""
    if not torch.is_grad_enabled():
        return False
    return any(isinstance(value, torch.Tensor) and value.requires_grad for value in flat(args))


def _has_plain_layout(args: Sequence[Any]) -> bool:
    given, indices = args[0], args[1] if len(args) > 1 else None
    if not isinstance(given, torch.Tensor) or not isinstance(indices, list | tuple):
        return False
    return given.is_contiguous() and sum(index is not None for index in indices) == 1
