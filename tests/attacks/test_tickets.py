"""Attacks on moves: tickets that are guessed, stolen or misused, and a holder that lies about what it gives."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from blake3 import blake3

from peer import transport
from peer.calls import Answer, Call
from peer.connection import Connection
from peer.folders import Folders
from peer.keys import Identity
from peer.neighbours import Neighbours
from peer.opening import open_as_acceptor, open_as_dialer
from peer.store.contents import Contents
from protocol import limits
from protocol.errors import BadRequest, Corrupt, Denied, GridError, LinkError, NotFound
from protocol.handshake import Introduction
from protocol.tensors import TensorHeader

from .conftest import attacking

NBYTES = 200_000
TENSOR = {"kind": "tensor", "dtype": "uint8", "shape": [NBYTES]}


def content_of(data: bytes) -> str:
    """The name of the contents that are just these bytes."""
    header = Contents.one(TensorHeader("uint8", (len(data),))).file_header()
    return blake3(header).update(data).hexdigest()


class Liar:
    """A peer whose answers to `collect` are made by `lie(arguments)`. `asked` are the arguments it was asked with."""

    def __init__(self, identity: Identity, lie: Callable[[dict[str, Any]], Answer]) -> None:
        self.identity = identity
        self.introduction = Introduction("peer", "liar")
        self.lie = lie
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.sessions: list[Connection] = []

    async def answer(self, call: Call) -> Answer:
        self.asked.append((call.op, call.args))
        return self.lie(call.args) if call.op == "collect" else Answer({})

    async def accept(self, socket: Any) -> None:
        try:
            session = await open_as_acceptor(socket, self.introduction, self.identity, self.answer)
        except LinkError:
            return
        self.sessions.append(session)
        await asyncio.shield(session.closed)


@asynccontextmanager
async def lying(folders: Folders, lie: Callable[[dict[str, Any]], Answer]) -> AsyncIterator[tuple[Liar, Connection]]:
    """A lying peer that the victim knows, and a session with the victim of who runs it."""
    liar = Liar(Identity.generate(), lie)
    server = await transport.listen("127.0.0.1", 0, liar.accept)
    url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    (running,) = Neighbours(folders.peers).list()
    line = await open_as_dialer(running.url, liar.introduction, liar.identity)
    try:
        await line.request("introduce", {"peer": {"id": liar.identity.id, "name": "liar", "urls": [url]}})
        yield liar, line
    finally:
        await line.close()
        await asyncio.gather(*(session.close() for session in liar.sessions))
        server.close()
        await server.wait_closed()


def told(liar: Liar, id: bytes, **more: Any) -> dict[str, Any]:
    """What an honest holder says of a published tensor."""
    asker = liar.identity.id
    said = {"owner": asker, "tags": [], "labels": [], "description": "", "name": None}
    record = {"id": id, **said, **TENSOR, "nbytes": NBYTES}
    return {
        "asker": asker,
        "move": True,
        "version": bytes(16),
        "record": record,
        "dtype": "uint8",
        "shape": [NBYTES],
        **more,
    }


async def pull(line: Connection, liar: Liar, id: bytes) -> dict[str, Any]:
    args = {"peer": liar.identity.id, "ticket": os.urandom(32), "id": id, "publish": True}
    return (await line.request("pull", args, timeout=100)).result


async def test_tickets_cannot_be_guessed_stolen_or_bent(victim: Folders) -> None:
    owner = Identity.generate()
    async with attacking(victim, owner) as mine, attacking(victim) as mallory:
        id = os.urandom(16)
        await mine.request("put", {"id": id, **TENSOR, "tags": ["x"]}, bytes(NBYTES))
        target = Identity.generate().id
        ticket = (await mine.request("offer", {"id": id, "target": target, "move": True})).result["ticket"]
        for op in ("collect", "collected"):
            with pytest.raises(Denied, match="another peer"):
                await mallory.request(op, {"ticket": ticket, "version": b""})
            for guess in (os.urandom(32), bytes(32), ticket[::-1]):
                with pytest.raises(NotFound):
                    await mallory.request(op, {"ticket": guess, "version": b""})
            for bent in (None, "", b"", ticket[:-1], ticket + b"x", [ticket], 1):
                with pytest.raises(BadRequest):
                    await mallory.request(op, {"ticket": bent})
        with pytest.raises(Denied, match="belongs to"):
            await mallory.request("offer", {"id": id, "target": mallory.remote.id, "move": True})
        for nobody in ("", "x", 7, None):
            with pytest.raises(BadRequest):
                await mine.request("offer", {"id": id, "target": nobody, "move": True})
        # To move it to where it is would end with its being given up for a copy that is itself.
        with pytest.raises(BadRequest, match="is here"):
            await mine.request("offer", {"id": id, "target": mine.remote.id, "move": True})
        assert (await mine.request("describe", {"id": id})).result["record"]["id"] == id


async def test_a_target_that_collected_nothing_cannot_have_it_deleted(victim: Folders) -> None:
    thief = Identity.generate()
    async with attacking(victim) as mine, attacking(victim, thief) as target:
        for tags in (["x"], []):
            id = os.urandom(16)
            await mine.request("put", {"id": id, **TENSOR, "tags": tags}, bytes(NBYTES))
            ticket = (await mine.request("offer", {"id": id, "target": thief.id, "move": True})).result["ticket"]
            for version in (b"", bytes(16), os.urandom(16)):
                with pytest.raises(GridError):
                    await target.request("collected", {"ticket": ticket, "version": version})
            with pytest.raises(BadRequest):
                await target.request("collected", {"ticket": ticket})
            assert (await mine.request("describe", {"id": id})).result["record"]["id"] == id


async def test_who_knows_the_name_of_contents_gets_neither_them_nor_the_knowledge_that_they_are_there(
    victim: Folders,
) -> None:
    secret = os.urandom(NBYTES)
    async with attacking(victim) as owner:
        await owner.request("put", {"id": os.urandom(16), **TENSOR, "tags": ["x"], "private": True}, secret)
        id = os.urandom(16)

        def lie(args: dict[str, Any]) -> Answer:
            if "offset" not in args:
                return Answer(told(liar, id, content=content_of(secret), nbytes=NBYTES))
            return Answer(told(liar, id, content=content_of(secret)), bytes(NBYTES))

        async with lying(victim, lie) as (liar, line):
            with pytest.raises(Corrupt, match="liar"):
                await pull(line, liar, id)
            # The bytes were asked for, as they are of contents that nobody has.
            assert [("offset" in args) for op, args in liar.asked if op == "collect"] == [False, True]
            with pytest.raises(NotFound):
                await line.request("describe", {"id": id})


async def test_bytes_that_are_not_what_was_announced_are_not_kept(victim: Folders) -> None:
    announced, sent, id = os.urandom(NBYTES), os.urandom(NBYTES), os.urandom(16)

    def lie(args: dict[str, Any]) -> Answer:
        more = {} if "offset" in args else {"nbytes": NBYTES}
        return Answer(told(liar, id, content=content_of(announced), **more), sent if "offset" in args else None)

    async with lying(victim, lie) as (liar, line):
        with pytest.raises(Corrupt, match="liar"):
            await pull(line, liar, id)
        with pytest.raises(NotFound):
            await line.request("describe", {"id": id})


async def test_a_holder_that_describes_nonsense_is_refused(victim: Folders) -> None:
    id = os.urandom(16)
    lies: list[dict[str, Any]] = [
        {},
        {"record": None},
        {"record": {}},
        {"version": None},
        {"version": bytes(limits.MAX_TOKEN)},
        {"asker": Identity.generate().id},
        {"dtype": "float77"},
        {"shape": [-1]},
        {"shape": [2**62]},
        {"nbytes": -1},
        {"nbytes": 2**62},
        {"nbytes": "many"},
        {"content": "../../x", "nbytes": NBYTES},
    ]
    current: dict[str, Any] = {}

    def lie(args: dict[str, Any]) -> Answer:
        return Answer({**told(liar, id), **current} if current else {}, bytes(8))

    async with lying(victim, lie) as (liar, line):
        for current in lies:  # `lie` reads it
            with pytest.raises(GridError) as caught:
                await pull(line, liar, id)
            assert caught.value.code != "internal", current
        with pytest.raises(NotFound):
            await line.request("describe", {"id": id})


async def test_a_holder_cannot_make_objects_in_the_name_of_others(victim: Folders) -> None:
    id, somebody = os.urandom(16), Identity.generate().id

    def lie(args: dict[str, Any]) -> Answer:
        honest = told(liar, id)
        return Answer({**honest, "shape": [8], "record": {**honest["record"], "owner": somebody}}, bytes(8))

    async with lying(victim, lie) as (liar, line):
        record = (await pull(line, liar, id))["record"]
        assert record["owner"] == liar.identity.id
