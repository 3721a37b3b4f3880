"""Blocks of stored files: which of them a view can touch, and that each is checked once, before it is used."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from xxhash import xxh3_64_intdigest

from peer.worker import memory
from peer.worker.guards import BlockHashes
from peer.worker.mapped import Files, Guarded, Mapped
from peer.worker.reach import reach
from protocol import limits
from protocol.errors import BadTensor, Corrupt
from protocol.tensors import TensorHeader

BLOCK = limits.BLOCK
START = 192  # of the payload, behind a file's header


def hashes_of(payload: bytes) -> BlockHashes:
    blocks = [payload[at : at + BLOCK] for at in range(0, len(payload), BLOCK)]
    return BlockHashes(START, len(payload), b"".join(xxh3_64_intdigest(b).to_bytes(8, "little") for b in blocks))


def _touched(offset: int, sizes: Sequence[int], strides: Sequence[int]) -> set[int]:
    every = itertools.product(*map(range, sizes))
    return {offset + sum(i * s for i, s in zip(index, strides, strict=True)) for index in every}


@pytest.mark.parametrize(
    ("sizes", "strides", "count"),
    [
        ((), (), 1),
        ((10,), (1,), 1),
        ((0, 4), (4, 1), 0),
        ((4, 5), (5, 1), 1),  # whole
        ((4, 2), (5, 1), 1),  # columns, close together
        ((4, 2), (100, 1), 4),  # columns, far apart
        ((2, 4), (1, 100), 4),  # the same, transposed
        ((3, 4, 2), (1000, 100, 1), 12),
        ((3, 4, 2), (1000, 5, 1), 3),
        ((5, 3), (0, 1), 1),  # expanded
        ((4, 3), (30, 100), 1),  # leaps that interlock are taken as one
        ((3, 3, 3), (100, 100, 100), 1),
        ((2, 2, 3), (7, 2000, 30), 6),
    ],
)
def test_the_ranges_hold_every_element_and_leave_out_wide_gaps(
    sizes: tuple[int, ...], strides: tuple[int, ...], count: int
) -> None:
    ranges = list(reach(3, sizes, strides, gap=20))
    held = set(itertools.chain.from_iterable(range(start, stop) for start, stop in ranges))
    touched = _touched(3, sizes, strides)
    assert touched <= held
    assert max(touched, default=0) == max(held, default=0)
    assert len(ranges) == count
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ranges))


def test_a_view_of_many_equal_leaps_is_not_walked_leap_by_leap() -> None:
    assert list(reach(0, (1 << 20, 1 << 20), (1 << 20, 1 << 20), gap=1)) == [(0, ((1 << 20) - 1) * (2 << 20) + 1)]


def test_hashes_of_a_part_cover_just_its_blocks() -> None:
    hashes = hashes_of(os.urandom(3 * BLOCK + 100))
    part = hashes.of(START + BLOCK + 5, BLOCK)
    assert (part.first, len(part.hashes)) == (1, 16)
    assert part.covering(START + BLOCK + 5, BLOCK) == (START + BLOCK, START + 3 * BLOCK)
    assert part.hash_of(2) == hashes.hash_of(2)
    last = hashes.of(START + 3 * BLOCK, 100)
    assert last.covering(START + 3 * BLOCK, 100) == (START + 3 * BLOCK, START + 3 * BLOCK + 100)
    assert BlockHashes.from_wire(part.to_wire()) == part


@pytest.mark.parametrize(("offset", "nbytes"), [(START - 1, 8), (START, 0), (START, 3 * BLOCK), (START + 2 * BLOCK, 1)])
def test_bytes_outside_of_the_payload_have_no_hashes(offset: int, nbytes: int) -> None:
    with pytest.raises(BadTensor):
        hashes_of(bytes(2 * BLOCK)).of(offset, nbytes)


def test_a_tensor_without_all_its_hashes_is_refused() -> None:
    hashes = hashes_of(bytes(3 * BLOCK))
    with pytest.raises(BadTensor, match="fewer hashes"):
        BlockHashes(START, 3 * BLOCK, hashes.hashes[:-8]).covering(START, 3 * BLOCK)


class Mapper:
    """Maps tensors of one file whose bytes are known; `flip` changes one behind its back."""

    def __init__(self, payload: bytes) -> None:
        self.hashes = hashes_of(payload)
        self.fd = memory.new_file("test")
        memory.write_all(self.fd, memoryview(bytes(START) + payload))
        self.files = Files()

    def map(self, dtype: str, count: int, at: int = 0) -> Mapped:
        header, offset = TensorHeader(dtype, (count,)), START + at
        return self.files.map(bytes(16), header, (self.fd, offset), True, self.hashes.of(offset, header.nbytes))

    def flip(self, at: int) -> None:
        (byte,) = os.pread(self.fd, 1, START + at)
        os.pwrite(self.fd, bytes([byte ^ 1]), START + at)


@pytest.fixture
def mapper() -> Iterator[Callable[[bytes], Mapper]]:
    made: list[Mapper] = []

    def make(payload: bytes) -> Mapper:
        made.append(Mapper(payload))
        return made[-1]

    yield make
    for one in made:
        os.close(one.fd)


def _tensor(mapped: Mapped, dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(mapped.memory, dtype=dtype, offset=mapped.lead)


def _guarded(mapped: Mapped, tensor: torch.Tensor) -> Guarded:
    assert mapped.guard is not None
    return Guarded(tensor, mapped.guard)


@pytest.mark.parametrize("bad", [0, BLOCK - 1, BLOCK, 3 * BLOCK + 99])
def test_a_bad_block_is_found_by_the_views_that_touch_it_and_by_no_other(
    mapper: Callable[[bytes], Mapper], bad: int
) -> None:
    file = mapper(os.urandom(3 * BLOCK + 100))
    mapped = file.map("uint8", 3 * BLOCK + 100)
    whole = _tensor(mapped, torch.uint8)[: 3 * BLOCK + 100]
    file.flip(bad)
    for start in range(0, 3 * BLOCK + 100, BLOCK // 2):
        part = whole[start : start + BLOCK // 2]
        if start // BLOCK == bad // BLOCK:
            with pytest.raises(Corrupt, match=rf"block {bad // BLOCK} of object 000000000000 is not what was stored"):
                _guarded(mapped, part).check()
        else:
            _guarded(mapped, part).check()
    with pytest.raises(Corrupt):
        _guarded(mapped, whole).check()


def test_a_block_is_checked_once_for_all_tensors_of_its_file(mapper: Callable[[bytes], Mapper]) -> None:
    file = mapper(os.urandom(2 * BLOCK))
    one, other = file.map("uint8", 100), file.map("uint8", 100, at=200)
    _guarded(one, _tensor(one, torch.uint8)[:100]).check()
    file.flip(250)  # after the check: not looked at again
    _guarded(other, _tensor(other, torch.uint8)[:100]).check()
    file.flip(BLOCK)
    third = file.map("uint8", 100, at=BLOCK)
    with pytest.raises(Corrupt, match="block 1"):
        _guarded(third, _tensor(third, torch.uint8)[:100]).check()


def test_what_was_known_of_a_file_is_forgotten_with_its_last_mapping(mapper: Callable[[bytes], Mapper]) -> None:
    file = mapper(os.urandom(BLOCK))
    mapped = file.map("uint8", BLOCK)
    _guarded(mapped, _tensor(mapped, torch.uint8)).check()
    del mapped
    file.flip(7)
    mapped = file.map("uint8", BLOCK)
    with pytest.raises(Corrupt):
        _guarded(mapped, _tensor(mapped, torch.uint8)).check()


def test_bools_are_looked_at_where_they_are_read_and_not_in_their_neighbours(mapper: Callable[[bytes], Mapper]) -> None:
    content = bytearray(2 * BLOCK)
    content[: BLOCK // 2] = b"\x07" * (BLOCK // 2)  # another tensor's
    content[BLOCK + 5] = 2
    file = mapper(bytes(content))
    mapped = file.map("bool", 2 * BLOCK - BLOCK // 2, at=BLOCK // 2)
    tensor = _tensor(mapped, torch.bool)
    _guarded(mapped, tensor[: BLOCK // 2]).check()
    with pytest.raises(BadTensor, match="0 or 1"):
        _guarded(mapped, tensor[BLOCK // 2 :]).check()
    one = file.map("uint8", 2 * BLOCK)
    _guarded(one, _tensor(one, torch.uint8)).check()  # as bytes they are what was stored
    with pytest.raises(BadTensor):
        _guarded(mapped, tensor).check()


def test_a_misaligned_tensor_is_copied_and_checked_as_it_is(mapper: Callable[[bytes], Mapper]) -> None:
    file = mapper(os.urandom(3 * BLOCK))
    mapped = file.map("float64", BLOCK // 8, at=BLOCK + 3)
    assert mapped.guard is None and not mapped.is_file
    assert bytes(mapped.memory) == os.pread(file.fd, BLOCK, START + BLOCK + 3)
    file.flip(2 * BLOCK + 1)
    file.files = Files()
    with pytest.raises(Corrupt, match="block 2"):
        file.map("float64", BLOCK // 8, at=BLOCK + 3)


def test_a_file_that_was_cut_short_is_corrupt_and_kills_nobody(mapper: Callable[[bytes], Mapper]) -> None:
    file = mapper(os.urandom(3 * BLOCK))
    mapped = file.map("uint8", 3 * BLOCK)
    os.ftruncate(file.fd, START + BLOCK)
    tensor = _tensor(mapped, torch.uint8)
    _guarded(mapped, tensor[: BLOCK - START]).check()
    with pytest.raises(Corrupt, match=r"block 2 of object .* cannot be read"):
        _guarded(mapped, tensor[2 * BLOCK :]).check()
    with pytest.raises(BadTensor):
        file.map("uint8", 3 * BLOCK)
