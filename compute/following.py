"""A program followed on shapes alone: what its values are, what it costs, and how much memory it needs at most.

It is interpreted on meta tensors, each body once for each set of shapes that it is given, whatever the loops around it
say: their iterations are multiplied out. Memory is counted as the interpreter lets go of values. Where a shape depends
on data, or an input may be of any shape, a value is Unknown, and so is what is computed of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from compute import interpreter, iterating, numbers
from compute.bounds import Result
from compute.cost import NOTHING, Cost
from compute.estimate import Estimate
from compute.flow import Flow
from compute.program import Program
from compute.stand_ins import (
    Books,
    Memory,
    has_unknown,
    kind_of,
    look_of,
    memory_of,
    meta,
    on,
    stand_in_for,
    tensors_in,
    unknown_of,
    with_stand_ins,
)
from compute.table import Entry
from compute.unknown import UNKNOWN, Unknown
from protocol import limits
from protocol.errors import BadProgram, BadRequest
from protocol.sizes import beyond

STEP: Final = 1e-6  # seconds that one operation or iteration takes at least, whatever it works on

Inferred = Callable[[Entry, Sequence[Any], Mapping[str, Any]], Estimate | None]
"""What an operation gives and takes; None where that is not to be known. Raises what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Followed:
    """What was found out.

    Attributes:
        outputs: as the program gives them: meta tensors, numbers, Unknown.
        cost: at least.
        peak: bytes in use at most, without the inputs; of two branches the larger, of a loop without a count one
            iteration.
    """

    outputs: Any
    cost: Cost
    peak: int


def follow(program: Program, inputs: Sequence[Any], inferred: Inferred) -> Followed:
    """Follows it for these inputs: tensors, of which only dtype, shape and strides matter, or Unknown.

    Raises:
        BadProgram: branches that give different things.
        TooLarge: bodies in bodies that are given ever other shapes: more than limits.MAX_FOLLOWED operations.
        GridError: what `inferred` raises, with the node.
    """
    books = Books()
    given = [stand_in_for(value, books) for value in inputs]
    found = interpreter.run(program, given, _Follower(books, inferred))
    return Followed(found, books.cost, books.peak)


@dataclass(frozen=True, slots=True)
class _Ran:
    """A body that was followed: its outputs, and for each the input whose memory it shares, or the number of the fresh
    memory that it lies in; how large those are; cost and peak."""

    outputs: tuple[Any, ...]
    places: tuple[tuple[bool, int], ...]
    sizes: tuple[int, ...]
    cost: Cost
    peak: int


