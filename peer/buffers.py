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

A process may have few descriptors, and needs them to go on: who keeps many values, or asks for many and does not read
them, is not to take them all. So no more files are open than a part of what there are; beyond it the oldest complete
buffers close theirs and keep the content, mapped or, where it is small, copied. Whoever shares one has it filed again.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from peer import machine
from peer.memory_file import MemoryFile, capacity_for
from peer.worker import memory
from protocol import limits
from protocol.errors import BadTensor, GridError, InternalError
from protocol.sizes import check_limit


@dataclass(frozen=True, slots=True)
class BufferStatistics:
    """Counts and bytes: what is in use, what is kept warm, and how often warmth was found."""

    used: int
    used_bytes: int
    warm: int
    warm_bytes: int
    taken: int
    reused: int


class Buffer:
    """`nbytes` of memory, filled from the front once, then fixed. Made by a BufferPool, with one reference."""

    __slots__ = ("_holders", "_memory", "_pool", "filled", "hashes", "nbytes", "on_gone")

    def __init__(self, pool: BufferPool, store: MemoryFile, nbytes: int) -> None:
        self._pool = pool
        self._memory: MemoryFile | None = store
        self._holders = 1
        self.nbytes = nbytes
        self.filled = nbytes if store.is_sealed else 0
        store.is_complete = self.is_complete
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
        if end > self.nbytes or held.is_sealed:
            raise BadTensor(f"{end} bytes came for a buffer of {self.nbytes}")
        warm = max(0, min(end, held.warm) - self.filled)
        if warm:
            held.map()[self.filled : self.filled + warm] = view[:warm]
        if warm < view.nbytes:
            memory.write_all(held.file, view[warm:], self.filled + warm)
            held.warm = end
        self.filled = end
        held.is_complete = self.is_complete

    def place(self) -> memoryview | None:
        """Where the bytes still to come belong, to be put there and then counted with `advance`. None where the pages
        are not there yet: `append` makes them for less."""
        held = self._held()
        if held.is_sealed or held.warm < self.nbytes or self.filled == self.nbytes:
            return None
        return held.map()[self.filled : self.nbytes]

    def advance(self, nbytes: int) -> None:
        """So many bytes were put where `place` said."""
        if self.filled + nbytes > self.nbytes:
            raise InternalError(f"{nbytes} bytes more in a buffer that has {self.filled} of its {self.nbytes}")
        self.filled += nbytes
        self._held().is_complete = self.is_complete

    def view(self, start: int = 0, stop: int | None = None) -> memoryview:
        """The bytes from `start` to `stop` (all that are there), read-only. Hold a reference as long as the view."""
        stop = self.filled if stop is None else stop
        if not 0 <= start <= stop <= self.filled:
            raise InternalError(f"bytes {start} to {stop} of a buffer that has {self.filled}")
        if start == stop:
            return memoryview(b"")
        return self._held().map().toreadonly()[start:stop]

    def share(self) -> int:
        """The descriptor, for a worker to map: good until the next await. The content is fixed from now on.

        InternalError: the system has no descriptor left.
        """
        held = self._held()
        if not self.is_complete:
            raise InternalError(f"a buffer that has {self.filled} of its {self.nbytes} bytes cannot be computed on")
        if held.fd is None:
            self._pool._file_again(held, self.nbytes)
        if not held.is_sealed:
            os.ftruncate(held.file, self.nbytes)  # behind the end may be what an earlier holder wrote
            held.capacity = self.nbytes
            memory.seal_for_readers(held.file)
            held.is_sealed = True
        return held.file

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
            self._pool._take_back(self, held)
            if self.on_gone is not None:
                self.on_gone()

    def _held(self) -> MemoryFile:
        if self._memory is None:
            raise InternalError("a buffer was used after its last reference was given up")
        return self._memory

    def __del__(self) -> None:
        # Somebody who held it was cancelled before it could say so: the memory goes with the last who knows of it.
        if self._memory is not None:
            self._pool._lost(self._memory)
            if self.on_gone is not None:
                self.on_gone()

    def __len__(self) -> int:
        return self.nbytes

    def __repr__(self) -> str:
        state = "released" if self._memory is None else "shared" if self._memory.is_sealed else f"{self.filled} filled"
        return f"<Buffer {self.nbytes} bytes, {state}, {self._holders} holders>"


