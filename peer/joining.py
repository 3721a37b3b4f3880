"""How a peer comes into a grid, and where those whom it knows are now."""

from __future__ import annotations

import contextlib

from peer.connection import Connection
from peer.keys import Identity
from peer.links import Links
from peer.membership import Member, Membership, read_members
from peer.neighbours import Neighbours
from peer.opening import open_as_dialer
from protocol import limits
from protocol.errors import GridError
from protocol.handshake import Introduction
from protocol.rows import unpack_rows


class Joining:
    """Introduces one peer to others. Whom it knows is in `membership`; `neighbours` are those of this machine."""

    def __init__(
        self,
        identity: Identity,
        introduction: Introduction,
        membership: Membership,
        links: Links,
        neighbours: Neighbours,
    ) -> None:
        self._identity = identity
        self._introduction = introduction
        self._membership = membership
        self._links = links
        self._neighbours = neighbours

    async def join(self, url: str, own: Member) -> None:
        """Introduce ourselves to the peer at `url`, and to all that it knows. LinkError where nobody is there."""
        session = await open_as_dialer(url, self._introduction, self._identity)
        self._membership.keep_url(session.remote.id, url)
        try:
            await self._introduce(session, own)
        finally:
            await session.close()

    async def _introduce(self, session: Connection, own: Member) -> None:
        answer = await session.request("introduce", {"peer": own.to_wire()}, timeout=limits.DIAL_TIMEOUT)
        heard = read_members(unpack_rows(await answer.read(), limits.MAX_PEERS))
        for member in self._membership.learn(heard):
            with contextlib.suppress(GridError):  # one that is gone does not keep us from the others
                await self._introduce(await self._links.to(member), own)

    def member(self, id: str) -> Member | None:
        """That peer, at the address that it has now, if it runs on this machine."""
        self._membership.learn(Member(n.id, n.name, (n.url,)) for n in self._neighbours.list() if n.id == id)
        return self._membership.get(id)

    def members(self) -> list[Member]:
        """Everyone known, those of this machine among them."""
        self._membership.learn(Member(n.id, n.name, (n.url,)) for n in self._neighbours.list())
        return self._membership.all()
