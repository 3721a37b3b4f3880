"""Two peers in this process, alice and bob, and a client of both; every way between them leads through a FaultProxy."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from peer.connection import Connection
from peer.folders import Folders
from peer.keys import Identity
from peer.links import Links
from peer.membership import Member, Membership
from peer.notes import Note
from peer.peer import Peer, Settings
from protocol.errors import NotFound
from protocol.handshake import Introduction
from tests.faults import FaultProxy
from tests.waiting import until

DORA = Identity.generate()
NOBODY = "ws://127.0.0.1:9"


def tensor(id: bytes, nbytes: int, tags: tuple[str, ...] = ("moving",), **more: Any) -> dict[str, Any]:
    """The arguments of a put."""
    described = {"kind": "tensor", "dtype": "uint8", "shape": [nbytes], "tags": list(tags), "description": "d"}
    return {"id": id, **described, **more}


@dataclass
class Two:
    """`to_alice` is the way from bob to alice; `client_to` the ways of the client."""

    folders: Folders
    to_alice: FaultProxy
    to_bob: FaultProxy
    client_to: dict[str, FaultProxy]
    peers: dict[str, Peer] = field(default_factory=dict)
    links: Links = field(init=False)

    async def start(self, name: str) -> None:
        proxy = self.to_alice if name == "alice" else self.to_bob
        settings = Settings(name, port=0, folders=self.folders, advertise=(proxy.url,))
        peer = self.peers[name] = await Peer.start(settings)
        proxy.retarget(peer.url)
        self.client_to[name].retarget(peer.url)

    async def restart(self, name: str) -> None:
        await self.peers.pop(name).close()
        await self.start(name)

    def connect(self) -> None:
        """The client's links; they come back by themselves."""
        members = [Member(p.id, p.name, (self.client_to[p.name].url,)) for p in self.peers.values()]
        membership = Membership()
        membership.learn(members)
        self.links = Links(DORA, Introduction("client", "dora", lease=os.urandom(16)), membership)

    async def ask(self, name: str, op: str, args: dict[str, Any], payload: bytes = b"") -> dict[str, Any]:
        """Ask as the client, over the link that comes back by itself."""
        member = self.links._membership.get(self.peers[name].id)
        assert member is not None
        return (await self.links.lasting(member).request(op, args, payload)).result

    async def put(self, name: str, id: bytes, data: bytes, **more: Any) -> None:
        member = self.links._membership.get(self.peers[name].id)
        assert member is not None
        line = await self.links.to(member, bulk=True)
        await line.request("put", tensor(id, len(data), **more), data)

    async def offer(self, id: bytes, *, move: bool = True, source: str = "alice", target: str = "bob") -> bytes:
        args = {"id": id, "target": self.peers[target].id, "move": move}
        return bytes((await self.ask(source, "offer", args))["ticket"])

    async def offered(self, data: bytes, **more: Any) -> tuple[bytes, bytes]:
        """A fresh object at alice, offered to bob: its id, and the ticket."""
        id = os.urandom(16)
        await self.put("alice", id, data, **more)
        return id, await self.offer(id)

    async def as_bob(self) -> Connection:
        """Bob's own line to alice, for requests that he would not make."""
        alice = Member(self.peers["alice"].id, "alice", (self.to_alice.url,))
        return await self.peers["bob"]._links.to(alice)

    async def pull(
        self, ticket: bytes, id: bytes, *, publish: bool = True, source: str = "alice", target: str = "bob"
    ) -> dict[str, Any]:
        args = {"peer": self.peers[source].id, "ticket": ticket, "id": id, "publish": publish}
        return dict((await self.ask(target, "pull", args))["record"])

    async def move(self, id: bytes, **ways: Any) -> dict[str, Any]:
        return await self.pull(await self.offer(id, **ways), id, **ways)

    def cut_when_published(self) -> asyncio.Event:
        """Bob loses alice, for as long as `to_alice` refuses, just when he has what he takes from her; set then."""
        published = asyncio.Event()
        notes = self.peers["bob"]._notes
        add = notes.add

        def cut_then_add(note: Note) -> None:
            self.to_alice.refuse = True
            self.to_alice.cut()
            add(note)
            published.set()

        notes.add = cut_then_add  # type: ignore[method-assign]
        return published

    async def holders(self, id: bytes) -> dict[str, bytes]:
        """Who has it published, with its bytes, as their stores say."""
        found = {}
        for name, peer in self.peers.items():
            with contextlib.suppress(NotFound):
                stored = await peer._store.get(id)
                found[name] = await peer._store.read(stored, stored.start, stored.contents.nbytes)
        return found

    async def settled(self, id: bytes) -> dict[str, bytes]:
        """`holders`, when no peer has anything to tell another any more."""
        await until(lambda: not any(peer._notes._notes or peer._pulls._under_way for peer in self.peers.values()))
        return await self.holders(id)


@asynccontextmanager
async def two_peers(folders: Folders) -> AsyncIterator[Two]:
    async with (
        FaultProxy(NOBODY) as to_alice,
        FaultProxy(NOBODY) as to_bob,
        FaultProxy(NOBODY) as client_to_alice,
        FaultProxy(NOBODY) as client_to_bob,
    ):
        two = Two(folders, to_alice, to_bob, {"alice": client_to_alice, "bob": client_to_bob})
        try:
            await two.start("alice")
            await two.start("bob")
            two.connect()
            try:
                yield two
            finally:
                await two.links.close()
        finally:
            for peer in two.peers.values():
                await peer.close()
