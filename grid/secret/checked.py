"""Whether an operation has a secure form: asked when it is written, so that the error is at its line.

It is lowered by itself, for these shapes, and run by one party alone, on zeros or on shapes; what came out is
remembered.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from compute.dtypes import NAME_OF
from compute.program import Input, Node, Program
from grid.secret.values import Public, Value, replaced, values_in
from mpc.correlations import Correlation, Dealt, Words
from mpc.interpreter import run
from mpc.lowering import Lowered, check_looks, lower
from mpc.party import Party
from mpc.rounds import Opened
from mpc.secret import Secret
from protocol.errors import GridError

_CHECKED: Final[OrderedDict[Any, dict[str, Any] | None]] = OrderedDict()  # faults: errors hold on to what they met
_REMEMBERED: Final = 4_096  # operations with other shapes: those of several models
_FEW: Final = 16_384  # elements that are computed with sooner than torch's kernels on shapes, which are Python


def check(
    operation: str, args: list[Any], kwargs: Mapping[str, Any], items: list[int] | None, precision: int, count: int
) -> None:
    """Of an operation on these values, some of which are secret, among `count` parties. `items`: those of its results
    that are wanted, where it gives several.

    Raises:
        OperationNotAllowed: it has no secure form. BadRequest: not with these arguments.
    """
    operands = list(values_in([args, list(kwargs.values())]))
    key = (
        operation,
        _frozen(args),
        _frozen(sorted(kwargs.items())),
        precision,
        count,
        *((isinstance(each.source, Public), each.dtype, each.shape) for each in operands),
    )
    if key not in _CHECKED:
        _CHECKED[key] = _tried(operation, args, kwargs, operands, items, precision, count)
        while len(_CHECKED) > _REMEMBERED:
            _CHECKED.popitem(last=False)
    fault = _CHECKED[key]
    if fault is not None:
        raise GridError.from_fault(fault)


def _tried(
    operation: str,
    args: list[Any],
    kwargs: Mapping[str, Any],
    operands: list[Value],
    items: list[int] | None,
    precision: int,
    count: int,
) -> dict[str, Any] | None:
    secret = [not isinstance(each.source, Public) for each in operands]
    left = iter(range(len(operands)))

    def reference(_: Value) -> dict[str, Any]:
        return {"node": next(left)}

    node = Node(operation, replaced(args, reference), {key: replaced(each, reference) for key, each in kwargs.items()})
    inputs = tuple(Input(f"x{at}", NAME_OF[each.dtype], each.shape) for at, each in enumerate(operands))
    made = {"node": len(inputs)}
    outputs = [made] if items is None else [{**made, "item": item} for item in items]
    try:
        lowered = lower(Program(inputs, (node,), outputs), list(map(_example, operands)), secret, precision)
        device = "cpu" if sum(math.prod(each.shape) for each in operands) <= _FEW else "meta"
        zeros = [
            Secret(torch.zeros(each.shape, dtype=torch.int64, device=device), _bits(each, precision), each.dtype)
            for each, is_secret in zip(operands, secret, strict=True)
            if is_secret
        ]
        check_looks(lowered, _run(lowered, zeros, precision, count))
    except GridError as error:
        error.fields.pop("node", None)
        return error.to_fault()
    return None


def _run(lowered: Lowered, secrets: list[Secret], precision: int, count: int) -> Any:
    """One party's part alone, with zeros for all that it would be told; what it gives."""
    device = secrets[0].share.device

    def zeros(all_words: Sequence[Words]) -> list[torch.Tensor]:
        return [torch.zeros(words.shape, dtype=words.dtype, device=device) for words in all_words]

    def supply(_: int, correlation: Correlation) -> Dealt:
        return Dealt(zeros(correlation.free), zeros(correlation.derived))

    protocol = run(Party(0, count, supply, precision), lowered.program, [*secrets, *lowered.public])
    answer = None
    while True:
        try:
            asked = protocol.send(answer)  # type: ignore[arg-type]  # None begins it
        except StopIteration as done:
            return done.value
        answer = Opened(asked.sums, asked.xors)


def _example(value: Value) -> torch.Tensor:
    if isinstance(value.source, Public):
        return value.source.tensor
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


def _bits(value: Value, precision: int) -> int:
    return precision if value.dtype.is_floating_point else 0


def _frozen(value: Any) -> Any:
    """Something that a dict takes for a key; a number is no truth value, and no whole one is a real."""
    if isinstance(value, Value):
        return Value
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return tuple((key, _frozen(item)) for key, item in sorted(value.items()))
    return type(value), value
