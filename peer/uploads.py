"""Values on their way in that survive the line over which they come (SPEC.md, 10: `put` with `offset`, `resume`).

An upload is known by the principal and the object's id. When its line breaks, what came is kept for RESUME_TIMEOUT;
`resume` says how much that is, and `put` with that offset goes on. One that a line is still bringing is taken over
by whoever asks for it: the asker knows that the line is dead before we do. What the asker gives up itself, also while
it is being finished, and what nobody comes back for, is thrown away. The record of one
that was finished is kept for as long, since its answer may have been lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any
from weakref import WeakValueDictionary

from peer.arrivals import Arrival
from peer.asking import forget
from peer.calls import Call
from peer.incoming import IncomingStream
from peer.intake import Intake
from peer.objects import show_id
from protocol import limits
from protocol.errors import BadRequest, Corrupt, GridError, PeerLost, TimedOut
from protocol.sizes import check_limit

_log = logging.getLogger("peergrid.uploads")

Key = tuple[str, bytes]
"""(principal, object id)."""


class _Upload:
    """One value on its way in. `expires` counts while nobody brings any of it."""

    def __init__(self, arrival: Arrival, nbytes: int, intake: Intake) -> None:
        self.arrival = arrival
        self.nbytes = nbytes
        self.intake = intake
        self.source: IncomingStream | None = None  # where bytes come from just now
        self.hashes: list[int] = []  # of the blocks that came before
        self.is_taken_over = False
        self.idle = asyncio.Event()
        self.idle.set()
        self.finishing: asyncio.Task[dict[str, Any]] | None = None
        self.expires = 0.0

    @property
    def is_busy(self) -> bool:
        return not self.idle.is_set() or (self.finishing is not None and not self.finishing.done())

    def finish(self) -> asyncio.Task[dict[str, Any]]:
        """All of it is here. This runs to its end, whoever still waits for it."""
        self.source = None
        self.finishing = asyncio.get_running_loop().create_task(self.intake.finish())
        self.finishing.add_done_callback(forget)
        return self.finishing

    def stands_at(self, arrival: Arrival, nbytes: int, offset: int) -> bool:
        """Whether this is that value, and `offset` is where it goes on."""
        is_it = (self.arrival, self.nbytes) == (arrival, nbytes)
        return is_it and self.finishing is None and self.intake.taken == offset

    @property
    def is_coming(self) -> bool:
        """Whether a line brings it just now."""
        return not self.idle.is_set() and self.finishing is None

    @property
    def memory(self) -> int:
        return 0 if self.finishing is not None else self.intake.memory


class Uploads:
    """All uploads of one peer. `sweep` now and then, `close` at the end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._uploads: dict[Key, _Upload] = {}
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()  # what is thrown away behind a line that ended

    @property
    def count(self) -> int:
        """How many are kept: under way, broken, or finished a moment ago."""
        return len(self._uploads)

    async def put(
        self, asker: str, arrival: Arrival, offset: int, call: Call, begin: Callable[[int], Awaitable[Intake]]
    ) -> dict[str, Any]:
        """Take in what a `put` brings, from `offset` on; the record. `begin` makes the intake for so many bytes.

        Raises:
            BadRequest: what is here of it does not end at `offset`, or is of another value.
            TooLarge: lines bring as much of this principal's already as may be kept of it.
        """
        key, nbytes = (asker, arrival.id), offset + call.nbytes
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:  # of two at once the second takes over what the first has begun
            upload = await self._taken_over(key)
            if not offset:
                if upload is not None:
                    await self._drop(key, upload)
                upload = await self._begun(key, _Upload(arrival, nbytes, await begin(nbytes)))
            if upload is None or not upload.stands_at(arrival, nbytes, offset):
                taken = 0 if upload is None else upload.intake.taken
                raise BadRequest(
                    f"{taken} bytes of {show_id(arrival.id)} are here, not {offset}: ask with `resume` first"
                )
            upload.idle.clear()
        return await self._bring(key, upload, call)

    async def _begun(self, key: Key, upload: _Upload) -> _Upload:
        """A new one, known and busy from now on, when there is room for it."""
        try:
            self._check_room(key[0])
            upload.idle.clear()
            self._uploads[key] = upload
            await self._make_room(key[0])
        except BaseException:
            upload.idle.set()
            await self._drop(key, upload)
            raise
        return upload

    async def resume(self, asker: str, arrival: Arrival) -> dict[str, Any]:
        """How much of an upload is here: {"offset"}, or its {"record"} where that is all. Nothing more of it comes over
        any line that there was."""
        key = (asker, arrival.id)
        upload = await self._taken_over(key)
        if upload is None:
            return {"offset": 0}
        if upload.arrival != arrival:
            raise BadRequest(f"{show_id(arrival.id)} is being put here with another description")
        if upload.finishing is not None:
            return {"record": await asyncio.shield(upload.finishing)}
        if upload.intake.taken % limits.BLOCK:
            await self._drop(key, upload)
            return {"offset": 0}
        return {"offset": upload.intake.taken}

    async def _taken_over(self, key: Key) -> _Upload | None:
        """The upload, which no line brings any more: what comes next may go on with it."""
        while True:  # another one may be as fast
            upload = self._uploads.get(key)
            if upload is None or upload.idle.is_set() or upload.finishing is not None:
                return upload
            upload.is_taken_over = True
            if upload.source is not None:
                upload.source.fail(PeerLost("it goes on over another connection"))
            await upload.idle.wait()

    async def _bring(self, key: Key, upload: _Upload, call: Call) -> dict[str, Any]:
        upload.source, upload.is_taken_over = call.stream, False
        if call.stream is not None:
            call.stream.preceding = tuple(upload.hashes)
        try:
            await self._take(upload, call)
            return await asyncio.shield(upload.finish())
        except BaseException as error:
            if self._is_given_up(error, upload, call) and upload.finishing is not None:
                self._behind(self._withdraw(key, upload, upload.finishing))
            elif not self._is_to_be_kept(error, upload, call):
                await self._drop(key, upload)
            raise
        finally:
            if call.stream is not None:
                upload.hashes += call.stream.hashes
                del upload.hashes[upload.intake.taken // limits.BLOCK :]
            upload.source = None
            upload.expires = self._clock() + limits.RESUME_TIMEOUT
            upload.idle.set()
            if self._uploads.get(key) is not upload:
                self._behind(self._drop(key, upload))
            elif self._is_too_much(key[0]):
                self._behind(self._make_room(key[0]))

    def _behind(self, steps: Coroutine[Any, Any, None]) -> None:
        """Done whatever becomes of the request, whose task may be cancelled again."""
        task = asyncio.get_running_loop().create_task(steps)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(self, upload: _Upload, call: Call) -> None:
        """What the line brings; of one that broke also what had come and was not put away yet (disks may be slow)."""
        taking = asyncio.get_running_loop().create_task(upload.intake.take(call))
        try:
            await asyncio.shield(taking)
        except asyncio.CancelledError:
            if not call.connection.is_closed:  # who asked gave it up
                taking.cancel()
            while not taking.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({taking})
            if not taking.cancelled() and taking.exception() is None and call.connection.is_closed:
                upload.finish()
            raise

    def _is_to_be_kept(self, error: BaseException, upload: _Upload, call: Call) -> bool:
        """Whether the asker may come back after this: not where it gave up itself, or the value was refused."""
        if upload.finishing is not None:
            return not upload.finishing.done()
        if upload.intake.taken == upload.nbytes:
            return False  # all blocks are right, and the whole is not
        if isinstance(error, asyncio.CancelledError | PeerLost):
            return upload.is_taken_over or call.connection.is_closed
        return isinstance(error, TimedOut | Corrupt)

    def _is_given_up(self, error: BaseException, upload: _Upload, call: Call) -> bool:
        """Whether the asker said, over a line that is good, that it does not want it."""
        is_asker = isinstance(error, asyncio.CancelledError) and not call.connection.is_closed
        return is_asker and not upload.is_taken_over

    async def _withdraw(self, key: Key, upload: _Upload, finishing: asyncio.Task[dict[str, Any]]) -> None:
        """Given up when all of it was here: it is finished, as that cannot be stopped, and goes then."""
        await asyncio.wait({finishing})
        await self._drop(key, upload)
        if _has_failed(finishing):
            return
        try:
            await upload.intake.withdraw()
        except GridError as error:
            _log.warning("object %s was given up by its sender, and cannot be deleted: %s", show_id(key[1]), error)

    # --- room -----------------------------------------------------------------------------------------------

    def _check_room(self, asker: str) -> None:
        """TooLarge where what lines bring of this principal's, which cannot give way, is as much as may be kept."""
        coming = [upload.memory for upload in self._own(asker).values() if upload.is_coming]
        sentence = "{allowed} transfers of yours are coming in already: wait until some are done"
        check_limit("MAX_PARTIALS", len(coming) + 1, sentence)
        sentence = "transfers of yours that come in already take {size:bytes} of memory: wait until some are done"
        check_limit("PARTIAL_BYTES", sum(coming), sentence)

    async def _make_room(self, asker: str) -> None:
        """Those of the principal that no line brings give way, the oldest first."""
        while self._is_too_much(asker):
            idle = ((key, upload) for key, upload in self._own(asker).items() if not upload.is_busy)
            oldest = next(idle, None)
            if oldest is None:
                return
            await self._drop(*oldest)

    def _is_too_much(self, asker: str) -> bool:
        own = self._own(asker).values()
        return len(own) > limits.MAX_PARTIALS or sum(upload.memory for upload in own) > limits.PARTIAL_BYTES

    def _own(self, asker: str) -> dict[Key, _Upload]:
        return {key: upload for key, upload in self._uploads.items() if key[0] == asker}

    async def sweep(self) -> None:
        """Throw away what nobody came back for."""
        now = self._clock()
        for key, upload in list(self._uploads.items()):
            if not upload.is_busy and upload.expires <= now:
                await self._drop(key, upload)

    async def close(self) -> None:
        """Throw away all that is not finished; wait for what is being finished."""
        for key, upload in list(self._uploads.items()):
            if upload.finishing is not None:
                await asyncio.wait({upload.finishing})
            await self._drop(key, upload)
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _drop(self, key: Key, upload: _Upload) -> None:
        if self._uploads.get(key) is upload:
            del self._uploads[key]
        if upload.finishing is None or _has_failed(upload.finishing):
            await upload.intake.abort()


def _has_failed(task: asyncio.Task[dict[str, Any]]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
