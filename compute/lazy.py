"""Tensors that are conjugated or negated lazily: a view has a bit that says so, and its memory is as it was.

torch looks at the bits where a tensor's memory is asked for, so whoever is asked there (a pointer, a meta tensor) has
to have those that the tensor has: `x.conj().real` is a view of x, and the same view without the bit another thing.
https://docs.pytorch.org/docs/stable/generated/torch.conj.html
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

import torch

from protocol.errors import BadRequest

T = TypeVar("T", bound=torch.Tensor)
PLAIN: Final = 0
_CONJ: Final = 1
_NEG: Final = 2


def bits_of(tensor: torch.Tensor) -> int:
    """PLAIN for most."""
    return _CONJ * tensor.is_conj() + _NEG * tensor.is_neg()


def with_bits(tensor: T, bits: int) -> T:
    """The same tensor, which says from now on that it is conjugated or negated lazily."""
    torch._C._set_conj(tensor, bool(bits & _CONJ))
    torch._C._set_neg(tensor, bool(bits & _NEG))
    return tensor


def resolved(given: Sequence[Any], written: Sequence[int]) -> list[Any]:
    """What a program is given, the tensors among it without the bits: copies of those that have them.

    `written`: the numbers of those that it changes in place. BadRequest where a copy might not be what it changes.
    """
    return [_copy(value, [given[at] for at in written]) if _has_bits(value) else value for value in given]


def _has_bits(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and bits_of(value) != PLAIN


def _copy(value: torch.Tensor, written: Sequence[Any]) -> torch.Tensor:
    if any(_may_share_memory(value, other) for other in written):
        raise BadRequest(
            "the program changes in place what it is given as a conjugated or negated view, and was not written for "
            "one: pass a tensor of its own, x.resolve_conj() or x.resolve_neg()"
        )
    return value.resolve_conj().resolve_neg()


def _may_share_memory(one: torch.Tensor, other: Any) -> bool:
    if type(one) is not torch.Tensor or type(other) is not torch.Tensor:
        return True  # where their data are cannot be asked
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
