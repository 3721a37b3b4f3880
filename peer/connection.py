"""A session over a WebSocket: requests and answers, many at once, and payloads of any size in either direction.

The rules are protocol/session.py's; here are the waiting, the queueing and the deadlines. Peers and clients use
the same class. One task reads; one task writes, control frames first and then a chunk of each stream in turn, so
that large payloads share the line fairly and small requests never wait for more than a chunk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import astuple, dataclass
from typing import Any, Final

from websockets.exceptions import ConnectionClosed

from peer.incoming import IncomingStream, owned
from peer.keys import verify
from peer.payloads import MemoryPayload, Payload
from peer.transport import Socket, can_send_now, dial, let_in, send_now
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import (
    BadRequest,
    Corrupt,
    GridError,
    HandshakeFailed,
    InternalError,
    LinkError,
    PeerLost,
    ProtocolError,
    StorageError,
    TimedOut,
    TooLarge,
)
from protocol.handshake import Introduction, Remote
from protocol.identity import Signer
from protocol.messages import Abort, Chunk, Fault, Reply, Request
from protocol.session import Event, Session

_log = logging.getLogger("peergrid.connection")
_DEFECT: Final = "a defect at this end closed the connection; its log has the traceback"
_PATIENCE: Final = 1.0  # seconds that each step of an orderly end may take
_MESSAGE_COST: Final = limits.KIB  # what one message counts beside its bytes, for the loop's other tasks to get a turn


@dataclass(frozen=True, slots=True)
class Statistics:
    """Bytes and messages of one connection so far, WebSocket payloads only; `payload_*` counts tensor bytes."""

    sent_bytes: int = 0
    received_bytes: int = 0
    sent_messages: int = 0
    received_messages: int = 0
    payload_sent: int = 0
    payload_received: int = 0

    def __add__(self, other: Statistics) -> Statistics:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Statistics(*(ours + theirs for ours, theirs in pairs))


@dataclass(frozen=True, slots=True)
class Response:
    """An answer that came: its map, and its payload beside it or as a stream (never both)."""

    result: dict[str, Any]
    payload: memoryview
    stream: IncomingStream | None

    async def read(self, at_most: int = limits.RECEIVE_BUFFER) -> Buffer:
        """The whole payload in memory, for what is small: TooLarge, and nothing is read, beyond `at_most`."""
        if self.stream is None:
            return self.payload
        if self.stream.nbytes > at_most:
            self.stream.abort("too large")
            raise TooLarge(
                f"an answer of {self.stream.nbytes} bytes, where at most {at_most} are wanted",
                limit="RECEIVE_BUFFER",
                size=self.stream.nbytes,
                allowed=at_most,
            )
        data = bytearray(self.stream.nbytes)
        await self.stream.into(memoryview(data))
        return data


@dataclass(frozen=True, slots=True)
class Call:
    """A request of the other end, as its handler sees it."""

    connection: Connection
    op: str
    args: dict[str, Any]
    payload: memoryview
    stream: IncomingStream | None

    @property
    def nbytes(self) -> int:
        return self.stream.nbytes if self.stream is not None else len(self.payload)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler returns: a map, and perhaps a payload: some bytes, or one that the connection closes."""

    result: dict[str, Any]
    payload: Payload | bytes | None = None


class Asked(asyncio.Future[Response]):
    """The answer to a request of ours. Cancelling gives the request up, unless `then` is to hear of it all the same:
    at once, when the answer comes or the request fails, before who awaits it."""

    then: Callable[[Response | GridError], None] | None = None
    on_cancel: Callable[[], None] | None = None

    def cancel(self, msg: Any | None = None) -> bool:
        is_cancelled = super().cancel(msg)
        if is_cancelled and self.on_cancel is not None and self.then is None:
            self.on_cancel()
        return is_cancelled

    @property
    def is_given_up(self) -> bool:
        return self.done() and self.then is None

    def answer(self, response: Response) -> None:
        if self.then is not None:
            self.then(response)
        if not self.done():
            self.set_result(response)
        elif response.stream is not None:
            response.stream.abort()

    def fail(self, error: GridError) -> None:
        if self.then is not None:
            self.then(error)
        if not self.done():
            self.set_exception(error)
            self.exception()  # whoever waits gets it; that nobody does is no defect


