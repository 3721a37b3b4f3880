"""Values that left a worker and are on their way to somebody, in memory of the peer's: counted, and bounded.

A worker gives a value away as a sealed memory file (export.py). From then on no limit of the worker's knows of it; so
it counts against its principal until the last who reads it is done.
"""

from __future__ import annotations

import os
from functools import partial

from peer.buffers import Buffer, BufferPool
from peer.worker.answers import Refusal
from peer.worker.budgets import Budgets
from peer.worker.framing import NONE_LEFT
from protocol.errors import InternalError, TooLarge


class Outgoing:
    """The buffers of the values that one principal's workers give out."""

    def __init__(self, buffers: BufferPool, budgets: Budgets, principal: str) -> None:
        self._buffers = buffers
        self._budgets = budgets
        self._principal = principal

    def adopt(self, fd: int, nbytes: int) -> Buffer:
        """As a BufferPool's. Refusal, for who wanted the value, where too much of the principal's is on its way, or the
        peer had no descriptor left to take it with."""
        if fd == NONE_LEFT:
            raise Refusal(InternalError("this peer has as many files open as it may, for now: ask again in a moment"))
        try:
            self._budgets.goes_out(self._principal, nbytes)
        except TooLarge as error:
            os.close(fd)
            raise Refusal(error) from None
        came_out = partial(self._budgets.came_out, self._principal, nbytes)
        try:
            buffer = self._buffers.adopt(fd, nbytes)
        except BaseException:
            came_out()
            raise
        buffer.on_gone = came_out
        return buffer
