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
from collections import OrderedDict
from socket import IPPROTO_TCP, TCP_NODELAY
from socket import socket as System

from websockets.exceptions import ConnectionClosed

from peer.keys import Identity
from peer.membership import Member
from peer.opening import ROUNDS, shaken_hands
from peer.transport import Socket, dial
from protocol import limits
from protocol.errors import LinkError, PartyFailed, PeerLost
from protocol.handshake import Introduction, Remote

_Key = tuple[bytes, str]
"""A session, and the peer at the other end."""


class Joins:
    """All such lines of one peer, until its processes have them."""

    def __init__(self, identity: Identity, name: str) -> None:
        self._identity = identity
        self._name = name
        self._waiting: OrderedDict[_Key, Socket] = OrderedDict()  # came, and nobody asked for them yet
        self._wanted: dict[_Key, asyncio.Future[Socket]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def dialled(self, member: Member, session: bytes) -> Socket:
        """A line that is dialled here; it is not read any more. PartyFailed."""
        failure: LinkError = PeerLost(f"{member.name} has no address", peer=member.name)
        for url in member.urls:
            try:
                socket = await dial(url)
                ours = Introduction(ROUNDS, self._name, member.id)
                await shaken_hands(socket, ours, self._identity, os.urandom(32), dialer=True)
            except LinkError as error:
                failure = error
                continue
            try:
                await socket.send(session)
                socket.transport.pause_reading()
            except (ConnectionClosed, OSError):
                continue
            return socket
        raise PartyFailed(f"{member.name} takes no part in the run: {failure.message}", peer=member.name)

    async def arrived_for(self, id: str, session: bytes) -> Socket:
        """The line of this session that the other peer dials; it is not read any more. Waits."""
        key = session, id
        socket = self._waiting.pop(key, None)
        if socket is not None:
            return socket
        wanted: asyncio.Future[Socket] = asyncio.get_running_loop().create_future()
        self._wanted[key] = wanted
        try:
            return await wanted
        finally:
            self._wanted.pop(key, None)

    def arrived(self, socket: Socket, remote: Remote) -> None:
        """A line that was dialled by the other end."""
        task = asyncio.get_running_loop().create_task(self._take(socket, remote.id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
        before = self._waiting.pop((session, id), None)
        self._waiting[session, id] = socket
        if before is not None:
            before.transport.abort()
        while len(self._waiting) > limits.SECURE_EARLY:
            self._waiting.popitem(last=False)[1].transport.abort()

    def forget(self, session: bytes) -> None:
        """It is over: nobody asks for its lines any more."""
        for key in [key for key in self._waiting if key[0] == session]:
            self._waiting.pop(key).transport.abort()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        for socket in self._waiting.values():
            socket.transport.abort()
        self._waiting.clear()


def given_away(socket: Socket) -> int:
    """The descriptor of its TCP socket, the caller's to close; this process lets go of the line without ending it."""
    fd = os.dup(socket.transport.get_extra_info("socket").fileno())
    pipe = System(fileno=fd)
    pipe.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    socket.transport.abort()  # closes its own descriptor, and says nothing to the other end
    return pipe.detach()
