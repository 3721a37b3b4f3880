"""Optimisers in a captured function: steps whose counts are tensors, so that one step is like the next.

torch's optimisers read the number of steps as a Python number where they can, which a program has not. They have a
second way, made for CUDA graphs (`capturable`), in which it stays a tensor; while a function is captured they all take
that one, in float64, so that the results are those of the first way.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from compute.left import inner
from compute.refusals import refusal

_CHANGED = ("capturable", "foreach", "fused")


@contextmanager
def stepping(is_known: Callable[[torch.Tensor], bool], schedulers: Sequence[LRScheduler]) -> Iterator[None]:
    """For a while optimisers step so that it can be captured. `is_known` tells tensors of the function from others;
    `schedulers` are those among its arguments."""
    before: list[list[dict[str, Any]]] = []

    def begin(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            if not all(is_known(parameter) for parameter in group["params"]):
                raise refusal(
                    "the optimiser steps parameters from outside of the function; take the module as an argument, and "
                    "make the optimiser of its parameters in the function"
                )
        before.append([{key: group[key] for key in _CHANGED if key in group} for group in optimizer.param_groups])
        for group in optimizer.param_groups:
            group.update({key: key == "capturable" for key in _CHANGED if key in group})
        _cast_steps(optimizer, torch.float32, torch.float64)

    def end(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group, values in zip(optimizer.param_groups, before.pop(), strict=True):
            group.update(values)

    with ExitStack() as stack:
        _only_these(schedulers, stack)
        for register, hook in ((register_optimizer_step_pre_hook, begin), (register_optimizer_step_post_hook, end)):
            stack.callback(register(hook).remove)
        stack.enter_context(mock.patch.object(torch.compiler, "_is_compiling_flag", True))
        # torch's operators for loops would compile their bodies first; they come to us as they are.
        stack.enter_context(mock.patch.object(torch.compiler, "is_dynamo_compiling", lambda: True))
        for name, module in list(sys.modules.items()):
            if name.startswith("torch.optim.") and hasattr(module, "_get_scalar_dtype"):
                stack.enter_context(mock.patch.object(module, "_get_scalar_dtype", lambda is_fused=None: torch.float64))
        yield


def _only_these(schedulers: Sequence[LRScheduler], stack: ExitStack) -> None:
    """Schedulers step only that are undone afterwards, or that the function made: it may run here more than once."""
    mine = [each for scheduler in schedulers for each in inner(scheduler)]
    initial = LRScheduler._initial_step

    def made(scheduler: LRScheduler) -> None:
        mine.append(scheduler)
        initial(scheduler)

    def checked(step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(step)
        def stepped(scheduler: LRScheduler, *args: Any, **kwargs: Any) -> Any:
            if not any(each is one for each in inner(scheduler) for one in mine):
                raise refusal("the function steps a scheduler that is from outside: take it as an argument")
            return step(scheduler, *args, **kwargs)

        return stepped

    stack.enter_context(mock.patch.object(LRScheduler, "_initial_step", made))
    for kind in vars(lr_scheduler).values():
        if isinstance(kind, type) and issubclass(kind, LRScheduler) and "step" in vars(kind):
            stack.enter_context(mock.patch.object(kind, "step", checked(kind.step)))


def _cast_steps(optimizer: torch.optim.Optimizer, before: torch.dtype, after: torch.dtype) -> None:
    for state in optimizer.state.values():
        step = state.get("step") if isinstance(state, dict) else None
        if isinstance(step, torch.Tensor) and step.dtype == before:
            state["step"] = step.to(after)
