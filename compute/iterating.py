"""Loops and branches of a program, run: PROGRAM.md, Flow.

Where the values are here, conditions are read. On shapes alone (meta and fake tensors) one branch or one iteration
stands for all, because all give the same shapes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from compute.flow import Flow
from compute.table import lookup
from protocol.errors import BadRequest
from protocol.sizes import beyond, check_limit

RunBody = Callable[[int, list[Any]], list[Any]]
"""Runs the body of this number on these inputs, which it may let go of; gives its outputs."""

Beat = Callable[[int, int | None], None]
"""Told the iterations done, and those in all where that is known, before each iteration."""

CHUNK: Final = 1_024  # slices stacked at once


def run_flow(flow: Flow, carried: list[Any], body: RunBody, execute: Any, beat: Beat) -> list[Any]:
    """The values that a flow node gives.

    Args:
        flow: its own values are no templates any more.
        carried: what it carries, before the first iteration; let go of when that has used it.

    Raises:
        BadRequest: a predicate that is no truth value, nothing to go through, a carried value that changes its dtype or
            shape.
        TooLarge: more iterations than `limit` or limits.MAX_ITERATIONS.
    """
    return _RUNS[flow.name](flow, carried, body, execute, beat)


def _cond(flow: Flow, carried: list[Any], body: RunBody, execute: Any, beat: Beat) -> list[Any]:
    is_true = truth(flow.value)
    return body(flow.bodies[0 if is_true or is_true is None else 1], list(flow.operands))


def _while(flow: Flow, carried: list[Any], body: RunBody, execute: Any, beat: Beat) -> list[Any]:
    test, step = flow.bodies
    done = 0
    while True:
        goes_on = truth(body(test, [*carried, *flow.operands])[0])
        if goes_on is False:
            return carried
        if done >= flow.limit:
            sentence = "the loop goes on after {allowed} iterations"
            raise beyond("MAX_ITERATIONS", flow.limit + 1, sentence, allowed=flow.limit)
        beat(done, None)
        carried = _iterate(step, carried, flow.operands, body)
        done += 1
        if goes_on is None:
            return carried


def _repeat(flow: Flow, carried: list[Any], body: RunBody, execute: Any, beat: Beat) -> list[Any]:
    total = count(flow.value)
    is_abstract = _is_abstract([*carried, *flow.operands])
    for at in range(min(total, 1) if is_abstract else total):
        beat(at, total)
        number = _index(at, carried, flow.operands, execute)
        carried = _iterate(flow.bodies[0], carried, flow.operands, body, [number])
    return carried


def _scan(flow: Flow, carried: list[Any], body: RunBody, execute: Any, beat: Beat) -> list[Any]:
    total = length(flow.sliced)
    stacked: list[_Stack] = []
    kept = len(carried)
    for done in range(1 if _is_abstract(flow.sliced) else total):
        beat(done, total)
        at = total - 1 - done if flow.reverse else done
        slices = [_slice(value, at, execute) for value in flow.sliced]
        carried = _iterate(flow.bodies[0], carried, [*slices, *flow.operands], body, keep=kept)
        stacked = stacked or [_Stack(execute) for _ in carried[kept:]]
        for stack, value in zip(stacked, carried[kept:], strict=True):
            stack.add(value)
        del carried[kept:]
    order = -1 if flow.reverse else 1
    return [*carried, *(stack.value(order, total) for stack in stacked)]


_RUNS: Final[dict[str, Callable[[Flow, list[Any], RunBody, Any, Beat], list[Any]]]] = {
    "flow.cond": _cond,
    "flow.while": _while,
    "flow.repeat": _repeat,
    "flow.scan": _scan,
    "flow.map": _scan,  # a scan that carries nothing
}


# --- one iteration ----------------------------------------------------------------------------------------


def _iterate(
    step: int,
    carried: list[Any],
    operands: Sequence[Any],
    body: RunBody,
    before: Sequence[Any] = (),
    keep: int | None = None,
) -> list[Any]:
    """One iteration: what it gives. Of that, as many as were carried keep dtype and shape."""
    kinds = [kind_of(value) for value in carried]
    given = [*before, *carried, *operands]
    carried.clear()  # from here on the body alone holds them, and lets go of them when it has used them
    results = body(step, given)
    for at, (kind, value) in enumerate(zip(kinds, results[:keep], strict=True)):
        if kind_of(value) != kind:
            raise changes(at, kind, kind_of(value))
    return results


def kind_of(value: Any) -> Any:
    """What a carried value keeps: dtype and shape of a tensor."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape
    return type(value)


