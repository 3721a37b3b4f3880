"""Hashes of blocks: XXH3-64 of each, and the XXH3-128 over them all that stands for the whole value (SPEC.md, 6).

They find what broke on the way, or what an end sent wrongly; against an end that lies on purpose the names of
contents (BLAKE3) are kept.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from xxhash import xxh3_64_intdigest, xxh3_128

from protocol.codec import Buffer

_U64: Final = struct.Struct("<Q")


def hash_of(block: Buffer) -> int:
    """XXH3-64: a tenth of a millisecond for a whole block."""
    return xxh3_64_intdigest(block)


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
