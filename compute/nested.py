"""Values in lists and tuples, as arguments of operations are."""

from __future__ import annotations

from collections.abc import Callable
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