class _Follower:
    """How the interpreter runs operations and loops on stand-ins."""

    def __init__(self, books: Books, inferred: Inferred) -> None:
        self._books = books
        self._inferred = inferred
        self._ran: dict[tuple[Any, ...], _Ran] = {}

    def __call__(self, entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        books = self._books
        books.left -= 1
        if books.left < 0:
            sentence = "bodies that are given ever other shapes: more than {allowed} operations to look at"
            raise beyond("MAX_FOLLOWED", limits.MAX_FOLLOWED + 1, sentence)
        books.spend(Cost(0, STEP))
        if has_unknown((*args, *kwargs.values())):
            entry.bind(*with_stand_ins(entry, args, kwargs))
            return unknown_of(entry, args, kwargs)
        bound, named = entry.bind(args, kwargs)
        if entry.category == "size":
            return entry.overload(*bound, **named)
        estimate = self._inferred(entry, bound, named)
        if estimate is None:
            return unknown_of(entry, args, kwargs)
        books.spend(estimate.cost)
        books.need(max(estimate.nbytes, estimate.largest))
        if not estimate.is_exact:
            return unknown_of(entry, args, kwargs)
        if entry.is_inplace:  # it may change the very shape of its argument
            return entry.overload(*bound, **named)
        return self._results(entry, estimate, tensors_in((*bound, *named.values())))

    def _results(self, entry: Entry, estimate: Estimate, given: Sequence[torch.Tensor]) -> Any:
        made = [self._tensor(result, given) for result in estimate.results]
        return made if entry.gives_list else made[0] if entry.n_results == 1 else tuple(made)

    def _tensor(self, result: Result | None, given: Sequence[torch.Tensor]) -> Any:
        if result is None:
            return None
        memory = Memory(result.nbytes, self._books) if result.of is None else memory_of(given[result.of])
        return on(memory, torch.empty_strided(result.shape, result.stride, dtype=result.dtype, device="meta"))

    def stand_in(self, tensor: torch.Tensor) -> torch.Tensor:
        """For a constant."""
        memory = Memory(tensor.numel() * tensor.element_size(), self._books)
        self._books.need(0)
        return on(memory, meta(tensor))

    @staticmethod
    def number(operation: str, args: Sequence[Any]) -> Any:
        """Arithmetic on numbers."""
        return UNKNOWN if any(isinstance(value, Unknown) for value in args) else numbers.compute(operation, args)

    # --- loops and branches -------------------------------------------------------------------------------

    def flow(self, flow: Flow, carried: list[Any], body: iterating.RunBody) -> list[Any]:
        """What a loop or branch gives."""
        if flow.name == "flow.cond":
            return self._cond(flow, body)
        if flow.name == "flow.while":
            self._truth(self._run(flow.bodies[0], [*carried, *flow.operands], body)[0])
            return self._iterate(flow, carried, [], body, 0)
        if flow.name == "flow.repeat":
            is_known = not isinstance(flow.value, Unknown)
            times = iterating.count(flow.value) if is_known else 0
            index = on(Memory(8, self._books), torch.empty((), dtype=torch.int64, device="meta"))
            return self._iterate(flow, carried, [index], body, times)
        return self._scan(flow, carried, body)

    def _cond(self, flow: Flow, body: iterating.RunBody) -> list[Any]:
        self._truth(flow.value)
        before, costs, kinds = self._books.cost, [], []
        results: list[Any] = []
        for branch in flow.bodies:
            del results[:]
            self._books.cost = before
            results = self._run(branch, list(flow.operands), body)
            costs.append(self._books.cost)
            kinds.append([kind_of(value) for value in results])
        self._books.cost = min(costs, key=lambda cost: cost.seconds)
        for at, (one, other) in enumerate(zip(*kinds, strict=True)):
            if Unknown not in (one, other) and one != other:
                raise BadProgram(
                    f"its branches give different things as value {at}: {iterating.shown(one)} and "
                    f"{iterating.shown(other)}; dtype and shape have to be the same"
                )
        return [UNKNOWN if kinds[0][at] is Unknown else value for at, value in enumerate(results)]

    def _iterate(
        self, flow: Flow, carried: list[Any], before: list[Any], body: iterating.RunBody, times: int
    ) -> list[Any]:
        """A while or repeat: one iteration, which costs as much as so many."""
        kinds = [kind_of(value) for value in carried]
        started, self._books.cost = self._books.cost, NOTHING
        given = [*before, *self._own(carried), *flow.operands]
        results = self._run(flow.bodies[-1], given, body)
        _check_carried(kinds, results)
        self._times(started, times)
        return results

    def _own(self, carried: list[Any]) -> list[Any]:
        """What is carried, as it is after the first iteration: the loop's own. The list is emptied."""
        nbytes = [value.numel() * value.element_size() for value in tensors_in(carried)]
        metas = [meta(value) for value in carried]
        carried.clear()
        own = iter([Memory(size, self._books) for size in nbytes])
        return [on(next(own), value) if isinstance(value, torch.Tensor) else value for value in metas]

    def _scan(self, flow: Flow, carried: list[Any], body: iterating.RunBody) -> list[Any]:
        is_known = not has_unknown(flow.sliced)
        times = iterating.length(flow.sliced) if is_known else 1
        kinds = [kind_of(value) for value in carried]
        slices = [
            value if isinstance(value, Unknown) else on(memory_of(value), value.select(0, 0)) for value in flow.sliced
        ]
        kept, books = len(carried), self._books
        given = [*self._own(carried), *slices, *flow.operands]
        started, books.cost = books.cost, NOTHING
        known = {memory_of(value).number for value in tensors_in(given)}
        results = self._run(flow.bodies[0], given, body)
        _check_carried(kinds, results[:kept])
        self._times(started, times)
        held = {memory_of(value).number: memory_of(value).nbytes for value in tensors_in(results[kept:])}
        each = sum(nbytes for key, nbytes in held.items() if key not in known)
        whole = sum(value.numel() * value.element_size() for value in tensors_in(results[kept:])) * times
        books.need(min(times, iterating.CHUNK) * each + 2 * whole)  # slices, stacks of them, and what those become
        return [*results[:kept], *(self._stacked(value, times, is_known) for value in results[kept:])]

    def _stacked(self, value: Any, times: int, is_known: bool) -> Any:
        if isinstance(value, Unknown) or not is_known:
            return UNKNOWN
        if not isinstance(value, torch.Tensor):
            raise BadRequest(f"what a loop stacks are tensors, not {type(value).__name__}")
        whole = value.new_empty([times, *value.shape])
        return on(Memory(whole.numel() * whole.element_size(), self._books), whole)

    def _times(self, started: Cost, times: int) -> None:
        """The cost of one iteration is that of so many."""
        books = self._books
        one, books.cost = books.cost, started
        books.spend(Cost(one.work, one.seconds + STEP), times)

    @staticmethod
    def _truth(value: Any) -> None:
        if not isinstance(value, Unknown):
            iterating.truth(value)

    def _run(self, number: int, given: list[Any], body: iterating.RunBody) -> list[Any]:
        """The outputs of a body: followed once for each set of shapes."""
        key = (number, *[look_of(value) for value in given])
        ran = self._ran.get(key)
        if ran is None:
            return self._first(key, number, given, body)
        self._books.spend(ran.cost)
        self._books.need(ran.peak)
        fresh = [Memory(nbytes, self._books) for nbytes in ran.sizes]
        return [
            on(memory_of(given[at]) if is_given else fresh[at], meta(value))
            if isinstance(value, torch.Tensor)
            else value
            for value, (is_given, at) in zip(ran.outputs, ran.places, strict=True)
        ]

    def _first(self, key: tuple[Any, ...], number: int, given: list[Any], body: iterating.RunBody) -> list[Any]:
        books = self._books
        inputs = {memory_of(value).number: at for at, value in enumerate(given) if isinstance(value, torch.Tensor)}
        cost, peak, live = books.cost, books.peak, books.live
        books.cost, books.peak = NOTHING, live
        outputs = body(number, given)
        fresh: dict[int, int] = {}
        sizes: list[int] = []
        places: list[tuple[bool, int]] = []
        for value in outputs:
            if not isinstance(value, torch.Tensor):
                places.append((False, 0))
                continue
            memory = memory_of(value)
            is_given = memory.number in inputs
            if not is_given and memory.number not in fresh:
                fresh[memory.number] = len(sizes)
                sizes.append(memory.nbytes)
            places.append((is_given, (inputs if is_given else fresh)[memory.number]))
        self._ran[key] = ran = _Ran(
            tuple(meta(value) for value in outputs), tuple(places), tuple(sizes), books.cost, books.peak - live
        )
        books.cost, books.peak = cost, max(peak, books.peak)
        books.spend(ran.cost)
        return outputs


def _check_carried(kinds: Sequence[Any], results: Sequence[Any]) -> None:
    for at, (before, value) in enumerate(zip(kinds, results, strict=True)):
        after = kind_of(value)
        if Unknown not in (before, after) and before != after:
            raise iterating.changes(at, before, after)
