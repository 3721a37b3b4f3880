"""Connections to peers, dialled when they are first needed and kept: one for requests, one for large payloads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from peer.calls import Handler, Statistics
from peer.connection import Connection
from peer.keys import Identity
from peer.membership import Member, Membership
from peer.opening import open_as_dialer
from protocol import limits
from protocol.errors import HandshakeFailed, LinkError, Unreachable
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

    def follow(self, connection: Connection) -> None:
        self._open.append(connection)
        connection.closed.add_done_callback(lambda _: self._settle(connection))

    def _settle(self, connection: Connection) -> None:
        self._open.remove(connection)
        _add(self._past, connection)
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


class Links:
    """One end's connections to the members of a grid.

    Args:
        identity: the key that this end proves.
        role: "peer" or "client"; `name` and `lease` go with it into the handshake.
        membership: where addresses are looked up, and states are noted.
        handler: answers what the other ends ask over these connections.
    """

    def __init__(
        self,
        identity: Identity,
        introduction: Introduction,
        membership: Membership,
        handler: Handler | None = None,
        on_open: Callable[[Connection], None] | None = None,
    ) -> None:
        self._identity = identity
        self._introduction = introduction
        self._membership = membership
        self._handler = handler
        self._on_open = on_open
        self._links: dict[tuple[str, bool], asyncio.Task[Connection]] = {}
        self.traffic = TrafficLog()

    async def to(self, member: Member, *, bulk: bool = False) -> Connection:
        """An open connection to that peer; concurrent callers share one.

        Raises:
            Unreachable: no address of it answers.
            HandshakeFailed: who answers there is another peer.
        """
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

    def existing(self, id: str) -> Connection | None:
        """The open connection for requests to that peer, if there is one."""
        task = self._links.get((id, False))
        return task.result() if task is not None and task.done() and _is_usable(task) else None

    async def _dial(self, member: Member) -> Connection:
        ours = Introduction(self._introduction.role, self._introduction.name, member.id, self._introduction.lease)
        failures: list[str] = []
        for url in member.urls:
            try:
                connection = await open_as_dialer(url, ours, self._identity, self._handler)
            except HandshakeFailed:
                raise
            except LinkError as error:
                failures.append(error.message)
                continue
            self._membership.reached(member.id)
            self.traffic.follow(connection)
            if self._on_open is not None:
                self._on_open(connection)
            return connection
        self._membership.failed(member.id)
        raise Unreachable(f"{member.name} cannot be reached: {'; '.join(failures)}", peer=member.name)

    async def close(self) -> None:
        tasks, self._links = list(self._links.values()), {}
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(result.close() for result in results if isinstance(result, Connection)))

    def statistics(self) -> dict[str, Statistics]:
        """Counters of the open connections, by peer id: of both, where there are two."""
        total: dict[str, Statistics] = {}
        for (id, _), task in self._links.items():
            if task.done() and _is_usable(task):
                total[id] = total.get(id, Statistics()) + task.result().statistics()
        return total


def _is_usable(task: asyncio.Task[Connection]) -> bool:
    return not task.cancelled() and task.exception() is None and not task.result().is_closed
