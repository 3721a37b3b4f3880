"""Connections to peers, dialled when they are first needed and kept: one for requests, one for large payloads.

`to` gives a connection as it is now. `lasting` gives a client's link for requests, which outlives its connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from peer.calls import Handler, Statistics
from peer.connection import Connection
from peer.keys import Identity
from peer.lasting import Lasting
from peer.membership import Member, Membership
from peer.neighbours import Neighbours
from peer.opening import open_as_dialer
from peer.patience import Waiting, first_line
from protocol import limits
from protocol.errors import HandshakeFailed, LinkError, ProtocolError, Unreachable
from protocol.handshake import Introduction


@dataclass(frozen=True, slots=True)
class Traffic:
    """Tensor bytes exchanged with one other end, over all connections to it."""

    name: str
    id: str
    role: str
    payload_sent: int
    payload_received: int


class TrafficLog:
    """Adds up what connections carried, those that are over included."""

    def __init__(self) -> None:
        self._open: list[Connection] = []
        self._past: dict[str, Traffic] = {}
        self._past_statistics: dict[str, Statistics] = {}  # what was struck is counted there as well

    def follow(self, connection: Connection) -> None:
        self._open.append(connection)
        connection.closed.add_done_callback(lambda _: self._settle(connection))

    def knows(self, id: str) -> bool:
        """Whether there was a connection to that end."""
        return id in self._past or any(connection.remote.id == id for connection in self._open)

    def statistics(self) -> dict[str, Statistics]:
        """All that connections carried so far, by the other end's id."""
        total = dict(self._past_statistics)
        for connection in self._open:
            _count(total, connection)
        return total

    def strike(self, id: str) -> None:
        """That end has sent what was damaged at its own place."""
        self._past_statistics[id] = self._past_statistics.pop(id, Statistics()) + Statistics(corrupt=1)

    def _settle(self, connection: Connection) -> None:
        self._open.remove(connection)
        _add(self._past, connection)
        _count(self._past_statistics, connection)
        while len(self._past_statistics) > limits.MAX_TRAFFIC:
            del self._past_statistics[next(iter(self._past_statistics))]
        while len(self._past) > limits.MAX_TRAFFIC:  # whoever makes keys without end is not remembered for each
            del self._past[next(iter(self._past))]

    def all(self) -> list[Traffic]:
        """By name; where there are more than limits.MAX_TRAFFIC, those that carried most."""
        total = dict(self._past)
        for connection in self._open:
            _add(total, connection)
        busiest = sorted(total.values(), key=lambda traffic: -traffic.payload_sent - traffic.payload_received)
        return sorted(busiest[: limits.MAX_TRAFFIC], key=lambda traffic: (traffic.name, traffic.id))


def _add(total: dict[str, Traffic], connection: Connection) -> None:
    remote, counts = connection.remote, connection.statistics()
    before = total.pop(remote.id, Traffic(connection.peer_name, remote.id, remote.role, 0, 0))
    total[remote.id] = Traffic(
        before.name,
        before.id,
        before.role,
        before.payload_sent + counts.payload_sent,
        before.payload_received + counts.payload_received,
    )


def _count(total: dict[str, Statistics], connection: Connection) -> None:
    total[connection.remote.id] = total.pop(connection.remote.id, Statistics()) + connection.statistics()


