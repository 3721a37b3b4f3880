"""Payloads too large for one frame: chunks in order, credits against them (SPEC.md, Streams).

The sender of a stream may have `window` bytes under way; each Credit of the receiver lets it send more. So the
memory that a stream takes is bounded at both ends, and a receiver that stops reading stops only its own
stream. Stream ids are odd where the dialer sends, even where the acceptor does. Every chunk but the last is whole,
so that both ends count the same blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol import limits
from protocol.errors import ProtocolError
from protocol.messages import Chunk


@dataclass(slots=True)
class Outgoing:
    """One stream that this end sends: `sent` of `nbytes` so far, and room for `credit` more."""

    nbytes: int
    credit: int
    sent: int = 0

    @property
    def room(self) -> int:
        """How many bytes the next chunk has; 0 until there is credit for all of them."""
        due = min(self.nbytes - self.sent, limits.CHUNK)
        return due if due <= self.credit else 0


@dataclass(slots=True)
class Incoming:
    """One stream that this end receives: `received` of `nbytes`, of which up to `allowed` may come."""

    nbytes: int
    allowed: int
    received: int = 0

    @property
    def due(self) -> int:
        """How many bytes the next chunk has."""
        return min(self.nbytes - self.received, limits.CHUNK)


class Streams:
    """All streams of one session. Raises ProtocolError where the other end breaks a rule."""

    def __init__(self, *, dialer: bool, window: int) -> None:
        self._next = 1 if dialer else 2
        self._their_parity = 0 if dialer else 1
        self._window = window
        self._their_highest = 0
        self.outgoing: dict[int, Outgoing] = {}
        self.incoming: dict[int, Incoming] = {}

    @property
    def has_room(self) -> bool:
        """Whether one more stream of ours may be announced."""
        return len(self.outgoing) < limits.MAX_STREAMS

    def open(self, nbytes: int) -> int:
        """Announce a stream of ours; its id goes into the Request or Reply that it belongs to. See `has_room`."""
        if not self.has_room:
            raise ValueError(f"{limits.MAX_STREAMS} streams are under way: wait for one to end")
        stream, self._next = self._next, self._next + 2
        self.outgoing[stream] = Outgoing(nbytes, self._window)
        return stream

    def withdraw(self, stream: int | None) -> None:
        """A stream that was opened, and never announced after all."""
        if stream is not None:
            self.outgoing.pop(stream, None)

    def chunk(
        self, stream: int, payload: memoryview, hash: int | None = None, digest: bytes | None = None
    ) -> Chunk | None:
        """The next chunk of a stream of ours; None if the stream was aborted meanwhile."""
        out = self.outgoing.get(stream)
        if out is None:
            return None
        if not payload or len(payload) != out.room:
            raise ValueError(f"a chunk of {len(payload)} bytes where there is room for {out.room}")
        message = Chunk(stream, out.sent, payload, hash, digest)
        out.sent += len(payload)
        out.credit -= len(payload)
        if out.sent == out.nbytes:
            del self.outgoing[stream]
        return message

    def credited(self, stream: int, nbytes: int) -> None:
        """The other end made room. Credits for finished streams come late and mean nothing."""
        out = self.outgoing.get(stream)
        if out is not None:
            out.credit = min(out.credit + nbytes, limits.MAX_TENSOR)

    def announced(self, stream: int, nbytes: int) -> None:
        """The other end announced a stream."""
        if stream % 2 != self._their_parity or stream <= self._their_highest:
            raise ProtocolError(f"stream {stream} is not a new stream of that end")
        if len(self.incoming) >= limits.MAX_STREAMS:
            raise ProtocolError(f"more than {limits.MAX_STREAMS} streams at once")
        self._their_highest = stream
        self.incoming[stream] = Incoming(nbytes, min(nbytes, self._window))

    def expects(self, stream: int, offset: int, nbytes: int) -> bool:
        """Whether such a chunk is the next one of a stream that somebody wants: then `arrived` will take it."""
        into = self.incoming.get(stream)
        if into is None or offset != into.received or nbytes != into.due:
            return False
        return offset + nbytes <= into.allowed

    def arrived(self, chunk: Chunk) -> bool:
        """A chunk came; whether anyone still wants it."""
        into = self.incoming.get(chunk.stream)
        if into is None:
            if chunk.stream % 2 == self._their_parity and chunk.stream <= self._their_highest:
                return False  # we aborted it; what was under way still arrives
            raise ProtocolError(f"a chunk of stream {chunk.stream}, which was never announced")
        if chunk.offset != into.received:
            raise ProtocolError(f"a chunk at {chunk.offset} of stream {chunk.stream}, which stands at {into.received}")
        if chunk.offset + len(chunk.payload) > into.nbytes:
            raise ProtocolError(f"stream {chunk.stream} brings more than its {into.nbytes} bytes")
        if len(chunk.payload) != into.due:
            came = f"a chunk of {len(chunk.payload)} bytes of stream {chunk.stream}"
            raise ProtocolError(f"{came}, where {into.due} are due")
        into.received += len(chunk.payload)
        if into.received > into.allowed:
            raise ProtocolError(f"stream {chunk.stream} went beyond its credit")
        if into.received == into.nbytes:
            del self.incoming[chunk.stream]
        return True

    def consumed(self, stream: int, nbytes: int) -> bool:
        """We made room for `nbytes` more; whether a Credit that says so is worth sending."""
        into = self.incoming.get(stream)
        if into is None or into.allowed >= into.nbytes:
            return False
        into.allowed += nbytes
        return True

    def forget(self, stream: int) -> None:
        """Either end gave the stream up."""
        self.outgoing.pop(stream, None)
        self.incoming.pop(stream, None)
