"""Hashes of blocks: XXH3-64 of each, and the XXH3-128 over them all that stands for the whole value (SPEC.md, 6).

One rule for the wire, the store and the workers: what was hashed in one place is checked in the others.

They find what broke on the way, or what an end sent wrongly; against an end that lies on purpose the names of
contents (BLAKE3) are kept.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from xxhash import xxh3_64_intdigest, xxh3_128

from protocol import limits
from protocol.codec import Buffer

_U64: Final = struct.Struct("<Q")
HASH_BYTES: Final = _U64.size


def hash_of(block: Buffer) -> int:
    """XXH3-64: a tenth of a millisecond for a whole block."""
    return xxh3_64_intdigest(block)


def block_count(nbytes: int) -> int:
    """Blocks in a value of so many bytes; the last may be shorter."""
    return -(-nbytes // limits.BLOCK)


def block_hash_at(blocks: bytes, number: int) -> int:
    """The hash of block `number` in a packed list of them (StoredObject.blocks): each as u64 little-endian."""
    return int.from_bytes(blocks[number * HASH_BYTES : (number + 1) * HASH_BYTES], "little")


def unpack_hashes(blocks: bytes) -> Sequence[int]:
    """All hashes of a packed list of them."""
    return struct.unpack(f"<{len(blocks) // HASH_BYTES}Q", blocks)


class Digest:
    """The XXH3-128 over the hashes of blocks, in their order, each as u64 little-endian."""

    def __init__(self, preceding: Iterable[int] = ()) -> None:
        self._hash = xxh3_128()
        for each in preceding:
            self.add(each)

    def add(self, hash: int) -> None:
        """The next block's."""
        self._hash.update(_U64.pack(hash))

    def value(self) -> bytes:
        """16 bytes, in the canonical order of XXH3 (the high half first, big-endian)."""
        return self._hash.digest()


def digest_of(hashes: Sequence[int]) -> bytes:
    """The digest of a value whose blocks have these hashes."""
    return xxh3_128(struct.pack(f"<{len(hashes)}Q", *hashes)).digest()
