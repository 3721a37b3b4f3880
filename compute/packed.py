"""Sequences of different lengths, padded and packed, said in operations of the table.

torch's own code writes the sequences into memory that it makes on the spot. Here they are cut and joined, one piece for
each stretch of steps in which equally many sequences are still going on, so that gradients follow by themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import _disable_current_modes


def pad_sequence(
    sequences: Sequence[Any], batch_first: bool = False, padding_value: float = 0.0, padding_side: str = "right"
) -> Any:
    """`aten.pad_sequence`: sequences (length, ...) to one tensor (longest, batch, ...), or (batch, longest, ...)."""
    longest = max(len(each) for each in sequences)
    ends = ((longest - len(each), each) for each in sequences)
    padded = [_padded(each, (0, more) if padding_side == "right" else (more, 0), padding_value) for more, each in ends]
    return torch.stack(padded, 0 if batch_first else 1)


def pack(input: Any, lengths: Any, batch_first: bool) -> tuple[Any, torch.Tensor]:
    """`aten._pack_padded_sequence`: all steps one after the other, (sum of lengths, ...), and how many sequences each
    step has. `lengths` are looked at (a list of them is taken too); torch's own errors say where they do not fit."""
    steps = input.transpose(0, 1) if batch_first else input
    wanted = _numbers(lengths)
    with _disable_current_modes():  # of values, wherever those of the input are
        here = torch.zeros(*map(int, steps.shape[:2])), torch.tensor(wanted, dtype=torch.int64)
        counts = torch._VF._pack_padded_sequence(*here, False)[1].tolist()
    sizes = torch.tensor(counts)
    pieces, at = [], 0
    for count, size in _runs(counts):
        pieces.append(steps[at : at + count, :size].flatten(0, 1))
        at += count
    return torch.cat(pieces), sizes


def pack_backward(grad: Any, input_size: Sequence[int], batch_sizes: torch.Tensor, batch_first: bool) -> Any:
    """`aten._pack_padded_sequence_backward`: zeros where the padding was."""
    steps, batch = (input_size[1], input_size[0]) if batch_first else input_size[:2]
    padded = _unpacked(grad, _numbers(batch_sizes), batch, steps, 0)
    return padded.transpose(0, 1) if batch_first else padded


def pad_packed(
    data: Any, batch_sizes: torch.Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Any, torch.Tensor]:
    """`aten._pad_packed_sequence`: (steps, batch, ...), or (batch, steps, ...), and the lengths, which are here."""
    sizes = _numbers(batch_sizes)
    if 0 < total_length < len(sizes):
        raise RuntimeError(f"total_length is {total_length}, and the longest sequence has {len(sizes)} steps")
    padded = _unpacked(data, sizes, sizes[0], max(total_length, len(sizes)), padding_value)
    lengths = torch.tensor([sum(size > at for size in sizes) for at in range(sizes[0])], dtype=torch.int64)
    return padded.transpose(0, 1) if batch_first else padded, lengths


def _unpacked(data: Any, batch_sizes: list[int], batch: int, steps: int, value: float) -> Any:
    pieces, at = [], 0
    for count, size in _runs(batch_sizes):
        piece = data[at : at + count * size].unflatten(0, (count, size))
        pieces.append(_padded(piece.transpose(0, 1), (0, batch - size), value).transpose(0, 1))
        at += count * size
    return _padded(torch.cat(pieces), (0, steps - len(batch_sizes)), value)


def _numbers(lengths: Any) -> list[int]:
    return lengths if isinstance(lengths, list) else lengths.tolist()


def _runs(batch_sizes: list[int]) -> list[tuple[int, int]]:
    """Stretches of steps with equally many sequences: (steps, sequences)."""
    return [(len(list(group)), size) for size, group in itertools.groupby(batch_sizes)]


def _padded(x: Any, ends: tuple[int, int], value: float) -> Any:
    """More of `value` before and after, along the first dimension."""
    return F.pad(x, (*(0, 0) * (x.dim() - 1), *ends), value=value) if any(ends) else x
