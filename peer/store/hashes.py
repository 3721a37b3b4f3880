"""What a blob is known by: one name for the whole, and a hash for each block of its payload.

The name is the BLAKE3 of the file: nobody can make two files of one name, so equal names are equal contents whoever
wrote them. A block is limits.BLOCK bytes of the payload (all tensors, one after another, without the file's header);
its hash is XXH3-64, as on the wire: it tells bits that rotted from those that were stored, wherever the reading
starts, and costs a tenth of the reading. Figures: docs/decisions/0006-content-names-and-block-hashes.md.
"""

from __future__ import annotations

from blake3 import blake3
from xxhash import xxh3_64

from peer.hashing import HASH_BYTES, hash_of
from protocol import limits


class FileHasher:
    """Takes a file in order: its header once, then its payload in any pieces."""

    def __init__(self) -> None:
        self._whole = blake3()
        self._blocks = bytearray()
        self._open = xxh3_64()  # of the block that has begun
        self._filled = 0  # bytes of it

    def header(self, data: bytes | memoryview) -> None:
        self._whole.update(data)

    def payload(self, data: bytes | memoryview, known: int | None = None) -> None:
        """The next bytes; `known` is their hash where they are a block of their own."""
        self._whole.update(data)
        if known is not None and not self._filled and len(data) == limits.BLOCK:
            self._close(known)
            return
        rest = memoryview(data)
        while rest:
            part = rest[: limits.BLOCK - self._filled]
            rest = rest[len(part) :]
            if len(part) == limits.BLOCK:
                self._close(hash_of(part))  # no state to keep: half the cost
                continue
            self._open.update(part)
            self._filled += len(part)
            if self._filled == limits.BLOCK:
                self._close_open()

    def content(self) -> str:
        """The name of the file."""
        return self._whole.hexdigest()

    def blocks(self) -> bytes:
        """The hashes of all blocks, at the end."""
        if self._filled:
            self._close_open()
        return bytes(self._blocks)

    def _close_open(self) -> None:
        self._close(self._open.intdigest())
        self._open.reset()
        self._filled = 0

    def _close(self, value: int) -> None:
        self._blocks += value.to_bytes(HASH_BYTES, "little")
