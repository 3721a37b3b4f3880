"""One peer: wires the parts together, listens, and takes itself down again."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from weakref import ref

from websockets.asyncio.server import Server

from peer import closing, machine, near, transport
from peer.buffers import BufferPool
from peer.calls import Call
from peer.connection import Connection
from peer.elsewhere import Elsewhere
from peer.execution import Execution
from peer.exports import Exports
from peer.folders import Folders
from peer.jails import Jails
from peer.joining import Joining
from peer.keys import Identity, is_operator
from peer.leases import LeaseKey, Leases
from peer.ledger import Ledger, Ledgers
from peer.links import Links
from peer.membership import Member, Membership, check_name, is_loopback
from peer.moves import Moves
from peer.neighbours import Neighbour, Neighbours
from peer.notes import Notes
from peer.objects import Objects
from peer.opening import open_or_line
from peer.pool_settings import PoolSettings
from peer.programs import Programs
from peer.pulls import Pulls
from peer.requests import Parts, Requests
from peer.runs import Runs
from peer.secure import SecureRuns
from peer.store.store import Store
from peer.transfers import Transfers
from peer.upkeep import Upkeep
from peer.uploads import Uploads
from peer.workers import WorkerPool
from protocol import limits
from protocol.errors import DataFolderMismatch, LinkError, PortInUse, SetupError
from protocol.handshake import Introduction, Remote

DEFAULT_PORT = 7700
VERSION = "0.1.0"
_LAST_PORT = 65_535

_log = logging.getLogger("peergrid.peer")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a peer is to run. `port` None: 7700, or any free one where that is taken; 0: any free one.

    `advertise`: the addresses that it tells others instead of its own, where a tunnel or a forwarded port leads to
    it. `lease_grace`: how long a client's temporaries outlive its last session. `workers`: how operations run here.
    """

    name: str
    host: str = "127.0.0.1"
    port: int | None = None
    join: tuple[str, ...] = ()
    data_dir: Path | None = None
    folders: Folders = field(default_factory=Folders.default)
    advertise: tuple[str, ...] = ()
    lease_grace: float = limits.LEASE_GRACE
    workers: PoolSettings = field(default_factory=PoolSettings)

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.port is not None and not 0 <= self.port <= _LAST_PORT:
            raise SetupError(f"{self.port} is no port: they run from 1 to {_LAST_PORT}, and 0 is any that is free")
        if not is_loopback(f"ws://{_bracketed(self.host)}"):
            raise SetupError(
                f"{self.host} is not this machine: a peer listens on loopback only, until grids have admission rules. "
                "Use --host 127.0.0.1"
            )
        for url in self.advertise:
            if not is_loopback(url):
                raise SetupError(
                    f"{url} does not lead to this machine: peers are loopback only, until grids have admission rules. "
                    "Advertise an address like ws://127.0.0.1:7700"
                )


