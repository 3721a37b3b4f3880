"""Stretches of operations that come again and again (peer/stretch.py), as the worker runs them.

What is found out in one use holds for each whose given objects look the same (dtypes, shapes, strides): which entries
of the table the operations are, that their checks are passed, and what their results look like. So a use looks at the
given objects once, and then runs one kernel after the other. What hangs on data, on one tensor, or on how much is left
of a budget is looked at each time. Where anything comes out otherwise than it did (an operation fails, a result has
another shape) the rest of the use goes the way of single operations (execution.py), and so do kernels of which that
cannot be known (steps.py).

On the wire an operation of a stretch names objects by numbers of 16 bytes: those that a use is given first, then those
that it makes; each of its floats stands for the next one of a use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from compute import table
from compute.cost import ALLOWED
from compute.dtypes import NAME_OF
from compute.estimate import hangs_on_floats
from compute.interpreter import is_free
from compute.whole import is_whole
from peer.worker.execution import execute, fill, is_filling, keep, refused, tensors_in
from peer.worker.objects import Objects
from peer.worker.steps import Learner, Step, count_floats, look_like, number_of, written_by
from protocol import limits
from protocol.errors import GridError, OperationNotAllowed
from protocol.ids import ID_BYTES, splitter

_PLANS: Final = 4  # of one stretch: inputs of so many different looks may take turns
_TRIES: Final = 8  # uses in a row that looked like none before: then nothing more is learned of it

Look = list[Any]
"""dtype, shape and stride of each tensor, and the floats on which checks depend."""
Beat = Callable[[int], None]
"""Is told how many operations are done, each limits.LOOK_AHEAD seconds, between two operations."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What is known of the uses whose given objects look so.

    Attributes:
        results: what all operations give, as it is told.
        is_whole: all of them write every element of that (compute/whole.py).
        has_long: some are looked at each time.
        is_writing: some change what the stretch is given, or what it made.
        most: bytes that the others take at most: all their results, and what the largest needs. `seconds`: how long
            one takes, at least.
    """

    look: Look
    steps: list[Step]
    results: list[Any]
    is_whole: bool
    has_long: bool
    is_writing: bool
    most: int
    seconds: float

    @classmethod
    def of(cls, look: Look, steps: list[Step], results: list[Any]) -> Plan:
        estimates = [step.plan.estimate for step in steps]
        return cls(
            look,
            steps,
            results,
            is_whole=all(is_whole(step.entry) for step in steps),
            has_long=any(step.is_long for step in steps),
            is_writing=any(step.written for step in steps),
            most=sum(estimate.nbytes for estimate in estimates)
            + max((estimate.largest for estimate in estimates), default=0),
            seconds=max((estimate.cost.seconds for estimate in estimates), default=0.0),
        )


class Stretch:
    """Operations as they came from the peer, and the plans for them; `told` is that whose results the peer knows."""

    def __init__(self, operations: list[Any]) -> None:
        self.operations = operations
        self.told: Plan | None = None
        self._plans: list[Plan] = []
        self._misses = 0
        self._shaping = _shaping(operations)
        self._reshapes = any(map(_reshapes, operations))
        self._written = _written(operations)

    def find(self, given: Sequence[torch.Tensor | None], floats: Sequence[float]) -> tuple[Look | None, Plan | None]:
        """What a use looks like, and the plan for that, if there is one; None and None where one of its tensors is not
        there."""
        look: Look = []
        for tensor in given:
            if tensor is None:
                return None, None
            look += (tensor.dtype, tensor.shape, tensor.stride())
        for number in self._shaping:
            look.append(floats[number])
        for plan in self._plans:
            if plan.look == look:
                self._misses = 0
                return look, plan
        self._misses += 1
        return look, None

    def written(self, done: int, ids: Sequence[bytes]) -> list[bytes | None]:
        """The ids of what the operations after the first `done` may write, None for one that may be anything's; `ids`
        are those of a use."""
        return [None if slot is None else ids[slot] for at, slot in self._written if at >= done]

    @property
    def may_learn(self) -> bool:
        # What changes a tensor's shape in place gives other things where one tensor is given twice.
        return self._misses <= _TRIES and not self._reshapes

    def learn(self, plan: Plan) -> None:
        self._plans.insert(0, plan)
        del self._plans[_PLANS:]

    def filled(self, ids: Sequence[bytes], floats: Sequence[float]) -> list[Any]:
        """The operations of one use, as they travel alone."""
        rest = iter(floats)
        return [
            [
                name,
                [_filled(value, ids, rest) for value in args],
                {key: _filled(value, ids, rest) for key, value in kwargs.items()},
                [ids[number_of(out)] for out in outs],
            ]
            for name, args, kwargs, outs in self.operations
        ]


class Use:
    """One run of a stretch: `run` gives what its operations came to, one after the other, as it is told to the peer;
    or None where that is what it told the last time.

    What it makes and nobody wants afterwards (`unwanted`, dropped in any case when it is over) may be gone before.
    """

    def __init__(
        self,
        objects: Objects,
        stretch: Stretch,
        given: bytes,
        made: bytes,
        floats: Sequence[float],
        unwanted: frozenset[bytes] = frozenset(),
    ) -> None:
        self._objects = objects
        self._stretch = stretch
        self._floats = floats
        self._given = splitter(len(given) // ID_BYTES)(given)
        made_ids = splitter(len(made) // ID_BYTES)(made)
        self.ids = self._given + made_ids
        self._unwanted = unwanted.intersection(made_ids)
        self._operations: list[Any] | None = None
        self._results: list[Any] = []
        self._fault: dict[str, Any] = {}  # of the operation that failed last

    def run(self, beat: Beat) -> list[Any] | None:
        objects, stretch = self._objects, self._stretch
        values: list[Any] = list(map(objects.tensors.get, self._given))
        look, plan = stretch.find(values, self._floats) if objects.is_on_cpu else (None, None)
        if plan is not None:
            was = is_filling()
            fill(was and not plan.is_whole)  # as Unfilled has it, without a call
            try:
                done = self._run_known(plan, values, beat)
            finally:
                fill(was)
            if done == len(plan.steps):
                told, stretch.told = stretch.told, plan
                return None if told is plan else plan.results
            self._run_rest(beat)
            stretch.told = None
        elif look is not None and stretch.may_learn:
            stretch.told = self._run_learning(look, beat)
        else:
            self._run_rest(beat)
            stretch.told = None
        return self._results

    @property
    def operations(self) -> list[Any]:
        """As they travel alone."""
        if self._operations is None:
            self._operations = self._stretch.filled(self.ids, self._floats)
        return self._operations

    # --- as before ----------------------------------------------------------------------------------------

    def _run_known(self, plan: Plan, values: list[Any], beat: Beat) -> int:
        """How many operations came out as the plan says. Where these are not all of them, `_results` has what came of
        them, and of one more."""
        objects, ids, floats, steps, at = self._objects, self.ids, self._floats, plan.steps, 0
        values += [None] * (len(ids) - len(values))
        brief = self._brief(plan, values) if self._unwanted else ()
        # Whether there is room and time for all that the stretch may take, and nothing to be checked before it is read.
        has_room = not objects.guards and is_free(plan.most, plan.seconds)
        due, last = time.perf_counter() + limits.LOOK_AHEAD, len(steps) - 1
        value: Any = None
        tensors: Any = None
        try:
            for at, step in enumerate(steps):
                if step.is_long:
                    value = self._long(at)
                    if value is None or not look_like(value, step.looks):
                        self._results = plan.results[:at]
                        self._note(at, step, value)
                        return at
                    for slot, tensor in zip(step.outs, value, strict=False):
                        values[slot] = tensor
                else:
                    value = step.run(objects, values, floats, has_room)
                    tensors = (value,) if type(value) is torch.Tensor else tensors_in(value)
                    for slot, tensor in zip(step.outs, tensors, strict=False):
                        values[slot] = tensor
                        if slot not in brief:
                            objects.put(ids[slot], tensor)
                if step.is_long or step.written:  # that may take memory
                    has_room = not objects.guards and is_free(plan.most, plan.seconds)
                value = tensor = tensors = None  # a name for it here would keep it alive during the next step
                if brief:
                    for slot in step.last:
                        values[slot] = None
                if at < last and time.perf_counter() > due:
                    due = time.perf_counter() + limits.LOOK_AHEAD
                    beat(at + 1)
        except Exception as problem:
            for slot in brief:  # what comes now finds by its id what it needs of them
                if values[slot] is not None:
                    objects.put(ids[slot], values[slot])
            _, args, kwargs, _ = self.operations[at]
            error = refused(objects, self.operations[at], steps[at].entry, args, kwargs, problem)
            self._results = [*plan.results[:at], error.to_fault()]
            return at
        return len(steps)

    def _brief(self, plan: Plan, values: Sequence[Any]) -> Collection[int]:
        """The slots of what lives only until its last use: its memory is still in the processor's cache for the next.
        Nothing, where that cannot be counted on: what is looked at each time finds objects by their ids, and is told
        how much is held; and so is what takes memory by being written."""
        if plan.has_long:
            return ()
        objects, first, unwanted = self._objects, len(self._given), self._unwanted
        copied = objects.copied_when_written(values) if plan.is_writing else 0
        if ALLOWED.held + plan.most + copied > ALLOWED.memory:
            return ()
        brief = {slot: id for slot, id in enumerate(self.ids[first:], first) if id in unwanted}
        return brief.keys() if objects.tensors.keys().isdisjoint(brief.values()) else ()

    def _long(self, at: int) -> list[torch.Tensor] | None:
        """Runs one that is looked at each time; None where it failed, and that is noted."""
        result = execute(self._objects, self.operations[at])
        if isinstance(result, GridError):
            self._fault = result.to_fault()
            return None
        return result

    def _note(self, at: int, step: Step, tensors: Sequence[torch.Tensor] | None) -> None:
        """An operation failed, or gave something else than it did before."""
        if tensors is None:
            self._results.append(self._fault)
            return
        if not step.is_long:
            keep(self._objects, list(tensors), self.operations[at][3], step.entry)
        self._results.append(told(tensors))

    # --- one by one ---------------------------------------------------------------------------------------

    def _run_rest(self, beat: Beat) -> None:
        due = time.perf_counter() + limits.LOOK_AHEAD
        for operation in self.operations[len(self._results) :]:
            result = execute(self._objects, operation)
            self._results.append(result.to_fault() if isinstance(result, GridError) else told(result))
            if time.perf_counter() > due:
                due = time.perf_counter() + limits.LOOK_AHEAD
                beat(len(self._results))

    def _run_learning(self, look: Look, beat: Beat) -> Plan | None:
        """One by one; gives what was found out, which is kept for the next use."""
        learner = Learner(self._objects, self.ids)
        due = time.perf_counter() + limits.LOOK_AHEAD
        for template, operation in zip(self._stretch.operations, self.operations, strict=True):
            result = execute(self._objects, operation)
            if isinstance(result, GridError):
                self._results.append(result.to_fault())
                self._run_rest(beat)
                return None
            self._results.append(told(result))
            learner.see(template, operation, result)
            if time.perf_counter() > due:
                due = time.perf_counter() + limits.LOOK_AHEAD
                beat(len(self._results))
        if not learner.is_good:
            return None
        steps = learner.finish(len(self._given))
        plan = Plan.of(look, steps, self._results)
        self._stretch.learn(plan)
        return plan


def told(tensors: Sequence[torch.Tensor]) -> list[Any]:
    """What an operation gave, as the peer is told it."""
    return [
        [NAME_OF[tensor.dtype], tensor.shape] for tensor in tensors
    ]  # a torch.Size is a tuple; the peer checks both


def _reshapes(operation: Any) -> bool:
    try:
        return table.lookup(operation[0]).reshapes
    except OperationNotAllowed:
        return False  # it does nothing


def _shaping(operations: Sequence[Any]) -> tuple[int, ...]:
    """The numbers of the floats on which what the checks find out depends."""
    found: list[int] = []
    first = 0
    for name, args, kwargs, _ in operations:
        count = count_floats([*args, *kwargs.values()])
        if count and hangs_on_floats(name):
            found += range(first, first + count)
        first += count
    return tuple(found)


def _written(operations: Sequence[Any]) -> list[tuple[int, int | None]]:
    """(operation, slot) of all that is written, in order."""
    found: list[tuple[int, int | None]] = []
    for at, operation in enumerate(operations):
        found += [(at, None if id is None else number_of(id)) for id in written_by([operation])]
    return found


def _filled(value: Any, ids: Sequence[bytes], floats: Any) -> Any:
    kind = type(value)
    if kind is bytes:
        return ids[number_of(value)]
    if kind is float:
        return next(floats)
    if kind is list:
        return [_filled(item, ids, floats) for item in value]
    if kind is dict:
        return dict(value)
    return value
