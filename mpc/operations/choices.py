"""Choices by secret truth values: bit * one + (1 - bit) * other, with one product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch

from mpc.bilinear import Multiply
from mpc.operations.linear import add, as_secrets, finite, result_type
from mpc.operations.products import product
from mpc.party import Party
from mpc.rounds import Protocol, together
from mpc.secret import Secret, aligned
from mpc.table import Arguments, secure


@secure("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def where(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    bit, one, other = arguments["condition"], arguments["self"], arguments["other"]
    if not isinstance(bit, Secret):
        return _pick(party, bit, one, other)
    return (yield from _choose(party, bit, one, other))


def _pick(party: Party, condition: Any, one: Any, other: Any) -> Secret:
    """By a condition that all parties know; what it does not choose need not be a number."""
    dtype = result_type(one, other)
    if not isinstance(one, Secret):
        one = _unchosen(one, ~condition)
    if not isinstance(other, Secret):
        other = _unchosen(other, condition)
    first, second = aligned(as_secrets(party, [one, other]))
    return Secret(torch.where(condition.to(first.share.device), first.share, second.share), first.bits, dtype)


_LARGE: Final = float(1 << 38)  # with 24 fractional bits it fits


def _unchosen(value: Any, condition: torch.Tensor) -> Any:
    """Zero where a value is not a number, or too large for one, and is not chosen."""
    tensor = torch.as_tensor(value)
    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel() or float(tensor.abs().max()) < _LARGE:
        return value
    return torch.where(condition, torch.zeros_like(tensor), tensor)


def choose(party: Party, bit: Secret, ones: Sequence[Any], others: Sequence[Any]) -> Protocol[list[Any]]:
    """Of each pair the first where bit is 1, else the second. One round, and one before where scales differ."""
    return (yield from together(*(_choose(party, bit, one, other) for one, other in zip(ones, others, strict=True))))


def _choose(party: Party, bit: Secret, one: Any, other: Any) -> Protocol[Secret]:
    dtype = result_type(one, other)
    if not isinstance(one, Secret) and not isinstance(other, Secret):
        one, other = _number(one), _number(other)
        gap = one - other
    else:
        gap = add(party, "aten.sub.Tensor", {"self": one, "other": other})
    picked = yield from product(party, Multiply(), bit, gap, dtype)
    return add(party, "aten.add.Tensor", {"self": picked, "other": other})


def _number(value: Any) -> torch.Tensor:
    """A public value to subtract from: finite, and no truth value."""
    tensor = finite(value)
    return tensor.to(torch.int64) if tensor.dtype == torch.bool else tensor
