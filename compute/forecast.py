"""What a program will cost, from the shapes of its inputs, before its first operation runs.

The program is interpreted on meta tensors once for each set of input shapes. Where a shape depends on data nothing is
known of what comes after; that much is found out on the way, operation by operation.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from compute import interpreter
from compute.bounds import Result
from compute.cost import ALLOWED, NOTHING, Cost, check_possible
from compute.estimate import check_size
from compute.program import Program
from compute.table import Entry
from protocol import limits
from protocol.errors import GridError, TooLarge


def check_program(program: Program, inputs: Sequence[torch.Tensor]) -> Cost:
    """The least that this run can cost.

    Raises:
        TooLarge: all of it takes longer, or one of its operations gives more, than this process may; nothing ran.
    """
    key = (program.id, *[(given.dtype, given.shape, given.stride()) for given in inputs])
    found = _seen.get(key)
    if found is not None:
        _seen.move_to_end(key)
    else:
        _seen[key] = found = _forecast(program, inputs)
        if len(_seen) > limits.MAX_FORECASTS:
            _seen.popitem(last=False)
    check_possible("program", found)
    ALLOWED.check_seconds("program", found)
    return found


_seen: Final[OrderedDict[tuple[Any, ...], Cost]] = OrderedDict()


class _Unknown(Exception):
    """From here on shapes depend on data."""


def _forecast(program: Program, inputs: Sequence[torch.Tensor]) -> Cost:
    total = NOTHING

    def execute(entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        nonlocal total
        bound, named = entry.bind(args, kwargs)
        if entry.category == "size":
            return entry.overload(*bound, **named)
        estimate = check_size(entry, bound, named)
        total = total.plus(estimate.cost)
        if not estimate.is_exact:
            raise _Unknown
        if entry.is_inplace:  # it may change the very shape of its argument
            return entry.overload(*bound, **named)
        made = [_meta(result) for result in estimate.results]
        return made if entry.gives_list else made[0] if entry.n_results == 1 else tuple(made)

    given = [torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta") for tensor in inputs]
    try:
        interpreter.run(program, given, execute)
    except TooLarge:
        raise
    except GridError:
        pass  # _Unknown, as it comes out of there; or what the run itself will say better
    return total


def _meta(result: Result | None) -> torch.Tensor | None:
    if result is None:
        return None
    return torch.empty_strided(result.shape, result.stride, dtype=result.dtype, device="meta")
