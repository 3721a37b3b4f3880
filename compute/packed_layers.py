"""Packed sequences in a function that is captured: written out for lengths that the function knows itself.

torch reads lengths from memory, which nothing has while a function is captured; a list of numbers, or a tensor of
numbers that the function wrote out, is known all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import torch
from torch._decomp import decomposition_table
from torch.utils._python_dispatch import _disable_current_modes

from compute import packed

_RECURRENT: Final = ("lstm", "gru", "rnn_tanh", "rnn_relu")


class UnknownLengths(Exception):
    """The lengths are data."""


Known = Callable[[torch.Tensor], torch.Tensor | None]


def written_out(name: str, args: Sequence[Any], known: Known) -> Callable[..., Any] | None:
    """How a call of torch's is said without looking at memory; None where it is none of packed sequences.

    Args:
        known: the value of a tensor; None where it is data.
    """
    packs = _PACKING.get(name)
    if packs is not None:
        return lambda data, lengths, *rest: packs(data, _known(lengths, known), *rest)
    if name in _RECURRENT and len(args) > 3 and isinstance(args[3], list | tuple):  # else it is not packed
        parts = decomposition_table[getattr(torch.ops.aten, name).data]
        return lambda data, batch_sizes, *rest: parts(data, _known(batch_sizes, known), *rest)
    return None


def _known(lengths: torch.Tensor, known: Known) -> list[int]:
    value = known(lengths)
    if value is None:
        raise UnknownLengths
    with _disable_current_modes():
        return [int(length) for length in value.tolist()]


_PACKING: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {"_pack_padded_sequence": packed.pack, "_pad_packed_sequence": packed.pad_packed}
)