class BufferPool:
    """Gives out buffers, and keeps up to `keep` bytes of released ones warm for `idle` seconds. Left out, `keep` is a
    small part of the memory that this process may have; as few descriptors are taken (`files`).

    Plain and synchronous: call `sweep` now and then (it is cheap), and `close` at the end.
    """

    def __init__(
        self,
        keep: int | None = None,
        files: int | None = None,
        idle: float = limits.BUFFER_IDLE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keep = min(limits.BUFFER_POOL, machine.memory() // limits.BUFFER_SHARE) if keep is None else keep
        self._files = machine.descriptors(limits.BUFFER_FILES) if files is None else files
        self._idle = idle
        self._clock = clock
        self._open: OrderedDict[MemoryFile, int] = (
            OrderedDict()
        )  # in use, with a file, oldest first: bytes of the buffer
        self._free: dict[int, deque[MemoryFile]] = {}
        self._released: OrderedDict[MemoryFile, float] = OrderedDict()  # the same, oldest first
        self._warm_bytes = 0
        self._used = 0
        self._used_bytes = 0
        self._taken = 0
        self._reused = 0

    def take(self, nbytes: int) -> Buffer:
        """An empty buffer for exactly `nbytes`.

        Raises:
            TooLarge: more than a value in memory may have, or so many are being filled that no file is left for one.
            InternalError: the system has no descriptor left.
        """
        sentence = "{size:bytes} do not fit into memory; publish the value (give it tags), then it is kept on disk"
        check_limit("MAX_MEMORY_TENSOR", nbytes, sentence)
        capacity = capacity_for(nbytes)
        store = self._reuse(capacity)
        if store is None:
            self._make_room()
            sentence = "this peer takes {allowed} values in at once, and others are coming: send this one again later"
            check_limit("BUFFER_FILES", len(self._open) + 1, sentence, allowed=self._files)
            store = self._fresh(capacity)
        return self._made(Buffer(self, store, nbytes))

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
        buffer = self._made(Buffer(self, MemoryFile(fd, nbytes, is_sealed=True), nbytes))
        self._make_room(0)
        return buffer

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
        self._open[buffer._held()] = buffer.nbytes
        self._used += 1
        self._taken += 1
        self._used_bytes += buffer.nbytes
        return buffer

    def _fresh(self, capacity: int) -> MemoryFile:
        try:
            fd = memory.new_file("grid-buffer")
            os.ftruncate(fd, capacity)
        except OSError as error:
            raise _no_file(capacity, error) from None
        return MemoryFile(fd, capacity)

    def _make_room(self, files: int = 1) -> None:
        """For so many more files, as far as that is possible: warm ones go first, then the oldest complete buffers do
        without theirs."""
        while self._released and len(self._open) + len(self._released) + files > self._files:
            self._drop_oldest()
        for _ in range(len(self._open)):
            if len(self._open) + files <= self._files:
                return
            store, nbytes = self._open.popitem(last=False)
            if not store.is_complete or not store.gave_up(nbytes):
                self._open[store] = nbytes  # behind those that will be complete sooner

    def _file_again(self, store: MemoryFile, nbytes: int) -> None:
        self._make_room()
        try:
            store.file_again(nbytes)
        except OSError as error:
            raise _no_file(nbytes, error) from None
        self._open[store] = nbytes

    def _lost(self, store: MemoryFile) -> None:
        self._open.pop(store, None)
        store.close()

    def _reuse(self, capacity: int) -> MemoryFile | None:
        stores = self._free.get(capacity)
        if not stores:
            return None
        store = stores.pop()  # the warmest
        del self._released[store]
        self._warm_bytes -= store.warm
        self._reused += 1
        return store

    def _take_back(self, buffer: Buffer, store: MemoryFile) -> None:
        self._open.pop(store, None)
        self._used -= 1
        self._used_bytes -= buffer.nbytes
        if store.is_sealed or store.fd is None or not 0 < store.warm <= self._keep or store.has_views():
            store.close()
            return
        self._free.setdefault(store.capacity, deque()).append(store)
        self._released[store] = self._clock()
        self._warm_bytes += store.warm
        while self._warm_bytes > self._keep or len(self._released) > min(limits.BUFFER_COUNT, self._files // 2):
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


def _no_file(nbytes: int, error: OSError) -> InternalError:
    return InternalError(f"no memory file for {nbytes} bytes: {error.strerror}. Ask again when others are done")
