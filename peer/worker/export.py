"""Values on their way out of a worker: into sealed memory files, in pieces, so that nothing is there twice."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Final

import torch

from compute import values
from compute.cost import ALLOWED
from peer.worker import memory
from peer.worker.mapped import Guarded
from protocol import limits
from protocol.sizes import check_limit

_PIECE: Final = 8 * limits.MIB  # of memory that one piece may reach over


def check_size(nbytes: int) -> None:
    """TooLarge for more than a value in memory may have."""
    # Its elements may be far fewer than its shape says (expand), but all of them would be written out.
    sentence = "a value of {size:bytes} does not leave a worker, at most {allowed:bytes} do: take it in pieces"
    check_limit("MAX_MEMORY_TENSOR", nbytes, sentence + " (x[:1000].get())")


def filed(tensor: torch.Tensor, guarded: Sequence[Guarded] = ()) -> int:
    """A sealed memory file with these elements, row-major; the caller closes the descriptor.

    `guarded` is the tensor itself where it lies on a stored file (and has been checked): what was read of that is
    let go on the way. TooLarge where this process has no room for it.
    """
    ALLOWED.check_copy(tensor.numel() * tensor.element_size())
    fd = memory.new_file("grid-export")
    try:
        write(fd, 0, tensor, guarded)
        memory.seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def write(fd: int, offset: int, tensor: torch.Tensor, guarded: Sequence[Guarded] = ()) -> int:
    """The same elements into an open file, from `offset` on; where they end."""
    for piece in _pieces(tensor):
        content = values.tensor_bytes(piece).cast("B")
        memory.write_all(fd, content, offset)
        offset += content.nbytes
        for each in guarded:
            each.guard.read(_reach(piece))
    return offset


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Parts of the tensor along its first dimensions, in order, none of which reaches over much memory."""
    if not tensor.dim() or _size(tensor) <= _PIECE or not _is_in_order(tensor):
        yield tensor
        return
    row = tensor[0]
    rows = _PIECE // max(_size(row), tensor.stride(0) * tensor.element_size())
    if rows:
        yield from torch.split(tensor, rows)
    else:
        for row in tensor:
            yield from _pieces(row)


def _size(tensor: torch.Tensor) -> int:
    """Bytes that it has, or reaches over, whichever is more."""
    return max(tensor.numel() * tensor.element_size(), _reach(tensor))


def _reach(tensor: torch.Tensor) -> int:
    """Bytes from its first element to its last."""
    leaps = (stride * (size - 1) for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    return (sum(leaps) + 1) * tensor.element_size()


def _is_in_order(tensor: torch.Tensor) -> bool:
    """Whether memory is read from front to back; one that is not (a transposed one) is copied better as a whole."""
    leaps = [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if stride and size > 1]
    return leaps == sorted(leaps, reverse=True)
