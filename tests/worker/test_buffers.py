"""Memory of the peer: filled once, shared read-only, recycled only where nobody can see what was there before."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from peer.buffers import Buffer, BufferPool, capacity_for
from peer.worker import memory
from protocol import limits
from protocol.errors import BadTensor, InternalError, TooLarge

SIZE = 100_000


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def filled(pool: BufferPool, data: bytes) -> Buffer:
    buffer = pool.take(len(data))
    buffer.append(data)
    return buffer


def test_what_is_appended_in_pieces_is_there() -> None:
    pool = BufferPool()
    data = os.urandom(SIZE)
    buffer = pool.take(SIZE)
    for start in range(0, SIZE, 777):
        assert not buffer.is_complete
        buffer.append(memoryview(data)[start : start + 777])
    assert buffer.is_complete
    assert bytes(buffer.view()) == data
    assert bytes(buffer.view(5, 10)) == data[5:10]


def test_only_what_was_filled_can_be_seen() -> None:
    buffer = BufferPool().take(SIZE)
    buffer.append(b"abc")
    assert bytes(buffer.view()) == b"abc"
    with pytest.raises(InternalError):
        buffer.view(0, 4)
    with pytest.raises(InternalError, match="has 3 of its 100000"):
        buffer.share()


def test_more_than_it_was_made_for_is_refused_and_changes_nothing() -> None:
    buffer = filled(BufferPool(), b"x" * 10)
    with pytest.raises(BadTensor):
        buffer.append(b"y")
    assert bytes(buffer.view()) == b"x" * 10


def test_an_empty_buffer_is_complete_at_once() -> None:
    buffer = BufferPool().take(0)
    assert buffer.is_complete
    assert bytes(buffer.view()) == b""
    buffer.release()


def test_a_value_beyond_memory_is_refused_before_anything_is_made() -> None:
    with pytest.raises(TooLarge) as caught:
        BufferPool().take(limits.MAX_MEMORY_TENSOR + 1)
    assert caught.value.fields["limit"] == "MAX_MEMORY_TENSOR"


def test_released_memory_is_used_again_and_shows_nothing_of_before() -> None:
    pool = BufferPool()
    filled(pool, b"secret" * 20_000).release()
    buffer = pool.take(115_000)
    assert pool.statistics().reused == 1
    assert bytes(buffer.view()) == b""
    buffer.append(b"mine")
    assert bytes(buffer.view()) == b"mine"
    buffer.append(b"!" * (115_000 - 4))
    assert os.pread(buffer.share(), 1 << 20, 0) == b"mine" + b"!" * (115_000 - 4)


def test_a_buffer_that_a_worker_has_seen_is_never_used_again() -> None:
    pool = BufferPool()
    buffer = filled(pool, b"a" * SIZE)
    buffer.share()
    buffer.release()
    assert pool.statistics().warm == 0


def test_a_buffer_that_still_has_views_is_not_used_again() -> None:
    pool = BufferPool()
    buffer = filled(pool, b"a" * SIZE)
    view = buffer.view()
    buffer.release()
    assert pool.statistics().warm == 0
    assert bytes(view) == b"a" * SIZE


def test_shared_memory_can_be_changed_by_nobody() -> None:
    buffer = filled(BufferPool(), b"a" * SIZE)
    fd = buffer.share()
    for path in (f"/proc/self/fd/{fd}", None):  # what a hostile worker of the same user would try
        other = os.open(path, os.O_RDWR) if path else os.dup(fd)
        with pytest.raises(PermissionError):
            os.pwrite(other, b"b", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(other, 10)
        with pytest.raises(PermissionError):
            mmap.mmap(other, 10)
        os.close(other)
    with pytest.raises(BadTensor):
        buffer.append(b"")
    assert bytes(buffer.view()) == b"a" * SIZE


def test_the_last_reference_gives_the_memory_back() -> None:
    pool = BufferPool()
    buffer = filled(pool, b"a" * SIZE)
    buffer.acquire()
    buffer.release()
    assert bytes(buffer.view(0, 1)) == b"a"
    buffer.release()
    for use in (buffer.view, buffer.share, buffer.release, buffer.acquire):
        with pytest.raises(InternalError, match="last reference"):
            use()
    assert pool.statistics().used == 0


def test_the_pool_keeps_no_more_than_it_may() -> None:
    pool = BufferPool(keep=3 * SIZE)
    buffers = [filled(pool, b"a" * SIZE) for _ in range(5)]
    for buffer in buffers:
        buffer.release()
    assert pool.statistics().warm == 3
    assert pool.statistics().warm_bytes <= 3 * SIZE


def test_warm_memory_that_nobody_wants_is_given_back() -> None:
    clock = Clock()
    pool = BufferPool(idle=30, clock=clock)
    before = open_descriptors()
    filled(pool, b"a" * SIZE).release()
    clock.now = 20
    filled(pool, b"a" * 2 * SIZE).release()
    clock.now = 31
    pool.sweep()
    assert pool.statistics().warm == 1
    clock.now = 51
    pool.sweep()
    assert pool.statistics().warm == 0
    assert open_descriptors() <= before


def test_closing_the_pool_leaves_buffers_in_use_good_and_no_descriptor_behind() -> None:
    before = open_descriptors()
    pool = BufferPool()
    filled(pool, b"a" * SIZE).release()
    buffer = filled(pool, b"b" * 3 * SIZE)
    pool.close()
    assert bytes(buffer.view(0, 1)) == b"b"
    buffer.release()
    assert open_descriptors() <= before


@pytest.mark.parametrize("size", [10, SIZE, 2 * limits.BUFFER_COPY])
def test_what_gave_its_file_up_is_there_and_is_filed_again_for_a_worker(size: int) -> None:
    pool = BufferPool(files=2)
    before = open_descriptors()
    contents = [os.urandom(size) for _ in range(6)]
    buffers = [filled(pool, data) for data in contents]
    views = [buffer.view() for buffer in buffers[:2]]
    assert open_descriptors() <= before + 2
    for buffer, data in zip(buffers, contents, strict=True):
        assert bytes(buffer.view()) == data
        assert os.pread(buffer.share(), 2 * size, 0) == data
        with pytest.raises(PermissionError):
            os.pwrite(buffer.share(), b"b", 0)
        assert open_descriptors() <= before + 2
    assert [bytes(view) for view in views] == contents[:2]
    for buffer in buffers:
        buffer.release()
    assert pool.statistics().used == pool.statistics().warm == 0
    assert open_descriptors() <= before


def test_what_a_worker_gave_needs_no_descriptor_either() -> None:
    pool = BufferPool(files=1)
    before = open_descriptors()
    buffers = []
    for number in range(5):
        fd = memory.new_file("test")
        os.pwrite(fd, bytes([number]) * SIZE, 0)
        memory.seal(fd)
        buffers.append(pool.adopt(fd, SIZE))
        buffers[-1].view()
    assert open_descriptors() <= before + 1
    assert [bytes(buffer.view(0, 1)) for buffer in buffers] == [bytes([number]) for number in range(5)]


def test_buffers_that_are_being_filled_keep_their_files_and_no_more_are_begun() -> None:
    pool = BufferPool(files=2)
    filled(pool, b"a" * SIZE).release()
    buffers = [pool.take(SIZE), pool.take(SIZE)]
    with pytest.raises(TooLarge, match="send this one again later") as caught:
        pool.take(SIZE)
    assert caught.value.fields == {"limit": "BUFFER_FILES", "size": 3, "allowed": 2}
    buffers[1].append(b"b" * SIZE)
    buffers.append(pool.take(SIZE))
    for buffer, first in zip(buffers, (b"c", b"b", b"d"), strict=True):
        buffer.append(first * (SIZE - buffer.filled))
        assert bytes(buffer.view()) == first * SIZE


def test_a_buffer_that_nobody_gave_back_leaves_room() -> None:
    pool = BufferPool(files=1)
    lost = pool.take(SIZE)
    del lost
    pool.take(SIZE)


def test_memory_of_a_worker_is_taken_over_sealed() -> None:
    pool = BufferPool()
    fd = memory.new_file("test")
    os.ftruncate(fd, 10)
    os.pwrite(fd, b"0123456789", 0)
    memory.seal(fd)
    buffer = pool.adopt(fd, 10)
    assert bytes(buffer.view()) == b"0123456789"
    buffer.share()
    buffer.release()
    assert pool.statistics().warm == 0


@pytest.mark.parametrize("trick", ["unsealed", "shrinkable", "wrong size", "pipe", "file"])
def test_memory_that_a_worker_could_still_change_is_refused_and_closed(trick: str, tmp_path: Path) -> None:
    before = open_descriptors()
    match trick:
        case "pipe":
            fd, other = os.pipe()
            os.close(other)
        case "file":
            fd = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
            os.ftruncate(fd, 10)
        case _:
            fd = memory.new_file("test")
            os.ftruncate(fd, 11 if trick == "wrong size" else 10)
            if trick == "shrinkable":
                memory.fcntl.fcntl(fd, 1033, 0x8)
    with pytest.raises(InternalError):
        BufferPool().adopt(fd, 10)
    assert open_descriptors() <= before


def test_a_file_with_holes_is_refused() -> None:
    """Reading it would take memory that nobody gave, and where there is none that would be the end of the peer."""
    before = open_descriptors()
    fd = memory.new_file("test")
    os.ftruncate(fd, 1 << 20)
    os.pwrite(fd, b"x" * mmap.PAGESIZE, 1 << 19)
    memory.seal(fd)
    with pytest.raises(InternalError, match="holes"):
        BufferPool().adopt(fd, 1 << 20)
    assert open_descriptors() <= before


def test_size_classes_waste_an_eighth_at_most() -> None:
    for nbytes in (65_537, 100_000, 1 << 20, (1 << 20) + 1, 123_456_789):
        assert nbytes <= capacity_for(nbytes) <= nbytes * 9 // 8 + mmap.PAGESIZE


def test_a_private_mapping_starts_anywhere_and_leaves_the_file_alone() -> None:
    fd = memory.new_file("test")
    data = os.urandom(3 * mmap.PAGESIZE)
    os.write(fd, data)
    view = memory.map_private(fd, 4_999, 5_000)
    assert bytes(view) == data[4_999:9_999]
    view[:] = bytes(5_000)
    assert os.pread(fd, len(data), 0) == data
    with pytest.raises(BadTensor):
        memory.map_private(fd, len(data) - 10, 11)
    os.close(fd)


def test_what_is_kept_is_bounded_in_number_and_nothing_cold_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BUFFER_COUNT", 3)
    pool = BufferPool()
    for buffer in [filled(pool, b"x" * 10) for _ in range(5)]:
        buffer.release()
    assert pool.statistics().warm == 3
    pool.take(1 << 30).release()  # nothing ever came
    assert pool.statistics().warm == 3
    pool.close()
