"""What is known of the steps of a block that ran: it holds for each run on inputs that look alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from compute.estimate import Estimate, infer
from compute.prepared import Block, Step, Value
from compute.proven import Call, proven
from compute.table import Entry
from compute.value_guards import VALUE_GUARDS
from compute.whole import is_whole

if TYPE_CHECKING:  # it knows this file
    from compute.settled import Settled


@dataclass(frozen=True, slots=True)
class Operation:
    """Its results look like this.

    Attributes:
        guard: looks at values, each time; None: nothing of them matters.
        stride: of its one result, where nothing but memory and time have to be looked at before it runs; else None.
    """

    entry: Entry
    estimate: Estimate
    guard: Any
    stride: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Number:
    """It gives this."""

    value: Any


@dataclass(frozen=True, slots=True)
class Look:
    """Its results hang on data: so they looked, and what is known of later steps holds for that."""

    key: Any


OfStep = Operation | Number | Look


@dataclass(frozen=True, slots=True)
class Known:
    """Of all steps of a block.

    Attributes:
        largest: bytes that one of its operations takes at most; `seconds`: and how long, at least.
        is_whole: whether all of them write every element that they give (compute/whole.py).
        settled: what is told of a run before its end, if anything is.
    """

    steps: list[OfStep]
    largest: int
    seconds: float
    is_whole: bool
    settled: Settled | None = None

    @classmethod
    def of(cls, block: Block, steps: list[Any]) -> Known:
        for at in proven(list(map(_call, block.steps)), frozenset(Value(at, None) for at in range(len(block.inputs)))):
            if type(steps[at]) is Operation:
                steps[at] = replace(steps[at], guard=None)
        estimates = [step.estimate for step in steps if type(step) is Operation]
        largest = max((estimate.largest for estimate in estimates), default=0)
        seconds = max((estimate.cost.seconds for estimate in estimates), default=0.0)
        whole = all(type(each) is Number or (type(each) is Operation and is_whole(each.entry)) for each in steps)
        return cls(steps, largest, seconds, whole)


def operation(entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Operation | None:
    """What is known of this call before it runs; None where its results hang on data."""
    bound, named = entry.bind(args, kwargs)
    estimate = infer(entry, bound, named)
    if not estimate.is_exact:
        return None
    guard = VALUE_GUARDS.get(entry.name)
    return Operation(entry, estimate, guard, stride_of(entry, estimate, guard))


def stride_of(entry: Entry, estimate: Estimate, guard: Any) -> tuple[int, ...] | None:
    """That of its one result, where it is a plain operation: see Operation.stride."""
    result = estimate.results[0] if len(estimate.results) == 1 else None
    is_plain = guard is None and not entry.writes and not entry.gives_list
    return None if result is None or not is_plain else tuple(result.stride)


def _call(step: Step) -> Call:
    entry = step.entry
    if entry is None:  # numbers; and loops and branches, which work on copies of what they write
        return Call(step.operation, (), False, (), ())
    gives = tuple(Value(step.number, item) for item in range(entry.n_results)) if entry.n_results > 1 else ()
    written = [entry.argument(position, step.args, step.kwargs) for position in entry.writes]
    is_known = all(isinstance(value, Value | None) for value in written)
    return Call(
        entry.name, step.args, not step.kwargs, gives, [v for v in written if v is not None] if is_known else None
    )
