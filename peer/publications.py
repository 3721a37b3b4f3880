"""Temporaries that become published: ordered in their owner's lane, written outside it.

What is published is the value at the moment of the request: it is taken in the lane, as for a fetch, and however long
the disk takes, other requests of the owner go on meanwhile. Until it is done the temporary is what others find:

* another `edit` of it, a `delete` or a `clear` waits, and then finds the published object;
* letting go of it (`release`, the end of its lease) takes the temporary only: it is published all the same;
* an operation that would change it in place is refused, as it is for what is published: the change would be lost;
* a move of it that began before fails with `changed`: it stays here.

A publication that fails or is cancelled leaves the temporary as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterable
from dataclasses import replace
from typing import Any, Final

from peer.arrivals import Arrival
from peer.execution import Execution
from peer.objects import Objects, Temporary
from peer.payloads import Payload
from peer.spans import payload_of
from peer.store.contents import Contents
from peer.store.store import Store
from peer.store.waiting import undisturbed
from peer.store.writer import StoreWriter
from peer.taking import Taking
from protocol import limits
from protocol.tensors import TensorHeader

_AT_ONCE: Final = 8  # of one peer, that write to the disk; each has a file open


class Publications:
    """Those of one peer."""

    def __init__(self, objects: Objects, store: Store, execution: Execution) -> None:
        self._objects = objects
        self._store = store
        self._execution = execution
        self._under_way: dict[tuple[str, bytes], asyncio.Future[None]] = {}  # by owner and object
        self._writing = asyncio.Semaphore(_AT_ONCE)

    @contextlib.asynccontextmanager
    async def lane(self, asker: str, ids: Iterable[bytes] | None = None) -> AsyncIterator[None]:
        """The asker's lane, when none of these (of all, without `ids`) is being published for it any more."""
        wanted = None if ids is None else {(asker, id) for id in ids}
        while True:
            if ending := self._of(asker, wanted):
                await asyncio.wait(ending)
            async with self._execution.lane(asker):
                if self._of(asker, wanted):
                    continue  # one began while this waited for the lane
                yield
                return

    def _of(self, asker: str, wanted: set[tuple[str, bytes]] | None) -> list[asyncio.Future[None]]:
        return [
            ended
            for key, ended in self._under_way.items()
            if (key in wanted if wanted is not None else key[0] == asker)
        ]

    async def begin(
        self, held: Temporary, tags: tuple[str, ...], description: str | None
    ) -> Coroutine[Any, Any, dict[str, Any]]:
        """Make a temporary durable under the same id: to be called in the lane, with `held` free to be published. What
        it returns is to be awaited outside the lane, in any case; it gives the record."""
        await self._objects.check_publishable(held.id, held.kind)
        arrival = Arrival(
            held.id,
            held.kind,
            held.owner,
            held.labels,
            held.header,
            0,
            True,
            tags,
            description or "",
            None,
            held.target,
        )
        taking = None if held.target is not None else self._execution.snapshot(held)
        held.is_being_published = True
        self._under_way[held.owner, held.id] = asyncio.get_running_loop().create_future()
        return self._publish(held, arrival, taking)

    async def _publish(self, held: Temporary, arrival: Arrival, taking: Taking | None) -> dict[str, Any]:
        try:
            if taking is None:
                writer = await self._store.writer(arrival.contents(b""))
            else:
                header, value = await taking
                arrival = replace(arrival, header=header)
                writer = await self._written(header, payload_of(value))
            record = arrival.record(held.created, 0 if taking is None else header.nbytes)
            await undisturbed(self._commit(held, record, writer))
            return record
        finally:
            held.is_being_published = False
            self._under_way.pop((held.owner, held.id)).set_result(None)

    async def _written(self, header: TensorHeader, payload: Payload) -> StoreWriter:
        try:
            async with self._writing:
                writer = await self._store.writer(Contents.one(header))
                try:
                    for offset in range(0, payload.nbytes, limits.CHUNK):
                        await writer.write(await payload.read(offset, min(limits.CHUNK, payload.nbytes - offset)))
                except BaseException:
                    await writer.abort()
                    raise
                return writer
        finally:
            payload.close()

    async def _commit(self, held: Temporary, record: dict[str, Any], writer: StoreWriter) -> None:
        """Published, and the temporary gone: not one without the other."""
        await self._store.publish(record, writer)
        async with self._execution.lane(held.owner):
            if self._objects.temporary(held.id) is held:
                self._execution.release([held.id])
            self._objects.store_changed(held.id)
