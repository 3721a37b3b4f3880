"""The grid without tensors: who is there, and what they say they have. No torch is needed for that.

`grid.client.Grid` builds pointers, models and plans on it; commands that only look use it as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from dataclasses import dataclass
from typing import Any, Self

from grid import runs
from grid.blocking import check_running
from grid.hits import only, readings
from grid.runs import RunInfo, RunInfos
from grid.searching import Record, Records, Searcher
from peer.calls import Statistics
from peer.connection import Connection
from peer.elsewhere import Elsewhere
from peer.folders import Folders
from peer.keys import Identity
from peer.links import Links, Traffic
from peer.membership import Member, Membership, read_members
from peer.neighbours import Neighbours
from peer.opening import open_as_dialer
from peer.resuming import Others, Waiting
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import GridError, LinkError, NothingRunning, PeerLost, TimedOut, Unreachable
from protocol.handshake import Introduction
from protocol.rows import unpack_rows

_REFRESH_SECONDS = 1.0
_FIRST_TRIES = 3


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """One peer: `state` is "alive" or "unreachable"; objects and bytes count what it has published."""

    name: str
    id: str
    urls: tuple[str, ...]
    state: str
    objects: int | None
    bytes: int | None


class Mesh:
    """One client's view of a grid. `open` it, and `close` it at the end; or use it as an async context manager."""

    def __init__(
        self,
        identity: Identity,
        name: str = "",
        neighbours: Neighbours | None = None,
        patience: float = limits.RECONNECT_TIMEOUT,
    ) -> None:
        self.identity = identity
        self._membership = Membership()
        self._introduction = Introduction("client", name, lease=os.urandom(16))
        self._links = Links(identity, self._introduction, self._membership, neighbours=neighbours, patience=patience)
        self._elsewhere = Elsewhere(self._links, identity.id, self._links.members)
        self._counts: dict[str, dict[str, Any]] = {}
        self._entry = ""  # the id of the peer that is asked who else is there
        self._refresher: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()  # in which that runs
        self._searcher = Searcher(self._membership, self._learn_members, self._read)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(member.name for member in self._membership.all())})"

    # --- life ---------------------------------------------------------------------------------------------

    @classmethod
    async def open(
        cls,
        url: str | None = None,
        *,
        identity: Identity | None = None,
        folders: Folders | None = None,
        name: str = "",
        patience: float = limits.RECONNECT_TIMEOUT,
    ) -> Self:
        """Join the grid of the peer at `url`, or of a peer that runs on this machine.

        `patience`: when a connection breaks, how many seconds to try for another before what waits for it fails.

        Raises:
            NothingRunning: no `url`, and no peer runs here.
            Unreachable, HandshakeFailed: nobody, or no peer, at `url`.
        """
        folders = folders or Folders.default()
        neighbours = Neighbours(folders.peers)
        opened = cls(identity or Identity.load(folders.key_file("client")), name, neighbours, patience)
        try:
            entry = await (opened._entry_here(neighbours) if url is None else opened._entry_at(url))
            opened._membership.learn([entry])
            opened._entry = entry.id
            await opened.refresh()
        except BaseException:
            await opened.close()
            raise
        opened._refresher = asyncio.create_task(opened._keep_fresh())
        return opened

    async def _entry_at(self, url: str) -> Member:
        """The peer at this address."""
        session = await self._first_session(url)
        await session.close()
        self._membership.keep_url(session.remote.id, url)
        return Member(session.remote.id, session.remote.name, (url,))

    async def _entry_here(self, neighbours: Neighbours) -> Member:
        """The first peer of this machine that answers. NothingRunning."""
        failures = []
        for neighbour in neighbours.list():
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
            "no peer runs on this machine: start one with 'grid start alice', or give the address of one elsewhere: "
            "'grid --via ws://127.0.0.1:7700 ...', grid.connect(\"ws://127.0.0.1:7700\")"
        )

    async def _first_session(self, url: str) -> Connection:
        for _ in range(_FIRST_TRIES - 1):
            try:
                return await open_as_dialer(url, self._introduction, self.identity)
            except Unreachable as error:
                if error.fields.get("refused") is not False:
                    raise  # nobody is there; a line that broke may hold the next time
        return await open_as_dialer(url, self._introduction, self.identity)

    async def close(self) -> None:
        """Leave. Temporaries of this client live a while longer at their peers, then go."""
        self.check_loop()
        if self._refresher is not None:
            self._refresher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._refresher
        await self._before_leaving()
        await self._links.close()

    async def _before_leaving(self) -> None:
        """What is to be done while the connections are still there."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def check_loop(self) -> None:
        """For what is awaited: BadRequest in another event loop than that in which it was opened."""
        if asyncio._get_running_loop() is not self._loop:
            check_running(self._loop, "the grid")  # says what is wrong

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

    def __len__(self) -> int:
        return len(self._membership.all())

    def members(self) -> list[Member]:
        """Everyone as last heard of."""
        return self._membership.all()

    def find_member(self, name_or_id: str) -> Member:
        """The peer of that name, id or beginning of an id. UnknownPeer, AmbiguousPeer."""
        return self._membership.find(name_or_id)

    async def status(self, member: Member) -> dict[str, Any]:
        """What a peer says of itself (SPEC.md, `status`)."""
        return (await self._read(member, "status", {}))[0]

    async def refresh(self) -> list[PeerInfo]:
        """Ask who is there now, and how much each peer holds."""
        await self._learn_members()
        await asyncio.gather(*(self._count(member) for member in self._membership.all()))
        return self.peers()

    async def to(self, member: Member, *, bulk: bool = False) -> Connection:
        """An open connection to that peer: for requests, or the other one, for large payloads. LinkError."""
        self.check_loop()
        return await self._links.to(member, bulk=bulk)

    def others(self, record: Record) -> Others | None:
        """Who else has the object of that record, for peer/resuming.py; None where nobody is to be asked."""
        return self._elsewhere.of_record(record)

    async def holders(self, content: str) -> list[tuple[Member, Record]]:
        """The peers that have contents of that name, and what each says of the object."""
        return [(member, dict(record)) for member, record in await self._elsewhere.holders(content)]

    async def reach(self, member: Member, waiting: Waiting | None = None) -> None:
        """Before a large transfer begins: wait for a line that is down, where it was there before. LinkError."""
        await self._links.reach(member, bulk=True, waiting=waiting)

    async def request(self, member: Member, op: str, args: Record) -> Record:
        """Ask it, over whatever connection there is (peer/lasting.py); the result map."""
        self.check_loop()
        return (await self._links.lasting(member).request(op, args)).result

    async def _read(self, member: Member, op: str, args: dict[str, Any]) -> tuple[dict[str, Any], Buffer]:
        """Ask for what changes nothing, and its payload. A connection that breaks is replaced once: what cannot be
        reached then is of no use to somebody who asks many."""
        for _ in range(2):
            try:
                answer = await (await self.to(member)).request(op, args)
                return answer.result, await answer.read()
            except PeerLost as error:
                lost = error
        raise lost

    async def read_rows(self, member: Member, op: str, args: Record, timeout: float) -> Buffer:
        """The payload of an answer that changes nothing, to be unpacked as rows. LinkError where none comes in time."""
        try:
            async with asyncio.timeout(timeout):
                return (await self._read(member, op, args))[1]
        except TimeoutError:
            raise TimedOut(f"no answer within {timeout:g} s", operation=op, peer=member.name) from None

    async def _learn_members(self) -> None:
        """Ask the entry peer for its members; where it is gone, any other."""
        self.check_loop()
        for candidate in sorted(self._membership.all(), key=lambda member: member.id != self._entry):
            try:
                _, rows = await self._read(candidate, "peers", {})
            except LinkError:
                self._membership.failed(candidate.id)
                continue
            members = read_members(unpack_rows(rows, limits.MAX_PEERS))
            self._membership.learn(members)
            self._entry = candidate.id
            for id in {member.id for member in self._membership.all()} - {member.id for member in members}:
                self._membership.failed(id)
            return

    async def _count(self, member: Member) -> None:
        try:
            async with asyncio.timeout(limits.SEARCH_TIMEOUT):
                self._counts[member.id] = await self.status(member)
            self._membership.reached(member.id)
        except (GridError, TimeoutError):
            self._membership.failed(member.id)

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            with contextlib.suppress(GridError):
                await self._learn_members()

    def traffic(self) -> list[Traffic]:
        """Tensor bytes between this client and each peer so far."""
        return self._links.traffic.all()

    def statistics(self) -> dict[str, Statistics]:
        """What the connections of this client carried so far, those that are over included, by peer id: a Statistics
        (peer/calls.py) each, of bytes and messages in both directions, and of tensor bytes alone."""
        return self._links.traffic.statistics()

    # --- what runs ----------------------------------------------------------------------------------------

    async def running(self, *peers: str) -> RunInfos:
        """What runs at these peers, or at all: your programs and jails, and of a peer of this machine everybody's. How
        far each is, and which peers did not answer."""
        return await runs.running(self, peers or None)

    async def cancel(self, run: RunInfo | str) -> RunInfo:
        """End a run, given as `running` lists it or by the beginning of its id; waits until it has ended.

        Whoever awaits it gets `Cancelled`. What it had changed in place by then stays changed; it gives no results.
        In the middle of one long operation it is ended after a second, with the worker and the temporaries in it.

        Raises:
            NotFound: it is over already, or somebody else's. Ambiguous. LinkError.
        """
        return await runs.cancel(self, run)

    # --- search -------------------------------------------------------------------------------------------

    async def find_records(self, query: str, timeout: float = limits.SEARCH_TIMEOUT) -> Records:
        """Ask all peers at once; what they describe. Raises QueryError for a query that does not parse."""
        return await self._searcher.records(query, timeout)

    async def find_record(self, reference: str) -> Record:
        """One object, by a query that finds one or by the beginning of its id (4 hex digits or more).

        Raises:
            NotFound, Ambiguous, QueryError.
        """
        for query in readings(reference):
            found = await self.find_records(query)
            if len(found):
                break
        return only(found.query, found.records, found.unreachable)
