"""Lines between processes of one session, opened by their peers: a WebSocket each, given away after its handshake.

A line begins as every session does, so that both ends have proved their keys; whoever dials says in its HELLO that it
is for "rounds". Its one message is the id of the secure session. Then neither peer reads it any more: its socket goes
to the process, which says on it what is in peer/worker/secure/wire.py. Of two peers the one with the smaller id dials.

Nothing is lost on the way, because who dialled lets its process speak only when the other peer has said (HELLO, on the
line between peers) that it reads no more.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections import Counter
from socket import IPPROTO_TCP, TCP_NODELAY
from socket import socket as System
from typing import Final, NamedTuple

from websockets.exceptions import ConnectionClosed

from peer.keys import Identity
from peer.membership import Member
from peer.opening import ROUNDS, shaken_hands
from peer.transport import Socket, dial, is_near
from protocol import limits
from protocol.errors import LinkError, PartyFailed, PeerLost
from protocol.handshake import Introduction, Remote

_Key = tuple[bytes, str]
"""A session, and the peer at the other end."""
_ENDED: Final = getattr(select, "POLLRDHUP", 0)  # where the system tells without reading (Linux)


class _Early(NamedTuple):
    """A line that nobody has asked for yet, and since when."""

    socket: Socket
    since: float


class Joins:
    """All such lines of one peer, until its processes have them."""

    def __init__(self, identity: Identity, name: str) -> None:
        self._identity = identity
        self._name = name
        self._waiting: dict[_Key, _Early] = {}  # came, and nobody asked for them yet: the oldest is the first
        self._wanted: dict[_Key, asyncio.Future[Socket]] = {}
        self._greeting: dict[asyncio.Task[None], str] = {}  # have not said yet for which session they are
        self._is_closed = False

    async def dialled(self, member: Member, session: bytes) -> Socket:
        """A line that is dialled here; it is not read any more. PartyFailed."""
        failure: LinkError = PeerLost(f"{member.name} has no address", peer=member.name)
        for url in member.urls:
            try:
                socket = await dial(url, may_be_near=False)  # descriptors pass over a Unix socket
                ours = Introduction(ROUNDS, self._name, member.id)
                await shaken_hands(socket, ours, self._identity, os.urandom(32), dialer=True)
            except LinkError as error:
                failure = error
                continue
            try:
                await socket.send(session)
                socket.transport.pause_reading()
            except (ConnectionClosed, OSError):
                socket.transport.abort()
                continue
            except BaseException:
                socket.transport.abort()
                raise
            return socket
        raise PartyFailed(f"{member.name} takes no part in the run: {failure.message}", peer=member.name)

    async def arrived_for(self, id: str, session: bytes) -> Socket:
        """The line of this session that the other peer dials; it is not read any more. Waits."""
        key = session, id
        early = self._waiting.pop(key, None)
        if early is not None:
            return early.socket
        wanted: asyncio.Future[Socket] = asyncio.get_running_loop().create_future()
        self._wanted[key] = wanted
        try:
            return await wanted
        except BaseException:
            if wanted.done() and not wanted.cancelled():  # it came, and who waited was given up just then
                wanted.result().transport.abort()
            raise
        finally:
            self._wanted.pop(key, None)

    def arrived(self, socket: Socket, remote: Remote) -> None:
        """A line that was dialled by the other end, which is a member of the grid."""
        if is_near(socket):  # not of `dialled`
            socket.transport.abort()
            return
        greeting = sum(id == remote.id for id in self._greeting.values())
        if self._is_closed or greeting >= limits.SECURE_WAITING_EACH or len(self._greeting) >= limits.SECURE_WAITING:
            socket.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._take(socket, remote.id))
        self._greeting[task] = remote.id
        task.add_done_callback(lambda task: self._greeted(task, socket))

    def _greeted(self, task: asyncio.Task[None], socket: Socket) -> None:
        self._greeting.pop(task, None)
        if task.cancelled():  # perhaps before it began
            socket.transport.abort()

    async def _take(self, socket: Socket, id: str) -> None:
        try:
            async with asyncio.timeout(limits.HANDSHAKE_TIMEOUT):
                session = await socket.recv()
        except (ConnectionClosed, TimeoutError, OSError):
            socket.transport.abort()
            return
        if not isinstance(session, bytes) or len(session) != 16:
            socket.transport.abort()
            return
        socket.transport.pause_reading()
        wanted = self._wanted.get((session, id))
        if wanted is not None and not wanted.done():
            wanted.set_result(socket)
            return
        self._let_go((session, id))
        self._waiting[session, id] = _Early(socket, time.monotonic())
        self._make_room(id)

    def _make_room(self, id: str) -> None:
        """Where too many wait: the oldest of this peer, or of the one that has most, is not waited for any more."""
        counts = Counter(of for _, of in self._waiting)
        if counts[id] > limits.SECURE_WAITING_EACH:
            self._let_go(next(key for key in self._waiting if key[1] == id))
        elif len(self._waiting) > limits.SECURE_WAITING:
            ((most, _),) = counts.most_common(1)
            self._let_go(next(key for key in self._waiting if key[1] == most))

    def _let_go(self, key: _Key) -> None:
        early = self._waiting.pop(key, None)
        if early is not None:
            early.socket.transport.abort()

    def sweep(self, now: float) -> None:
        """Closes what waits for longer than anybody waits for a run to begin, and what the other end has ended."""
        for key, early in list(self._waiting.items()):
            if now - early.since > limits.SECURE_PATIENCE or _has_ended(early.socket):
                self._let_go(key)

    def forget(self, session: bytes) -> None:
        """It is over: nobody asks for its lines any more."""
        for key in [key for key in self._waiting if key[0] == session]:
            self._let_go(key)

    async def close(self) -> None:
        self._is_closed = True
        for task in list(self._greeting):
            task.cancel()
        for key in list(self._waiting):
            self._let_go(key)


def _has_ended(socket: Socket) -> bool:
    """Whether the other end is gone: nobody reads the line, so that nothing else says so."""
    pipe = socket.transport.get_extra_info("socket")
    if pipe is None or pipe.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(pipe.fileno(), _ENDED)
    return bool(poll.poll(0))


def given_away(socket: Socket) -> int:
    """The descriptor of its TCP socket, the caller's to close; this process lets go of the line without ending it."""
    fd = os.dup(socket.transport.get_extra_info("socket").fileno())
    pipe = System(fileno=fd)
    pipe.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    socket.transport.abort()  # closes its own descriptor, and says nothing to the other end
    return pipe.detach()
