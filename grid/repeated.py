"""Calls that were dispatched before: what was found out about one then holds for each that looks the same.

Two calls look the same where nothing differs but the objects that their pointers point to, and the values of floats:
the operation, dtypes, shapes and strides, types and values of integers, truth values and texts are the same. Then the
checks of the table come out the same, and so do the shapes of the results. What hangs on one object (that it is still
there, at this peer, of this era) is looked at in each call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgpack
import torch

from compute.bounds import Result
from compute.estimate import Estimate, hangs_on_floats
from compute.lazy import bits_of, with_bits
from compute.table import Entry
from compute.values import encode
from grid.handle import PUBLISHED, Handle, Memory
from grid.ids import fresh_id
from grid.layouts import Layout, layout
from grid.stretches import Look
from protocol import limits

if TYPE_CHECKING:
    from grid.pointer import Pointer
    from grid.remote import RemotePeer

PLACES: Final = frozenset({"device", "layout", "pin_memory", "non_blocking"})
"""Arguments that say where and how: the peer decides that."""


@dataclass(slots=True)
class Reading:
    """A call that looks like none that was dispatched.

    Attributes:
        key: what it looks like.
        args, kwargs: the arguments as they travel.
    """

    key: tuple[Any, ...]
    args: list[Any]
    kwargs: dict[str, Any]


UNREAD: Final = Reading((), [], {})
"""One that is to be looked at each time."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What becomes of a call that looks like one that was dispatched.

    Attributes:
        results: what it gives, and the shapes again, as tensors have them, and the layouts.
        changed: which of the tensors that it is given it changes, beside the one that is its result.
        nbytes: the size of the operation in a message; None where that is to be counted.
    """

    entry: Entry
    results: tuple[tuple[Result, torch.Size, Layout] | None, ...]
    changed: tuple[int, ...]
    nbytes: int | None

    @classmethod
    def of(cls, entry: Entry, estimate: Estimate, changed: tuple[int, ...], nbytes: int | None = None) -> Plan:
        results = tuple(None if result is None else _made(result) for result in estimate.results)
        return cls(entry, results, changed, nbytes)


_PLAIN: Final = frozenset({int, bool, str, type(None)})
_NAMED: Final = frozenset({torch.dtype, torch.memory_format})
_WHOLE: Final[tuple[set[type], ...]] = ({int}, {bool}, set())


class Repeated:
    """The plans, by what their calls look like; `kind` is the class of pointers, `kinds` are it and those below it. Any
    thread may use it."""

    def __init__(self, kind: type[Pointer], kinds: frozenset[type]) -> None:
        self._kind = kind
        self._kinds = kinds
        self._plans: dict[tuple[Any, ...], Plan] = {}

    def learn(self, reading: Reading, plan: Plan) -> None:
        """A call that looks like this was dispatched."""
        if len(self._plans) >= limits.MAX_PLANS:
            self._plans.clear()
        operation = [plan.entry.name, reading.args, reading.kwargs, [_SOME_ID] * len(plan.results)]
        self._plans[reading.key] = replace(plan, nbytes=len(msgpack.packb(operation)))

    def again(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Queue a call that looks like one before: its results. Else a Reading, and nothing was queued.

        That is UNREAD where its pointers are not all at one peer and well, or other arguments are among it than
        pointers, numbers, truth values, names, and lists of one of those.
        """
        kinds = self._kinds
        key: list[Any] = [name]
        pointers: list[Pointer] = []
        ids: list[bytes] = []
        floats: list[float] = []
        wire: list[Any] = []
        for value in args:
            type_ = type(value)
            if type_ in kinds:
                key.append(value._layout or _layout_of(value))
                pointers.append(value)
                id = value._handle.id
                ids.append(id)
                wire.append(id)
            elif type_ is float:
                key.append(float)
                floats.append(value)
                wire.append(value)
            elif type_ in _PLAIN:
                key += (type_, value)
                wire.append(value)
            elif type_ is list or type_ is tuple:
                items = self._read_list(value, key, pointers, ids)
                if items is None:
                    return UNREAD
                wire.append(items)
            elif type_ in _NAMED:
                key += (type_, value)
                wire.append(encode(value, _no_tensor))
            else:
                return UNREAD
        named = _read_named(kwargs, key, floats) if kwargs else {}
        if floats and hangs_on_floats(name):
            key += floats
        home = home_of(pointers)
        if home is None or named is None:
            return UNREAD
        plan = self._plans.get(looks := tuple(key))
        if plan is None:
            return Reading(looks, wire, named)
        return self.queue(plan, home, pointers, wire, named, (plan, ids, floats))

    def _read_list(
        self, values: Sequence[Any], key: list[Any], pointers: list[Pointer], ids: list[bytes]
    ) -> list[Any] | None:
        """The items as they travel, where all are pointers, all are integers, or all are truth values."""
        types = set(map(type, values))
        if types in _WHOLE:
            key += (list, *types, tuple(values))
            return list(values)
        if not types <= self._kinds:
            return None
        key += (list, self._kind, len(values))
        key += [value._layout or _layout_of(value) for value in values]
        pointers += values
        items = [value._handle.id for value in values]
        ids += items
        return items

    def queue(
        self,
        plan: Plan,
        home: RemotePeer,
        tensors: Sequence[Any],
        args: list[Any],
        kwargs: dict[str, Any],
        look: Look | None = None,
    ) -> Any:
        """Queue a call, of which these are the tensors in order; its results."""
        entry = plan.entry
        if entry.is_inplace:
            changed = tensors[0]
            concerned = changed._handle.write(entry.name)
            home.outbox.post([entry.name, args, kwargs, []], concerned, plan.nbytes, look)
            return changed
        made: list[Any] = []
        handles: list[Handle | Memory] = []
        outs: list[bytes] = []
        for planned in plan.results:
            if planned is None:
                made.append(None)
                continue
            result, shape, its_layout = planned
            offset, viewed = result.offset, None
            if result.of is not None:
                viewed = tensors[result.of]
                if not result.is_absolute:
                    offset += int(viewed.storage_offset()) * viewed.itemsize // result.dtype.itemsize
            out = fresh_id()
            outs.append(out)
            handle = Handle(home, out, owns=True)
            if viewed is not None:
                handle.memory, handle.looked_up = viewed._handle.shared_memory(), viewed._handle.looked_up
                handle.fixed = viewed._handle.fixed or (PUBLISHED if viewed._handle.is_published else "")
            handles.append(handle)
            pointer = self._kind.of(handle, result.dtype, shape, result.stride, offset=offset, view_of=viewed)
            if result.bits:
                with_bits(pointer, result.bits)
            pointer._layout = its_layout
            made.append(pointer)
        if plan.changed:
            for at in plan.changed:
                handles += tensors[at]._handle.write(entry.name)
        home.outbox.post([entry.name, args, kwargs, outs], handles, plan.nbytes, look)
        if entry.gives_list:
            return made
        if entry.n_results == 1:
            return made[0]
        return tuple(made) if entry.n_results else None


