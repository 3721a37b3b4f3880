"""Lines between peers for secure sessions: one WebSocket for each pair of peers, kept for later ones. No torch here.

What peers themselves have to say of a session goes here: that a process has its line, why the session ended, what
owners allow. What processes say to each other goes over lines of their own (secure_joins.py).

A line begins as every session does, so that both ends have proved their keys; whoever dials says in its HELLO that it
is a "party". From then on there are no requests on it, only frames (SPEC.md, 12):

    session (16 bytes) | kind u8 | 3 bytes of nothing | number u32 | bytes of the message u64 | the message

Of two peers the one with the smaller id dials, the other waits for it.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from websockets.exceptions import ConnectionClosed

from peer import closing
from peer.direct import Direct
from peer.keys import Identity
from peer.liveness import Liveness
from peer.membership import Member
from peer.opening import PARTY, shaken_hands
from peer.transport import Socket, can_send_now, dial, send_large, send_now, wait_sent
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import LinkError, PartyFailed, PeerLost, ProtocolError
from protocol.handshake import Introduction, Remote
from protocol.messages import Chunk

_HEAD: Final = struct.Struct("<16sB3xIQ")
_SMALL: Final = 32 * limits.KIB  # up to here head and piece are joined: cheaper than two writes


class Frame(NamedTuple):
    """One message about a session (`run`: its id). What `kind` means is secure_session.py's."""

    run: bytes
    kind: int
    number: int
    total: int
    piece: Buffer


Heard = Callable[[str, Frame], None]
"""Is told, by the id of the peer at the other end, what came."""


class Line:
    """An open line. `closed` is done when it is over, with the reason."""

    def __init__(self, socket: Socket, remote: Remote, heard: Heard) -> None:
        self._socket = socket
        self.remote = remote
        self._heard = heard
        self._queue: deque[tuple[bytes, Buffer]] = deque()
        self._loop = asyncio.get_running_loop()
        self._liveness = Liveness(socket, self.end)
        self._wake = asyncio.Event()
        self.closed: asyncio.Future[str] = self._loop.create_future()
        self._tasks = [self._loop.create_task(self._read()), self._loop.create_task(self._write())]
        socket.sink = self._take
        Direct(socket, self, self._liveness.heard)  # for short messages, which it takes at a fifth of the cost

    @property
    def is_closed(self) -> bool:
        return self.closed.done()

    def send(self, frame: Frame) -> None:
        """One frame, after all those before; its bytes must not change any more."""
        if self.is_closed:
            return
        head = _HEAD.pack(frame.run, frame.kind, frame.number, frame.total)
        if self._queue or len(frame.piece) > _SMALL or not can_send_now(self._socket):
            self._queue.append((head, frame.piece))
            self._wake.set()
        else:
            send_now(self._socket, head + bytes(frame.piece))

    def end(self, why: str) -> None:
        """It is over now."""
        if not self.closed.done():
            self.closed.set_result(why)
            self._liveness.stop()
            for task in self._tasks:
                if task is not asyncio.current_task(self._loop):
                    task.cancel()
            self._socket.transport.abort()

    async def close(self) -> None:
        self.end("it was closed")
        await closing.stop(*self._tasks)

    async def _write(self) -> None:
        try:
            while True:
                while self._queue:
                    head, piece = self._queue.popleft()
                    if len(piece) > _SMALL:
                        send_large(self._socket, head, piece)
                    else:
                        send_now(self._socket, head + bytes(piece))
                    await wait_sent(self._socket)
                self._wake.clear()
                await self._wake.wait()
        except (ConnectionClosed, OSError):
            self.end("the connection broke")

    async def _read(self) -> None:
        """What was not taken at once."""
        try:
            while True:
                message = await self._socket.recv()
                self._socket.queued = max(self._socket.queued - 1, 0)
                if isinstance(message, str):
                    raise ProtocolError("a text message on a line of secure runs")
                self._hear(message)
        except ConnectionClosed:
            self.end("the connection broke")
        except LinkError as error:
            self.end(error.message)

    def _take(self, message: bytes | bytearray) -> bool:
        if self._socket.queued or self.is_closed:
            return False
        try:
            self._hear(message)
        except LinkError as error:
            self.end(error.message)
        return True

    # What Direct asks for (Places): there are no chunks on a line.

    def place(self, stream: int, offset: int, nbytes: int) -> memoryview | None:
        return None

    def placed(self, size: int, chunk: Chunk) -> None:
        raise NotImplementedError

    def _hear(self, message: bytes | bytearray) -> None:
        if len(message) < _HEAD.size:
            raise ProtocolError("a frame of a secure run that has no head")
        run, kind, number, total = _HEAD.unpack_from(message)
        self._heard(self.remote.id, Frame(run, kind, number, total, memoryview(message)[_HEAD.size :]))