class Links:
    """One end's connections to the members of a grid.

    Args:
        identity: the key that this end proves.
        introduction: its role, "peer" or "client", name and lease, for the handshake.
        membership: where addresses are looked up, and states are noted.
        handler: answers what the other ends ask over these connections.
        neighbours: the peers of this machine: one that was started again may have another address.
        patience: how long a lasting link tries to come back before what waits for it fails.
    """

    def __init__(
        self,
        identity: Identity,
        introduction: Introduction,
        membership: Membership,
        handler: Handler | None = None,
        on_open: Callable[[Connection], None] | None = None,
        neighbours: Neighbours | None = None,
        patience: float = limits.RECONNECT_TIMEOUT,
    ) -> None:
        self._identity = identity
        self._introduction = introduction
        self._membership = membership
        self._handler = handler
        self._on_open = on_open
        self._neighbours = neighbours
        self._seen_here: set[str] = set()  # ids of peers that ran on this machine
        self._patience = patience
        self._links: dict[tuple[str, bool], asyncio.Task[Connection]] = {}
        self._lasting: dict[str, Lasting] = {}
        self._is_closed = False
        self._dialled: set[Connection] = set()  # those that have been given up, and are not closed yet, among them
        self.traffic = TrafficLog()

    def lasting(self, member: Member, loop: asyncio.AbstractEventLoop | None = None) -> Lasting:
        """The link for requests to that peer, which outlives its connections. It dials when it is first used. `loop`:
        in which it waits, where that is not the one that runs."""
        link = self._lasting.get(member.id)
        if link is None:
            link = self._lasting[member.id] = Lasting(
                member.name, lambda: self.to(member), lambda: self._has_ended(member.id), self._patience, loop
            )
        return link

    async def reach(self, member: Member, *, bulk: bool = False, waiting: Waiting | None = None) -> Connection:
        """`to` for a transfer that begins: a member that was reached before is tried again for as long as a lasting
        link would; one that never was, once."""
        connect, patience = partial(self.to, member, bulk=bulk), partial(self._patience_with, member.id)
        return await first_line(connect, patience, member.name, waiting)

    def _patience_with(self, id: str) -> float:
        if not self.traffic.knows(id):
            return 0.0
        return min(self._patience, limits.RECONNECT_ENDED) if self._has_ended(id) else self._patience

    async def to(self, member: Member, *, bulk: bool = False) -> Connection:
        """An open connection to that peer; concurrent callers share one.

        Raises:
            Unreachable: no address of it answers.
            HandshakeFailed: who answers there is another peer, or speaks another version.
            ProtocolError: who answers there does not keep to SPEC.md.
        """
        if self._is_closed:
            raise Unreachable(
                f"{member.name} is not reached any more: this end is closed", peer=member.name, closed=True
            )
        key = (member.id, bulk)
        task = self._links.get(key)
        if task is None or (task.done() and not _is_usable(task)):
            task = self._links[key] = asyncio.get_running_loop().create_task(self._dial(member))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is None or current.cancelling() or not task.cancelled():
                raise
            raise Unreachable(f"{member.name} was not reached: this end is closing", peer=member.name) from None

    def members(self) -> list[Member]:
        """Everyone known."""
        return self._membership.all()

    def existing(self, id: str) -> Connection | None:
        """The open connection for requests to that peer, if there is one."""
        task = self._links.get((id, False))
        return task.result() if task is not None and task.done() and _is_usable(task) else None

    async def _dial(self, member: Member) -> Connection:
        failures: list[LinkError] = []
        for url in self._addresses(member):
            try:
                connection = await self._open(url, member.id)
            except LinkError as error:
                failures.append(error)
                continue
            self._membership.reached(member.id)
            self._running_at(member.id)
            return connection
        self._membership.failed(member.id)
        for failure in failures:
            if isinstance(failure, HandshakeFailed | ProtocolError):  # somebody is there, and speaks otherwise
                raise failure
        raise Unreachable(
            f"{member.name} cannot be reached: {'; '.join(failure.message for failure in failures)}",
            peer=member.name,
            refused=all(failure.fields.get("refused") is True for failure in failures),
        )

    async def _open(self, url: str, id: str) -> Connection:
        ours = Introduction(self._introduction.role, self._introduction.name, id, self._introduction.lease)
        connection = await open_as_dialer(url, ours, self._identity, self._handler)
        self.traffic.follow(connection)
        self._dialled.add(connection)
        connection.closed.add_done_callback(lambda _: self._dialled.discard(connection))
        if id in self._lasting:
            self._lasting[id].met(connection.remote.memory)
        if self._on_open is not None:
            self._on_open(connection)
        return connection

    def _addresses(self, member: Member) -> Iterable[str]:
        """Where it may be: as the table has it, then as the caller does, then as it says of itself on this machine."""
        known = self._membership.get(member.id)
        urls = dict.fromkeys((*(known.urls if known is not None else ()), *member.urls))
        yield from urls
        here = self._running_at(member.id)
        if here is not None and here not in urls:
            yield here

    def _running_at(self, id: str) -> str | None:
        """The address of a peer that runs on this machine."""
        running = {} if self._neighbours is None else {each.id: each.url for each in self._neighbours.list()}
        self._seen_here |= running.keys()
        return running.get(id)

    def _has_ended(self, id: str) -> bool:
        """Whether it is known that the peer's process is gone: it ran on this machine, and does not any more."""
        return self._running_at(id) is None and id in self._seen_here

    async def close(self) -> None:
        """Requests that were sent may still take effect; what waits for answers fails."""
        self._is_closed = True
        for link in self._lasting.values():
            link.stop()
        tasks, self._links = list(self._links.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(connection.close() for connection in list(self._dialled)))
        await asyncio.gather(*(link.close() for link in self._lasting.values()))

    def statistics(self) -> dict[str, Statistics]:
        """Counters of the open connections, by peer id: of both, where there are two."""
        total: dict[str, Statistics] = {}
        for (id, _), task in self._links.items():
            if task.done() and _is_usable(task):
                total[id] = total.get(id, Statistics()) + task.result().statistics()
        return total


def _is_usable(task: asyncio.Task[Connection]) -> bool:
    return not task.cancelled() and task.exception() is None and not task.result().is_closed
