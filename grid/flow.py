"""Loops and branches in plans: `grid.repeat`, `grid.scan`, `grid.map`, `grid.cond`, `grid.while_loop`.

    @grid.plan
    def train(model, x, y):
        optimizer = torch.optim.Adam(model.parameters())

        def step(i, loss):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        return grid.repeat(1000, step, torch.zeros(())), model

In a plan each is one node of its program, whatever the number of iterations. Its body is any function: it may use what
is around it, and change it (parameters, running statistics, what an optimiser keeps), take gradients, and hold loops.
Elsewhere they are plain Python loops, on tensors and pointers. torch's own forms (`torch.cond`, `torch.while_loop`,
`torch._higher_order_ops.scan` and `map`) are taken too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from compute import bodies, loops, scans
from compute.refusals import refusal
from protocol import limits
from protocol.errors import BadRequest, OperationFailed


def repeat(count: int, step: Callable[..., Any], *carried: Any) -> Any:
    """`carried = step(i, *carried)`, `count` times; returns what the last gave (one value, or a tuple of several).

    Args:
        count: at least 0; in a plan a size may be one (`x.shape[0]`).
        step: gets the number of the iteration, a tensor of int64 from 0 on, and what is carried; gives what is carried
            to the next: as many values, of the same dtypes and shapes.
        carried: tensors, numbers (which become tensors), and structures of them; modules and optimisers stay what they
            are.

    Raises:
        CannotCapture: in a plan; the body cannot be captured, or does not keep what is carried.
        BadRequest: elsewhere; a count below 0.
    """
    recorder = bodies.active()
    if recorder is not None and isinstance(count, torch.Tensor):
        raise refusal("repeat takes an integer, or a size: a number that is computed is for grid.while_loop")
    if not isinstance(count, int | torch.SymInt) or isinstance(count, bool):
        raise BadRequest(f"repeat takes the number of iterations first, an integer, not {type(count).__name__}")
    if isinstance(count, int) and count < 0:
        raise BadRequest(f"repeat({count}, ...): the number of iterations is 0 or more")
    if recorder is not None and not (isinstance(count, int) and count == 0):
        return _unpacked(loops.repeat(recorder, count, step, carried))
    values = carried
    for number in range(count):
        values = bodies.as_carried(step(torch.tensor(number), *values), len(carried))
    return _unpacked(values)


def scan(step: Callable[[Any, Any], tuple[Any, Any]], init: Any, xs: Any, reverse: bool = False) -> tuple[Any, Any]:
    """`carried, kept = step(carried, slice)` for each slice of `xs` along dimension 0; returns what is carried in the
    end, and all that was kept, stacked along dimension 0.

    Args:
        init: what is carried into the first step: a tensor, or a structure of tensors.
        xs: a tensor, or a structure of tensors of one length along dimension 0, at least 1.
        reverse: the last slice comes first; what is kept stands in the order of `xs` all the same.

    Raises:
        CannotCapture, BadRequest: see `repeat`.
    """
    sliced, spec = pytree.tree_flatten(xs)
    if not sliced or not all(isinstance(tensor, torch.Tensor) and tensor.dim() for tensor in sliced):
        raise BadRequest("scan goes through tensors of one dimension at least, slice by slice")
    recorder = bodies.active()
    if recorder is not None:
        return scans.scan(recorder, step, init, xs, reverse)
    length = _length(sliced)
    kept: list[Any] = [None] * length
    carried = init
    for at in reversed(range(length)) if reverse else range(length):
        carried, kept[at] = step(carried, pytree.tree_unflatten([tensor[at] for tensor in sliced], spec))
    return carried, _stacked(kept)


def map(function: Callable[..., Any], xs: Any, *more: Any) -> Any:
    """`function(slice, *more)` for each slice of `xs` along dimension 0, stacked. `torch.vmap` is quicker where it can
    be used; here each slice is by itself, and what the function needs is needed for one at a time.

    Raises:
        CannotCapture, BadRequest: see `repeat`.
    """
    sliced, spec = pytree.tree_flatten(xs)
    if not sliced or not all(isinstance(tensor, torch.Tensor) and tensor.dim() for tensor in sliced):
        raise BadRequest("map goes through tensors of one dimension at least, slice by slice")
    recorder = bodies.active()
    if recorder is not None:
        return loops.mapped(recorder, function, xs, more)
    made = [
        function(pytree.tree_unflatten([tensor[at] for tensor in sliced], spec), *more) for at in range(_length(sliced))
    ]
    return _stacked(made)


def cond(pred: Any, yes: Callable[..., Any], no: Callable[..., Any], operands: Any = ()) -> Any:
    """`yes(*operands)` where `pred` (a tensor of one element, or a bool) is true, else `no(*operands)`. One of them
    runs. In a plan both have to give tensors of the same dtypes and shapes. As torch.cond, on pointers too.

    Raises:
        CannotCapture: see `repeat`. NeedsAwait: a pointer, where its value cannot be waited for.
    """
    recorder = bodies.active()
    if recorder is not None and isinstance(pred, torch.Tensor):
        return loops.cond(recorder, pred, yes, no, tuple(operands))
    if isinstance(pred, torch.Tensor) and bodies.recording.get() is not None:
        raise refusal("a branch by a tensor inside a transform of torch.func cannot be captured; use torch.where there")
    return yes(*operands) if pred else no(*operands)


def while_loop(
    test: Callable[..., Any], step: Callable[..., Any], carried: Any, limit: int = limits.MAX_ITERATIONS
) -> tuple[Any, ...]:
    """`carried = step(*carried)` as long as `test(*carried)` (a tensor of one element) is true; a tuple. As
    torch.while_loop, with a limit.

    Raises:
        OperationFailed: `limit` iterations were made, and the test is still true.
        CannotCapture: see `repeat`. NeedsAwait: a pointer, where its value cannot be waited for.
    """
    values = tuple(carried)
    recorder = bodies.active()
    if recorder is not None:
        return loops.while_loop(recorder, test, step, values, None if limit == limits.MAX_ITERATIONS else limit)
    if bodies.recording.get() is not None:
        raise refusal("a while loop inside a transform of torch.func cannot be captured; use grid.repeat there")
    done = 0
    while test(*values):
        if done == limit:
            raise OperationFailed(f"the loop goes on after {limit} iterations, its limit", operation="flow.while")
        values = bodies.as_carried(step(*values), len(values))
        done += 1
    return values


def _unpacked(values: Any) -> Any:
    return values[0] if len(values) == 1 else tuple(values)


def _length(sliced: list[torch.Tensor]) -> int:
    lengths = {int(tensor.shape[0]) for tensor in sliced}
    if len(lengths) > 1:
        raise BadRequest(f"what is gone through differs in length along dimension 0: {sorted(lengths)}")
    return lengths.pop()


def _stacked(made: list[Any]) -> Any:
    if not made:
        raise BadRequest("nothing to go through: dimension 0 is empty")
    leaves, specs = zip(*(pytree.tree_flatten(each) for each in made), strict=True)
    stacked = [torch.stack([torch.as_tensor(leaf) for leaf in each]) for each in zip(*leaves, strict=True)]
    return pytree.tree_unflatten(stacked, specs[0])