def changes(at: int, before: Any, after: Any) -> BadRequest:
    """The error for a carried value that is of another kind after an iteration."""
    return BadRequest(
        f"carried value {at} is {shown(before)} before an iteration and {shown(after)} after it: what is carried keeps "
        "its dtype and shape"
    )


def shown(kind: Any) -> str:
    """What `kind_of` gave, in words."""
    if isinstance(kind, tuple):
        return f"{kind[0]} {list(kind[1])}".removeprefix("torch.")
    return str(kind.__name__)


def _index(at: int, carried: Sequence[Any], operands: Sequence[Any], execute: Any) -> Any:
    """The number of an iteration, where the values are with which it will be used."""
    for value in (*carried, *operands):
        if isinstance(value, torch.Tensor):
            return torch.scalar_tensor(at, dtype=torch.int64, device=value.device)
    return execute(lookup("aten.scalar_tensor.default"), [at], {"dtype": torch.int64})


def _slice(value: Any, at: int, execute: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.select(0, at)
    return execute(lookup("aten.select.int"), [value, 0, at], {})


class _Stack:
    """Slices that become one tensor; stacked in between, so that the list of them does not grow with the loop."""

    def __init__(self, execute: Any) -> None:
        self._execute = execute
        self._slices: list[Any] = []
        self._stacked: list[Any] = []

    def add(self, value: Any) -> None:
        self._slices.append(value)
        if len(self._slices) == CHUNK:
            self._stack()

    def _stack(self) -> None:
        self._stacked.append(self._execute(lookup("aten.stack.default"), [self._slices, 0], {}))
        self._slices = []

    def value(self, order: int, total: int) -> Any:
        """The slices in this order (1, or -1 for the last one first); `total` of them where one stands for all."""
        if self._slices and _is_abstract(self._slices):
            return self._slices[0].new_empty([total, *self._slices[0].shape])
        if self._slices:
            self._stack()
        whole = self._stacked[0]
        if len(self._stacked) > 1:
            whole = self._execute(lookup("aten.cat.default"), [self._stacked, 0], {})
        return whole if order > 0 else self._execute(lookup("aten.flip.default"), [whole, [0]], {})


# --- what decides -----------------------------------------------------------------------------------------


def _is_abstract(values: Sequence[Any]) -> bool:
    """Whether there are only shapes."""
    fakes = sys.modules.get("torch._subclasses.fake_tensor")  # slow to import, and without it there are none
    fake = () if fakes is None else fakes.FakeTensor
    return any(isinstance(value, torch.Tensor) and (value.is_meta or isinstance(value, fake)) for value in values)


def truth(value: Any) -> bool | None:
    """What a predicate says; None where it has a shape and no value. BadRequest for what is none."""
    if type(value) is bool:
        return value
    if not isinstance(value, torch.Tensor) or value.dtype is not torch.bool or value.numel() != 1:
        what = shown(kind_of(value))
        raise BadRequest(f"a predicate is one truth value: a bool tensor of one element, not {what}")
    return None if _is_abstract([value]) else bool(value)


def count(value: Any) -> int:
    """The iterations of a repeat; BadRequest or TooLarge for what is none."""
    if type(value) is not int or value < 0:
        raise BadRequest(f"a count is an integer from 0 on, not {str(value)[:40]}")
    check_limit("MAX_ITERATIONS", value, "{size} iterations; at most {allowed}")
    return value


def length(sliced: Sequence[Any]) -> int:
    """The iterations of a scan or map; BadRequest or TooLarge where these cannot be gone through together."""
    for value in sliced:
        if not hasattr(value, "shape") or not len(value.shape):
            raise BadRequest(f"a loop goes through the first dimension of tensors, not through {shown(kind_of(value))}")
    lengths = {int(value.shape[0]) for value in sliced}
    if len(lengths) > 1:
        raise BadRequest(f"a loop goes through tensors of one length, not of {sorted(lengths)[:5]}")
    (found,) = lengths
    if not found:
        raise BadRequest("a loop goes through nothing: what its body would give has no shape then")
    return count(found)
