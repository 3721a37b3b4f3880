"""Who made a tensor that is here: whoever wrote the call, or torch's own code on the way to an operation.

torch's Python library makes small tensors while it works: the first state of an RNN, a count of elements, a random
basis, what a formula for a gradient begins with. Whoever calls it never sees them, so that nobody could send them.
What was handed to the library is another matter: that is data, and the call's mistake is said to who made it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

import torch

_OURS: Final = frozenset({"grid", "compute"})
_MOST: Final = 100_000  # values looked at among what a call was given


def is_made_by_torch(tensor: torch.Tensor) -> bool:
    """Whether torch's own code made a tensor of the operation that is under way, in this thread's innermost call."""
    frame = _library_call(sys._getframe(1))
    if frame is None or tensor.requires_grad:
        return False
    memory = _memory(tensor)
    return all(_memory(given) != memory for given in _tensors(_arguments(frame)))


def _library_call(frame: FrameType | None) -> FrameType | None:
    """The call of torch's library that led here: its outermost one without code of others in between."""
    found = None
    while frame is not None:
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if package == "torch":
            found = frame
        elif package not in _OURS:
            break
        frame = frame.f_back
    return found


def _arguments(frame: FrameType) -> list[Any]:
    code, values = frame.f_code, frame.f_locals
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)
    return [values.get(name) for name in code.co_varnames[:count]]


def _tensors(values: list[Any]) -> Iterator[torch.Tensor]:
    """Every tensor among the values: in lists and maps, and in what objects hold (modules, distributions)."""
    seen: set[int] = set()
    waiting = list(values)
    while waiting and len(seen) < _MOST:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value
        elif hasattr(value, "__dict__") and not isinstance(value, type) and not callable(getattr(value, "__get__", 0)):
            waiting += vars(value).values()


def _memory(tensor: torch.Tensor) -> int:
    """What names the memory behind a tensor: views of one have the same."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # of torch.func: what it transforms is inside
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return int(torch.Tensor.untyped_storage(tensor)._cdata)  # a pointer's own is refused
