"""What leaves over a session: frames at the end of each turn of the loop, and payloads chunk by chunk.

Control frames go first and then a chunk of each stream in turn, so that large payloads share the line fairly and
small requests never wait for more than a chunk.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from peer.calls import Traffic
from peer.payloads import Payload
from peer.transport import Socket, can_send_now, send_now
from protocol.errors import Corrupt, GridError
from protocol.session import Session

_log = logging.getLogger("peergrid.connection")


class _Outgoing:
    """One payload of ours under way."""

    __slots__ = ("offset", "payload", "stream")

    def __init__(self, stream: int, payload: Payload) -> None:
        self.stream = stream
        self.payload = payload
        self.offset = 0


class Sending:
    """Sends what the session has. Small frames go as soon as they may; `run` is the task for all that has to wait.

    `is_over` is for the connection to set: nothing new is said then, and what was queued leaves with `flush`.
    `on_room` is called when a stream of ours has ended: another may begin.
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
        if self._streams or self._outbox or not can_send_now(self._socket):
            self._wake.set()
        elif not self._is_kicked:
            self._is_kicked = True
            self._loop.call_soon(self._send_kicked)

    def hurry(self) -> None:
        """Send what was kicked now, if that can be done, and not at the end of this turn of the loop."""
        if self._is_kicked:
            self._send_small()

    def _send_kicked(self) -> None:
        self._is_kicked = False
        self._send_small()

    def _send_small(self) -> None:
        if self.is_over or not self._session.has_data:
            return  # the connection's end sends what is left
        if self._outbox or not can_send_now(self._socket):
            self._wake.set()
            return
        for message in self._session.data_to_send():
            if self._outbox or not can_send_now(self._socket):
                self._outbox.append(message)
                self._wake.set()
            else:
                self._traffic.message_sent(len(message))
                send_now(self._socket, message)

    async def flush(self) -> None:
        """Send all frames that there are, waiting for the other end to read them."""
        # By way of the outbox: if `run` is stopped halfway, the connection's end sends the rest.
        self._outbox.extend(self._session.data_to_send())
        while self._outbox:
            message = self._outbox.popleft()
            self._traffic.message_sent(len(message))
            if can_send_now(self._socket):
                send_now(self._socket, message)
            else:
                await self._socket.send(message)

    # --- payloads -----------------------------------------------------------------------------------------

    def begin(self, stream: int, payload: Payload) -> None:
        """Send this payload as that stream, which the session has announced; it is closed when it has gone."""
        self._streams[stream] = _Outgoing(stream, payload)

    def give_up(self, stream: int, message: str) -> None:
        """Tell the other end that no more of this stream comes, if it has not gone yet."""
        if stream in self._streams:
            self._session.abort_stream(stream, message)
            self.stop(stream)

    def stop(self, stream: int) -> None:
        """No more of this stream is to be sent: all has gone, or nobody wants it."""
        outgoing = self._streams.pop(stream, None)
        if outgoing is not None:
            outgoing.payload.close()
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
        """One chunk of each stream that has room; whether there was any."""
        moved = False
        for outgoing in list(self._streams.values()):
            room = self._session.room(outgoing.stream)
            if room is None:
                self.stop(outgoing.stream)
            elif room:
                await self._send_chunk(outgoing, room)
                moved = True
        return moved

    async def _send_chunk(self, outgoing: _Outgoing, room: int) -> None:
        try:
            data = await outgoing.payload.read(outgoing.offset, room)
            if len(data) != room:
                raise Corrupt(f"{len(data)} bytes where there should be {room}")
        except Exception as error:
            self._break_off(outgoing, error)
            return
        if not self._session.chunk(outgoing.stream, memoryview(data)):  # aborted while we read
            self.stop(outgoing.stream)
            return
        outgoing.offset += len(data)
        self._traffic.chunk_sent(len(data))
        if outgoing.offset == outgoing.payload.nbytes:
            self.stop(outgoing.stream)
        await self.flush()
        # The library does not yield while the kernel takes everything: others of this loop need their turn.
        await asyncio.sleep(0)

    def _break_off(self, outgoing: _Outgoing, error: Exception) -> None:
        """A payload of ours cannot be read."""
        if self._streams.get(outgoing.stream) is not outgoing:
            return  # it was closed meanwhile, which is why
        if isinstance(error, GridError):
            message = error.message
        else:  # what a stranger may know of it is that it broke
            _log.error("a payload for %s broke off", self._name, exc_info=error)
            message = "its bytes cannot be read; the log there says why"
        self._session.abort_stream(outgoing.stream, message)
        self.stop(outgoing.stream)