class Peer:
    """A running peer. `await Peer.start(settings)`, then `wait_closed` or `close`; close is safe to call twice."""

    def __init__(
        self, settings: Settings, identity: Identity, store: Store, neighbours: Neighbours, address: socket.socket
    ) -> None:
        """For `start`. It closes the store and `address`, where it will listen."""
        self.settings = settings
        self._address = address
        self.identity = identity
        self.id = identity.id
        self.name = settings.name
        self.url = ""
        self._store = store
        self._neighbours = neighbours
        self._ledgers = Ledgers()
        self._leases = Leases(settings.lease_grace, self._lease_over)
        self._membership = Membership()
        self._buffers = BufferPool()
        self._workers = WorkerPool(settings.workers, self._buffers)
        self._objects = Objects(store, self._leases, settings.name)
        self._execution = Execution(self._objects, store, self._workers)
        self._sessions: set[Connection] = set()
        self._most_sessions = machine.descriptors(limits.MAX_SESSIONS)
        self._unproved: dict[transport.GuardedServerConnection, None] = {}  # the longest waiting first
        # By session, for as long as something is under way for it: that may be longer than it is open.
        self._lease_keys: dict[ref[Connection], LeaseKey] = {}
        introduction = Introduction("peer", settings.name)
        self._introduction = introduction
        self._links = Links(identity, introduction, self._membership)
        self._joining = Joining(identity, introduction, self._membership, self._links, neighbours)
        self._exports, self._uploads = Exports(), Uploads()
        transfers = Transfers(self._objects, store, self._buffers, self._execution, self._exports, self._uploads)
        self._notes = Notes(self._objects, self._execution, transfers, store, self._links, self._joining.member)
        self._moves = Moves(
            self.id, self._objects, self._execution, transfers, self._exports, store, self._notes.settled
        )
        elsewhere = Elsewhere(self._links, self.id, self._joining.members)
        self._pulls = Pulls(self._objects, transfers, store, self._notes, self._links, self._joining.member, elsewhere)
        runs = Runs(lambda asker: is_operator(asker, settings.folders.key_file("client")))
        self._secure = SecureRuns(
            identity, settings.name, self._objects, self._execution, self._workers, runs, self._joining.member
        )
        self._requests = Requests(
            Parts(
                id=self.id,
                name=self.name,
                version=VERSION,
                started=time.time(),
                objects=self._objects,
                store=store,
                execution=self._execution,
                programs=Programs(self._objects, self._workers, self._execution, runs),
                jails=Jails(self._objects, self._workers, self._execution, runs, settings.workers.jails, settings.name),
                runs=runs,
                secure=self._secure,
                transfers=transfers,
                moves=self._moves,
                pulls=self._pulls,
                workers=self._workers,
                membership=self._membership,
                neighbours=neighbours,
                links=self._links,
                sessions=lambda: len(self._sessions),
                upkeep=Upkeep(store, settings.folders),
            ),
            self._lease_of,
        )
        self._servers: list[Server] = []
        self._housekeeper: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()

    # --- life ---------------------------------------------------------------------------------------------

    @classmethod
    async def start(cls, settings: Settings) -> Peer:
        """Start a peer and, where asked, join a grid. When this returns it can be found and asked.

        Raises:
            NameTaken, PortInUse, DataFolderInUse, DataFolderMismatch, SetupError; Unreachable for a join that fails.
        """
        neighbours = Neighbours(settings.folders.peers)
        neighbours.reserve(settings.name)
        address = None
        try:
            address = _bound(settings)  # first: where that fails, nothing has been made
            identity = Identity.load(settings.folders.key_file(settings.name))
            data = settings.data_dir or settings.folders.peer_data(settings.name)
            store = await _opened(data, identity, settings)
            peer = cls(settings, identity, store, neighbours, address)
        except BaseException:
            if address is not None:
                address.close()
            neighbours.withdraw()
            raise
        try:
            await peer._open()
        except BaseException:
            await peer.close()
            raise
        return peer

    async def _open(self) -> None:
        await self._workers.start()
        await self._notes.start()
        await self._workers.confined()
        if self.settings.workers.worker.device != "cpu":
            await self._workers.ready()  # only torch knows whether there is such a device
        host, port = self._address.getsockname()[:2]
        self._servers.append(await transport.listen_at(self._address, self._accept))
        if (beside := near.listening(host, port)) is not None:
            self._servers.append(await transport.listen_at(beside, self._accept))
        self.url = f"ws://{_bracketed(host)}:{port}"
        own = Member(self.id, self.name, self.settings.advertise or (self.url,))
        self._membership.set_ours(own)
        for url in self.settings.join:
            await self._joining.join(url, own)
        self._neighbours.announce(Neighbour(self.name, self.id, own.urls[0], os.getpid()))
        self._housekeeper = asyncio.create_task(self._keep_house())

    async def close(self) -> None:
        """Stop: published objects stay on disk, temporaries are gone, sessions are closed in an orderly way."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._neighbours.withdraw()
        if self._housekeeper is not None:
            self._housekeeper.cancel()
        async with AsyncExitStack() as last:  # from here on backwards, whatever fails on the way
            last.push_async_callback(self._store.close)
            for part in (self._buffers, self._exports, self._moves):
                last.callback(part.close)
            last.push_async_callback(self._uploads.close)
            last.push_async_callback(self._workers.close)
            last.callback(self._address.close)
            last.push_async_callback(self._stop_serving)
            for talker in (self._links, self._notes, self._pulls, self._secure):
                last.push_async_callback(talker.close)
            for server in self._servers:
                await transport.stop_listening(server, close_connections=False)
            await asyncio.gather(*(session.close() for session in list(self._sessions)), return_exceptions=True)
            await closing.stop(*self._ledgers.tasks)

    async def _stop_serving(self) -> None:
        for server in self._servers:
            await server.wait_closed()

    async def wait_closed(self) -> None:
        await self._closed.wait()

    # --- sessions -----------------------------------------------------------------------------------------

    async def _accept(self, socket: transport.GuardedServerConnection) -> None:
        if len(self._sessions) >= self._most_sessions:
            await socket.close(1013, "too many connections")
            return
        self._make_room()
        self._unproved[socket] = None
        origin = transport.origin(socket)  # while it is there
        try:
            requests = self._requests
            session = await open_or_line(
                socket,
                self._introduction,
                self.identity,
                requests.serve,
                requests.serve_at_once,
                self._memory_of,
                self._ledger_of,
                self._secure.line_arrived,
            )
        except LinkError as error:
            _log.info("a connection from %s came to nothing: %s", origin, error.message)
            return
        finally:
            self._unproved.pop(socket, None)
        if session is None:
            return await socket.wait_closed()
        if self._closed.is_set():  # meanwhile: `close` knows nothing of this one
            await session.close()
        else:
            await self._serve(session)

    def _make_room(self) -> None:
        """For one more that has proved nothing. Whoever means it does so within milliseconds: so those who say nothing
        keep nobody out, the one that has said nothing for longest goes."""
        if len(self._unproved) >= limits.MAX_UNPROVED:
            oldest = next(iter(self._unproved))
            del self._unproved[oldest]
            oldest.transport.abort()

    async def _serve(self, session: Connection) -> None:
        remote = session.remote
        key = (remote.id, remote.lease or os.urandom(16))
        self._sessions.add(session)
        self._lease_keys[ref(session, self._lease_keys.pop)] = key
        self._leases.connected(key)
        self._links.traffic.follow(session)
        try:
            await asyncio.shield(session.closed)
        finally:
            self._sessions.discard(session)
            self._leases.disconnected(key, time.monotonic())

    def _lease_of(self, call: Call) -> LeaseKey:
        return self._lease_keys[ref(call.connection)]

    def _lease_over(self, key: LeaseKey) -> None:
        self._ledgers.forget(key)
        self._secure.lease_over(key)

    def _memory_of(self, principal: str, lease: bytes | None) -> int | None:
        return None if lease is None else self._leases.memory((principal, lease), time.monotonic())

    def _ledger_of(self, remote: Remote) -> Ledger | None:
        return None if remote.lease is None else self._ledgers.of((remote.id, remote.lease))

    # --- housekeeping -------------------------------------------------------------------------------------

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._execution.release(self._leases.expire(time.monotonic()))
            self._secure.sweep()
            self._exports.sweep()
            await self._moves.sweep()
            await self._uploads.sweep()
            self._buffers.sweep()


async def _opened(folder: Path, identity: Identity, settings: Settings) -> Store:
    try:
        return await Store.open(folder, identity.id, name=settings.name)
    except DataFolderMismatch as error:
        if error.fields.get("known") == identity.id:  # perhaps of a key that was made just now, where one was missing
            error.message += f". Its key is kept in {settings.folders.key_file(settings.name)}"
        raise


def _bound(settings: Settings) -> socket.socket:
    """A socket at the peer's address, at which it listens later. PortInUse, SetupError."""
    wanted = [settings.port] if settings.port is not None else [DEFAULT_PORT, 0]
    for port in wanted:
        try:
            return transport.bound(settings.host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise SetupError(f"cannot listen on {settings.host}:{port}: {error.strerror}") from None
    raise PortInUse(
        f"port {settings.port} is in use: choose another with --port, or leave it out to have a free one found"
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
