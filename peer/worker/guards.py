"""The blocks of stored files: what a worker is told of them, and which of those that it reads it has checked.

A stored file is mapped, never read as a whole. Before anything reads a part of it, the blocks of that part are held
against the hashes that were made when the object was stored; each is checked once for all tensors of the file. Torch-
free: the peer's end makes BlockHashes, the worker's end keeps a Guard for each tensor that it maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakSet

from peer.hashing import HASH_BYTES, block_count, block_hash_at, hash_of
from peer.worker import memory
from protocol import limits
from protocol.errors import BadTensor, Corrupt

_BLOCK: Final = limits.BLOCK


@dataclass(frozen=True, slots=True)
class BlockHashes:
    """Hashes of the blocks of a file's payload, from block `first` on.

    Attributes:
        start, nbytes: where the payload is in the file. Its blocks are counted from `start`; the last may be shorter.
        hashes: XXH3-64 of each block, u64 little-endian, one after another.
    """

    start: int
    nbytes: int
    hashes: bytes
    first: int = 0

    def __post_init__(self) -> None:
        if self.start < 0 or self.first < 0 or len(self.hashes) % HASH_BYTES:
            raise BadTensor("block hashes that make no sense")

    def of(self, offset: int, nbytes: int) -> BlockHashes:
        """Those that `nbytes` from `offset` of the file on lie in."""
        first, last = self._blocks_of(offset, nbytes)
        at = HASH_BYTES * (first - self.first)
        hashes = self.hashes[at : at + HASH_BYTES * (last - first)]
        return BlockHashes(self.start, self.nbytes, hashes, first)

    def covering(self, offset: int, nbytes: int) -> tuple[int, int]:
        """Where the blocks begin and end in the file that these bytes lie in. BadTensor where hashes are missing."""
        first, last = self._blocks_of(offset, nbytes)
        if not self.first <= first or last - self.first > len(self.hashes) // HASH_BYTES:
            raise BadTensor("fewer hashes came than the tensor has blocks")
        return self.start + first * _BLOCK, self.start + min(last * _BLOCK, self.nbytes)

    def hash_of(self, block: int) -> int:
        return block_hash_at(self.hashes, block - self.first)

    @property
    def count(self) -> int:
        """Blocks of the whole payload."""
        return block_count(self.nbytes)

    def to_wire(self) -> list[Any]:
        return [self.start, self.nbytes, self.hashes, self.first]

    @classmethod
    def from_wire(cls, value: Sequence[Any]) -> BlockHashes:
        return cls(*value)

    def _blocks_of(self, offset: int, nbytes: int) -> tuple[int, int]:
        at = offset - self.start
        if at < 0 or nbytes <= 0 or at + nbytes > self.nbytes:
            raise BadTensor(f"{nbytes} bytes from {offset} on are not within a payload of {self.nbytes}")
        return at // _BLOCK, (at + nbytes - 1) // _BLOCK + 1


class Residence:
    """Keeps what of stored files is resident in this process small: pages that were read are let go again."""

    def __init__(self) -> None:
        self._guards: WeakSet[Guard] = WeakSet()
        self._nbytes = 0

    def read(self, guard: Guard, nbytes: int) -> None:
        """So many bytes of it were read just now, by us or by an operation that is over."""
        self._guards.add(guard)
        self._nbytes += nbytes
        if self._nbytes > limits.WORKER_RESIDENT:
            for each in list(self._guards):
                each.let_go()
            self._guards.clear()
            self._nbytes = 0

    def forget(self, guard: Guard) -> None:
        self._guards.discard(guard)


class Known:
    """One file: a byte for each block of its payload, 1 where the block was found good. For every mapping of it."""

    __slots__ = ("__weakref__", "good")

    def __init__(self, count: int) -> None:
        self.good = bytearray(count)


class Guard:
    """One tensor on a mapped file, and which of its blocks have been checked.

    Args:
        object_id: to be named where a block is bad.
        address, nbytes: where the tensor is in memory. The rest of its first and last block is mapped around it.
        lead: bytes of its first block before it.
        hashes: of the tensor's own blocks.
        known: of its file.
        check_bytes: looks further at a piece of the tensor (address, nbytes) once, after its block; may raise.
    """

    def __init__(
        self,
        object_id: bytes,
        address: int,
        nbytes: int,
        lead: int,
        hashes: BlockHashes,
        known: Known,
        residence: Residence,
        check_bytes: Callable[[int, int], None] | None = None,
    ) -> None:
        self.object_id = object_id
        self.address = address
        self.nbytes = nbytes
        self._base = address - lead
        self._lead = lead
        self._hashes = hashes
        self._known = known
        self._residence = residence
        self._check_bytes = check_bytes
        # Bytes are looked at for each tensor, blocks for all together: neighbours share the block between them.
        self._first = 0 if check_bytes else hashes.first
        self._done = bytearray(len(hashes.hashes) // HASH_BYTES) if check_bytes else known.good

    def check(self, start: int, stop: int) -> None:
        """Check the blocks that the tensor's bytes from `start` to `stop` lie in, unless they have been.

        Raises:
            Corrupt: a block is not what was stored, or cannot be read.
            BadTensor: what `check_bytes` found.
        """
        first = self._first + (self._lead + start) // _BLOCK
        last = self._first + (self._lead + stop - 1) // _BLOCK + 1
        at = self._done.find(0, first, last)
        while at >= 0:
            self._check_block(at - self._first)
            self._done[at] = 1
            at = self._done.find(0, at + 1, last)

    def read(self, nbytes: int) -> None:
        """An operation has read so many of its bytes."""
        self._residence.read(self, nbytes)

    def let_go(self) -> None:
        memory.let_go(self._base, self._lead + self.nbytes)

    def end(self) -> None:
        """The memory is gone."""
        self._residence.forget(self)

    def _check_block(self, index: int) -> None:
        block = self._hashes.first + index
        start = index * _BLOCK
        address, nbytes = self._base + start, min(_BLOCK, self._hashes.nbytes - block * _BLOCK)
        if not self._known.good[block]:
            if not memory.populate(address, nbytes):
                raise self._corrupt(block, "cannot be read")
            with memory.view_at(address, nbytes) as data:
                if hash_of(data) != self._hashes.hash_of(block):
                    raise self._corrupt(block, "is not what was stored")
            self._known.good[block] = 1
        if self._check_bytes is not None:
            begin, end = max(start - self._lead, 0), min(start + _BLOCK - self._lead, self.nbytes)
            self._check_bytes(self.address + begin, end - begin)
        self._residence.read(self, nbytes)

    def _corrupt(self, block: int, what: str) -> Corrupt:
        shown = self.object_id.hex()
        return Corrupt(
            f"block {block} of object {shown[:12]} {what}: take the object from another holder, or delete it",
            object=shown,
            block=block,
        )