_SOME_ID: Final = bytes(16)


def _read_named(kwargs: Mapping[str, Any], key: list[Any], floats: list[float]) -> dict[str, Any] | None:
    named: dict[str, Any] = {}
    for name, value in kwargs.items():
        type_ = type(value)
        if name in PLACES:
            if name == "device" and value is not None:
                return None  # whether it is the peer's is looked at each time
        elif type_ is float:
            key += (name, float)
            floats.append(value)
            named[name] = value
        elif type_ in _NAMED:
            key += (name, type_, value)
            named[name] = encode(value, _no_tensor)
        elif type_ in _PLAIN and value is not None:
            key += (name, type_, value)
            named[name] = value
        else:
            return None
    return named


def home_of(pointers: Sequence[Pointer]) -> RemotePeer | None:
    """Where all of them are, and `Handle.check` surely has nothing to say of any; None where one is elsewhere, or lost,
    or a pointer to a pointer."""
    if not pointers:
        return None
    home = pointers[0]._handle.home
    era = home.outbox.era
    for pointer in pointers:
        handle = pointer._handle
        if handle.home is not home or handle.target is not None:
            return None
        if handle._gone is not None or handle._failure is not None or handle.looked_up is not None:
            return None
        if handle.owns and handle.era != era:
            return None
    return None if home.loop.is_closed() else home


def _layout_of(pointer: Pointer) -> Layout:
    pointer._layout = found = layout(pointer.dtype, pointer.shape, pointer.stride(), bits_of(pointer))
    return found


def _made(result: Result) -> tuple[Result, torch.Size, Layout]:
    shape = torch.Size(result.shape)
    return result, shape, layout(result.dtype, shape, tuple(result.stride), result.bits)


def _no_tensor(_: torch.Tensor) -> NoReturn:
    raise AssertionError("names have no tensors in them")
