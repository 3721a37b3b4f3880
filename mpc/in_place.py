"""Writes in place: on shares they make a new tensor, which is meant by the old one's name from then on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import torch
from torch.utils._python_dispatch import _disable_current_modes

from mpc.traces import Traces
from protocol.errors import OperationNotAllowed

_aten: Final[Any] = torch.ops.aten

COPIES: Final = frozenset({"aten.copy_.default", "aten.fill_.Tensor"})
"""What they write is their second argument, expanded."""


class Lowering(Protocol):
    """What is asked of the lowering.

    Attributes:
        traces: what is known of tensors.
    """

    traces: Traces

    def copy(self, value: Any) -> Any:
        """The same value under a name of its own."""

    def apply(self, overload: Any, *args: Any, **kwargs: Any) -> Any:
        """What an operation gives: here and now, or written down."""

    def made(self, operation: str, overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The same, as it is or in parts."""


def plain_form(operation: str, overload: Any) -> Any:
    """The operation that gives what this one writes to its first argument; None: there is none."""
    if not overload._schema.name.endswith("_"):
        raise OperationNotAllowed(
            f"{operation} changes several tensors in place: programs on shares make new ones", operation=operation
        )
    name, which = overload._schema.name.removeprefix("aten::")[:-1], overload._overloadname
    if name in _OF_TWO_KINDS:  # where "Scalar" is the base, and not the exponent
        which = f"Tensor_{which}"
    return getattr(getattr(_aten, name, None), which, None)


_OF_TWO_KINDS: Final = frozenset({"pow", "float_power"})


def in_place(
    lowering: Lowering, operation: str, plain: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> torch.Tensor:
    """What an operation gives that changes its first argument. `plain`: that makes the new value."""
    changed: torch.Tensor = args[0]
    # What it was goes on under another name, for whom looks how the new value was made.
    args = [lowering.copy(each) if each is changed else each for each in args]
    if operation in COPIES:
        args = args[1], list(changed.shape)
    was_secret = lowering.traces.is_secret(changed)
    made = lowering.made(str(plain), plain, args, kwargs)
    if made.dtype != changed.dtype:  # of a comparison, say
        made = lowering.apply(_aten._to_copy.default, made, dtype=changed.dtype)
    if changed._base is None:
        if was_secret and not changed.is_floating_point():
            _stand_in_for(changed, made)
        _renamed(lowering, changed, made)
        _outdated(lowering, changed)
    else:
        _through_view(lowering, operation, changed._base, changed, made)
    return changed


def _stand_in_for(changed: torch.Tensor, made: torch.Tensor) -> None:
    """What stands for secret integers is written to as well: they may be places in another tensor, and then no
    operation takes what lies outside of it."""
    with _disable_current_modes(), torch.inference_mode(changed.is_inference()):
        if 0 not in changed.stride():
            changed.copy_(made)


def _through_view(
    lowering: Lowering, operation: str, base: torch.Tensor, view: torch.Tensor, made: torch.Tensor
) -> None:
    """What is written to a view is put at its places of the whole; the other views are taken from that anew."""
    if not base.is_contiguous() or 0 in view.stride():
        raise OperationNotAllowed(
            f"{operation} changes an expanded or transposed tensor in place: programs on shares make new ones",
            operation=operation,
        )
    flat = lowering.apply(_aten.reshape.default, base, [-1])
    given = lowering.apply(_aten.reshape.default, made, [-1])
    flat = lowering.apply(_aten.index_put.default, flat, [_places(base, view).flatten()], given)
    _renamed(lowering, base, lowering.apply(_aten.reshape.default, flat, list(base.shape)))
    _outdated(lowering, base)


def _outdated(lowering: Lowering, base: torch.Tensor) -> None:
    """All views of what was written to are taken anew when somebody looks at them: few of them are looked at again."""
    for view in lowering.traces.views_of(base):
        if not lowering.traces.is_outdated(view):
            lowering.traces.outdated(view, lowering.copy(view))


def taken_anew(lowering: Lowering, view: torch.Tensor) -> None:
    """A view whose base was written to, as it is now."""
    base = view._base
    assert base is not None
    if not base.is_contiguous() or view.dtype != base.dtype:
        raise OperationNotAllowed("a view of a transposed tensor is used after that was changed in place: make a copy")
    flat = lowering.apply(_aten.reshape.default, base, [-1])
    _renamed(lowering, view, lowering.apply(_aten.index.Tensor, flat, [_places(base, view)]))


def _renamed(lowering: Lowering, changed: torch.Tensor, made: torch.Tensor) -> None:
    lowering.traces.renamed(changed, made, lowering.copy(changed))


def _places(base: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """Where a view's elements are among those of the whole."""
    numbers = torch.arange(base.numel())
    return numbers.as_strided(view.shape, view.stride(), view.storage_offset() - base.storage_offset())
