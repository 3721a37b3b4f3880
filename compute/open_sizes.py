"""Sizes that an export fixed without need, opened again.

torch.export fixes a size where one of its kernels loops over it (the steps of an LSTM), although the program that comes
out never mentions it. A size is opened where the module runs with another one too, and is captured as the very same
operations. One where other operations come out belongs to the program: inputs of that size only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import nn
from torch.utils import _pytree as pytree

from compute.examples import runs
from compute.model_spec import ModelSpec
from compute.program import Program
from protocol.errors import CannotCapture

Place = tuple[int, int]
"""An input by its number among the model's, and one of its dimensions."""

Capture = Callable[[tuple[Any, ...], dict[str, Any]], ModelSpec]

_MOST: Final = 8  # captures made for this: each takes as long as the first


def with_open_sizes(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], capture: Capture, *, any_rank: bool
) -> ModelSpec:
    """The module captured with these arguments, with as many sizes open as it has.

    Args:
        capture: captures the module with such arguments; each input has its dtype and shape.
        any_rank: inputs without a size that belongs to the program are left open altogether.
    """
    spec = capture(args, kwargs)
    own = len(spec.program.inputs) - len(spec.inputs)
    shapes = [list(given.shape or ()) for given in spec.program.inputs[own:]]
    leaves, structure = pytree.tree_flatten((args, kwargs))
    at = [number for number, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    if [len(shape) for shape in shapes] != [leaves[number].dim() for number in at]:
        return spec

    def grown(places: list[Place]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        changed = list(leaves)
        for tensor, dim in places:
            old = changed[at[tensor]]
            changed[at[tensor]] = torch.cat([old, old.narrow(dim, 0, 1)], dim)
        found: Any = pytree.tree_unflatten(changed, structure)
        return found[0], found[1]

    bound: set[int] = set()
    queue = [places for places in _fixed(shapes) if runs(module, *grown(places)) is None]
    if len(queue) > 1:
        queue.insert(0, [place for places in queue for place in places])
    for places in queue[:_MOST]:
        if all(shapes[tensor][dim] is None for tensor, dim in places):
            continue
        if _is_same(capture, grown(places), spec.program):
            for tensor, dim in places:
                shapes[tensor][dim] = None
    for places in queue:
        bound |= {tensor for tensor, dim in places if shapes[tensor][dim] is not None}
    inputs = list(spec.program.inputs)
    for number, shape in enumerate(shapes):
        given = inputs[own + number]
        is_open = any_rank and number not in bound
        inputs[own + number] = (
            dataclasses.replace(given, dtype=None, shape=None)
            if is_open
            else dataclasses.replace(given, shape=tuple(shape))
        )
    return dataclasses.replace(spec, program=dataclasses.replace(spec.program, inputs=tuple(inputs)))


def _fixed(shapes: list[list[Any]]) -> Iterator[list[Place]]:
    """Dimensions that may be of one size for one reason: all of a size together, and each alone."""
    by_size: dict[int, list[Place]] = {}
    for tensor, shape in enumerate(shapes):
        for dim, size in enumerate(shape):
            if isinstance(size, int) and size:
                by_size.setdefault(size, []).append((tensor, dim))
    for places in by_size.values():
        yield places
        if len(places) > 1:
            yield from ([place] for place in places)


def _is_same(capture: Capture, arguments: tuple[tuple[Any, ...], dict[str, Any]], program: Program) -> bool:
    try:
        other = capture(*arguments).program
    except CannotCapture:
        return False
    return (other.nodes, other.outputs, other.constants) == (program.nodes, program.outputs, program.constants)
