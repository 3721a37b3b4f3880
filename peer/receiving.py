"""The payloads that come over one session, each to its stream, and how much of them waits to be read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from peer.calls import Traffic
from peer.incoming import IncomingStream
from peer.sending import Sending
from protocol.errors import GridError, PeerLost, StorageError
from protocol.messages import Abort, Chunk
from protocol.session import Session


class Receiving:
    """The streams of the other end (the `Line` that each of them needs). `room` is set when bytes were read.

    `forget` is called with a stream whose memory nobody may write to any more: it may soon be somebody else's.
    `in_part` tells how much came of a chunk that is not whole yet.
    """

    def __init__(
        self,
        session: Session,
        sending: Sending,
        traffic: Traffic,
        room: asyncio.Event,
        peer_name: str,
        forget: Callable[[int], None],
        in_part: Callable[[], int],
    ) -> None:
        self._forget = forget
        self._in_part = in_part
        self._session = session
        self._sending = sending
        self._traffic = traffic
        self._room = room
        self.peer_name = peer_name
        self._streams: dict[int, IncomingStream] = {}
        self._unread: dict[int, int] = {}  # by stream: bytes that came with requests and were not read
        self.unread_bytes = 0
        self._brought = 0

    def open(self, stream: int, nbytes: int) -> IncomingStream:
        """The stream of a message's payload."""
        made = self._streams[stream] = IncomingStream(self, stream, nbytes)
        return made

    def watch(self, stream: IncomingStream) -> None:
        """Count what comes of this one, a request's, and is not read: until `discard`."""
        self._unread[stream.id] = 0

    def discard(self, stream: IncomingStream) -> None:
        """The handler has returned: what it did not read of its payload is not wanted."""
        stream.abort()
        self.unread_bytes -= self._unread.pop(stream.id, 0)

    def place(self, stream: int, offset: int, nbytes: int) -> memoryview | None:
        """Where this chunk is to be put before it is fed; None if nobody wants it."""
        into = self._streams.get(stream)
        return None if into is None else into.place(offset, nbytes)

    def feed(self, chunk: Chunk, is_placed: bool = False) -> None:
        """The next chunk of a stream came; `is_placed` if its bytes are where `place` said."""
        self._traffic.payload_received += len(chunk.payload)
        self._brought += len(chunk.payload)
        into = self._streams.get(chunk.stream)
        if into is None:
            return
        if chunk.stream in self._unread:
            self._unread[chunk.stream] += len(chunk.payload)
            self.unread_bytes += len(chunk.payload)
        into.feed(chunk, is_placed)
        if into.has_arrived:
            del self._streams[chunk.stream]

    def break_off(self, abort: Abort) -> None:
        """The other end has given a stream up."""
        into = self._streams.pop(abort.stream or 0, None)
        if into is not None:
            self._forget(into.id)
            into.fail(self._why(abort))

    def _why(self, abort: Abort) -> GridError:
        error = GridError.from_fault({"code": abort.code, "message": abort.message, "peer": self.peer_name})
        if isinstance(error, StorageError):  # what is wrong is there, and not with the line
            return error
        return PeerLost(f"{self.peer_name} gave the transfer up: {abort.message}", peer=self.peer_name)

    def end(self, lost: PeerLost) -> None:
        """Nothing more will come."""
        for id, stream in self._streams.items():
            self._forget(id)
            stream.fail(lost)
        self._streams.clear()

    # --- for IncomingStream -------------------------------------------------------------------------------

    @property
    def brought(self) -> int:
        return self._brought + self._in_part()

    def stream_read(self, stream: int, nbytes: int) -> None:
        if stream in self._unread:
            self._unread[stream] -= nbytes
            self.unread_bytes -= nbytes
            self._room.set()
        if not self._sending.is_over:
            self._session.consumed(stream, nbytes)
            self._sending.kick()

    def stream_given_up(self, stream: int, message: str) -> None:
        if self._streams.pop(stream, None) is None:
            return
        self._forget(stream)
        if not self._sending.is_over:
            self._session.abort_stream(stream, message)
            self._sending.kick()
