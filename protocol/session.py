"""One session between two ends: WebSocket messages in, events out; calls in, WebSocket messages out.

The caller owns the sockets and the clock. It gives each message that came to `receive`, which returns events
(the messages themselves, and Opened once), and sends whatever `data_to_send` returns, in order. After a
ProtocolError or HandshakeFailed the session is dead: send what is left (a Fault says why), then close.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from protocol import codec, limits, messages
from protocol.codec import Buffer
from protocol.errors import GridError, HandshakeFailed, LinkError, ProtocolError
from protocol.handshake import Handshake, Introduction, MemoryOf, Remote, forgetful
from protocol.identity import Signer, Verify
from protocol.messages import Abort, Chunk, Credit, Fault, Message, Reply, Request
from protocol.streams import Streams


@dataclass(frozen=True, slots=True)
class Opened:
    """The handshake is over; `remote` has proved its key."""

    remote: Remote


Event = Opened | Request | Reply | Fault | Chunk | Credit | Abort


class Session:
    """See the module's docstring. `nonce` is 32 fresh random bytes; for `memory_of` see Handshake."""

    def __init__(
        self,
        ours: Introduction,
        signer: Signer,
        verify: Verify,
        nonce: bytes,
        *,
        dialer: bool,
        window: int = limits.WINDOW,
        memory_of: MemoryOf = forgetful,
    ) -> None:
        self._handshake = Handshake(ours, signer, verify, nonce, dialer=dialer, window=window, memory_of=memory_of)
        self._dialer = dialer
        self._window = window
        self._pack = codec.packer()
        self._has_met = False  # the handshake is over
        self._streams = Streams(dialer=dialer, window=window)
        self._next_request = 1
        self.unanswered: set[int] = set()  # requests of ours that wait for their answer
        self._theirs: set[int] = set()  # requests of theirs that we have not answered
        self._their_last = 0
        self._leaving = 0  # answers of ours that are queued: until they leave they count as unanswered
        self._credits: dict[int, int] = {}  # by stream, to be sent with whatever goes out next
        self._small: list[Buffer] = []  # frames that will share the next message
        self._small_bytes = 0
        self._small_frames = 0
        self._unsent = 0  # frames queued
        self._out: list[bytes] = []
        self.is_dead = False
        if dialer:
            self._queue(self._handshake.hello())

    @property
    def remote(self) -> Remote | None:
        return self._handshake.remote

    @property
    def is_open(self) -> bool:
        return self._handshake.is_over and not self.is_dead

    # --- what comes in ------------------------------------------------------------------------------------

    def receive(self, message: Buffer) -> list[Event]:
        """The events in one WebSocket message that came.

        Raises:
            ProtocolError, HandshakeFailed: the other end broke a rule; a Fault for it is queued.
            LinkError: the other end closed the session with a Fault.
        """
        try:
            if self._unsent > limits.MAX_UNSENT:
                raise self._too_much_unsent()
            if not self._has_met:
                return self._receive_new(message)
            alone = codec.single(message)
            if alone is None:
                return list(self._receive_open(codec.decode(message)))
            parsed = messages.parse(alone)
            event = None if parsed is None else self._take_open(parsed)
            return [] if event is None else [event]
        except (ProtocolError, HandshakeFailed) as error:
            self.fail(error)
            raise

    def coming(self, message: Buffer) -> Iterator[Event]:
        """`receive`, but each frame is looked at only when its event is asked for: a message may have many. To be gone
        through to its end before the next message, and only after the handshake."""
        try:
            if self._unsent > limits.MAX_UNSENT:
                raise self._too_much_unsent()
            yield from self._receive_open(codec.decode(message))
        except ProtocolError as error:
            self.fail(error)
            raise

    def _too_much_unsent(self) -> ProtocolError:
        return ProtocolError(f"more than {limits.MAX_UNSENT} frames wait for an end that goes on sending")

    def _receive_open(self, frames: Iterator[codec.Frame]) -> Iterator[Event]:
        for frame in frames:
            parsed = messages.parse(frame)
            event = None if parsed is None else self._take_open(parsed)
            if event is not None:
                yield event

    def _receive_new(self, message: Buffer) -> list[Event]:
        """A message of the handshake."""
        events: list[Event] = []
        for number, frame in enumerate(codec.decode(message, limits.MAX_HELLO)):
            if number:
                raise HandshakeFailed("a message of the handshake travels alone")
            event = self._take_new(messages.parse(frame))
            if event is not None:
                events.append(event)
        return events

    def fail(self, error: LinkError) -> None:
        """The other end broke a rule: the session is dead, and a Fault that says why is queued."""
        if not self.is_dead:
            self._queue(Fault.of(None, error))
        self.is_dead = True

    def _take_new(self, message: Message | None) -> Event | None:
        if type(message) is Fault and message.id is None:
            self._take_end(message)
        answer = self._handshake.receive(message)
        if answer is not None:
            self._queue(answer)
        self._has_met = self._handshake.is_over
        if self._handshake.remote is None:
            return None
        if self._dialer:  # the acceptor's Welcome rules the size of the window in both directions
            self._streams = Streams(dialer=True, window=self._handshake.remote.window)
        return Opened(self._handshake.remote)

    def _take_end(self, fault: Fault) -> NoReturn:
        """The other end closed the session, and says why."""
        self.is_dead = True
        error = fault.error()
        raise error if isinstance(error, LinkError) else ProtocolError(f"the other end closed: {error.message}")

    def _take_open(self, message: Message) -> Event | None:
        match message:
            case Request():
                self._check_request(message)
            case Reply() | Fault():
                if message.id is None:
                    self._take_end(message)
                if message.id not in self.unanswered:
                    if isinstance(message, Reply) and message.stream is not None:
                        self._refuse_stream(message.stream, message.nbytes)
                    return None  # we gave the request up, and its answer was under way
                self.unanswered.discard(message.id)
            case Chunk():
                return message if self._streams.arrived(message) else None
            case Credit():
                self._streams.credited(message.stream, message.nbytes)
            case Abort():
                if message.stream is not None:
                    self._streams.forget(message.stream)
                elif message.request is not None:
                    self._theirs.discard(message.request)
            case _:
                raise ProtocolError(f"{type(message).__name__} after the handshake")
        if (type(message) is Request or type(message) is Reply) and message.stream is not None:
            self._streams.announced(message.stream, message.nbytes)
        return message

    def _check_request(self, request: Request) -> None:
        if request.id <= self._their_last:
            raise ProtocolError(f"request {request.id} after {self._their_last}: ids only rise")
        # Answers that were not even sent count too: an end that asks and does not read would have us store them.
        if len(self._theirs) + self._leaving >= limits.MAX_REQUESTS:
            raise ProtocolError(f"more than {limits.MAX_REQUESTS} requests at once")
        self._their_last = request.id
        self._theirs.add(request.id)

    def _refuse_stream(self, stream: int, nbytes: int) -> None:
        self._streams.announced(stream, nbytes)
        self.abort_stream(stream, "nobody waits for it any more")

    # --- what goes out ------------------------------------------------------------------------------------

    def request(
        self,
        op: str,
        args: dict[str, Any],
        payload: Buffer = b"",
        stream_bytes: int = 0,
        once: int | None = None,
        seen: int | None = None,
    ) -> Request:
        """Ask; at most limits.MAX_REQUESTS unanswered at once. With `stream_bytes` the payload follows as
        chunks of the returned request's stream: only while `has_stream_room`. `once` and `seen`: see Request.

        Raises:
            RequestError: arguments that cannot travel. Nothing was sent.
        """
        stream = self._streams.open(stream_bytes) if stream_bytes else None
        try:
            made = Request(self._next_request, op, args, stream, stream_bytes, once, seen, memoryview(payload))
            self._queue(made)
        except GridError:
            self._streams.withdraw(stream)
            raise
        self._next_request += 1
        self.unanswered.add(made.id)
        return made

    def reply(self, id: int, result: dict[str, Any], payload: Buffer = b"", stream_bytes: int = 0) -> Reply:
        """Answer request `id` of the other end. An answer to a request that it gave up is dropped.

        Raises:
            RequestError: an answer that cannot travel. Nothing was sent; answer with a fault.
        """
        stream = self._streams.open(stream_bytes) if stream_bytes and id in self._theirs else None
        try:
            made = Reply(id, result, stream, stream_bytes if stream else 0, memoryview(payload))
            if id in self._theirs:
                self._queue(made)
                self._theirs.discard(id)
                self._leaving += 1
        except GridError:
            self._streams.withdraw(stream)
            raise
        return made

    def fault(self, id: int, error: GridError) -> None:
        """Answer request `id` with an error. One that cannot travel loses its fields, and what is too long."""
        if id not in self._theirs:
            return
        try:
            self._queue(Fault.of(id, error))
        except GridError:
            text = error.message[: limits.MAX_FAULT_TEXT].encode(errors="replace").decode()
            self._queue(Fault(error.code, text, id))
        self._theirs.discard(id)
        self._leaving += 1

    @property
    def has_stream_room(self) -> bool:
        """Whether one more payload may be under way from this end (limits.MAX_STREAMS)."""
        return self._streams.has_room

    def room(self, stream: int) -> int | None:
        """How many bytes the next chunk of a stream of ours has, 0 while there is no credit for all of them; None once
        the stream is over or aborted."""
        out = self._streams.outgoing.get(stream)
        return None if out is None else out.room

    def progress(self, stream: int) -> int:
        """A number that grows with everything that was sent of a stream of ours, or credited for it."""
        out = self._streams.outgoing.get(stream)
        return -1 if out is None else 2 * out.sent + out.credit

    def chunk(
        self, stream: int, payload: memoryview, hash: int | None = None, digest: bytes | None = None
    ) -> bytes | None:
        """The head of a message that `payload`, the next bytes of a stream of ours, is the rest of; None if the stream
        was aborted. To be sent at once, after all that `data_to_send` gives: payloads are neither queued nor copied.
        """
        made = self._streams.chunk(stream, payload, hash, digest)
        return None if made is None else codec.encode(made.type, messages.header(made), len(payload))

    def expects(self, stream: int, offset: int, nbytes: int) -> bool:
        """Whether this chunk of theirs would be taken: its bytes may go to where they belong before it is whole."""
        return self.is_open and self._streams.expects(stream, offset, nbytes)

    def arrived(self, chunk: Chunk) -> bool:
        """A chunk that `expects` foresaw is whole; whether anyone still wants it. ProtocolError as from `receive`."""
        try:
            return self._streams.arrived(chunk)
        except ProtocolError as error:
            self.fail(error)
            raise

    def consumed(self, stream: int, nbytes: int) -> None:
        """We have put away `nbytes` of a stream of theirs."""
        if self._streams.consumed(stream, nbytes):
            self._credits[stream] = self._credits.get(stream, 0) + nbytes

    def abort_stream(self, stream: int, message: str, code: str | None = None) -> None:
        """Give up a stream, ours or theirs."""
        self._streams.forget(stream)
        self._queue(Abort(stream=stream, message=message[: limits.MAX_FAULT_TEXT], code=code))

    def abort_request(self, id: int) -> None:
        """Give up a request of ours; its answer will be ignored."""
        if id in self.unanswered:
            self.unanswered.discard(id)
            self._queue(Abort(request=id))

    @property
    def has_data(self) -> bool:
        return bool(self._out or self._small or self._credits)

    def data_to_send(self) -> list[bytes]:
        """The WebSocket messages to send now, in order. Small frames that were queued together share one."""
        if self._credits:
            credits, self._credits = self._credits, {}
            for stream, nbytes in credits.items():
                self._queue(Credit(stream, nbytes))
        if self._small:
            self._close_small()
        out, self._out = self._out, []
        self._leaving = self._unsent = 0
        return out

    def _queue(self, message: Message) -> None:
        payload = getattr(message, "payload", messages.EMPTY)
        head = codec.encode(message.type, messages.header(message), len(payload), self._pack)
        size = len(head) + len(payload)
        is_large = size > limits.INLINE_PAYLOAD
        is_full = self._small_bytes + size > limits.CHUNK or self._small_frames == limits.MAX_FRAMES
        if (is_large or is_full) and self._small:
            self._close_small()
        self._small.append(head)
        if len(payload):
            # The payload's owner may change it after this call: what is queued is a copy.
            self._small.append(payload if is_large else bytes(payload))
        self._small_bytes += size
        self._small_frames += 1
        self._unsent += 1
        if is_large:
            self._close_small()

    def _close_small(self) -> None:
        self._out.append(b"".join(self._small))
        self._small, self._small_bytes, self._small_frames = [], 0, 0
