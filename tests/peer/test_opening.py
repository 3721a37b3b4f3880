"""Dialling: who is met, who is refused, and what is left of a dial that came to nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from peer import transport
from peer.calls import Answer, Call
from peer.keys import Identity
from peer.opening import open_as_dialer
from protocol import limits
from protocol.errors import HandshakeFailed, TimedOut, Unreachable
from protocol.handshake import Introduction
from tests.peer.ends import DORA
from tests.waiting import until


async def test_a_request_is_begun_only_after_the_proof(acceptor: Any) -> None:
    """A dialer that claims Dora's key without having it."""
    asked = []

    async def handler(call: Call) -> Answer:
        asked.append(call.op)
        return Answer({})

    class Thief:
        def __init__(self) -> None:
            self.public_key = Identity.generate().public_key

        def sign(self, message: bytes) -> bytes:
            return bytes(64)

    async with acceptor(handler) as server:
        with pytest.raises(HandshakeFailed, match="dialer did not prove"):
            await open_as_dialer(server.url, DORA, Thief())
        await until(lambda: server.failures)
        assert not asked and isinstance(server.failures[0], HandshakeFailed)


async def test_the_wrong_peer_is_refused_by_both(acceptor: Any) -> None:
    async with acceptor() as server:
        for expect in (Identity.generate().id, "x" * 52):
            with pytest.raises(HandshakeFailed, match="wrong peer"):
                await open_as_dialer(server.url, Introduction("client", "dora", expect), Identity.generate())
        assert not server.connections


async def test_the_right_peer_is_met(acceptor: Any) -> None:
    async with acceptor() as server:
        ours = Introduction("client", "dora", server.identity.id, bytes(16))
        near = await open_as_dialer(server.url, ours, Identity.generate())
        await until(lambda: server.connections)
        assert (near.remote.id, near.remote.role) == (server.identity.id, "peer")
        assert server.connections[0].remote.lease == bytes(16)
        await near.close()


async def _dial_one_that_is(so: Callable[[Any], Awaitable[None]]) -> None:
    server = await transport.listen("127.0.0.1", 0, so)
    port = server.sockets[0].getsockname()[1]
    try:
        await open_as_dialer(f"ws://127.0.0.1:{port}", DORA, Identity.generate())
    finally:
        server.close()
        await server.wait_closed()


async def test_an_acceptor_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT", 0.1)

    async def mute(ws: Any) -> None:
        await ws.wait_closed()

    with pytest.raises(TimedOut, match="no handshake"):
        await _dial_one_that_is(mute)


async def test_an_acceptor_that_hangs_up_is_no_peer() -> None:
    async def rude(ws: Any) -> None:
        await ws.close()

    with pytest.raises(Unreachable, match="closed the connection during the handshake"):
        await _dial_one_that_is(rude)


async def test_a_dial_that_is_cancelled_leaves_no_connection(acceptor: Any) -> None:
    async with acceptor() as server:
        for turns in range(0, 60, 4):
            task = asyncio.create_task(open_as_dialer(server.url, DORA, Identity.generate()))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await (await task).close()
        await until(lambda: all(each.is_closed for each in server.connections))


async def test_nobody_there_is_unreachable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(Unreachable, match="connection refused"):
            await open_as_dialer(f"ws://127.0.0.1:{port}", DORA, Identity.generate())
