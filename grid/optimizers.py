"""The optimisers of parameters: what they keep for them (momentum, averages, histories) moves along with them.

torch tells of every step of every optimiser (`register_optimizer_step_pre_hook`), so those that have something to
keep are known; they are not kept from going.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

_seen: WeakSet[torch.optim.Optimizer] = WeakSet()


@cache
def watch() -> None:
    """From the first module that is sent on, know the optimisers that make steps."""
    register_optimizer_step_pre_hook(note)


def note(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """An optimiser makes a step."""
    _seen.add(optimizer)


def kept_for(parameters: set[int], more: tuple[torch.optim.Optimizer, ...] = ()) -> Iterator[torch.Tensor]:
    """The tensors that optimisers keep for parameters (given by `id()`): those that were seen, and `more`."""
    for optimizer in {*_seen, *more}:
        for parameter, state in optimizer.state.items():
            if id(parameter) in parameters:
                yield from tensors_in(state)
        for group in optimizer.param_groups:
            if any(id(parameter) in parameters for parameter in group["params"]):
                yield from tensors_in({name: value for name, value in group.items() if name != "params"})


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of a structure of dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
