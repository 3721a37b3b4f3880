"""A session over a WebSocket: requests and answers, many at once, and payloads of any size in either direction.

The rules are protocol/session.py's; here are the waiting, the queueing and the deadlines. Peers and clients use
the same class. One task reads and one writes; what they read and write is for the parts: `Asking` has our requests,
`Serving` theirs, `Receiving` the payloads that come, `Sending` all that leaves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final

from websockets.exceptions import ConnectionClosed

from peer import closing
from peer.asking import Asked, Asking, wait_for
from peer.calls import AtOnce, Call, Handler, Response, Statistics, Traffic
from peer.direct import Direct
from peer.incoming import owned
from peer.ledger import Ledger
from peer.liveness import Liveness
from peer.payloads import Payload
from peer.receiving import Receiving
from peer.sending import Sending
from peer.serving import Serving
from peer.transport import Socket, core_of
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import GridError, LinkError, PeerLost, ProtocolError
from protocol.handshake import Remote
from protocol.messages import Abort, Chunk, Fault, Reply, Request
from protocol.session import Event, Session

_log = logging.getLogger("peergrid.connection")
_DEFECT: Final = "a defect at this end closed the connection; its log has the traceback"
_FEW: Final = limits.KIB  # bytes of a message that has few frames
_MESSAGE_COST: Final = limits.KIB  # what one message counts beside its bytes, for the loop's other tasks to get a turn


class Connection:
    """One open session. Make it with `open_as_dialer` or `open_as_acceptor` (peer/opening.py); `close` it.

    `closed` is done once the connection is over and its handlers have ended, with the reason (a LinkError, or None
    if we closed it).
    """

    def __init__(
        self,
        socket: Socket,
        session: Session,
        remote: Remote,
        handler: Handler | None,
        at_once: AtOnce | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self._socket = socket
        self._session = session
        self.remote = remote
        self.peer_name = name = remote.name or remote.id[:12]
        self._room = room = asyncio.Event()  # for the reader: it may take more in
        self._rest: Iterator[Event] | None = None  # of a message that is not gone through yet
        self._traffic = traffic = Traffic()
        self._sending = sending = Sending(socket, session, traffic, name)
        self._liveness = Liveness(socket, self.give_up)
        direct = Direct(socket, self, self._liveness.heard)
        self._receiving = receiving = Receiving(session, sending, traffic, room, name, direct.forget, direct.in_part)
        self._asking = Asking(session, sending, traffic, self._lost)
        self._serving = Serving(
            session, sending, receiving, traffic, room, handler, at_once, ledger, asker_core=core_of(socket)
        )
        self.ask = self._asking.ask  # for what asks again where this connection ends; `post` is for all others
        sending.on_room = self._begin_held
        self._ending: asyncio.Task[None] | None = None
        self.on_over: Callable[[LinkError | None], None] | None = None  # told at once when it is over, and why
        self.is_abandoned = False  # the event loop ends: it begins nothing new
        self._reason: LinkError | None = None
        self._loop = loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[LinkError | None] = loop.create_future()
        self._reader = loop.create_task(self._read_loop(), name=f"read {name}")
        self._writer = loop.create_task(self._write_loop(), name=f"write {name}")
        socket.sink = self._take

    def __repr__(self) -> str:
        return f"<Connection to {self.remote.role} {self.peer_name} {'closed' if self.is_closed else 'open'}>"

    @property
    def is_closed(self) -> bool:
        return self._sending.is_over

    @property
    def reason(self) -> LinkError | None:
        """Why it is over; None while it is open, and where this end closed it."""
        return self._reason

    def statistics(self) -> Statistics:
        return self._traffic.statistics()

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
        return await wait_for(self.post(op, args, payload), timeout, op, self.peer_name)

    def post(
        self,
        op: str,
        args: dict[str, Any],
        payload: Buffer | Payload = b"",
        then: Callable[[Response | GridError], None] | None = None,
    ) -> Asked:
        """Ask without waiting: what is posted in one turn of the loop shares a message. The future has the answer.

        Requests leave in the order of the calls. Those for which there is no room yet (limits.MAX_REQUESTS,
        limits.MAX_STREAMS) wait here, however many: who posts without end should wait for answers in between.
        """
        return self._asking.post(op, args, payload, then)

    def send_now(self) -> None:
        """Send what was posted now, if that can be done, and not at the end of this turn of the loop."""
        self._sending.send_now()

    def give_up(self, why: str) -> None:
        """The line is dead, though it is open: end it at once. What waits for it fails with PeerLost."""
        self._end_soon(PeerLost(why, peer=self.peer_name))

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
        except asyncio.CancelledError:
            self.is_abandoned = True  # if this end did not do that itself
            raise
        except Exception:
            _log.exception("defect while reading from %s", self.peer_name)
            reason = PeerLost(_DEFECT, peer=self.peer_name)
        finally:
            await self._finish(reason)

    async def _read(self) -> None:
        taken = 0
        while True:
            message = await next_message(self._socket, self._session)
            while self._rest is not None:  # what was taken at once before it
                await self._change()
            self._socket.queued = max(self._socket.queued - 1, 0)
            self._on_message(message)
            taken += len(message) + _MESSAGE_COST
            if taken > limits.CHUNK:  # recv does not yield while messages are queued
                taken = 0
                await asyncio.sleep(0)
            while self._is_full:
                await self._change()

    async def _change(self) -> None:
        self._room.clear()
        await self._room.wait()

    def _take(self, message: bytes | bytearray) -> bool:
        """A message that just came. Taken at once if nothing waits before it, and there is room for what it brings;
        else it is for the reader."""
        if self._socket.queued or self._sending.is_over or self._is_full:
            return False
        try:
            self._on_message(message)
        except Exception as error:
            self._broke(error)
        return True

    def _on_message(self, message: Buffer) -> None:
        self._traffic.received_messages += 1
        self._traffic.received_bytes += len(message)
        if len(message) <= _FEW:
            self._on_events(self._session.receive(message))
        else:
            self._rest = self._session.coming(message)
            self._go_on()

    def _go_on(self) -> None:
        """Some more of a message that may have many frames; the rest when others had their turn."""
        if self._rest is None or self._sending.is_over:
            return
        events = list(islice(self._rest, limits.EVENTS))
        if len(events) < limits.EVENTS:
            self._rest = None
            self._room.set()
        else:
            self._loop.call_soon(self._go_on_later)
        self._on_events(events)

    def _go_on_later(self) -> None:
        try:
            self._go_on()
        except Exception as error:
            self._broke(error)

    def _broke(self, error: Exception) -> None:
        """What came cannot be taken: the other end's mistake, or a defect of ours."""
        if not isinstance(error, LinkError):
            _log.error("defect while reading from %s", self.peer_name, exc_info=error)
            error = PeerLost(_DEFECT, peer=self.peer_name)
        self._end_soon(error)

    def _on_events(self, events: list[Event]) -> None:
        may_send_more = False
        for event in events:
            if type(event) is Reply:
                stream = None if event.stream is None else self._receiving.open(event.stream, event.nbytes)
                self._asking.resolve(event, stream)
            elif type(event) is Request:
                self._on_request(event)
            else:
                self._on_event(event)
                may_send_more = True
        if self._session.has_data or (may_send_more and self._sending.has_data):
            self._sending.kick()

    # What Direct asks for (Places): chunks that go straight to where they belong.

    def place(self, stream: int, offset: int, nbytes: int) -> memoryview | None:
        if self._socket.queued or self._socket.sink is None or self.is_closed or self._is_full:
            return None  # it has to keep its order, and may have to wait
        return self._receiving.place(stream, offset, nbytes) if self._session.expects(stream, offset, nbytes) else None

    def placed(self, size: int, chunk: Chunk) -> None:
        try:
            self._traffic.received_messages += 1
            self._traffic.received_bytes += size
            if self._session.arrived(chunk):
                self._receiving.feed(chunk, is_placed=True)
            if self._sending.has_data:
                self._sending.kick()
        except Exception as error:
            self._broke(error)

    def _end_soon(self, reason: LinkError) -> None:
        if self._ending is None:
            self._ending = self._loop.create_task(self._finish(reason))

    @property
    def _is_full(self) -> bool:
        """Whether so much waits for our handlers that no more is to be taken in, or the last message has more."""
        is_behind = self._rest is not None or self._receiving.unread_bytes > limits.RECEIVE_BUFFER
        return is_behind or self._serving.count > 2 * limits.MAX_REQUESTS

    def _on_event(self, event: Event) -> None:
        match event:
            case Chunk():
                self._receiving.feed(event)
            case Fault():
                self._asking.fail(event)
            case Abort():
                self._on_abort(event)

    def _on_request(self, request: Request) -> None:
        payload = request.payload
        if payload:
            self._traffic.value_received(request.args, len(payload))
            payload = owned(payload)
        stream = None
        if request.stream is not None:
            stream = self._receiving.open(request.stream, request.nbytes)
            self._receiving.watch(stream)
        call = Call(self, request.op, request.args, payload, stream)
        self._serving.serve(request.id, call, request.once, request.seen)

    def _on_abort(self, abort: Abort) -> None:
        if abort.request is not None:
            self._serving.give_up(abort.request)
            return
        assert abort.stream is not None
        self._receiving.break_off(abort)
        self._sending.stop(abort.stream)

    # --- writing ------------------------------------------------------------------------------------------

    async def _write_loop(self) -> None:
        try:
            await self._sending.run()
        except ConnectionClosed:
            pass  # the read loop says why
        except Exception:
            _log.exception("defect while writing to %s", self.peer_name)
            await self._finish(PeerLost(_DEFECT, peer=self.peer_name))

    def _begin_held(self) -> None:
        """A stream of ours has ended: what was held for want of one may have room."""
        self._serving.release()
        self._asking.release()

    # --- the end ------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Close in an orderly way: answers and requests that were queued still go out, payloads under way do not.
        Waiting requests fail with PeerLost. When it returns, the handlers have ended."""
        await self._finish(None)
        await asyncio.wait([self.closed], timeout=4 * closing.PATIENCE)

    async def _finish(self, reason: LinkError | None) -> None:
        if self.is_closed:
            return
        self._sending.is_over = True
        self._liveness.stop()
        self._reason = reason
        if isinstance(reason, ProtocolError):
            _log.warning("closing %s: %.200r", self.peer_name, reason.message)
        try:
            self._fail_everything()
            await closing.stop(self._writer)
            if reason is None or isinstance(reason, ProtocolError):
                await closing.within_patience(self._sending.flush())
            await closing.stop(self._reader, *self._serving.tasks)
            code = 1002 if isinstance(reason, ProtocolError) else 1000
            await closing.within_patience(closing.hang_up(self._socket, code))
        finally:
            self._socket.transport.abort()  # nothing, where the close was orderly
            for task in self._serving.tasks:
                task.cancel()
            if not self.closed.done():
                self.closed.set_result(reason)

    def _fail_everything(self) -> None:
        self._asking.end()
        self._receiving.end(self._lost())
        self._serving.end()
        self._sending.stop_all()
        if self.on_over is not None:
            self.on_over(self._reason)


async def next_message(socket: Socket, session: Session) -> bytes:
    """The next message, for the session. ConnectionClosed, or LinkError."""
    message = await socket.recv()
    if isinstance(message, str):
        error = ProtocolError("a text message; this protocol has binary ones only")
        session.fail(error)
        raise error
    return message
