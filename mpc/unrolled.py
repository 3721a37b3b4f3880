"""Loops written out while a program is lowered.

What is public in an iteration (its index, its slice of public data, a mask that it draws, the count of steps that an
optimiser keeps) is then computed beforehand, once, as everything public is. So a loop is as many nodes as its
iterations have together; those that are too many stay loops (loops.py).
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import torch

from compute import iterating
from compute.flow import Flow
from compute.prepared import resolve
from compute.program import Node
from mpc.varying import Differs
from protocol.errors import BadRequest

_aten = torch.ops.aten
_SECRET: Final = "flow.while: how often a loop runs would tell what is secret: use grid.repeat with a fixed count"


class TooLong(Exception):
    """Written out, a loop would be more nodes than there is room for."""


class Lowering(Protocol):
    """What is asked of the lowering."""

    @property
    def nodes(self) -> list[Node]:
        """What was written down."""

    def is_secret(self, value: Any) -> bool:
        """Whether there is a secret in it."""

    def values_of(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Of what is public: its value in each iteration of a loop around; one, where it is the same in all."""

    def apply(self, overload: Any, *args: Any, **kwargs: Any) -> Any:
        """What an operation gives: here and now, or written down."""

    def body(self, number: int, given: list[Any]) -> list[Any]:
        """What a body gives."""


def unrolled(lowering: Lowering, flow: Flow, values: list[Any], room: int | None = None) -> list[Any]:
    """What a flow node gives.

    Args:
        room: how many nodes a loop with a known count may be.

    Raises:
        TooLong: it would be more.
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
            before = len(lowering.nodes)
            for at in range(iterating.count(value)):
                carried = lowering.body(flow.bodies[0], [torch.tensor(at), *carried, *operands])
                _check_room(lowering, before, at, value, room)
            return carried
    return _scan(lowering, flow, carried, sliced, operands, room)


def _check_room(lowering: Lowering, before: int, at: int, count: int, room: int | None) -> None:
    """After the first iteration, which tells how many nodes one is."""
    if room is not None and at == 0 and (len(lowering.nodes) - before) * count > room:
        raise TooLong


def _cond(lowering: Lowering, flow: Flow, predicate: Any, operands: list[Any]) -> list[Any]:
    """With a secret predicate both branches, of whose results one is chosen; so with one that is known and not the same
    in all iterations of a loop around."""
    then, other = flow.bodies
    if not lowering.is_secret(predicate):
        known = {bool(each) for each in lowering.values_of(torch.as_tensor(predicate))}
        if len(known) == 1:
            return lowering.body(then if known.pop() else other, operands)
    pairs = zip(lowering.body(then, operands), lowering.body(other, operands), strict=True)
    return [lowering.apply(_aten.where.self, predicate, one, two) for one, two in pairs]


def _while(lowering: Lowering, flow: Flow, carried: list[Any], operands: list[Any]) -> list[Any]:
    test, step = flow.bodies
    for _ in range(flow.limit + 1):
        (goes_on,) = lowering.body(test, [*carried, *operands])
        if lowering.is_secret(goes_on):
            raise BadRequest(_SECRET)
        known = {bool(each) for each in lowering.values_of(torch.as_tensor(goes_on))}
        if len(known) > 1:
            raise Differs("how often a loop in a loop runs differs")
        if not known.pop():
            return carried
        carried = lowering.body(step, [*carried, *operands])
    raise BadRequest(f"the loop goes on after {flow.limit} iterations")


def _scan(
    lowering: Lowering, flow: Flow, carried: list[Any], sliced: list[Any], operands: list[Any], room: int | None
) -> list[Any]:
    length, kept, rows = iterating.length(sliced), len(carried), []
    before = len(lowering.nodes)
    for done in range(length):
        at = length - 1 - done if flow.reverse else done
        slices = [lowering.apply(_aten.select.int, each, 0, at) for each in sliced]
        given = lowering.body(flow.bodies[0], [*carried, *slices, *operands])
        carried = given[:kept]
        rows.append(given[kept:])
        _check_room(lowering, before, done, length, room)
    if flow.reverse:
        rows.reverse()
    columns = zip(*rows, strict=True)
    return [*carried, *(lowering.apply(_aten.stack.default, list(each)) for each in columns)]
