"""What a program will cost, and how much memory it will need, from the shapes of its inputs, before anything runs.

Costs are lower bounds (compute/cost.py). Where a shape depends on data nothing is known of what comes after; that much
is found out on the way, operation by operation.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from compute.cost import ALLOWED, Cost, check_possible
from compute.estimate import Estimate, check_size
from compute.following import follow
from compute.program import Program
from compute.table import Entry
from protocol import limits


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of one run.

    Attributes:
        cost: at least; of two branches the cheaper one, of a loop without a count its first test.
        peak: bytes in use at most, beside the inputs; of two branches the larger one.
    """

    cost: Cost
    peak: int


def foresee(program: Program, inputs: Sequence[torch.Tensor]) -> Forecast:
    """The forecast for inputs of these dtypes, shapes and strides; remembered.

    Raises:
        TooLarge: one of its operations gives more than any may, or more than this process may have.
        GridError: what is wrong with an operation, with its node: the run would end so, or one branch of it would.
    """
    key = (program.id, *[(given.dtype, given.shape, given.stride()) for given in inputs])
    found = _seen.get(key)
    if found is not None:
        _seen.move_to_end(key)
        return found
    followed = follow(program, inputs, _inferred)
    _seen[key] = found = Forecast(followed.cost, followed.peak)
    if len(_seen) > limits.MAX_FORECASTS:
        _seen.popitem(last=False)
    return found


def check_program(program: Program, inputs: Sequence[torch.Tensor]) -> Cost:
    """The least that this run can cost.

    Raises:
        TooLarge: all of it takes longer, or more memory, than this process may; nothing ran.
        GridError: what `foresee` raises.
    """
    found = foresee(program, inputs)
    check_possible("program", found.cost)
    ALLOWED.check_seconds("program", found.cost)
    ALLOWED.check_memory("program", found.peak)
    return found.cost


_seen: Final[OrderedDict[tuple[Any, ...], Forecast]] = OrderedDict()


def _inferred(entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Estimate:
    return check_size(entry, args, kwargs)
