"""The small results of a program that are there before its end, such as a training step's loss before its gradients.

Who asked may have them at once, and ask for the next step while the rest of this one runs, where nothing that is told
can change any more: what the results look like is known from a run before, nothing later writes to the memory of the
small ones or to what the program was given, and what is left is short, and of operations that do not fail for the
values of their data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any, Final

import torch

from compute.dtypes import NAME_OF
from compute.known import Known, Number, OfStep, Operation
from compute.prepared import Block, Step, Value, resolve, used
from compute.sharing import shared_by
from compute.table import Entry
from compute.values import header_of
from compute.whole import is_whole
from protocol import limits
from protocol.errors import GridError


@dataclass(frozen=True, slots=True)
class Settled:
    """What is told of a run before its end.

    Attributes:
        after: how many steps.
        looks: (dtype, shape) of each of its results.
        small: for each of them, whether its value is told, too: these are there by then.
    """

    after: int
    looks: tuple[tuple[str, torch.Size], ...]
    small: tuple[bool, ...]


def are_small(results: Sequence[torch.Tensor]) -> tuple[bool, ...]:
    """Which results of a run go along with its answer. Of many only numbers: what a training step gives is its weights
    and a loss, and that is what is looked at."""
    most = limits.SMALL_RESULT if len(results) <= limits.FEW_RESULTS else limits.ONE_NUMBER
    room = limits.SMALL_RESULTS
    found = []
    for tensor in results:
        is_small = tensor.nbytes <= min(most, room)
        room -= tensor.nbytes if is_small else 0
        found.append(is_small)
    return tuple(found)


def settled(block: Block, known: Known, values: Sequence[Any]) -> Settled | None:
    """What is to be told early of runs on inputs that look like those of this one; None where nothing is.

    Args:
        known: of its steps.
        values: those of the block after the run.
    """
    if block.body is not None:
        return None
    results = [resolve(value, values) for value in block.results]
    if any(type(each) is not torch.Tensor or not _is_describable(each) for each in results):
        return None
    small = are_small(results)
    wanted = [value for value, is_small in zip(block.results, small, strict=True) if is_small]
    if not wanted:
        return None
    after = _after(block, known.steps, wanted)
    rest = sum(each.estimate.cost.seconds for each in known.steps[after:] if type(each) is Operation)
    if len(block.steps) - after < limits.SETTLED_STEPS or rest > limits.SETTLED_REST:
        return None
    return Settled(after, tuple((NAME_OF[each.dtype], each.shape) for each in results), small)


def _is_describable(result: torch.Tensor) -> bool:
    try:
        header_of(result)
    except GridError:
        return False
    return True


def _after(block: Block, known: Sequence[OfStep], wanted: Sequence[Value]) -> int:
    """After how many steps each that is left makes none of these values, writes to the memory of none and to nothing
    that was given, and is sure."""
    memory = _Memory(len(block.inputs))
    numbers = {value.number for value in wanted}
    theirs = memory.of(numbers)
    after = 0
    for done, (step, what) in enumerate(zip(block.steps, known, strict=True), 1):
        if memory.add(step) & (theirs | _GIVEN) or step.number in numbers or not _is_sure(what):
            after = done
            theirs = memory.of(numbers)
    return after


_GIVEN: Final = 1
"""The memory of inputs. Whether they may be written is found out when they are: they may be read-only, or overlap."""


class _Memory:
    """Which memory the values of a block may have, as bits, by schemas alone. What it is given may be one tensor, or
    views of one; a constant has its own."""

    def __init__(self, inputs: int) -> None:
        self._inputs = inputs
        self._of: dict[int, int] = {}  # of what steps made

    def of(self, numbers: Iterable[int]) -> int:
        return reduce(or_, [_GIVEN if at < self._inputs else self._of.get(at, 2 << at) for at in numbers], 0)

    def add(self, step: Step) -> int:
        """What this step makes is there; the memory that it writes to."""
        entry = step.entry
        if entry is None:  # what a loop or branch gives may be what it was given
            self._of[step.number] = self.of(used(step.args)) | 2 << step.number
            return 0
        given = [self.of(used(entry.argument(at, step.args, step.kwargs))) for at in range(len(entry.parameters))]
        self._of[step.number] = reduce(or_, [given[at] for at in shared_by(entry)], 0) or 2 << step.number
        return reduce(or_, [given[at] for at in entry.written(step.args, step.kwargs)], 0)


def _is_sure(known: OfStep) -> bool:
    """Whether a step looks as it did, and fails for no values of its data."""
    if type(known) is not Operation:
        return type(known) is Number
    return known.guard is None and is_sure(known.entry)


def is_sure(entry: Entry) -> bool:
    """Whether an operation whose arguments look right fails for no values of theirs."""
    _, name, overload = entry.name.split(".")
    return is_whole(entry) and name.rstrip("_") not in _FAIL_FOR_VALUES and not overload.endswith("_mode")


_FAIL_FOR_VALUES: Final = frozenset(
    {"remainder", "fmod", "floor_divide", "index_select", "embedding", "nll_loss_forward"}
)
"""Integers by zero (div too, with a mode), and indices beside what is there."""
