"""One operation of a stretch (stretches.py) as a worker runs it: checked once; then only what may differ is looked at.

In the form in which a stretch comes, objects are numbers of 16 bytes, and floats are in order.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from compute import table
from compute.estimate import Estimate, check_allowed, failed, guarded
from compute.interpreter import call
from compute.known import stride_of
from compute.layout import laid_out
from compute.proven import Call, proven
from compute.value_guards import is_readable
from compute.writes import CHECK, written_positions
from peer.worker import repeated
from peer.worker.execution import guarded_among, run
from peer.worker.objects import Objects
from peer.worker.randomness import GENERATOR
from protocol.ids import ID_BYTES

_NO_PLAN: Final = repeated.Plan(Estimate((), 0, 0), None)
_LONG: Final = frozenset({"size", "linalg"})


@dataclass(slots=True)
class Step:
    """One operation, checked.

    Attributes:
        args, kwargs: its arguments, but for those that vary.
        tensors, lists: where among `args` values go, by their slots.
        floats, named: where among `args` and `kwargs` floats go, by their numbers.
        written: slots that it is the first of the stretch to write.
        outs: the slots of its results.
        looks: of all tensors that it gives.
        last: slots of what the stretch makes, and no operation after this one uses.
        plan: what is known of it.
        is_plain: nothing but memory and time have to be looked at before it runs.
        strides: of its results, which it mostly gives as they are; none of an operation that needs more than a look.
        is_long: nothing is known: it is looked at each time, and runs as it would alone.
    """

    entry: table.Entry
    is_long: bool
    outs: tuple[int, ...]
    looks: list[tuple[Any, ...]]
    args: list[Any]
    kwargs: dict[str, Any]
    tensors: tuple[tuple[int, int], ...] = ()
    lists: tuple[tuple[int, tuple[int, ...]], ...] = ()
    floats: tuple[tuple[int, int], ...] = ()
    named: tuple[tuple[str, int], ...] = ()
    written: tuple[int, ...] = ()
    last: tuple[int, ...] = ()
    plan: repeated.Plan = _NO_PLAN
    is_plain: bool = False
    strides: tuple[tuple[int, ...] | None, ...] = ()

    def run(self, objects: Objects, values: Sequence[Any], floats: Sequence[float], is_free: bool) -> Any:
        """What the operation gives, if it is none that runs alone; raises what it would raise alone. All in one
        function: what is left beside the kernels is to be short.

        Args:
            is_free: whether there is memory and time for any operation of the stretch, and nothing to be checked
                before it is read.
        """
        args, kwargs = self.args.copy(), self.kwargs
        for at, slot in self.tensors:
            args[at] = values[slot]
        for at, slots in self.lists:
            args[at] = [values[slot] for slot in slots]
        for at, number in self.floats:
            args[at] = floats[number]
        if self.named:
            kwargs = kwargs.copy()
            for name, number in self.named:
                kwargs[name] = floats[number]
        estimate = self.plan.estimate
        if not (is_free and self.is_plain):
            if objects.guards and guarded_among(objects, args, kwargs):
                return run(objects, self.entry, args, kwargs)
            for slot in self.written:
                objects.check_writable(values[slot])
            if not is_free:
                check_allowed(self.entry.name, estimate)
            if self.plan.guard is not None and is_readable((*args, *kwargs.values())):
                guarded(self.entry.name, self.plan.guard, self.entry.named(args, kwargs))
        if not self.strides:
            return call(self.entry, args, kwargs, estimate.results)
        try:  # as `call` has it, without one
            value = self.entry.kernel(*args, **kwargs)
        except Exception as error:
            raise failed(self.entry.name, error) from None
        if type(value) is torch.Tensor:
            return value if value.stride() == self.strides[0] else laid_out(value, estimate.results)
        for tensor, stride in zip(value, self.strides, strict=False):
            if stride is not None and tensor is not None and tensor.stride() != stride:
                return laid_out(value, estimate.results)
        return value


class Learner:
    """Makes the steps of a plan out of operations that have just run, one after the other."""

    def __init__(self, objects: Objects, ids: Sequence[bytes]) -> None:
        self._objects = objects
        self._ids = ids
        self._looks: dict[int, tuple[Any, ...]] = {}  # of each slot, as it was first seen
        self._written: set[int] = set()
        self._floats = 0
        self._calls: list[Call] = []
        self.steps: list[Step] = []
        self.is_good = True

    def see(self, template: Any, operation: Any, tensors: list[torch.Tensor]) -> None:
        name, args, kwargs, outs = template
        entry = table.lookup(name)
        slots, floats = slots_in([*args, *kwargs.values()]), _Floats(self._floats)
        step = Step(entry, True, tuple(map(number_of, outs)), list(map(look_of, tensors)), [], {})
        self._fill(step, args, kwargs, operation, floats)
        self._floats = floats.count([*args, *kwargs.values()])
        # What an operation does to the shape of another tensor than its results, the steps after it do not know.
        self.is_good = self.is_good and all(map(self._is_as_it_was, (*slots, *step.outs)))
        self.steps.append(step)
        self._calls.append(Call(name, args, not kwargs, tuple(outs), _named(written_by([template]))))

    def finish(self, given: int) -> list[Step]:
        """The steps, of a stretch that is given so many objects: without checks of values that would find nothing."""
        ids = frozenset(number.to_bytes(ID_BYTES, "big") for number in range(given))
        for at in proven(self._calls, ids):
            self.steps[at].plan = replace(self.steps[at].plan, guard=None)
        used: set[int] = set()
        for step in reversed(self.steps):
            step.is_plain = stride_of(step.entry, step.plan.estimate, step.plan.guard) is not None
            if not step.entry.gives_list:
                step.strides = tuple(None if r is None else tuple(r.stride) for r in step.plan.estimate.results)
            slots = {*step.outs, *(slot for _, slot in step.tensors), *(slot for _, of in step.lists for slot in of)}
            step.last = tuple(slot for slot in slots - used if slot >= given)
            used |= slots
        return self.steps

    def _fill(self, step: Step, args: list[Any], kwargs: dict[str, Any], operation: Any, floats: _Floats) -> None:
        entry, objects = step.entry, self._objects
        is_long = GENERATOR in kwargs or entry.category in _LONG or entry.name == CHECK
        reading = None if is_long else repeated.read(entry, operation[1], operation[2], objects.tensors)
        plan = None if reading is None else repeated.find(reading)
        if reading is None or plan is None or not plan.estimate.is_exact or slots_in(list(kwargs.values())):
            return
        step.is_long, step.plan = False, plan
        step.args, step.kwargs = list(reading.args), dict(reading.kwargs)
        placed = list(enumerate(args))
        step.tensors = tuple((at, number_of(value)) for at, value in placed if type(value) is bytes)
        lists = [(at, slots_in(value)) for at, value in placed if type(value) is list]
        step.lists = tuple((at, tuple(slots)) for at, slots in lists if slots)
        step.floats = tuple((at, floats.next()) for at, value in placed if type(value) is float)
        step.named = tuple((key, floats.next()) for key, value in kwargs.items() if type(value) is float)
        for at, _ in (*step.tensors, *step.lists):
            step.args[at] = None  # or a plan would keep the tensors of one use alive
        written = slots_in([entry.argument(position, args, kwargs) for position in entry.written(args, kwargs)])
        step.written = tuple(slot for slot in dict.fromkeys(written) if slot not in self._written)
        self._written.update(written)

    def _is_as_it_was(self, slot: int) -> bool:
        tensor = self._objects.tensors.get(self._ids[slot])
        return tensor is not None and self._looks.setdefault(slot, look_of(tensor)) == look_of(tensor)


class _Floats:
    """Numbers the floats of an operation, in the order in which it has them."""

    def __init__(self, first: int) -> None:
        self._next = first
        self._first = first

    def next(self) -> int:
        self._next += 1
        return self._next - 1

    def count(self, values: Sequence[Any]) -> int:
        """The number of the first float after this operation, which has these arguments."""
        return self._first + count_floats(values)


def _named(written: Iterable[bytes | None]) -> list[Hashable] | None:
    """None where one of them is not known."""
    names = list(written)
    return None if None in names else [name for name in names if name is not None]


def look_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.stride()


def look_like(tensors: Sequence[torch.Tensor], looks: Sequence[tuple[Any, ...]]) -> bool:
    if len(tensors) != len(looks):
        return False
    for tensor, (dtype, shape, stride) in zip(tensors, looks, strict=True):
        if tensor.dtype is not dtype or tensor.shape != shape or tensor.stride() != stride:
            return False
    return True


def number_of(id: bytes) -> int:
    return int.from_bytes(id, "big")


def slots_in(values: Sequence[Any]) -> list[int]:
    """Those among these, and in lists of them, in order."""
    found: list[int] = []
    for value in values:
        if type(value) is bytes:
            found.append(number_of(value))
        elif type(value) is list:
            found += slots_in(value)
    return found


def count_floats(values: Sequence[Any]) -> int:
    return sum(count_floats(value) if type(value) is list else type(value) is float for value in values)


def written_by(operations: Sequence[Any]) -> Iterator[bytes | None]:
    """The ids of what operations may write, as they travel; None where that cannot be told."""
    for operation in operations:
        name, args = operation[0], operation[1]
        if name == CHECK:
            yield None  # it may spoil what a factorisation gave
            continue
        for position in written_positions(name):
            value = args[position] if position < len(args) else None
            yield value if type(value) is bytes else None
