"""Files of the peer's as tensors' memory: mapped whole, read in parts, each part checked before it is first read."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakValueDictionary

import torch

from peer.worker import memory
from peer.worker.guards import BlockHashes, Guard, Known, Residence
from peer.worker.reach import reach
from protocol import limits
from protocol.errors import BadTensor
from protocol.sizes import check_limit
from protocol.tensors import TensorHeader

_PIECE: Final = 8 * limits.MIB  # copied at once


@dataclass(frozen=True, slots=True)
class Mapped:
    """Memory for one tensor: writable for Python, and gone with the last user of this very object.

    Attributes:
        lead: bytes in front of the tensor.
        guard: for what must be checked before it is read.
        is_file: it is the file's own pages.
    """

    memory: Any
    lead: int
    guard: Guard | None = None
    is_file: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Guarded:
    """A tensor whose memory must be checked before it is read."""

    tensor: torch.Tensor
    guard: Guard

    def check(self) -> None:
        """Check all that the tensor can touch. Corrupt, BadTensor."""
        for start, stop in self._ranges():
            self.guard.check(start, stop)

    def was_read(self) -> None:
        """An operation has read the tensor."""
        self.guard.read(sum(stop - start for start, stop in self._ranges()))

    def _ranges(self) -> list[tuple[int, int]]:
        tensor, size = self.tensor, self.tensor.element_size()
        offset = int(tensor.storage_offset())
        ranges = reach(offset, tensor.shape, tensor.stride(), limits.BLOCK // size)
        return [(start * size, stop * size) for start, stop in ranges]


class Files:
    """Maps files, and remembers of which blocks it is known that they are good, as long as they are mapped."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[tuple[int, int, int], Known] = WeakValueDictionary()
        self._residence = Residence()

    def map(
        self,
        object_id: bytes,
        header: TensorHeader,
        file: tuple[int, int],
        is_read_only: bool,
        hashes: BlockHashes | None,
    ) -> Mapped:
        """The tensor that begins in `file` (descriptor, offset). With `hashes` it must be checked before it is read."""
        (descriptor, offset), nbytes = file, header.nbytes
        start, stop = (offset, offset + nbytes) if hashes is None else hashes.covering(offset, nbytes)
        view = memory.map_private(descriptor, start, stop - start, is_read_only=is_read_only)
        lead = offset - start
        address = torch.frombuffer(view, dtype=torch.uint8).data_ptr() + lead
        guard = None
        if hashes is not None:
            known = self._known_of(descriptor, hashes)
            check = _check_bools_at if header.dtype == "bool" else None
            guard = Guard(object_id, address, nbytes, lead, hashes, known, self._residence, check)
        if offset % header.itemsize:  # a later tensor of a model: kernels expect aligned elements
            return Mapped(_copied(view, lead, nbytes, guard), 0)
        return Mapped(view, lead, guard, is_file=True)

    def _known_of(self, descriptor: int, hashes: BlockHashes) -> Known:
        state = os.fstat(descriptor)
        key = (state.st_dev, state.st_ino, hashes.start)  # an inode stays what it is while it is mapped
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = Known(hashes.count)
        return known


def _copied(view: memoryview, lead: int, nbytes: int, guard: Guard | None) -> mmap.mmap:
    sentence = "a tensor of {size} bytes that begins at an odd place in its model cannot be worked on there; "
    check_limit("MAX_MEMORY_TENSOR", nbytes, sentence + "copy it out of the model first")
    copy = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # ours, and counted as ours
    for start in range(0, nbytes, _PIECE):
        stop = min(start + _PIECE, nbytes)
        if guard is not None:
            guard.check(start, stop)
        copy[start:stop] = view[lead + start : lead + stop]
        if guard is not None:
            guard.read(stop - start)
    if guard is not None:
        guard.end()
    return copy


def _check_bools_at(address: int, nbytes: int) -> None:
    check_bools(torch.frombuffer(memory.view_at(address, nbytes), dtype=torch.uint8))


def check_bools(content: torch.Tensor) -> None:
    """BadTensor unless every byte is 0 or 1. Allocates nothing."""
    if int(content.max()) > 1:
        raise BadTensor("a bool is the byte 0 or 1")  # kernels trust that, some as an index
