"""Our requests: sent while there is room, held until then, answered, failed or given up."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peer.awake import Due, awake
from peer.calls import Response, Traffic
from peer.incoming import IncomingStream, owned
from peer.payloads import Payload, close_payload, split
from peer.sending import Sending
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import GridError, PeerLost, TimedOut
from protocol.messages import Fault, Reply, Request
from protocol.session import Session


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

    is_sent = False  # whether the other end may have it

    def lost(self, error: GridError) -> None:
        """The connection ended before the answer came."""
        self.fail(error)

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


@dataclass(frozen=True, slots=True)
class _Held:
    """A request of ours that waits until there is room for it."""

    op: str
    args: dict[str, Any]
    body: Buffer
    source: Payload | None
    future: Asked
    once: int | None = None
    seen: int | None = None


class Asking:
    """The requests of one end of a session. `lost` makes the error of those that the end of the session leaves."""

    def __init__(
        self, session: Session, sending: Sending, traffic: Traffic, lost: Callable[[str | None], PeerLost]
    ) -> None:
        self._session = session
        self._sending = sending
        self._traffic = traffic
        self._lost = lost
        self._waiting: dict[int, Asked] = {}
        self._held: deque[_Held] = deque()
        self._loop = asyncio.get_running_loop()
        self._answer = Due(awake(), limits.AWAKE_ANSWER)
        self._due = 0  # the request whose answer is waited for awake

    def post(
        self,
        op: str,
        args: dict[str, Any],
        payload: Buffer | Payload,
        then: Callable[[Response | GridError], None] | None,
    ) -> Asked:
        """Ask, or hold the request until there is room for it; requests leave in the order of the calls."""
        future = Asked(loop=self._loop)
        future.then = then
        body, source = split(payload) if payload else (b"", None)
        if self._sending.is_over:
            close_payload(source)
            future.fail(self._lost(op))
        elif self._held or not self._may_ask(source):
            self._held.append(_Held(op, args, bytes(body), source, future))
        else:
            self._ask(op, args, body, source, future)
        return future

    def ask(
        self,
        future: Asked,
        op: str,
        args: dict[str, Any],
        payload: bytes,
        once: int | None,
        seen: int,
        now: bool = False,
    ) -> None:
        """`post` of what has a future already; for `once` and `seen` see Request. If the connection ends before the
        answer came, `future.lost` is called. With `now` it leaves at once where that can be."""
        body, source = split(payload) if payload else (b"", None)
        if self._sending.is_over:
            future.lost(self._lost(op))
        elif self._held or not self._may_ask(source):
            self._held.append(_Held(op, args, bytes(body), source, future, once, seen))
        else:
            self._ask(op, args, body, source, future, once, seen, now)

    def _may_ask(self, source: Payload | None) -> bool:
        is_free = len(self._session.unanswered) < limits.MAX_REQUESTS
        return is_free and (source is None or self._session.has_stream_room)

    def _ask(
        self,
        op: str,
        args: dict[str, Any],
        body: Buffer,
        source: Payload | None,
        future: Asked,
        once: int | None = None,
        seen: int | None = None,
        now: bool = False,
    ) -> None:
        try:
            made = self._session.request(op, args, body, source.nbytes if source is not None else 0, once, seen)
        except GridError as error:  # arguments that cannot travel: the request never leaves
            close_payload(source)
            future.fail(error)
            return
        if body:
            self._traffic.value_sent(args, len(body))
        if source is not None and made.stream is not None:
            self._sending.begin(made.stream, source)
        self._waiting[made.id] = future
        future.is_sent = True
        if future.then is None:
            future.on_cancel = lambda: self._given_up(made)
        if now and source is None:  # what is streamed is sent by a task, which `kick` wakes
            self._sending.send_now()
            self._answer.expect()
            self._due = made.id
        else:
            self._sending.kick()

    def _given_up(self, request: Request) -> None:
        if self._waiting.pop(request.id, None) is None or self._sending.is_over:
            return
        self._session.abort_request(request.id)
        if request.stream is not None:
            self._sending.give_up(request.stream, "the request was given up")
        self.release()
        self._sending.kick()

    def resolve(self, reply: Reply, stream: IncomingStream | None) -> None:
        """The answer came; its payload beside it, or as this stream."""
        payload = reply.payload
        if payload:
            self._traffic.value_received(reply.result, len(payload))
            payload = owned(payload)
        future = self._waiting.pop(reply.id, None)
        if reply.id == self._due:
            self._answer.met()
        if future is not None:
            future.answer(Response(reply.result, payload, stream))
        elif stream is not None:
            stream.abort()
        if self._held:
            self.release()

    def fail(self, fault: Fault) -> None:
        """The other end answered that it cannot, or will not."""
        future = self._waiting.pop(fault.id or 0, None)
        if fault.id == self._due:
            self._answer.met()
        if future is not None:
            future.fail(fault.error())
        self.release()

    def release(self) -> None:
        """Send what was held, as far as there is room now."""
        while self._held and (self._held[0].future.is_given_up or self._may_ask(self._held[0].source)):
            held = self._held.popleft()
            if held.future.is_given_up:
                close_payload(held.source)
            else:
                self._ask(held.op, held.args, held.body, held.source, held.future, held.once, held.seen)

    def end(self) -> None:
        """No answers will come."""
        held, self._held = self._held, deque()
        waiting, self._waiting = self._waiting, {}
        for future in [*waiting.values(), *(each.future for each in held)]:
            future.lost(self._lost(None))
        for each in held:
            close_payload(each.source)


async def wait_for(future: Asked, timeout: float | None, op: str, peer_name: str) -> Response:
    """The answer; TimedOut if it is not there in time. Cancelling gives the request up."""
    if timeout is None:
        try:
            return await future
        except BaseException:
            drop(future)
            raise
    try:
        async with asyncio.timeout(timeout) as deadline:
            return await future
    except BaseException as error:
        drop(future)
        if isinstance(error, TimeoutError) and deadline.expired():
            raise TimedOut(f"no answer within {timeout:g} s", operation=op, peer=peer_name) from None
        raise


def drop(future: asyncio.Future[Response]) -> None:
    """Nobody waits for the answer any more, though it may just have come."""
    if future.done() and not future.cancelled() and future.exception() is None:
        stream = future.result().stream
        if stream is not None:
            stream.abort()


def forget(future: asyncio.Future[Any]) -> None:
    """For a future's end: nobody waits for it, and that it is an error is no defect."""
    if not future.cancelled():
        future.exception()
