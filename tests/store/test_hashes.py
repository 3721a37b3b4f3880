"""Hashes: of the whole file and of its payload's blocks, however the bytes come."""

import random
import struct

import pytest
from blake3 import blake3
from xxhash import xxh3_64_intdigest

from peer.hashing import block_count, block_hash_at
from peer.store.hashes import FileHasher
from protocol import limits


@pytest.mark.parametrize(
    "nbytes", [0, 1, limits.BLOCK - 1, limits.BLOCK, limits.BLOCK + 1, 3 * limits.BLOCK, 3 * limits.BLOCK + 17]
)
@pytest.mark.parametrize("piece", [limits.BLOCK, 300_000, 3 * limits.BLOCK + 5])
def test_pieces_of_any_size_give_the_hashes_of_the_file(nbytes, piece):
    data = random.Random(nbytes).randbytes(nbytes)
    hasher = FileHasher()
    hasher.header(b"header")
    for at in range(0, nbytes, piece):
        hasher.payload(memoryview(data)[at : at + piece])
    expected = [xxh3_64_intdigest(data[at : at + limits.BLOCK]) for at in range(0, nbytes, limits.BLOCK)]
    assert hasher.content() == blake3(b"header" + data).hexdigest()
    assert hasher.blocks() == struct.pack(f"<{len(expected)}Q", *expected)
    assert block_count(nbytes) == len(expected)
    assert [block_hash_at(hasher.blocks(), number) for number in range(len(expected))] == expected


def test_hashes_asked_for_twice_are_the_same():
    hasher = FileHasher()
    hasher.payload(b"x" * 100)
    assert hasher.blocks() == hasher.blocks()
