"""The sentences in which guards refuse (compute/shape_guards.py, value_guards.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from compute.cost import ALLOWED
from protocol.errors import BadRequest
from protocol.sizes import check_limit

Call = Mapping[str, Any]
Guard = Callable[[Call], None]


def require(fits: bool, what: str) -> None:
    """BadRequest with this sentence unless it fits."""
    if not fits:
        raise BadRequest(what)


def same_shapes(call: Call, *names: str) -> None:
    """All these arguments have the shape of the first."""
    first = call[names[0]]
    for name in names[1:]:
        require(call[name].shape == first.shape, f"{name} must have the shape of {names[0]}, {list(first.shape)}")


def dense(call: Call, *names: str) -> None:
    """These arguments, where they are given, have their elements one after the other, in the order of their dimensions
    or channels last. Kernels that take it for granted would read on beyond others."""
    for name in names:
        given = call.get(name)
        if given is not None and not given.is_contiguous():
            channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(given.dim())
            fits = channels_last is not None and given.is_contiguous(memory_format=channels_last)
            require(fits, f"{name} must be dense in memory: use .contiguous()")


def has(tensor: torch.Tensor | None, count: int, name: str) -> None:
    """The argument `name`, where it is given, has `count` elements."""
    if tensor is not None:
        require(tensor.numel() == count, f"{name} must have {count} elements, not {tensor.numel()}")


def too_many(count: int) -> None:
    """TooLarge for more tensors than one operation may give."""
    check_limit("MAX_PARTS", count, "{size} results; at most {allowed}")


def too_large(nbytes: int) -> None:
    """TooLarge for more bytes than any result may have, or than are left to this process."""
    ALLOWED.check_memory("its result", nbytes)
    check_limit("MAX_RESULT", nbytes, "a result of {size:bytes}; at most {allowed:bytes}")
