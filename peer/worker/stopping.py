"""How a program that is under way learns that it is to end: a number in memory that peer and worker share. Torch-free.

A worker reads its channel only between requests. What its peer writes here it sees at its next step; it can read this
memory, not write to it.
"""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import Callable
from typing import Final

from peer.worker.memory import map_private, new_file, seal_for_readers
from protocol import limits

_BYTES: Final = mmap.PAGESIZE
_NOTHING: Final = 0  # requests are numbered from 1


class StopSign:
    """The peer's end. `fd` is the worker's to be given, and then the caller's to close."""

    def __init__(self) -> None:
        self.fd = new_file("grid-stop")
        os.ftruncate(self.fd, _BYTES)
        self._memory = mmap.mmap(self.fd, _BYTES, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._number = memoryview(self._memory).cast("Q")
        seal_for_readers(self.fd)

    def show(self, number: int) -> None:
        """The request of this number is to end."""
        self._number[0] = number


class Stopping:
    """Which requests of one worker are to end. Each is told at its turn, and has limits.STOP_WAIT from then on.

    Args:
        first: the number of the request that the worker is at; None where it is at none, or gone.
        has_begun: whether the process is there; until then nothing takes it too long.
        kill: called where one does not end.
    """

    def __init__(
        self, sign: StopSign, first: Callable[[], int | None], has_begun: Callable[[], bool], kill: Callable[[], None]
    ) -> None:
        self._sign = sign
        self._first = first
        self._has_begun = has_begun
        self._kill = kill
        self._wanted: set[int] = set()
        self._shown = _NOTHING

    def stop(self, number: int) -> None:
        """The request of this number is to end; it has not been answered."""
        self._wanted.add(number)
        self._look()

    def answered(self, number: int) -> None:
        """That request is over; another may be the first now."""
        if self._wanted:
            self._wanted.discard(number)
            self._look()

    def _look(self) -> None:
        first = self._first()
        if first in self._wanted and first != self._shown:
            self._shown = first
            self._sign.show(first)
            asyncio.get_running_loop().call_later(limits.STOP_WAIT, self._late, first)

    def _late(self, number: int) -> None:
        if self._first() != number:
            return
        if self._has_begun():
            self._kill()
        else:
            asyncio.get_running_loop().call_later(limits.STOP_WAIT, self._late, number)


def never(number: int) -> bool:
    """For a worker that nobody has given a sign."""
    return False


def reader(fd: int) -> Callable[[int], bool]:
    """The worker's end: whether the request of a number is to end. The descriptor stays the caller's."""
    memory = map_private(fd, 0, _BYTES, is_read_only=True)
    number = memory.cast("Q")

    def is_stopped(seq: int) -> bool:
        assert memory  # mapped for as long as this very view is kept
        return number[0] == seq

    return is_stopped