Handler = Callable[[Call], Awaitable[Answer]]
AtOnce = Callable[[Call, Callable[[Answer | GridError], None]], bool]
"""Serves a call without a task of its own, if it can: True, and then it calls back once, from the loop."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A request of ours that waits until there is room for it."""

    op: str
    args: dict[str, Any]
    body: Buffer
    source: Payload | None
    future: Asked


class _Sending:
    """One payload of ours under way."""

    def __init__(self, stream: int, payload: Payload) -> None:
        self.stream = stream
        self.payload = payload
        self.offset = 0


class Connection:
    """One open session. Make it with `open_as_dialer` or `open_as_acceptor`; `close` it.

    `closed` is done once the connection is over and its handlers have ended, with the reason (a LinkError, or None
    if we closed it).
    """

    def __init__(
        self, socket: Socket, session: Session, remote: Remote, handler: Handler | None, at_once: AtOnce | None = None
    ) -> None:
        self._socket = socket
        self._session = session
        self.remote = remote
        self.peer_name = remote.name or remote.id[:12]
        self._handler = handler
        self._at_once = at_once
        self._waiting: dict[int, Asked] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._answering: dict[int, _Answering] = {}  # those that are served without a task
        self._incoming: dict[int, IncomingStream] = {}
        self._sending: dict[int, _Sending] = {}
        self._held: deque[_Held] = deque()
        self._held_answers: deque[tuple[int, Answer]] = deque()  # at most limits.MAX_REQUESTS
        self._unread: dict[int, int] = {}  # by stream of theirs: bytes that came with requests and were not read
        self._unread_bytes = 0
        self._outbox: deque[bytes] = deque()
        self._wake = asyncio.Event()  # for the writer: there is something to send
        self._room = asyncio.Event()  # for the reader: it may take more in
        self._is_ending = False
        self._is_kicked = False
        self._queued = 0  # messages that came and wait in the socket's queue for the reader
        self._ending: asyncio.Task[None] | None = None
        self._reason: LinkError | None = None
        self._counts = dict.fromkeys(Statistics.__dataclass_fields__, 0)
        loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[LinkError | None] = loop.create_future()
        self._reader = loop.create_task(self._read_loop(), name=f"read {self.peer_name}")
        self._writer = loop.create_task(self._write_loop(), name=f"write {self.peer_name}")
        self._loop = loop
        socket.sink = self._take

    def __repr__(self) -> str:
        return f"<Connection to {self.remote.role} {self.peer_name} {'closed' if self.is_closed else 'open'}>"

    @property
    def is_closed(self) -> bool:
        return self._is_ending

    def statistics(self) -> Statistics:
        return Statistics(**self._counts)

    # --- asking -------------------------------------------------------------------------------------------

    async def request(
        self,
        op: str,
        args: dict[str, Any],
        payload: Buffer | Payload = b"",
        timeout: float | None = None,
    ) -> Response:
        """Ask and wait for the answer. A payload of any size; cancelling gives the request up.

        Raises:
            GridError: what the other end answered with; PeerLost if the connection broke; TimedOut.
        """
        future = self.post(op, args, payload)
        if timeout is None:
            try:
                return await future
            except BaseException:
                _drop(future)
                raise
        try:
            async with asyncio.timeout(timeout) as deadline:
                return await future
        except BaseException as error:
            _drop(future)
            if isinstance(error, TimeoutError) and deadline.expired():
                raise TimedOut(f"no answer within {timeout:g} s", operation=op, peer=self.peer_name) from None
            raise

    def post(
        self,
        op: str,
        args: dict[str, Any],
        payload: Buffer | Payload = b"",
        then: Callable[[Response | GridError], None] | None = None,
    ) -> asyncio.Future[Response]:
        """Ask without waiting: what is posted in one turn of the loop shares a message. The future has the answer.

        Requests leave in the order of the calls. Those for which there is no room yet (limits.MAX_REQUESTS,
        limits.MAX_STREAMS) wait here, however many: who posts without end should wait for answers in between.
        """
        future = Asked(loop=self._loop)
        future.then = then
        body, source = _split(payload) if payload else (b"", None)
        if self._is_ending:
            _close(source)
            future.fail(self._lost(op))
        elif self._held or not self._may_ask(source):
            self._held.append(_Held(op, args, bytes(body), source, future))
        else:
            self._ask(op, args, body, source, future)
        return future

    def send_now(self) -> None:
        """Send what was posted now, if that can be done, and not at the end of this turn of the loop."""
        if self._is_kicked:
            self._send_small()

    def _may_ask(self, source: Payload | None) -> bool:
        is_free = self._session.unanswered < limits.MAX_REQUESTS
        return is_free and (source is None or self._session.has_stream_room)

    def _ask(self, op: str, args: dict[str, Any], body: Buffer, source: Payload | None, future: Asked) -> None:
        try:
            made = self._session.request(op, args, body, source.nbytes if source is not None else 0)
        except GridError as error:  # arguments that cannot travel: the request never leaves
            _close(source)
            future.fail(error)
            return
        if body:
            self._count("payload_sent", args, len(body))
        if source is not None and made.stream is not None:
            self._sending[made.stream] = _Sending(made.stream, source)
        self._waiting[made.id] = future
        if future.then is None:
            future.on_cancel = lambda: self._given_up(made)
        self._kick()

    def _given_up(self, request: Request) -> None:
        if self._waiting.pop(request.id, None) is None or self.is_closed:
            return
        self._session.abort_request(request.id)
        sending = self._sending.get(request.stream or 0)
        if sending is not None:
            self._session.abort_stream(sending.stream, "the request was given up")
            self._stop_sending(sending)
        self._release_held()
        self._kick()

    def _release_held(self) -> None:
        while self._held and (self._held[0].future.is_given_up or self._may_ask(self._held[0].source)):
            held = self._held.popleft()
            if held.future.is_given_up:
                _close(held.source)
            else:
                self._ask(held.op, held.args, held.body, held.source, held.future)

    def _lost(self, op: str | None = None) -> PeerLost:
        why = f": {self._reason.message}" if self._reason is not None else ""
        return PeerLost(f"the connection to {self.peer_name} is closed{why}", operation=op, peer=self.peer_name)

    # --- reading ------------------------------------------------------------------------------------------

    async def _read_loop(self) -> None:
        reason: LinkError | None = None
        try:
            await self._read()
        except ConnectionClosed:
            reason = PeerLost(f"{self.peer_name} closed the connection", peer=self.peer_name)
        except LinkError as error:
            reason = error
        except Exception:
            _log.exception("defect while reading from %s", self.peer_name)
            reason = PeerLost(_DEFECT, peer=self.peer_name)
        finally:
            await self._finish(reason)

    async def _read(self) -> None:
        taken = 0
        while True:
            size, events = await _receive(self._socket, self._session)
            self._queued = max(self._queued - 1, 0)
            self._on_message(size, events)
            taken += size + _MESSAGE_COST
            if taken > limits.CHUNK:  # recv does not yield while messages are queued
                taken = 0
                await asyncio.sleep(0)
            while self._is_full:
                self._room.clear()
                await self._room.wait()

    def _take(self, message: bytes | bytearray) -> bool:
        """A message that just came. Taken at once if nothing waits before it, and there is room for what it brings;
        else it is for the reader."""
        if self._queued or self._is_ending or self._is_full:
            self._queued += 1
            return False
        try:
            self._on_message(len(message), self._session.receive(message))
        except LinkError as error:
            self._end_soon(error)
        except Exception:
            _log.exception("defect while reading from %s", self.peer_name)
            self._end_soon(PeerLost(_DEFECT, peer=self.peer_name))
        return True

    def _on_message(self, size: int, events: list[Event]) -> None:
        self._counts["received_bytes"] += size
        self._counts["received_messages"] += 1
        for event in events:
            self._on_event(event)
        if self._session.has_data or self._outbox or self._sending:
            self._kick()

    def _end_soon(self, reason: LinkError) -> None:
        if self._ending is None:
            self._ending = self._loop.create_task(self._finish(reason))

    @property
    def _is_full(self) -> bool:
        """Whether so much waits for our handlers that no more is to be taken in. Requests that were given up count
        until their handlers have ended."""
        return self._unread_bytes > limits.RECEIVE_BUFFER or (
            len(self._serving) + len(self._answering) > 2 * limits.MAX_REQUESTS
        )

    def _on_event(self, event: Event) -> None:
        match event:
            case Request():
                self._on_request(event)
            case Reply():
                self._resolve(event)
            case Chunk():
                self._on_chunk(event)
            case Fault():
                future = self._waiting.pop(event.id or 0, None)
                if future is not None:
                    future.fail(event.error())
                self._release_held()
            case Abort():
                self._on_abort(event)

    def _count(self, counter: str, described: dict[str, Any], nbytes: int) -> None:
        """Count a payload that rode beside its header, if that describes an object's value: rows are none."""
        if nbytes and ("dtype" in described or "spec_bytes" in described):
            self._counts[counter] += nbytes

    def _on_chunk(self, chunk: Chunk) -> None:
        self._counts["payload_received"] += len(chunk.payload)
        into = self._incoming.get(chunk.stream)
        if into is None:
            return
        if chunk.stream in self._unread:
            self._unread[chunk.stream] += len(chunk.payload)
            self._unread_bytes += len(chunk.payload)
        into.feed(chunk)
        if into.has_arrived:
            del self._incoming[chunk.stream]

    def _resolve(self, reply: Reply) -> None:
        payload = reply.payload
        if len(payload):
            self._count("payload_received", reply.result, len(payload))
            payload = owned(payload)
        future = self._waiting.pop(reply.id, None)
        stream = self._stream_of(reply.stream, reply.nbytes)
        if future is not None:
            future.answer(Response(reply.result, payload, stream))
        elif stream is not None:
            stream.abort()
        if self._held:
            self._release_held()

    def _stream_of(self, stream: int | None, nbytes: int) -> IncomingStream | None:
        if stream is None:
            return None
        made = self._incoming[stream] = IncomingStream(self, stream, nbytes)
        return made

    def _on_request(self, request: Request) -> None:
        if len(request.payload):
            self._count("payload_received", request.args, len(request.payload))
        stream = self._stream_of(request.stream, request.nbytes)
        if stream is not None:
            self._unread[stream.id] = 0
        payload = owned(request.payload) if len(request.payload) else request.payload
        call = Call(self, request.op, request.args, payload, stream)
        # An earlier one that has a task may not have begun: this one has to come after it.
        if self._at_once is not None and stream is None and not self._serving and self._serve_at_once(request.id, call):
            return
        task = asyncio.get_running_loop().create_task(self._serve(request.id, call))
        self._serving[request.id] = task
        # Not in the task itself: one that is cancelled before its first step never runs.
        task.add_done_callback(lambda _: self._served(request.id, call))

    def _serve_at_once(self, id: int, call: Call) -> bool:
        assert self._at_once is not None
        answering = self._answering[id] = _Answering(self, id, call)
        try:
            if self._at_once(call, answering):
                return True
        except Exception:
            _log.exception("defect while serving %r for %s", call.op, self.peer_name)
            answering(InternalError("a defect at the peer; its log has the traceback"))
            return True
        self._answering.pop(id, None)
        return False

    def _answer_now(self, id: int, call: Call, answer: Answer | GridError) -> None:
        """What a call that was served without a task came to."""
        is_wanted = self._answering.pop(id, None) is not None and not self.is_closed
        if isinstance(answer, GridError):
            if is_wanted:
                self._answer_fault(id, call, answer)
        elif type(answer.payload) is bytes and len(answer.payload) <= limits.INLINE_PAYLOAD:
            if is_wanted:
                self._reply(id, call, answer, answer.payload)
        else:
            task = self._loop.create_task(self._answer(id, answer))
            self._serving[id] = task
            task.add_done_callback(lambda _: self._served(id, call))
        if not self._answering and self._is_kicked:
            self._send_small()  # nothing else is on its way that could share its message
        self._room.set()

    def _reply(self, id: int, call: Call, answer: Answer, data: bytes) -> None:
        try:
            self._session.reply(id, answer.result, data)
        except GridError as error:  # an answer beyond the limits of a header
            self._answer_fault(id, call, error)
            return
        self._count("payload_sent", answer.result, len(data))
        self._kick()

    async def _serve(self, id: int, call: Call) -> None:
        try:
            if self._handler is None:
                raise BadRequest(f"this end answers no requests, not {call.op!r} either")
            await self._answer(id, await self._handler(call))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._answer_fault(id, call, InternalError("the request was dropped at the peer; ask again"))
        except GridError as error:
            self._answer_fault(id, call, error)
        except Exception:
            _log.exception("defect while serving %r for %s", call.op, self.peer_name)
            self._answer_fault(id, call, InternalError("a defect at the peer; its log has the traceback"))

    def _served(self, id: int, call: Call) -> None:
        self._serving.pop(id, None)
        if call.stream is not None:
            self._discard(call.stream)
        self._room.set()

    async def _answer(self, id: int, answer: Answer) -> None:
        source = MemoryPayload(answer.payload) if isinstance(answer.payload, bytes) else answer.payload
        if not self.is_closed and source is not None and source.nbytes > limits.INLINE_PAYLOAD:
            answer = Answer(answer.result, source)
            self._held_answers.append((id, answer))
            self._release_answers()
            return
        try:
            data = await _read_all(source) if source is not None and not self.is_closed else b""
            if not self.is_closed:
                self._session.reply(id, answer.result, data)
                self._count("payload_sent", answer.result, len(data))
                self._kick()
        finally:
            _close(source)

    def _release_answers(self) -> None:
        """Begin the answers whose payloads go as streams, as far as there is room."""
        while self._held_answers and self._session.has_stream_room:
            id, answer = self._held_answers.popleft()
            source = answer.payload
            assert source is not None and not isinstance(source, bytes)
            try:
                stream = None
                if not self.is_closed:
                    stream = self._session.reply(id, answer.result, stream_bytes=source.nbytes).stream
            except GridError as error:  # an answer beyond the limits of a header
                self._session.fault(id, error)
            if stream is None:
                source.close()
            else:
                self._sending[stream] = _Sending(stream, source)
            self._kick()

    def _answer_fault(self, id: int, call: Call, error: GridError) -> None:
        if not self.is_closed:
            if error.operation is None:
                error.operation = call.op
            self._session.fault(id, error)
            self._kick()

    def _discard(self, stream: IncomingStream) -> None:
        """The handler has returned: what it did not read of its payload is not wanted."""
        stream.abort()
        self._unread_bytes -= self._unread.pop(stream.id, 0)

    def _on_abort(self, abort: Abort) -> None:
        if abort.request is not None:
            task = self._serving.get(abort.request)
            if task is not None:
                task.cancel()
            self._answering.pop(abort.request, None)
            return
        assert abort.stream is not None
        into = self._incoming.pop(abort.stream, None)
        if into is not None:
            into.fail(PeerLost(f"{self.peer_name} gave the transfer up: {abort.message}", peer=self.peer_name))
        sending = self._sending.get(abort.stream)
        if sending is not None:
            self._stop_sending(sending)

    def stream_read(self, stream: int, nbytes: int) -> None:
        """(For IncomingStream.)"""
        if stream in self._unread:
            self._unread[stream] -= nbytes
            self._unread_bytes -= nbytes
            self._room.set()
        if not self.is_closed:
            self._session.consumed(stream, nbytes)
            self._kick()

    def stream_given_up(self, stream: int, message: str) -> None:
        """(For IncomingStream.)"""
        if self._incoming.pop(stream, None) is not None and not self.is_closed:
            self._session.abort_stream(stream, message)
            self._kick()

    # --- writing ------------------------------------------------------------------------------------------

    def _kick(self) -> None:
        """There may be something to send. Small frames leave at the end of this turn of the loop, together; the writer
        is for streams, and for when the other end does not keep up."""
        if self._sending or self._outbox or not can_send_now(self._socket):
            self._wake.set()
        elif not self._is_kicked:
            self._is_kicked = True
            self._loop.call_soon(self._send_kicked)

    def _send_kicked(self) -> None:
        self._is_kicked = False
        self._send_small()

    def _send_small(self) -> None:
        if self._is_ending or not self._session.has_data:
            return  # `_finish` sends what is left
        if self._outbox or not can_send_now(self._socket):
            self._wake.set()
            return
        for message in self._session.data_to_send():
            if self._outbox or not can_send_now(self._socket):
                self._outbox.append(message)
                self._wake.set()
            else:
                self._note_sent(message)
                send_now(self._socket, message)

    def _note_sent(self, message: bytes) -> None:
        self._counts["sent_bytes"] += len(message)
        self._counts["sent_messages"] += 1

    async def _write_loop(self) -> None:
        try:
            while True:
                await self._flush()
                if not await self._send_chunks() and not self._session.has_data:
                    await self._wake.wait()
                self._wake.clear()
        except ConnectionClosed:
            pass  # the read loop says why
        except Exception:
            _log.exception("defect while writing to %s", self.peer_name)
            await self._finish(PeerLost(_DEFECT, peer=self.peer_name))

    async def _flush(self) -> None:
        # By way of the outbox: if the writer is stopped halfway, `_finish` sends the rest.
        self._outbox.extend(self._session.data_to_send())
        while self._outbox:
            message = self._outbox.popleft()
            self._note_sent(message)
            if can_send_now(self._socket):
                send_now(self._socket, message)
            else:
                await self._socket.send(message)

    async def _send_chunks(self) -> bool:
        """One chunk of each stream that has room; whether there was any."""
        moved = False
        for sending in list(self._sending.values()):
            room = self._session.room(sending.stream)
            if room is None:
                self._stop_sending(sending)
            elif room:
                await self._send_chunk(sending, room)
                moved = True
        return moved

    async def _send_chunk(self, sending: _Sending, room: int) -> None:
        try:
            data = await sending.payload.read(sending.offset, room)
            if len(data) != room:
                raise Corrupt(f"{len(data)} bytes where there should be {room}")
        except Exception as error:
            self._break_off(sending, error)
            return
        if not self._session.chunk(sending.stream, memoryview(data)):  # aborted while we read
            self._stop_sending(sending)
            return
        sending.offset += len(data)
        self._counts["payload_sent"] += len(data)
        if sending.offset == sending.payload.nbytes:
            self._stop_sending(sending)
        await self._flush()
        # The library does not yield while the kernel takes everything: others of this loop need their turn.
        await asyncio.sleep(0)

    def _break_off(self, sending: _Sending, error: Exception) -> None:
        """A payload of ours cannot be read."""
        if self._sending.get(sending.stream) is not sending:
            return  # it was closed meanwhile, which is why
        if isinstance(error, GridError):
            message = error.message
        else:  # what a stranger may know of it is that it broke
            _log.error("a payload for %s broke off", self.peer_name, exc_info=error)
            message = "its bytes cannot be read; the log there says why"
        self._session.abort_stream(sending.stream, message)
        self._stop_sending(sending)

    def _stop_sending(self, sending: _Sending) -> None:
        if self._sending.pop(sending.stream, None) is not None:
            sending.payload.close()
            self._release_answers()
            self._release_held()

    # --- the end ------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Close in an orderly way: answers and requests that were queued still go out, payloads under way do not.
        Waiting requests fail with PeerLost. When it returns, the handlers have ended."""
        await self._finish(None)
        await asyncio.wait([self.closed], timeout=4 * _PATIENCE)

    async def _finish(self, reason: LinkError | None) -> None:
        if self._is_ending:
            return
        self._is_ending = True
        self._reason = reason
        if isinstance(reason, ProtocolError):
            _log.warning("closing %s: %.200r", self.peer_name, reason.message)
        try:
            self._fail_everything()
            await _stop(self._writer)
            if reason is None or isinstance(reason, ProtocolError):
                await _within_patience(self._flush())
            await _stop(self._reader, *self._serving.values())
            await _within_patience(_hang_up(self._socket, 1002 if isinstance(reason, ProtocolError) else 1000))
        finally:
            self._socket.transport.abort()  # nothing, where the close was orderly
            for task in self._serving.values():
                task.cancel()
            if not self.closed.done():
                self.closed.set_result(reason)

    def _fail_everything(self) -> None:
        held, self._held = self._held, deque()
        answers, self._held_answers = self._held_answers, deque()
        for future in [*self._waiting.values(), *(each.future for each in held)]:
            future.fail(self._lost())
        self._waiting.clear()
        for stream in self._incoming.values():
            stream.fail(self._lost())
        self._incoming.clear()
        sources = [each.source for each in held] + [answer.payload for _, answer in answers]
        for source in sources:
            _close(source)
        for sending in list(self._sending.values()):
            self._stop_sending(sending)


class _Answering:
    """Takes the answer to one call that is served without a task."""

    __slots__ = ("_call", "_connection", "_id")

    def __init__(self, connection: Connection, id: int, call: Call) -> None:
        self._connection = connection
        self._id = id
        self._call = call

    def __call__(self, answer: Answer | GridError) -> None:
        self._connection._answer_now(self._id, self._call, answer)


async def open_as_dialer(
    url: str, ours: Introduction, signer: Signer, handler: Handler | None = None, timeout: float = limits.DIAL_TIMEOUT
) -> Connection:
    """Dial `url`, shake hands, and return the open connection.

    Raises:
        Unreachable, HandshakeFailed, TimedOut, BadRequest (for the URL).
    """
    socket = await dial(url, timeout)
    session = Session(ours, signer, verify, os.urandom(32), dialer=True)
    return await _open(socket, session, handler)


async def open_as_acceptor(
    socket: Socket,
    ours: Introduction,
    signer: Signer,
    handler: Handler | None = None,
    at_once: AtOnce | None = None,
) -> Connection:
    """Shake hands on a WebSocket that came in. HandshakeFailed, ProtocolError, TimedOut: it is closed then."""
    session = Session(ours, signer, verify, os.urandom(32), dialer=False)
    return await _open(socket, session, handler, at_once)


async def _open(socket: Socket, session: Session, handler: Handler | None, at_once: AtOnce | None = None) -> Connection:
    try:
        async with asyncio.timeout(limits.HANDSHAKE_TIMEOUT):
            remote = await _shake_hands(socket, session)
    except ConnectionClosed:
        error: LinkError = HandshakeFailed("the other end closed the connection during the handshake")
    except LinkError as failed:
        error = failed
    except TimeoutError:
        error = TimedOut(f"no handshake within {limits.HANDSHAKE_TIMEOUT:g} s")
    except BaseException:
        socket.transport.abort()
        raise
    else:
        return Connection(socket, session, remote, handler, at_once)
    try:
        await _within_patience(_send_all(socket, session))
        await _within_patience(_hang_up(socket, 4401))
    finally:
        socket.transport.abort()
    raise error


async def _shake_hands(socket: Socket, session: Session) -> Remote:
    while session.remote is None:
        await _send_all(socket, session)
        await _receive(socket, session)
    let_in(socket)  # before they hear of it, and send more than a stranger may
    await _send_all(socket, session)
    return session.remote


async def _send_all(socket: Socket, session: Session) -> None:
    for message in session.data_to_send():
        await socket.send(message)


async def _receive(socket: Socket, session: Session) -> tuple[int, list[Event]]:
    """The next message's size, and its events. ConnectionClosed, or LinkError."""
    message = await socket.recv()
    if isinstance(message, str):
        error = ProtocolError("a text message; this protocol has binary ones only")
        session.fail(error)
        raise error
    return len(message), session.receive(message)


