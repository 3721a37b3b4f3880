"""What leaves over a session: frames at the end of each turn of the loop, and payloads chunk by chunk.

Control frames go first and then a chunk of each stream in turn, so that large payloads share the line fairly and
small requests never wait for more than a chunk. A chunk goes from where it is to the system, without a copy.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from peer.calls import Traffic
from peer.hashing import Digest, hash_of
from peer.payloads import AtHand, Payload, hashes_of, preceding_of
from peer.transport import Socket, acknowledged, can_send_now, send_large, send_now, under_way, wait_sent
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import Corrupt, GridError, TimedOut
from protocol.session import Session

_log = logging.getLogger("peergrid.connection")


class _Outgoing:
    """One payload of ours under way."""

    __slots__ = (
        "_hashes",
        "digest",
        "nbytes",
        "now",
        "offset",
        "payload",
        "progress",
        "quiet_since",
        "reading",
        "sent_at",
        "stream",
    )

    def __init__(self, stream: int, payload: Payload, now: float) -> None:
        self.stream = stream
        self.payload = payload
        self.nbytes = payload.nbytes
        self.offset = 0
        self.digest = Digest(preceding_of(payload))
        self.now = payload.now if isinstance(payload, AtHand) else None
        self._hashes = hashes_of(payload)
        self.reading: asyncio.Task[Buffer] | None = None
        self.progress = -1  # as the session counts it, when it was last looked at
        self.quiet_since = now
        self.sent_at = 0  # what the other end's system has to have taken before anybody there can act on it

    def hash_of(self, data: Buffer) -> int:
        """The hash of the next block, which is `data`."""
        return hash_of(data) if self._hashes is None else self._hashes[self.offset // limits.BLOCK]

    @property
    def rest(self) -> int:
        return self.nbytes - self.offset


class Sending:
    """Sends what the session has. Small frames go as soon as they may; `run` is the task for all that has to wait.

    `is_over` is for the connection to set: nothing new is said then, and what was queued leaves with `flush`.
    `on_room` is called when a stream of ours has ended: another may begin.

    A stream whose receiver takes nothing for limits.STALL_TIMEOUT, or whose payload cannot be read for so long, is
    given up; one that moves is not, however slowly.
    """

    def __init__(self, socket: Socket, session: Session, traffic: Traffic, name: str) -> None:
        self._socket = socket
        self._session = session
        self._traffic = traffic
        self._name = name
        self._streams: dict[int, _Outgoing] = {}
        self._outbox: deque[bytes] = deque()
        self._wake = asyncio.Event()  # for `run`: there is something to send
        self._is_kicked = False
        self._watch: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.is_over = False
        self.on_room: Callable[[], None] = lambda: None

    # --- small frames -------------------------------------------------------------------------------------

    @property
    def has_data(self) -> bool:
        return bool(self._session.has_data or self._outbox or self._streams)

    def kick(self) -> None:
        """There may be something to send. Small frames leave at the end of this turn of the loop, together; `run` is
        for streams, and for when the other end does not keep up."""
        if self._streams:
            self._wake.set()
        if not self._is_kicked:
            self._is_kicked = True
            self._loop.call_soon(self._send_kicked)

    def _send_kicked(self) -> None:
        self._is_kicked = False
        if self._session.has_data:
            self.send_now()

    def send_now(self) -> None:
        """Send small frames now, if that can be done, and not at the end of this turn of the loop."""
        if self.is_over:
            return  # the connection's end sends what is left
        socket, traffic = self._socket, self._traffic
        may_send = not self._outbox and can_send_now(socket)
        if not may_send:
            self._wake.set()
            return
        for message in self._session.data_to_send():
            if self._outbox or not (may_send or can_send_now(socket)):
                self._outbox.append(message)
                self._wake.set()
            else:
                may_send = False  # the first one, as was just seen
                traffic.sent_messages += 1
                traffic.sent_bytes += len(message)
                send_now(socket, message)

    async def flush(self) -> None:
        """Send all frames that there are, waiting for the other end to read them."""
        # By way of the outbox: if `run` is stopped halfway, the connection's end sends the rest.
        self._outbox.extend(self._session.data_to_send())
        while self._outbox:
            message = self._outbox.popleft()
            self._traffic.sent_messages += 1
            self._traffic.sent_bytes += len(message)
            if can_send_now(self._socket):
                send_now(self._socket, message)
            else:
                await self._socket.send(message)

    # --- payloads -----------------------------------------------------------------------------------------

    def begin(self, stream: int, payload: Payload) -> None:
        """Send this payload as that stream, which the session has announced; it is closed when it has gone."""
        self._streams[stream] = _Outgoing(stream, payload, self._loop.time())
        if self._watch is None:
            self._watch = self._loop.call_later(limits.STALL_TIMEOUT / 4, self._look)

    def give_up(self, stream: int, message: str, code: str | None = None) -> None:
        """Tell the other end that no more of this stream comes, if it has not gone yet."""
        if stream in self._streams:
            self._session.abort_stream(stream, message, code)
            self.stop(stream)

    def stop(self, stream: int) -> None:
        """No more of this stream is to be sent: all has gone, or nobody wants it."""
        outgoing = self._streams.pop(stream, None)
        if outgoing is None:
            return
        if outgoing.reading is not None:
            outgoing.reading.cancel()
        outgoing.payload.close()
        if not self._streams and self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self.on_room()

    def stop_all(self) -> None:
        for stream in list(self._streams):
            self.stop(stream)

    async def run(self) -> None:
        """Send whatever comes up, for as long as the session lasts. ConnectionClosed."""
        while True:
            await self.flush()
            if not await self._send_chunks() and not self._session.has_data:
                await self._wake.wait()
            self._wake.clear()

    async def _send_chunks(self) -> bool:
        """One chunk of each stream that has room and bytes; whether there was any."""
        moved = False
        for outgoing in list(self._streams.values()):
            room = self._session.room(outgoing.stream)
            if room is None:
                self.stop(outgoing.stream)
            elif room:
                data = self._read(outgoing, room)
                if data is not None:
                    await self._send_chunk(outgoing, data)
                    moved = True
        return moved

    def _read(self, outgoing: _Outgoing, size: int) -> Buffer | None:
        """The next bytes of a payload, if they are there; they are asked for, and `run` is woken when they come."""
        try:
            data = self._come(outgoing, size)
            if data is not None and len(data) != size:
                raise Corrupt(f"{len(data)} bytes where there should be {size}")
        except (Exception, asyncio.CancelledError) as error:
            self._break_off(outgoing, error)
            return None
        return data

    def _come(self, outgoing: _Outgoing, size: int) -> Buffer | None:
        reading = outgoing.reading
        if reading is None:
            data = outgoing.now(outgoing.offset, size) if outgoing.now is not None else None
            if data is None:
                reading = outgoing.reading = self._loop.create_task(_whole(outgoing.payload, outgoing.offset, size))
                reading.add_done_callback(lambda _: self._wake.set())
            return data
        if not reading.done():
            return None
        outgoing.reading = None
        return reading.result()

    async def _send_chunk(self, outgoing: _Outgoing, data: Buffer) -> None:
        found = outgoing.hash_of(data)
        outgoing.digest.add(found)
        digest = outgoing.digest.value() if len(data) == outgoing.rest else None
        await self.flush()  # control frames go first
        head = self._session.chunk(outgoing.stream, memoryview(data), found, digest)
        if head is None:  # aborted meanwhile
            self.stop(outgoing.stream)
            return
        outgoing.offset += len(data)
        self._traffic.sent_messages += 1
        self._traffic.sent_bytes += len(head) + len(data)
        self._traffic.payload_sent += len(data)
        send_large(self._socket, head, data)
        # Only when the system has all of it may the payload's memory change, and is it another stream's turn. And it
        # is never at once: others of this loop need theirs.
        await wait_sent(self._socket)
        if not outgoing.rest:
            self.stop(outgoing.stream)
        await asyncio.sleep(0)

    def _break_off(self, outgoing: _Outgoing, error: BaseException) -> None:
        """A payload of ours cannot be read."""
        if isinstance(error, GridError):
            self.give_up(outgoing.stream, error.message, error.code)
            return
        # What a stranger may know of it is that it broke.
        _log.error("a payload for %s broke off", self._name, exc_info=error)
        self.give_up(outgoing.stream, "its bytes cannot be read; the log there says why")

    # --- deadlines ----------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Give up the streams that have not moved for too long."""
        self._watch = self._loop.call_later(limits.STALL_TIMEOUT / 4, self._look)
        now, taken = self._loop.time(), acknowledged(self._socket)
        for outgoing in list(self._streams.values()):
            progress = self._session.progress(outgoing.stream)
            if progress != outgoing.progress:
                outgoing.progress, outgoing.quiet_since = progress, now
                outgoing.sent_at = taken + under_way(self._socket)
            elif self._waits_for_line(outgoing) or taken < outgoing.sent_at:
                outgoing.quiet_since = now  # the line is slow; whether it is dead is the connection's to find out
            elif now - outgoing.quiet_since >= limits.STALL_TIMEOUT:
                self._stalled(outgoing)

    def _waits_for_line(self, outgoing: _Outgoing) -> bool:
        return bool(self._session.room(outgoing.stream)) and outgoing.reading is None

    def _stalled(self, outgoing: _Outgoing) -> None:
        what = "its bytes could not be read" if outgoing.reading is not None else "nothing was taken of it"
        error = TimedOut(f"{what} for {limits.STALL_TIMEOUT:g} s, after {outgoing.offset} of {outgoing.nbytes}")
        _log.warning("a payload for %s is given up: %s", self._name, error.message)
        self.give_up(outgoing.stream, error.message)
        self.kick()


async def _whole(payload: Payload, offset: int, size: int) -> Buffer:
    return await payload.read(offset, size)
