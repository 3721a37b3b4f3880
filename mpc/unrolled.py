"""Loops written out while a program is lowered.

What is public in an iteration (its index, its slice of public data, a mask that it draws, the count of steps that an
optimiser keeps) is then computed beforehand, once, as everything public is. So a loop is as many nodes as its
iterations have together, and MAX_NODES bounds them.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from compute.flow import Flow
from compute.prepared import resolve
from protocol.errors import BadRequest

_aten = torch.ops.aten


class Lowering(Protocol):
    """What is asked of the lowering."""

    def is_secret(self, value: Any) -> bool:
        """Whether there is a secret in it."""

    def apply(self, overload: Any, *args: Any, **kwargs: Any) -> Any:
        """What an operation gives: here and now, or written down."""

    def body(self, number: int, given: list[Any]) -> list[Any]:
        """What a body gives."""


def unrolled(lowering: Lowering, flow: Flow, values: list[Any]) -> list[Any]:
    """What a flow node gives.

    Raises:
        BadRequest: a secret decides how often a loop runs.
    """
    value = resolve(flow.value, values)
    carried, sliced, operands = (
        [resolve(each, values) for each in group] for group in (flow.carried, flow.sliced, flow.operands)
    )
    match flow.name:
        case "flow.cond":
            return _cond(lowering, flow, value, operands)
        case "flow.while":
            return _while(lowering, flow, carried, operands)
        case "flow.repeat":
            for at in range(value):
                carried = lowering.body(flow.bodies[0], [torch.tensor(at), *carried, *operands])
            return carried
    return _scan(lowering, flow, carried, sliced, operands)


def _cond(lowering: Lowering, flow: Flow, predicate: Any, operands: list[Any]) -> list[Any]:
    """With a secret predicate both branches, of whose results one is chosen."""
    then, other = flow.bodies
    if not lowering.is_secret(predicate):
        return lowering.body(then if bool(predicate) else other, operands)
    pairs = zip(lowering.body(then, operands), lowering.body(other, operands), strict=True)
    return [lowering.apply(_aten.where.self, predicate, one, two) for one, two in pairs]


def _while(lowering: Lowering, flow: Flow, carried: list[Any], operands: list[Any]) -> list[Any]:
    test, step = flow.bodies
    for _ in range(flow.limit + 1):
        (goes_on,) = lowering.body(test, [*carried, *operands])
        if lowering.is_secret(goes_on):
            raise BadRequest("how often a loop runs would tell what is secret: use grid.repeat with a fixed count")
        if not bool(goes_on):
            return carried
        carried = lowering.body(step, [*carried, *operands])
    raise BadRequest(f"the loop goes on after {flow.limit} iterations")


def _scan(lowering: Lowering, flow: Flow, carried: list[Any], sliced: list[Any], operands: list[Any]) -> list[Any]:
    length, kept, rows = sliced[0].shape[0], len(carried), []
    for at in reversed(range(length)) if flow.reverse else range(length):
        slices = [lowering.apply(_aten.select.int, each, 0, at) for each in sliced]
        given = lowering.body(flow.bodies[0], [*carried, *slices, *operands])
        carried = given[:kept]
        rows.append(given[kept:])
    if flow.reverse:
        rows.reverse()
    columns = zip(*rows, strict=True)
    return [*carried, *(lowering.apply(_aten.stack.default, list(each)) for each in columns)]