class Lines:
    """All lines of one peer.

    Args:
        heard: told of each frame that comes.
        lost: told of a line that is over, by the id of the peer at its other end, and why. There may be another to it
            already.
        is_needed: whether some session has to do with that peer.
    """

    def __init__(
        self,
        identity: Identity,
        name: str,
        heard: Heard,
        lost: Callable[[str, str], None],
        is_needed: Callable[[str], bool],
    ) -> None:
        self._identity = identity
        self._name = name
        self._heard = heard
        self._lost = lost
        self._is_needed = is_needed
        self._lines: dict[str, Line] = {}
        self._dialling: dict[str, asyncio.Task[Line]] = {}
        self._awaited: dict[str, asyncio.Future[Line]] = {}
        self._is_closed = False

    async def to(self, member: Member, patience: float) -> Line:
        """The line to that peer, dialled here or there. PartyFailed where there is none in time."""
        line = self._lines.get(member.id)
        if line is not None:
            return line
        try:
            async with asyncio.timeout(patience):
                if self._identity.id < member.id:
                    return await self._dialled(member)
                return await asyncio.shield(self._arriving(member.id))
        except TimeoutError:
            why = f"no line to {member.name} within {patience:g} s"
        except LinkError as error:
            why = error.message
        raise PartyFailed(f"{member.name} takes no part in the run: {why}", peer=member.name)

    def arrived(self, socket: Socket, remote: Remote) -> None:
        """A line that was dialled by the other end, which is a member of the grid."""
        if remote.id in self._lines or self.has_room():
            self._add(Line(socket, remote, self._heard))
        else:
            socket.transport.abort()

    def has_room(self) -> bool:
        """Whether there may be one more; the oldest that no session needs ends for it."""
        if len(self._lines) < limits.SECURE_LINES:
            return True
        for id, line in list(self._lines.items()):
            if not self._is_needed(id):
                del self._lines[id]
                line.end("it made room for another")
                return True
        return False

    def _arriving(self, id: str) -> asyncio.Future[Line]:
        waiting = self._awaited.get(id)
        if waiting is None:
            waiting = self._awaited[id] = asyncio.get_running_loop().create_future()
        return waiting

    async def _dialled(self, member: Member) -> Line:
        task = self._dialling.get(member.id)
        if task is None:
            task = self._dialling[member.id] = asyncio.get_running_loop().create_task(self._dial(member))
            task.add_done_callback(lambda _: self._dialling.pop(member.id, None))
        return await asyncio.shield(task)

    async def _dial(self, member: Member) -> Line:
        failure: LinkError = PeerLost(f"{member.name} has no address", peer=member.name)
        for url in member.urls:
            try:
                socket = await dial(url)
                ours = Introduction(PARTY, self._name, member.id)
                remote = await shaken_hands(socket, ours, self._identity, os.urandom(32), dialer=True)
            except LinkError as error:
                failure = error
                continue
            return self._add(Line(socket, remote, self._heard))
        raise failure

    def _add(self, line: Line) -> Line:
        id = line.remote.id
        before = self._lines.get(id)
        self._lines[id] = line
        if before is not None:
            before.end("another line took its place")
        line.closed.add_done_callback(lambda closed: self._over(line, closed.result()))
        waiting = self._awaited.pop(id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(line)
        if self._is_closed:
            line.end("this peer is closing")
        return line

    def _over(self, line: Line, why: str) -> None:
        if self._lines.get(line.remote.id) is line:
            del self._lines[line.remote.id]
        self._lost(line.remote.id, why)  # of sessions that are on it, where another took its place

    async def close(self) -> None:
        self._is_closed = True
        for task in list(self._dialling.values()):
            task.cancel()
        await asyncio.gather(*(line.close() for line in list(self._lines.values())))
