"""Their requests: each handed to a handler, and its answer sent as far as there is room for it.

A request that is to take effect once (SPEC.md, Requests) goes through the ledger of its lease: what works on it runs
on when the connection breaks, and who asks again, over whichever connection, gets the same answer.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from peer.apart import Apart, is_crowded
from peer.awake import Due, awake
from peer.calls import Answer, AtOnce, Call, GiveUp, Handler, Traffic
from peer.ledger import Entry, Heard, Ledger
from peer.payloads import MemoryPayload, Payload, close_payload, read_all
from peer.receiving import Receiving
from peer.sending import Sending
from protocol import limits
from protocol.errors import BadRequest, GridError, InternalError
from protocol.session import Session

Waiter = Callable[[Answer | GridError], None]
_log = logging.getLogger("peergrid.connection")


class Serving:
    """The calls of the other end that are being answered: by `at_once` if that can, else by `handler` in a task.

    `room` is set when a call has ended. `ledger` is that of the other end's lease. `asker_core` tells
    the core that it runs on, if that is one of this machine's.
    """

    def __init__(
        self,
        session: Session,
        sending: Sending,
        receiving: Receiving,
        traffic: Traffic,
        room: asyncio.Event,
        handler: Handler | None,
        at_once: AtOnce | None,
        ledger: Ledger | None = None,
        *,
        asker_core: Callable[[], int] | None = None,
    ) -> None:
        self._session = session
        self._sending = sending
        self._receiving = receiving
        self._traffic = traffic
        self._room = room
        self._handler = handler
        self._at_once = at_once
        self._ledger = ledger
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._entries: dict[int, Entry] = {}  # of requests that take effect once
        self._answering: dict[int, tuple[Waiter, Entry | None]] = {}  # those that are served without a task
        self._giving_up: dict[int, GiveUp] = {}  # of those that are in no ledger
        self._held: deque[tuple[int, Answer]] = deque()  # at most limits.MAX_REQUESTS
        self._peer_name = receiving.peer_name
        self._loop = asyncio.get_running_loop()
        self._awake = awake()
        self._next = Due(self._awake, limits.AWAKE_NEXT)
        self._apart = Apart(asker_core, self._loop.call_later) if asker_core is not None and is_crowded() else None

    @property
    def count(self) -> int:
        """How many calls are served. Those that were given up count until their handlers have ended."""
        return len(self._tasks) + len(self._answering)

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """What ends with the connection: all but what takes effect once, which is the ledger's."""
        return [task for id, task in self._tasks.items() if id not in self._entries]

    def serve(self, id: int, call: Call, once: int | None = None, seen: int | None = None) -> None:
        """Begin to answer this request, or one that was begun before: for `once` and `seen` see Request."""
        self._next.met()
        self._awake.apart = self._apart
        entry, ledger = None, self._ledger
        if once is not None and ledger is not None and call.stream is None:
            try:
                entry = ledger.begin(once, call.op, seen)
            except GridError as error:
                self._answer_fault(id, call, error)
                return
            if entry is None:
                self._serve_again(id, call, ledger, once)
                return
        # An earlier one that has a task may not have begun: this one has to come after it.
        is_first = not self._tasks and (ledger is None or not ledger.tasks)
        if self._at_once is not None and is_first and call.stream is None:
            answering: Waiter = partial(self._answer_now, id, call, entry)
            self._answering[id] = answering, entry
            try:
                served = self._at_once(call, answering)
            except Exception as error:
                answering(self._failed(call, error))
                return
            if served:
                if served is not True and id in self._answering:
                    if entry is None:
                        self._giving_up[id] = served
                    else:
                        entry.end = served
                return
            self._answering.pop(id, None)
        self._start(id, call, self._serve(id, call, entry), entry)

    def _serve_again(self, id: int, call: Call, ledger: Ledger, once: int) -> None:
        waiter = partial(self._answer_now, id, call, None)
        self._answering[id] = waiter, None
        entry = ledger.again(once, call.op, waiter)
        if entry is not None:
            self._entries[id] = entry

    def give_up(self, id: int) -> None:
        """The other end does not want the answer any more."""
        answering, task = self._answering.pop(id, None), self._tasks.get(id)
        entry = self._entries.pop(id, None)
        if entry is None and answering is not None:
            entry = answering[1]
        if entry is not None and self._ledger is not None:
            self._ledger.give_up(entry)
        elif task is not None:
            task.cancel()
        elif id in self._giving_up:
            self._giving_up.pop(id)()

    def end(self) -> None:
        """No answer can be sent any more; the tasks are for the connection to stop."""
        held, self._held = self._held, deque()
        for _, answer in held:
            close_payload(answer.payload)
        for id in list(self._giving_up):
            self._giving_up.pop(id)()
        if self._ledger is not None:
            for id in self._entries.keys() & self._answering.keys():  # that wait for what others began
                self._ledger.leave(self._entries.pop(id), self._answering.pop(id)[0])

    # --- without a task -----------------------------------------------------------------------------------

    def _answer_now(self, id: int, call: Call, entry: Entry | None, answer: Answer | GridError) -> None:
        """What a call that was served without a task came to."""
        is_wanted = self._answering.pop(id, None) is not None and not self._sending.is_over
        if self._giving_up:
            self._giving_up.pop(id, None)
        if isinstance(answer, GridError):
            self._keep(entry, answer)
            if is_wanted:
                self._answer_fault(id, call, answer)
        elif answer.payload is None or (type(answer.payload) is bytes and len(answer.payload) <= limits.INLINE_PAYLOAD):
            if is_wanted:
                data = answer.payload or b""
                try:
                    self._session.reply(id, answer.result, data)
                except GridError as error:  # an answer beyond the limits of a header
                    self._answer_fault(id, call, error)
                else:
                    if self._answering:
                        self._sending.kick()  # others are on their way that will share its message
                    else:
                        self._sending.send_now()
                        self._next.expect()  # who heard this may ask on
                    self._traffic.value_sent(answer.result, len(data))
            self._keep(entry, answer)
        elif (source := streamed(answer.payload)) is not None:
            self._stream(id, answer, source, entry, is_wanted)
        else:
            self._start(id, call, self._answer(id, answer, entry), entry)
            return
        if self._entries:
            self._entries.pop(id, None)
        self._room.set()

    # --- in a task ----------------------------------------------------------------------------------------

    def _start(self, id: int, call: Call, steps: Coroutine[Any, Any, None], entry: Entry | None) -> None:
        task = self._loop.create_task(steps)
        self._tasks[id] = task
        if entry is not None and self._ledger is not None:
            self._entries[id] = entry
            self._ledger.started(entry, task)
        # Not in the task itself: one that is cancelled before its first step never runs.
        task.add_done_callback(lambda _: self._ended(id, call))

    async def _serve(self, id: int, call: Call, entry: Entry | None) -> None:
        try:
            if self._handler is None:
                raise BadRequest(f"this end answers no requests, not {call.op!r} either")
            await self._answer(id, await self._handler(call), entry)
            return
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            failure: GridError = InternalError("the request was dropped at the peer; ask again")
        except GridError as error:
            failure = error
        except Exception as error:
            failure = self._failed(call, error)
        self._keep(entry, failure)
        self._answer_fault(id, call, failure)

    def _failed(self, call: Call, error: Exception) -> InternalError:
        """What the other end is told of what nobody expected; the log has the rest."""
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            _log.warning("no descriptor is left for %r of %s: see `ulimit -n`", call.op, self._peer_name)
            return InternalError("this peer has as many files open as it may, for now: ask again in a moment")
        _log.error("defect while serving %r for %s", call.op, self._peer_name, exc_info=error)
        return InternalError("a defect at the peer; its log has the traceback")

    def _ended(self, id: int, call: Call) -> None:
        self._tasks.pop(id, None)
        self._entries.pop(id, None)
        if call.stream is not None:
            self._receiving.discard(call.stream)
        self._room.set()

    # --- answers ------------------------------------------------------------------------------------------

    def _keep(self, entry: Entry | None, answer: Heard | None) -> None:
        """Note in the ledger what a request came to; None where that is too large."""
        if entry is not None and self._ledger is not None:
            self._ledger.answered(entry, answer)

    async def _answer(self, id: int, answer: Answer, entry: Entry | None) -> None:
        if (large := streamed(answer.payload)) is not None:
            self._stream(id, answer, large, entry, not self._sending.is_over)
            return
        source = MemoryPayload(answer.payload) if isinstance(answer.payload, bytes) else answer.payload
        try:
            is_read = source is not None and not (entry is None and self._sending.is_over)
            data = await read_all(source) if source is not None and is_read else b""
            if entry is not None:
                self._keep(entry, Answer(answer.result, bytes(data)))  # what was read is its owner's
            if not self._sending.is_over:
                self._session.reply(id, answer.result, data)
                self._traffic.value_sent(answer.result, len(data))
                self._sending.kick()
        finally:
            close_payload(source)

    def _stream(self, id: int, answer: Answer, source: Payload, entry: Entry | None, is_wanted: bool) -> None:
        self._keep(entry, None)
        if not is_wanted:
            source.close()
            return
        self._held.append((id, Answer(answer.result, source)))
        self.release()

    def release(self) -> None:
        """Begin the answers whose payloads go as streams, as far as there is room."""
        while self._held and self._session.has_stream_room:
            id, answer = self._held.popleft()
            source = answer.payload
            assert source is not None and not isinstance(source, bytes)
            try:
                stream = None
                if not self._sending.is_over:
                    stream = self._session.reply(id, answer.result, stream_bytes=source.nbytes).stream
            except GridError as error:  # an answer beyond the limits of a header
                self._session.fault(id, error)
            if stream is None:
                source.close()
            else:
                self._sending.begin(stream, source)
            self._sending.kick()

    def _answer_fault(self, id: int, call: Call, error: GridError) -> None:
        if not self._sending.is_over:
            if error.operation is None:
                error.operation = call.op
            self._session.fault(id, error)
            self._sending.kick()


def streamed(payload: bytes | Payload | None) -> Payload | None:
    """What is too large to go with its answer."""
    source = MemoryPayload(payload) if isinstance(payload, bytes) else payload
    return source if source is not None and source.nbytes > limits.INLINE_PAYLOAD else None
