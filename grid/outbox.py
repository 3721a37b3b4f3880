"""Operations on their way to one peer: those of one turn of the loop share a request, and nobody waits for them.

torch code runs without `await`, so an operation on a pointer only queues it here. What fails at the peer is noted on
the handles of its results, and surfaces where one of them is awaited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgpack

from grid.handle import Handle
from peer.asking import Asked, forget
from peer.calls import Response
from peer.lasting import Lasting
from protocol import limits
from protocol.errors import GridError, LinkError, PeerLost

_ROOM = limits.MAX_HEADER - 10 * limits.KIB  # for the operations of one request; the rest of its header is small
_RELEASE_BATCH = 256  # ids of one request: 5 KiB of its header
_RELEASE_DELAY = 0.02  # seconds that released ids wait for operations to go along with


class Outbox:
    """The queue to one peer, over a link that outlives its connections.

    `era` counts how often the peer forgot what this client had there: it was restarted, or the lease was over.
    """

    def __init__(self, link: Lasting, loop: asyncio.AbstractEventLoop) -> None:
        self._link = link
        self._loop = loop
        self.era = link.era
        link.on_open = self._send_waiting
        link.on_forgotten = self._begin_era
        link.on_failure = self._fail_queued
        self._operations: list[list[Any]] = []
        self._sizes: list[int] = []
        self._made: list[Sequence[Handle]] = []
        self._released: list[bytes] = []
        self._is_scheduled = False
        self._is_releasing = False
        self._underway: set[_Settle] = set()
        self._is_closed = False

    def post(self, operation: list[Any], made: Sequence[Handle]) -> None:
        """Queue an operation. `made` are the handles of what it makes or changes: they learn of its failure."""
        self._operations.append(operation)
        self._sizes.append(_size(operation))
        self._made.append(made)
        self._schedule()

    def release(self, id: bytes) -> None:
        """The last pointer to a temporary is gone. Called from wherever the interpreter collects it.

        It goes along with the next operations; where none come, it goes a moment later on its own.
        """
        if self._is_closed or self._loop.is_closed():
            return
        self._released.append(id)
        if len(self._released) >= _RELEASE_BATCH:
            self._schedule()
        elif not self._is_releasing:
            self._is_releasing = True
            if self._is_in_loop():
                self._loop.call_later(_RELEASE_DELAY, self._release_now)
            else:
                self._loop.call_soon_threadsafe(self._release_now)

    def _release_now(self) -> None:
        self._is_releasing = False
        if self._released:
            self._send_soon()

    def _schedule(self) -> None:
        if self._is_scheduled or self._loop.is_closed():
            return
        self._is_scheduled = True
        if self._is_in_loop():
            self._loop.call_soon(self._send_soon)
        else:
            self._loop.call_soon_threadsafe(self._send_soon)

    def _is_in_loop(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def _send_soon(self) -> None:
        self._is_scheduled = False
        if self._link.is_open:
            self._send()
        elif self._link.is_closed:
            self._fail_queued(PeerLost(f"the link to {self._link.name} is closed", peer=self._link.name))
        elif self._operations:
            self._link.dial()
        # Releases alone are no reason to dial: a lease that ended has released them already.

    def _send_waiting(self) -> None:
        if self._operations or self._released:
            self._send()

    def _begin_era(self) -> None:
        """What was there is gone. What has not been asked for yet will be made now, and so belongs to the new era."""
        self.era = self._link.era
        waiting = [settle.made for settle in self._underway if not settle.is_sent]
        for each in (self._made, *waiting):
            for made in each:
                for handle in made:
                    handle.made_late(self.era)

    async def flush(self) -> Lasting:
        """Send what is queued, or have it sent when there is a connection again; later requests on the link that is
        returned come after it."""
        self._send()
        return self._link

    def run_and_fetch(self, id: bytes) -> asyncio.Future[Response] | None:
        """Send what is queued together with the wish for one value, as one request; the answer is that to `fetch`.

        None where that cannot be: nothing is queued, it is too much for one request, or there is no connection yet.
        """
        if not self._operations or not self._link.is_open:
            return None
        if len(self._operations) > limits.MAX_BATCH or sum(self._sizes) > _ROOM:
            return None
        is_free = not self._underway
        future = self._post(len(self._operations), fetch=id)
        if is_free:
            self._link.send_now()  # the peer waits for us; what comes while it works goes together
        return future

    async def settle(self) -> Lasting:
        """`flush`, and wait until the peer has done all of it."""
        link = await self.flush()
        if self._underway:
            await asyncio.wait([request.over(self._loop) for request in self._underway])
        return link

    def _send(self) -> None:
        had_operations = bool(self._operations)
        while self._operations:
            stop, room = 0, _ROOM
            while stop < min(len(self._operations), limits.MAX_BATCH) and self._sizes[stop] <= room:
                room -= self._sizes[stop]
                stop += 1
            self._post(max(stop, 1))
        while self._released and (not had_operations or len(self._released) >= _RELEASE_BATCH):
            self._link.post("release", {"ids": self._take_released()}).add_done_callback(forget)

    def _post(self, stop: int, fetch: bytes | None = None) -> asyncio.Future[Response]:
        """One `run` request with the first operations of the queue."""
        args: dict[str, Any] = {"operations": self._operations[:stop]}
        if stop == len(self._operations) and self._released:
            args["release"] = self._take_released()
        if fetch is not None:
            args["fetch"] = fetch
        settle = _Settle(self._underway, self._made[:stop], has_fetch=fetch is not None)
        del self._operations[:stop], self._sizes[:stop], self._made[:stop]
        settle.asked = self._link.post("run", args, then=settle)
        return settle.asked

    def _take_released(self) -> list[bytes]:
        ids, self._released = self._released[:_RELEASE_BATCH], self._released[_RELEASE_BATCH:]
        return ids

    def _fail_queued(self, error: GridError) -> None:
        for made in self._made:
            for handle in made:
                handle.fail(error)
        self._operations, self._sizes, self._made = [], [], []

    @property
    def has_work(self) -> bool:
        """Whether something waits to be sent over a connection that is there."""
        return bool(self._operations) or (self._link.is_open and bool(self._released))

    def close(self) -> None:
        self._is_closed = True
        self._released.clear()


class _Settle:
    """Tells the handles of one request what became of them; is in `underway` until then."""

    __slots__ = ("_has_fetch", "_over", "_underway", "asked", "made")

    def __init__(self, underway: set[_Settle], made: list[Sequence[Handle]], *, has_fetch: bool) -> None:
        self._underway = underway
        self.made = made
        self.asked: Asked | None = None
        self._has_fetch = has_fetch
        self._over: asyncio.Future[None] | None = None
        underway.add(self)

    @property
    def is_sent(self) -> bool:
        return self.asked is not None and self.asked.is_sent

    def over(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """Done when it is known what became of them."""
        if self._over is None:
            self._over = loop.create_future()
        return self._over

    def __call__(self, answer: Response | GridError) -> None:
        self._underway.discard(self)
        if self._over is not None and not self._over.done():
            self._over.set_result(None)
        if not isinstance(answer, GridError):
            results = answer.result.get("results")
            if results:
                self._note(results)
        # What a fetch that went along was refused with says nothing of the operations.
        elif not self._has_fetch or isinstance(answer, LinkError):
            for made in self.made:
                for handle in made:
                    handle.fail(answer)
        # Or else the two keep each other, and the handles, until the collector comes.
        self.asked = None
        self.made = []

    def _note(self, results: list[Any]) -> None:
        for made, fault in zip(self.made, results, strict=False):
            for handle in made if fault else ():
                handle.fail(GridError.from_fault(fault))


_SMALL = frozenset({bytes, int, float, bool, type(None)})
_SMALL_BYTES = 20  # one of these, packed: an id is the largest


def _size(operation: list[Any]) -> int:
    """At least the bytes that it takes in a message; exact where it may be large."""
    name, args, kwargs, outs = operation
    if not kwargs:
        for value in args:
            if type(value) not in _SMALL:
                break
        else:
            return 16 + len(name) + _SMALL_BYTES * (len(args) + len(outs))
    return len(msgpack.packb(operation))
