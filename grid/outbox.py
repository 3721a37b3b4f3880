"""Operations on their way to one peer: those of one turn of the loop share requests, and nobody waits for them.

torch code runs without `await`, so an operation on a pointer only queues it here. What fails at the peer is noted on
the handles of its results, and surfaces where one of them is awaited.

Any thread may queue and release; all else happens in the thread of the loop. Nothing is locked: what threads share are
lists, and each step on them (append, slice, delete the first) is one step of the interpreter.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Final

import msgpack

from compute.writes import CHECK, written_positions
from grid.blocking import check_running
from grid.foreseen import Foreseen
from grid.handle import Handle, Memory
from grid.settling import Made, Settling, alive
from grid.stretches import Look, Stretches
from peer.asking import forget
from peer.calls import Response
from peer.lasting import Lasting
from peer.operations import references
from protocol import limits
from protocol.errors import GridError, PeerLost

_ROOM = limits.MAX_HEADER - 10 * limits.KIB  # for the operations of one request; the rest of its header is small
# Operations that do not wait for the end of the loop's turn: the first few, so that the peer has something to do, then
# four times as many each time, because each request costs all three processes (measured: docs/decisions/0005).
_FIRST, _GROWTH, _MOST = 16, 4, 64
_LAST = 5  # operations: a value that is made among the last of a request need not be given before these are done
_RELEASE_BATCH = 256  # ids of one request: 5 KiB of its header
_RELEASE_DELAY = 0.02  # seconds that released ids wait for operations to go along with


_Queued = tuple[list[Any], int, Made, Look | None]
"""An operation, its size in a message, what it makes or changes, and what it looks like. Or a Hold, larger than any
message."""
_OPERATION: Final = itemgetter(0)
_MADE: Final = itemgetter(2)


class Hold(list[Any]):
    """In the queue in an operation's place: what comes after it waits until an object has arrived at the peer."""

    def __init__(self, coming: Handle) -> None:
        super().__init__()
        self.id = coming.id
        self.coming = coming
        self.error: GridError | None = None
        self.is_over = False
        self.waiting: set[asyncio.Future[None]] = set()


