"""Values in lists and tuples, as arguments of operations are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same lists and tuples with `change` of what is in them."""
    if isinstance(value, list | tuple):
        return type(value)(mapped(item, change) for item in value)
    return change(value)


def with_tensors(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """`mapped` for the tensors among them; all else stays."""
    return mapped(value, lambda each: change(each) if isinstance(each, torch.Tensor) else each)


def flat(values: Sequence[Any]) -> list[Any]:
    """What is among these and in lists of them, in order."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, list | tuple):
            found += flat(value)
        else:
            found.append(value)
    return found


def tensors_in(values: Sequence[Any]) -> list[torch.Tensor]:
    """The tensors among these and in lists of them, in order."""
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors_in(value)
    return found
