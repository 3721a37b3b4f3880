"""A grid, as its users see it: who is there, what can be found, and what is to be computed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from grid.hits import Hits
from grid.modules import RemoteModel
from grid.plan import RemotePlan
from grid.pointer import Pointer
from grid.remote import Found, RemotePeer, pointer_to
from grid.running import Runner
from peer.connection import open_as_dialer
from peer.folders import Folders
from peer.keys import Identity
from peer.links import Links, Traffic
from peer.membership import Member, Membership
from peer.neighbours import Neighbours
from protocol import limits
from protocol.errors import GridError, LinkError, NothingRunning, UnknownPeer
from protocol.handshake import Introduction
from search.plan import Fanout, PeerRef

_REFRESH_SECONDS = 1.0
_LOAD_AT_ONCE = 16  # models and plans among the hits whose programs are fetched with them, ready to be called
_ID_PREFIX = re.compile(r"[0-9a-f]{4,32}")


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """One peer: `state` is "alive" or "unreachable"; objects and bytes count what it has published."""

    name: str
    id: str
    urls: tuple[str, ...]
    state: str
    objects: int | None
    bytes: int | None


class Grid:
    """The way into a grid. Get it with `async with grid.connect() as g`.

    g.peers()           who is there            g["alice"]             one of them, by name or id
    await g.search(q)   what there is           async for p in g.stream(q)
    await g.run(plan, name="query")             compute where the data are
    """

    def __init__(self, identity: Identity, name: str = "") -> None:
        self.identity = identity
        self._membership = Membership()
        self._introduction = Introduction("client", name, lease=os.urandom(16))
        self._links = Links(identity, self._introduction, self._membership)
        self._remotes: dict[str, RemotePeer] = {}
        self._counts: dict[str, dict[str, Any]] = {}
        self._entry: RemotePeer | None = None
        self._refresher: asyncio.Task[None] | None = None
        self._runner = Runner(self)

    def __repr__(self) -> str:
        return f"Grid({', '.join(member.name for member in self._membership.all())})"

    # --- life ---------------------------------------------------------------------------------------------

    @classmethod
    async def open(
        cls,
        url: str | None = None,
        *,
        identity: Identity | None = None,
        folders: Folders | None = None,
        name: str = "",
    ) -> Grid:
        """Join the grid of the peer at `url`, or of a peer that runs on this machine.

        Raises:
            NothingRunning: no `url`, and no peer runs here.
            Unreachable, HandshakeFailed: nobody, or no peer, at `url`.
        """
        folders = folders or Folders.default()
        opened = cls(identity or Identity.load(folders.key_file("client")), name)
        try:
            entry = await opened._find_entry(url, Neighbours(folders.peers))
            opened._membership.learn([entry])
            opened._entry = opened._remote(entry)
            await opened.refresh()
        except BaseException:
            await opened.close()
            raise
        opened._refresher = asyncio.create_task(opened._keep_fresh())
        return opened

    async def _find_entry(self, url: str | None, neighbours: Neighbours) -> Member:
        if url is not None:
            session = await open_as_dialer(url, self._introduction, self.identity)
            await session.close()
            return Member(session.remote.id, session.remote.name, (url,))
        running = neighbours.list()
        failures = []
        for neighbour in running:
            member = Member(neighbour.id, neighbour.name, (neighbour.url,))
            self._membership.learn([member])
            try:
                await self._links.to(member)
            except LinkError as error:
                failures.append(error.message)
                continue
            return member
        if failures:
            raise NothingRunning(f"no peer of this machine answers: {'; '.join(failures)}")
        raise NothingRunning(
            "no peer runs on this machine: start one with 'grid start alice', or give the address "
            "of one elsewhere, like ws://127.0.0.1:7700"
        )

    async def close(self) -> None:
        """Leave. Temporaries of this client live a while longer at their peers, then go."""
        if self._refresher is not None:
            self._refresher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._refresher
        for remote in self._remotes.values():
            if remote.outbox.has_work:
                with contextlib.suppress(GridError):
                    await remote.outbox.flush()
            remote.outbox.close()
        await self._links.close()

    async def __aenter__(self) -> Grid:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- peers --------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Who you are: the id of your key, the owner of what you publish."""
        return self.identity.id

    def peers(self) -> list[PeerInfo]:
        """The peers as last heard of (at most a second ago); `await refresh()` asks at once."""
        return [
            PeerInfo(
                member.name,
                member.id,
                member.urls,
                member.state,
                self._counts.get(member.id, {}).get("objects"),
                self._counts.get(member.id, {}).get("bytes"),
            )
            for member in self._membership.all()
        ]

    def __getitem__(self, name_or_id: str) -> RemotePeer:
        """The peer of that name, id or beginning of an id. UnknownPeer, AmbiguousPeer."""
        return self._remote(self._membership.find(name_or_id))

    def __iter__(self) -> Iterator[RemotePeer]:
        return iter([self._remote(member) for member in self._membership.all()])

    def __len__(self) -> int:
        return len(self._membership.all())

    def _remote(self, member: Member) -> RemotePeer:
        remote = self._remotes.get(member.id)
        if remote is None:
            loop = asyncio.get_running_loop()
            remote = self._remotes[member.id] = RemotePeer(member, self._links, self.identity.id, loop)
        remote.member = member
        return remote

    async def refresh(self) -> list[PeerInfo]:
        """Ask who is there now, and how much each peer holds."""
        await self._learn_members()
        await asyncio.gather(*(self._count(remote) for remote in self))
        return self.peers()

    async def _learn_members(self) -> None:
        """Ask the entry peer for its members; where it is gone, any other."""
        candidates = sorted(self, key=lambda remote: remote is not self._entry)
        for remote in candidates:
            try:
                members = await remote.members()
            except LinkError:
                self._membership.failed(remote.id)
                continue
            self._membership.learn(members)
            self._entry = remote
            gone = {member.id for member in self._membership.all()} - {member.id for member in members}
            for id in gone:
                self._membership.failed(id)
            return

    async def _count(self, remote: RemotePeer) -> None:
        try:
            async with asyncio.timeout(limits.SEARCH_TIMEOUT):
                self._counts[remote.id] = await remote.status()
            self._membership.reached(remote.id)
        except (GridError, TimeoutError):
            self._membership.failed(remote.id)

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            with contextlib.suppress(GridError):
                await self._learn_members()

    async def wait_for(self, name: str, timeout: float = 10.0) -> RemotePeer:
        """The peer of that name, once it is there; UnknownPeer if it does not come in time."""
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            await self._learn_members()
            try:
                return self[name]
            except UnknownPeer:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(0.05)

    def traffic(self) -> list[Traffic]:
        """Tensor bytes between this client and each peer so far."""
        return self._links.traffic.all()

    # --- search -------------------------------------------------------------------------------------------

    async def search(self, query: str, timeout: float = limits.SEARCH_TIMEOUT) -> Hits:
        """Ask all peers at once (docs/queries.md says how to ask). Peers that do not answer in time are listed in
        `hits.unreachable`; the others' answers count.

        Raises:
            QueryError: the query does not parse; the error points at the column.
        """
        fanout = await self._fan_out(query, timeout)
        async for _ in self._answers(fanout):
            pass
        hits = await self._hits(fanout.hits)
        unreachable = {peer.name: error.message for peer, error in fanout.unreachable.items()}
        return Hits(query, hits, unreachable, [peer.name for peer in fanout.truncated])

    async def stream(self, query: str, timeout: float = limits.SEARCH_TIMEOUT) -> AsyncIterator[Any]:
        """The same objects one by one, as the answers arrive."""
        fanout = await self._fan_out(query, timeout)
        async for records in self._answers(fanout):
            for hit in await self._hits(records):
                yield hit

    async def _fan_out(self, query: str, timeout: float) -> Fanout:
        now = asyncio.get_running_loop().time()
        Fanout(query, (), now, now)  # a query that does not parse is refused before anyone is asked
        await self._learn_members()
        peers = [PeerRef(member.name, member.id) for member in self._membership.all()]
        return Fanout(query, peers, now, asyncio.get_running_loop().time() + timeout)

    async def _answers(self, fanout: Fanout) -> AsyncIterator[Sequence[dict[str, Any]]]:
        loop = asyncio.get_running_loop()
        asked = {loop.create_task(self._remotes_by_id(peer.id).search(fanout.text)): peer.id for peer in fanout.ask}
        waiting: set[asyncio.Task[Found]] = set(asked)
        try:
            while waiting and not fanout.is_done:
                left = max(fanout.deadline - loop.time(), 0)
                done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield self._answered(fanout, asked[task], task, loop.time())
                if not done:
                    fanout.expired(loop.time())
        finally:
            for task in waiting:
                task.cancel()

    def _answered(self, fanout: Fanout, id: str, task: asyncio.Task[Found], now: float) -> Sequence[dict[str, Any]]:
        error = task.exception()
        if error is None:
            records, is_truncated = task.result()
            return fanout.answered(id, records, is_truncated, now)
        if not isinstance(error, GridError):
            raise error
        if isinstance(error, LinkError):
            self._membership.failed(id)
        fanout.failed(id, error, now)
        return ()

    def _remotes_by_id(self, id: str) -> RemotePeer:
        member = self._membership.get(id)
        assert member is not None
        return self._remote(member)

    async def _hits(self, records: Sequence[dict[str, Any]]) -> list[Any]:
        hits = list(await asyncio.gather(*(self._hit(record) for record in records)))
        to_load = [hit for hit in hits if isinstance(hit, RemoteModel | RemotePlan)]
        if len(to_load) <= _LOAD_AT_ONCE:
            await asyncio.gather(*(hit.load() for hit in to_load))
        return hits

    async def _hit(self, record: dict[str, Any]) -> Any:
        home = self._remotes_by_id(record["peer_id"])
        match record["kind"]:
            case "model":
                return RemoteModel(home, record)
            case "plan":
                return RemotePlan(home, record)
            case "pointer":
                return await self._chain(home, record)
        return pointer_to(home, record)

    async def _chain(self, home: RemotePeer, record: dict[str, Any], depth: int = 0) -> Pointer:
        """A pointer to a pointer: follows what its holder says it points to."""
        full = record if "target" in record else await home.describe_object(record["id"])
        target = full.get("target") or {}
        if depth > 16:
            raise GridError(f"object {record['id'].hex()[:12]} at {home.name} is a chain of more than 16 peers")
        there = self[str(target.get("peer"))]
        described = await there.describe_object(target["object"])
        inner = (
            await self._chain(there, described, depth + 1)
            if described["kind"] == "pointer"
            else pointer_to(there, described)
        )
        return pointer_to(home, {**full, **{key: described[key] for key in ("dtype", "shape")}}, inner)

    async def find(self, reference: str) -> Any:
        """One object, by a query that finds one or by the beginning of its id (4 hex digits or more).

        Raises:
            NotFound, Ambiguous, QueryError.
        """
        if _ID_PREFIX.fullmatch(reference):
            hits = await self.search(f"id:{reference}")
            if len(hits):
                return hits.one()
        return (await self.search(reference)).one()

    # --- computing ----------------------------------------------------------------------------------------

    async def run(self, plan: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Run a plan where its data are, as one request.

        Arguments are queries (each finds one object), pointers, remote models, or plain values. The plan is captured
        for their shapes, placed at the peer that has most of them, the others are brought there directly, and the
        result is a pointer there (or a structure of pointers).

        Raises:
            NotFound, Ambiguous: a query does not find one object.
            CannotCapture: the function does something that a program cannot hold; the error points at the line.
            NotCollocated: what is private would have to move.
        """
        return await self._runner.run(plan, args, kwargs)


def connect(
    url: str | None = None, *, identity: Identity | None = None, folders: Folders | None = None, name: str = ""
) -> Connecting:
    """Join a grid: `async with grid.connect() as g`, or `g = await grid.connect()` and `await g.close()` later.

    Args:
        url: any one peer, like ws://127.0.0.1:7700; without it, a peer that runs on this machine.
        identity: who you are; without it, the key in your configuration folder, made on first use.
    """
    return Connecting(url, identity, folders, name)


class Connecting:
    """What `connect` returns: awaitable, and an async context manager."""

    def __init__(self, url: str | None, identity: Identity | None, folders: Folders | None, name: str) -> None:
        self._arguments = (url, identity, folders, name)
        self._grid: Grid | None = None

    async def _open(self) -> Grid:
        url, identity, folders, name = self._arguments
        return await Grid.open(url, identity=identity, folders=folders, name=name)

    def __await__(self) -> Any:
        return self._open().__await__()

    async def __aenter__(self) -> Grid:
        self._grid = await self._open()
        return self._grid

    async def __aexit__(self, *_: object) -> None:
        if self._grid is not None:
            await self._grid.close()