class Outbox:
    """The queue to one peer, over a link that outlives its connections.

    `era` counts how often the peer forgot what this client had there: it was restarted, or the lease was over.
    """

    def __init__(self, link: Lasting, loop: asyncio.AbstractEventLoop) -> None:
        self._link = link
        self.loop = loop
        self.era = link.era
        link.on_open = self._send_waiting
        link.on_forgotten = self._begin_era
        link.on_failure = self._fail_queued
        self._queue: list[_Queued] = []
        self._released: list[bytes] = []
        self._enough = _FIRST  # how many do not wait for the end of this turn
        self._is_scheduled = False
        self._is_releasing = False
        self._underway: set[Settling] = set()
        self._is_closed = False
        self._holds: list[Hold] = []  # those in the queue
        self._stretches = Stretches()
        self._foreseen = Foreseen(link)

    def post(
        self,
        operation: list[Any],
        made: Sequence[Handle | Memory],
        nbytes: int | None = None,
        look: Look | None = None,
    ) -> None:
        """Queue an operation. `made` are the handles of what it makes, and what `Handle.write` gave of what it changes:
        they learn of its failure.
        `nbytes`: its size in a message, where it is known; `look`: what it looks like, if it may come again."""
        nbytes = _size(operation) if nbytes is None else nbytes
        self._queue.append((operation, nbytes, list(map(weakref.ref, made)), look))
        if asyncio._get_running_loop() is not self.loop:
            self._foreseen.in_thread()
        if not self._is_scheduled:
            self._schedule()
        if len(self._queue) >= self._enough:
            self._send_early()

    def _send_early(self) -> None:
        """So much has gathered that the peer had better begin, while this turn of the loop goes on. What another thread
        queues the loop sends meanwhile."""
        if self._link.connection is not None and asyncio._get_running_loop() is self.loop:
            self._enough = min(_GROWTH * self._enough, _MOST)
            self._send()
            self._link.send_now()

    def release(self, id: bytes) -> None:
        """The last pointer to a temporary is gone. Called from wherever the interpreter collects it.

        It goes along with the next operations; where none come, it goes a moment later on its own.
        """
        if self._is_closed or self.loop.is_closed():
            return
        if self._foreseen:
            self._foreseen.forget(id)
        self._released.append(id)
        if len(self._released) >= _RELEASE_BATCH:
            self._schedule()
        elif not self._is_releasing:
            self._is_releasing = True
            if asyncio._get_running_loop() is self.loop:
                self.loop.call_later(_RELEASE_DELAY, self._release_now)
            else:
                self.loop.call_soon_threadsafe(self._release_now)

    def _release_now(self) -> None:
        self._is_releasing = False
        if self._released:
            self._send_soon()

    def _schedule(self) -> None:
        # Twice, where two threads come here at once, does no harm.
        if self._is_scheduled or self.loop.is_closed():
            return
        self._is_scheduled = True
        if asyncio._get_running_loop() is self.loop:
            self.loop.call_soon(self._send_soon)
        else:
            self.loop.call_soon_threadsafe(self._send_soon)

    def _send_soon(self) -> None:
        self._enough = _FIRST
        self._is_scheduled = False  # first: what another thread queues from here on schedules anew
        if not self._queue and not self._released:
            return
        if self._link.connection is not None:
            self._send()
        elif self._link.is_closed:
            name = self._link.name
            self._fail_queued(PeerLost(f"the link to {name} is closed at this end: connect again", peer=name))
        elif self._queue:
            self._link.dial()
        # Releases alone are no reason to dial: a lease that ended has released them already.

    def _send_waiting(self) -> None:
        if self._queue or self._released:
            self._send()

    def _begin_era(self) -> None:
        """What was there is gone. What has not been asked for yet will be made now, and so belongs to the new era."""
        self.era = self._link.era
        queued = [entry[2] for entry in self._queue]
        waiting = [settle.made for settle in self._underway if not settle.is_sent]
        for each in (queued, *waiting):
            for handle in alive(each):
                handle.made_late(self.era)

    async def flush(self, holds: Sequence[Hold] | None = None) -> Lasting:
        """Send what is queued, or have it sent when there is a connection again; later requests on the link that is
        returned come after it. Waits until nothing of it is held; with `holds`, for these only. BadRequest in another
        event loop."""
        if asyncio._get_running_loop() is not self.loop:
            check_running(self.loop, self._link.name)  # says what is wrong
        self._send()
        for hold in list(self._holds) if holds is None else holds:
            while not hold.is_over:
                over = self.loop.create_future()
                hold.waiting.add(over)
                await over
        return self._link

    @property
    def has_operations(self) -> bool:
        """Whether some are queued."""
        return bool(self._queue)

    @property
    def link(self) -> Lasting:
        """The link itself, for what must not wait for the queue."""
        return self._link

    # --- what waits for an object on its way --------------------------------------------------------------

    @property
    def holds(self) -> list[Hold]:
        """Those that what is queued now waits for."""
        return list(self._holds)

    def hold(self, coming: Handle) -> Hold:
        """Operations that are queued from now on wait until `let_go`: this object is on its way to the peer."""
        hold = Hold(coming)
        self._holds.append(hold)
        self._queue.append((hold, _ROOM + 1, [], None))
        return hold

    def let_go(self, hold: Hold, error: GridError | None) -> None:
        """The object has arrived; or never will, and so what is queued for it, and depends on it, has failed."""
        hold.error, hold.is_over = error, True
        if error is not None:
            hold.coming.fail(error)
        self._send_soon()
        self._holds.remove(hold)
        for over in hold.waiting:
            if not over.done():
                over.set_result(None)

    def _is_held(self) -> bool:
        """Whether what comes next in the queue waits for an object."""
        while self._queue and isinstance(hold := self._queue[0][0], Hold):
            if not hold.is_over:
                return True
            del self._queue[0]
            if hold.error is not None:
                self._fail_dependents(hold.id, hold.error)
        return False

    def _fail_dependents(self, id: bytes, error: GridError) -> None:
        """What is queued and needs this object fails with it; the rest goes its way. So does what would change others:
        the peer refuses it, and knows what else is on their memory."""
        lost, kept, count = {id}, [], len(self._queue)
        for entry in self._queue[:count]:
            operation, _, made, _ = entry
            if isinstance(operation, Hold) or lost.isdisjoint(references([operation[1], operation[2]])):
                kept.append(entry)
                continue
            for handle in alive([made]):
                handle.fail(error)
            written = _written(operation)
            if not lost.issuperset(written):
                kept.append(entry)
            lost.update(operation[3], written)
        self._queue[:count] = kept

    def run_and_fetch(self, id: bytes) -> asyncio.Future[Response] | None:
        """Send what is queued together with the wish for one value, as one request; the answer is that to `fetch`.
        A value that was made before is wished for by itself: it may be there before all of that is done. Or it was
        foreseen that it would be; then what is queued leaves at the end of the turn.

        None where that cannot be: nothing is queued, it is too much for one request, or there is no connection yet.
        """
        if self._foreseen:
            self._doubt(self._queue)
            if (answer := self._foreseen.take(id)) is not None:
                return answer
        count = len(self._queue)
        is_one = count == 1 and self._queue[0][1] <= _ROOM  # as `_first` has it, without a call
        if not count or self._link.connection is None or not (is_one or self._first(count) == count):
            return None
        made_last = self._queue[count - 1][0][3]
        if id not in made_last and not any(handle.id == id for handle in alive(map(_MADE, self._queue))):
            self._post(count)
            count = 0
            self._stretches.awaited(id)
        return self._post(count, fetch=id)

    def _doubt(self, queued: Sequence[_Queued]) -> None:
        """What is foreseen may not come to be, if one of these operations looks whether it is good."""
        if any(operation and operation[0] == CHECK for operation, _, _, _ in queued):  # a Hold is empty
            self._foreseen.clear()

    async def settle(self, holds: Sequence[Hold] | None = None) -> Lasting:
        """`flush`, and wait until the peer has done all of it."""
        link = await self.flush(holds)
        if self._underway:
            await asyncio.wait([request.over(self.loop) for request in self._underway])
        return link

    def _send(self) -> None:
        had_operations = bool(self._queue)
        while self._queue and not self._is_held():
            self._post(max(self._first(len(self._queue)), 1))
        while True:
            released = len(self._released)  # before the look at the queue, as in `_post`
            if not released or self._queue or (had_operations and released < _RELEASE_BATCH):
                return
            ids = self._take_released(min(released, _RELEASE_BATCH))
            self._foreseen.asked()
            self._link.post("release", {"ids": ids}).add_done_callback(forget)

    def _first(self, count: int) -> int:
        """How many of the first `count` operations one request may have."""
        if count == 1:
            return int(self._queue[0][1] <= _ROOM)
        stop, room = 0, _ROOM
        for _, size, _, _ in self._queue[: min(count, limits.MAX_BATCH)]:
            room -= size
            if room < 0:
                break
            stop += 1
        return stop

    def _post(self, stop: int, fetch: bytes | None = None) -> asyncio.Future[Response]:
        """One `run` request with the first operations of the queue."""
        begun = self._foreseen.begins()  # first: what another thread queues from here on may change what is wanted
        # Before the look at the queue: what was released by now, no operation behind these can be in need of.
        released = len(self._released)
        queued = self._queue[:stop]
        is_all = len(self._queue) == stop
        del self._queue[:stop]
        args: dict[str, Any] = {}
        if released and is_all:
            args["release"] = self._take_released(min(released, _RELEASE_BATCH))
        # Where the peer waits for us a wish leaves at once; what comes while it works goes together.
        now = fetch is not None and not self._underway
        if fetch is not None:
            args["fetch"] = fetch
        first = kept = wanted = None
        is_last = False
        shorter = self._stretches.shorter(queued, self._link.connection) if queued else None
        if shorter is not None:
            first, kept = shorter
            if is_all and fetch is None and begun is not None and kept.wished is not None:
                wanted, is_last = _made_by(queued, kept.wished)
            if wanted is not None and is_last:
                args["fetch"] = wanted.id
            first = args | first
        args["operations"] = list(map(_OPERATION, queued))
        if self._foreseen:
            self._doubt(queued)
        settle = Settling(self._underway, list(map(_MADE, queued)), kept, has_fetch="fetch" in args)
        self._foreseen.asked()
        settle.asked = asked = self._link.post("run", args, then=settle, now=now, first=first)
        if wanted is not None and kept is not None:
            self._foreseen.note(wanted, kept, asked if is_last else self._post(0, fetch=wanted.id), begun)
        return asked

    def take_released(self) -> list[bytes]:
        """Ids that the next request may let go of: no operation that is queued can be in need of them."""
        released = len(self._released)  # before the look at the queue, as in `_post`
        return [] if self._queue or not released else self._take_released(min(released, _RELEASE_BATCH))

    def _take_released(self, count: int) -> list[bytes]:
        ids = self._released[:count]
        del self._released[:count]
        return ids

    def _fail_queued(self, error: GridError) -> None:
        queued = self._queue[:]
        del self._queue[: len(queued)]
        for handle in alive(map(_MADE, queued)):
            handle.fail(error)

    @property
    def has_work(self) -> bool:
        """Whether something waits to be sent over a connection that is there."""
        return bool(self._queue) or (self._link.connection is not None and bool(self._released))

    def close(self) -> None:
        self._is_closed = True
        self._released.clear()


def _made_by(queued: Sequence[_Queued], id: bytes) -> tuple[Handle | None, bool]:
    """Who has this result, if anybody still does; and whether it is among the last of them, so that it can as well be
    given when all are done."""
    for at, (_, _, made, _) in enumerate(queued):
        for handle in alive([made]):
            if isinstance(handle, Handle) and handle.id == id:
                return handle, len(queued) - at <= _LAST
    return None, False


def _written(operation: list[Any]) -> list[bytes]:
    """The ids of what it changes in place."""
    args = operation[1]
    return list(references([args[position] for position in written_positions(operation[0]) if position < len(args)]))


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
