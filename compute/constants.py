"""What a captured function computes of numbers that it wrote out itself, or of tensors from outside: values that are
known all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch.utils._python_dispatch import _disable_current_modes

from compute.frames import LITERAL, Call, Constant, Frame, Ref, Source, storage_of
from compute.operations import OPERATIONS
from compute.table import lookup
from compute.values import decode
from protocol.errors import BadRequest

_MANY: Final = 10_000  # elements
_DEEP: Final = 50


def known(frame: Frame, tensor: torch.Tensor) -> torch.Tensor | None:
    """The value of a tensor of a function that is captured, whose frame now is this; None: it is data."""
    try:
        with _disable_current_modes(), torch.no_grad():
            if type(tensor) is torch.Tensor:  # from outside
                return tensor if tensor.device.type == "cpu" and tensor.numel() <= _MANY else None
            return _value(frame, frame.find(tensor), 0)
    except _Unknown:
        return None


class _Unknown(Exception):
    pass


def _value(frame: Frame, value: Any, depth: int) -> torch.Tensor:
    if isinstance(value, Constant) and value.tensor.device.type == "cpu":
        return value.tensor
    if not isinstance(value, Ref) or depth > _DEEP:
        raise _Unknown
    if isinstance(value.of, Source):
        raise _Unknown  # what a body has from around it may be another value in the next iteration
    call, number = value.of, value.item or 0
    made = call.tensors[number]
    if storage_of(made) in frame.written or made.numel() > _MANY:
        raise _Unknown
    if call.operation == LITERAL:
        return _value(frame, call.args[0], depth + 1)
    found = _run(frame, call, depth)
    return found if isinstance(found, torch.Tensor) else found[number]


def _run(frame: Frame, call: Call, depth: int) -> Any:
    if call.is_kept or call.written or call.operation not in OPERATIONS:
        raise _Unknown

    def argument(value: Any) -> Any:
        if isinstance(value, Ref | Constant):
            return _value(frame, value, depth + 1)
        if isinstance(value, list):
            return [argument(item) for item in value]
        if isinstance(value, Mapping):
            return decode(value, _no_tensor)
        return value

    entry = lookup(call.operation)
    try:
        args, kwargs = entry.bind(
            [argument(each) for each in call.args], {k: argument(v) for k, v in call.kwargs.items()}
        )
        return entry.overload(*args, **kwargs)
    except (BadRequest, RuntimeError, IndexError):
        raise _Unknown from None


def _no_tensor(id: bytes) -> Any:
    raise _Unknown


# --- operations whose result has a shape by values ----------------------------------------------------------


def with_known(frame: Frame, function: Any, args: Sequence[Any]) -> tuple[Any, list[Any]] | None:
    """The same operation where shapes depend on shapes alone, what they depend on being known: a mask as the positions
    of what it picks. None where it is data."""
    say = _SAID.get(str(function))
    if say is None:
        return None
    with _disable_current_modes():
        return say(lambda tensor: known(frame, tensor), *args)


Ask = Callable[[torch.Tensor], torch.Tensor | None]
Said = tuple[Any, list[Any]] | None


def _index(ask: Ask, picked: Any, indices: Sequence[Any], *rest: Any) -> Said:
    found: list[Any] = []
    for index in indices:
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            found.append(index)
            continue
        mask = ask(index)
        if mask is None:
            return None
        found += mask.nonzero(as_tuple=True)
    return (torch.ops.aten.index_put.default if rest else torch.ops.aten.index.Tensor), [picked, found, *rest]


def _repeat(ask: Ask, repeated: Any, repeats: Any, dim: int | None = None) -> Said:
    counts = ask(repeats)
    if counts is None:
        return None
    length = repeated.numel() if dim is None else repeated.shape[dim]
    positions = torch.repeat_interleave(torch.arange(int(length)), counts)
    return _flat_select if dim is None else torch.index_select, [repeated, dim or 0, positions]


def _flat_select(repeated: Any, dim: int, positions: torch.Tensor) -> Any:
    return repeated.reshape(-1).index_select(dim, positions)


_SAID: Final[Mapping[str, Callable[..., Said]]] = {
    "aten.index.Tensor": _index,
    "aten.index_put.default": _index,
    "aten.repeat_interleave.self_Tensor": _repeat,
}
