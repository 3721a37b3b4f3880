"""Memory for values that a peer holds: memory files that a worker can map, recycled while they are warm.

    BufferPool.take(n)   an empty Buffer for an incoming stream: `append` until it is complete
    BufferPool.adopt(fd) a complete Buffer over memory that a worker made and sealed
    buffer.view()        the bytes, read-only, without a copy
    buffer.share()       the descriptor for a worker; from then on nobody can write to it
    acquire / release    counted: each who still reads holds one reference

A released buffer keeps its pages for the next stream of its size, because fresh pages cost more than the copy
(measured, per second: 1.5 GB into a fresh mapping, 2.6 GB by pwrite into a fresh file, 6.5 GB into warm pages).
What an earlier holder wrote can never be read: only the bytes appended since are visible, and a buffer that a
worker has seen, or that still has views, is never used again.
"""

from __future__ import annotations

import mmap
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from peer import machine
from peer.worker import memory
from protocol import limits
from protocol.errors import BadTensor, GridError, InternalError
from protocol.sizes import check_limit

_SMALLEST: Final = 64 * limits.KIB


def capacity_for(nbytes: int) -> int:
    """The size class: eighths of a power of two, so that at most an eighth is wasted."""
    if nbytes <= _SMALLEST:
        return _SMALLEST
    step = 1 << max((nbytes - 1).bit_length() - 4, mmap.PAGESIZE.bit_length() - 1)
    return -(-nbytes // step) * step


@dataclass(frozen=True, slots=True)
class BufferStatistics:
    """Counts and bytes: what is in use, what is kept warm, and how often warmth was found."""

    used: int
    used_bytes: int
    warm: int
    warm_bytes: int
    taken: int
    reused: int


class _Memory:
    """A memory file, its mapping, and how far its pages are there already."""

    __slots__ = ("capacity", "fd", "mapping", "warm")

    def __init__(self, fd: int, capacity: int) -> None:
        self.fd = fd
        self.capacity = capacity
        self.warm = 0
        self.mapping: mmap.mmap | None = None

    def map(self, writable: bool) -> mmap.mmap:
        if self.mapping is None:
            access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
            self.mapping = mmap.mmap(self.fd, self.capacity, access=access)
        return self.mapping

    def has_views(self) -> bool:
        if self.mapping is None:
            return False
        try:
            self.mapping.resize(self.capacity)  # changes nothing, but Python refuses it while views exist
        except BufferError:
            return True
        return False

    def close(self) -> None:
        os.close(self.fd)
        if self.mapping is not None:
            try:
                self.mapping.close()
            except BufferError:
                pass  # a reader still has a view: the memory goes with the last of them
            self.mapping = None


class Buffer:
    """`nbytes` of memory, filled from the front once, then fixed. Made by a BufferPool, with one reference."""

    __slots__ = ("_holders", "_memory", "_pool", "_shared", "filled", "hashes", "nbytes", "on_gone")

    def __init__(self, pool: BufferPool, store: _Memory, nbytes: int, *, is_sealed: bool) -> None:
        self._pool = pool
        self._memory: _Memory | None = store
        self._holders = 1
        self._shared = is_sealed
        self.nbytes = nbytes
        self.filled = nbytes if is_sealed else 0
        self.hashes: list[int] | None = None  # of its blocks, where they came with it and were checked
        self.on_gone: Callable[[], None] | None = None  # told once, when the last reference is given up

    @property
    def is_complete(self) -> bool:
        return self.filled == self.nbytes

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """The next bytes. BadTensor, and nothing written, if there are more than the buffer was made for."""
        held = self._held()
        view = memoryview(data).cast("B")
        end = self.filled + view.nbytes
        if end > self.nbytes or self._shared:
            raise BadTensor(f"{end} bytes came for a buffer of {self.nbytes}")
        warm = max(0, min(end, held.warm) - self.filled)
        if warm:
            held.map(writable=True)[self.filled : self.filled + warm] = view[:warm]
        if warm < view.nbytes:
            memory.write_all(held.fd, view[warm:], self.filled + warm)
            held.warm = end
        self.filled = end

    def place(self) -> memoryview | None:
        """Where the bytes still to come belong, to be put there and then counted with `advance`. None where the pages
        are not there yet: `append` makes them for less."""
        held = self._held()
        if self._shared or held.warm < self.nbytes or self.filled == self.nbytes:
            return None
        return memoryview(held.map(writable=True))[self.filled : self.nbytes]

    def advance(self, nbytes: int) -> None:
        """So many bytes were put where `place` said."""
        if self.filled + nbytes > self.nbytes:
            raise InternalError(f"{nbytes} bytes more in a buffer that has {self.filled} of its {self.nbytes}")
        self.filled += nbytes

    def view(self, start: int = 0, stop: int | None = None) -> memoryview:
        """The bytes from `start` to `stop` (all that are there), read-only. Hold a reference as long as the view."""
        stop = self.filled if stop is None else stop
        if not 0 <= start <= stop <= self.filled:
            raise InternalError(f"bytes {start} to {stop} of a buffer that has {self.filled}")
        if start == stop:
            return memoryview(b"")
        return memoryview(self._held().map(writable=not self._shared)).toreadonly()[start:stop]

    def share(self) -> int:
        """The descriptor, for a worker to map; still this buffer's to close. The content is fixed from now on."""
        held = self._held()
        if not self.is_complete:
            raise InternalError(f"a buffer that has {self.filled} of its {self.nbytes} bytes cannot be computed on")
        if not self._shared:
            os.ftruncate(held.fd, self.nbytes)  # behind the end may be what an earlier holder wrote
            held.capacity = self.nbytes
            memory.seal_for_readers(held.fd)
            self._shared = True
        return held.fd

    def acquire(self) -> Buffer:
        """One more reference; returns this buffer."""
        self._held()
        self._holders += 1
        return self

    def release(self) -> None:
        """One reference less; with the last one the memory goes back, and the buffer is beyond use."""
        held = self._held()
        self._holders -= 1
        if not self._holders:
            self._memory = None
            self._pool._take_back(self, held, is_reusable=not self._shared)
            if self.on_gone is not None:
                self.on_gone()

    def _held(self) -> _Memory:
        if self._memory is None:
            raise InternalError("a buffer was used after its last reference was given up")
        return self._memory

    def __del__(self) -> None:
        # Somebody who held it was cancelled before it could say so: the memory goes with the last who knows of it.
        if self._memory is not None:
            self._memory.close()
            if self.on_gone is not None:
                self.on_gone()

    def __len__(self) -> int:
        return self.nbytes

    def __repr__(self) -> str:
        state = "released" if self._memory is None else "shared" if self._shared else f"{self.filled} filled"
        return f"<Buffer {self.nbytes} bytes, {state}, {self._holders} holders>"


class BufferPool:
    """Gives out buffers, and keeps up to `keep` bytes of released ones warm for `idle` seconds. Left out, `keep` is a
    small part of the memory that this process may have.

    Plain and synchronous: call `sweep` now and then (it is cheap), and `close` at the end.
    """

    def __init__(
        self,
        keep: int | None = None,
        idle: float = limits.BUFFER_IDLE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keep = min(limits.BUFFER_POOL, machine.memory() // limits.BUFFER_SHARE) if keep is None else keep
        self._idle = idle
        self._clock = clock
        self._free: dict[int, deque[_Memory]] = {}
        self._released: OrderedDict[_Memory, float] = OrderedDict()  # the same, oldest first
        self._warm_bytes = 0
        self._used = 0
        self._used_bytes = 0
        self._taken = 0
        self._reused = 0

    def take(self, nbytes: int) -> Buffer:
        """An empty buffer for exactly `nbytes`.

        Raises:
            TooLarge: more than a value in memory may have.
            InternalError: the system has no descriptor left.
        """
        sentence = "{size:bytes} do not fit into memory; publish the value (give it tags), then it is kept on disk"
        check_limit("MAX_MEMORY_TENSOR", nbytes, sentence)
        capacity = capacity_for(nbytes)
        store = self._reuse(capacity) or self._fresh(capacity)
        return self._made(Buffer(self, store, nbytes, is_sealed=False))

    def adopt(self, fd: int, nbytes: int) -> Buffer:
        """A complete buffer over a memory file of a worker; owns `fd` from now on, whatever happens.

        Raises:
            InternalError: not a memory file of `nbytes` that its maker can no longer change.
        """
        try:
            memory.check_sealed(fd, nbytes)
        except (GridError, OSError):
            os.close(fd)
            raise
        return self._made(Buffer(self, _Memory(fd, nbytes), nbytes, is_sealed=True))

    def sweep(self) -> None:
        """Gives back to the system what nobody wanted for a while."""
        too_old = self._clock() - self._idle
        while self._released and next(iter(self._released.values())) <= too_old:
            self._drop_oldest()

    def close(self) -> None:
        """Lets go of all warm memory. Buffers in use stay good; theirs is freed with their last reference."""
        self._keep = 0
        while self._released:
            self._drop_oldest()

    def statistics(self) -> BufferStatistics:
        return BufferStatistics(
            self._used, self._used_bytes, len(self._released), self._warm_bytes, self._taken, self._reused
        )

    def _made(self, buffer: Buffer) -> Buffer:
        self._used += 1
        self._taken += 1
        self._used_bytes += buffer.nbytes
        return buffer

    def _fresh(self, capacity: int) -> _Memory:
        try:
            fd = memory.new_file("grid-buffer")
            os.ftruncate(fd, capacity)
        except OSError as error:
            raise InternalError(f"no memory file for {capacity} bytes: {error.strerror}") from None
        return _Memory(fd, capacity)

    def _reuse(self, capacity: int) -> _Memory | None:
        stores = self._free.get(capacity)
        if not stores:
            return None
        store = stores.pop()  # the warmest
        del self._released[store]
        self._warm_bytes -= store.warm
        self._reused += 1
        return store

    def _take_back(self, buffer: Buffer, store: _Memory, is_reusable: bool) -> None:
        self._used -= 1
        self._used_bytes -= buffer.nbytes
        if not is_reusable or not 0 < store.warm <= self._keep or store.has_views():
            store.close()
            return
        self._free.setdefault(store.capacity, deque()).append(store)
        self._released[store] = self._clock()
        self._warm_bytes += store.warm
        while self._warm_bytes > self._keep or len(self._released) > limits.BUFFER_COUNT:
            self._drop_oldest()
        self.sweep()

    def _drop_oldest(self) -> None:
        store, _ = self._released.popitem(last=False)
        self._warm_bytes -= store.warm
        stores = self._free[store.capacity]
        stores.remove(store)
        if not stores:
            del self._free[store.capacity]
        store.close()