async def _hang_up(socket: Socket, code: int) -> None:
    """Close, and throw away what still comes: the other end's goodbye is behind it."""
    closing = asyncio.ensure_future(socket.close(code))
    try:
        with contextlib.suppress(ConnectionClosed):
            while True:
                await socket.recv()
        await closing
    finally:
        closing.cancel()


async def _within_patience(step: Awaitable[None]) -> None:
    """Do this if it can be done in time. An end that does not read could otherwise hold us up for long."""
    with contextlib.suppress(ConnectionClosed, OSError, TimeoutError):
        async with asyncio.timeout(_PATIENCE):
            await step


async def _stop(*tasks: asyncio.Task[None]) -> None:
    others = [task for task in tasks if task is not asyncio.current_task() and not task.done()]
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=_PATIENCE)


def _drop(future: asyncio.Future[Response]) -> None:
    """Nobody waits for the answer any more, though it may just have come."""
    if future.done() and not future.cancelled() and future.exception() is None:
        stream = future.result().stream
        if stream is not None:
            stream.abort()


async def _read_all(source: Payload) -> Buffer:
    try:
        data = await source.read(0, source.nbytes) if source.nbytes else b""
    except OSError as error:
        raise StorageError(f"the disk refused a read: {error.strerror}") from None
    if len(data) != source.nbytes:
        raise Corrupt(f"{len(data)} bytes where there should be {source.nbytes}")
    return data


def _split(payload: Buffer | Payload) -> tuple[Buffer, Payload | None]:
    """What rides beside the header, and what goes as a stream."""
    if not isinstance(payload, bytes | bytearray | memoryview):
        if payload.nbytes:
            return b"", payload
        payload.close()
        return b"", None
    if len(payload) <= limits.INLINE_PAYLOAD:
        return payload, None
    return b"", MemoryPayload(payload)


def _close(source: Payload | bytes | None) -> None:
    if source is not None and not isinstance(source, bytes):
        source.close()
