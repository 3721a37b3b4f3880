"""The value of a temporary, from the moment at which it is taken until somebody has it.

What is taken is decided when a Taking is made, in the lane of the temporary's owner; it is awaited outside the lane. In
between other things may fail, so that nobody awaits it any more: whoever does not await one closes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

from peer import secrecy
from peer.batches import Snapshot
from peer.objects import Temporary, show_id
from peer.spans import Spans, release
from peer.worker.remote import Exported, Span, Worker
from protocol.errors import GridError, WorkerLost

Exporting = tuple[Worker, asyncio.Future[Exported]]
"""Who was asked for the value, and the answer to come."""


class Taking:
    """An awaitable of (header, value): what `held` was when this was made, also if it is released meanwhile.

    Raises what its operation failed with, or WorkerLost. Await it once, or close it; that does no harm afterwards.

    Args:
        held: whose value it is; a buffer that it has is the value if its worker says so, or is not asked.
        exporting: an export of it that is under way; None where nothing can have changed it.
    """

    __slots__ = ("_buffer", "_exporting", "_held", "_spans")

    def __init__(self, held: Temporary, exporting: Exporting | None, spans: Spans) -> None:
        self._held = held
        self._exporting = exporting
        self._spans = spans
        self._buffer = None if held.buffer is None else held.buffer.acquire()

    def __await__(self) -> Generator[Any, None, Snapshot]:
        return self._take().__await__()

    def close(self) -> None:
        """Gives back what nobody got: the buffer, and what the worker answered or will answer."""
        exporting, self._exporting = self._exporting, None
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.release()
        if exporting is not None:
            let_go(exporting[1])

    async def _take(self) -> Snapshot:
        held = self._held
        try:
            if held.failure is not None:
                raise held.failure.again()
            if self._exporting is not None:
                taken = await self._exported(*self._exporting)
                if taken is not None:
                    return taken
            return self._as_it_came()
        finally:
            self.close()

    def _as_it_came(self) -> Snapshot:
        header, buffer = self._held.header, self._buffer
        if header is None or buffer is None:
            raise WorkerLost(f"{show_id(self._held.id)} is gone with the worker that held it: compute it again")
        self._buffer = None
        return header, buffer

    async def _exported(self, worker: Worker, future: asyncio.Future[Exported]) -> Snapshot | None:
        """What the worker says of it; None where that is as it came."""
        held, labels = self._held, self._held.labels
        try:
            exported = await future
            self._exporting = None
            held_as = exported.data
            data = await self._spans.opened(worker, held.id, held_as) if isinstance(held_as, Span) else held_as
        except GridError as error:
            raise secrecy.told(error, labels - {held.owner}) from None
        held.header = exported.header
        return None if data is None else (exported.header, data)


def let_go(exporting: asyncio.Future[Exported]) -> None:
    """Nobody wants this answer any more. One that has come, perhaps in the very moment of the wish, is released."""
    if exporting.cancel() or exporting.cancelled() or exporting.exception() is not None:
        return
    data = exporting.result().data
    if data is not None and not isinstance(data, Span):
        release(data)
