"""Ends that say what they may not, or take nothing of what they asked for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from peer import closing, transport
from peer.calls import Answer, Call
from peer.payloads import MemoryPayload
from protocol import codec, limits
from protocol.codec import FrameType
from protocol.errors import ProtocolError, TimedOut
from tests.peer.ends import LARGE, Connected
from tests.waiting import until


@contextlib.asynccontextmanager
async def stranger(url: str, **kwargs: Any) -> AsyncIterator[Any]:
    """A WebSocket of the right subprotocol that has said nothing yet."""
    subprotocol = Subprotocol("peergrid.1")
    async with connect(url, subprotocols=[subprotocol], compression=None, proxy=None, **kwargs) as ws:
        yield ws


async def fault_from(ws: Any) -> dict[str, Any]:
    *_, frame = codec.decode(await ws.recv())
    assert frame.type == FrameType.FAULT
    return frame.header


async def test_a_silent_connection_is_closed(acceptor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT", 0.1)
    async with acceptor() as server, stranger(server.url) as ws:
        await ws.wait_closed()
        assert ws.close_code == 4401
        await until(lambda: server.failures)
        assert isinstance(server.failures[0], TimedOut)


async def test_a_connection_that_never_upgrades_is_closed(acceptor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(transport._SETTINGS, "open_timeout", 0.1)
    async with acceptor() as server:
        for said in (b"", b"GET / HTTP/1.1\r\nHost: "):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(said)
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()


@pytest.mark.parametrize(
    "message",
    [
        b"garbage",
        b"",
        "text",
        codec.encode(FrameType.REQUEST, {"id": 1, "op": "status", "args": {}}),
        b"PGRD" + bytes(16),
    ],
    ids=["garbage", "empty", "text", "request", "zeros"],
)
async def test_a_stranger_that_says_anything_else_is_told_and_closed(acceptor: Any, message: Any) -> None:
    asked = []

    async def handler(call: Call) -> Answer:
        asked.append(call.op)
        return Answer({})

    async with acceptor(handler) as server, stranger(server.url) as ws:
        await ws.send(message)
        assert (await fault_from(ws))["code"] in ("protocol", "handshake_failed")
        await ws.wait_closed()
        assert ws.close_code == 4401
    assert not asked and not server.connections


async def test_a_stranger_may_send_small_messages_only(acceptor: Any) -> None:
    async with acceptor() as server, stranger(server.url) as ws:
        await ws.send(bytes(limits.MAX_HELLO + 100))
        await ws.wait_closed()
        assert ws.close_code == 1009


async def test_a_friend_may_send_large_messages(connected: Connected) -> None:
    async with connected() as line:
        for _ in range(3):
            await line.near.request("echo", {}, bytes(limits.INLINE_PAYLOAD))
        assert len(await (await line.near.request("echo", {}, bytes(LARGE))).read()) == LARGE


@pytest.mark.parametrize("message", [b"garbage", b"", "text"], ids=["garbage", "empty", "text"])
async def test_a_friend_that_says_anything_else_is_told_and_closed(
    connected: Connected, message: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected() as line:
        await line.near._socket.send(message)
        reason = await line.near.closed
        assert isinstance(reason, ProtocolError) and line.near._socket.close_code == 1002
        assert isinstance(await line.far.closed, ProtocolError)
        assert len(caplog.records) <= 2


async def test_what_a_stranger_says_is_logged_on_one_line(
    connected: Connected, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected() as line:
        text = "first\nsecond\x1b[31m" + "x" * 50_000
        fault = codec.encode(FrameType.FAULT, {"code": "protocol", "message": text, "fields": {}})
        await line.near._socket.send(fault)
        await line.far.closed
        (record,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
        assert len(record.getMessage()) < 400 and record.getMessage().isprintable()


async def test_a_flood_of_pings_that_reads_nothing_is_cut_off(connected: Connected) -> None:
    """threats.md, T10: the library would keep every pong."""
    async with connected() as line:
        pipe = line.near._socket.transport
        pipe.pause_reading()
        ping = bytes([0x89, 0x80 | 125, 0, 0, 0, 0]) + bytes(125)
        sent = 0
        while not pipe.is_closing() and not line.far.is_closed and sent < 400 * limits.MIB:
            pipe.write(ping * 5_000)
            sent += len(ping) * 5_000
            await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.shield(line.far.closed), 60)
        pipe.abort()
        assert sent < 400 * limits.MIB


async def test_an_end_that_asks_and_never_reads_is_cut_off(
    connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers are not stored without bound: at most limits.MAX_REQUESTS of them, then it is closed."""
    monkeypatch.setattr(closing, "PATIENCE", 0.1)
    begun = 0

    async def handler(call: Call) -> Answer:
        nonlocal begun
        begun += 1
        return Answer({}, MemoryPayload(bytes(limits.INLINE_PAYLOAD)))

    async with connected(handler) as line:
        line.near._socket.transport.pause_reading()
        line.near._reader.cancel()
        session, number = line.near._session, 0
        with contextlib.suppress(Exception):
            async with asyncio.timeout(60):
                while not line.far.is_closed:
                    batch = range(number + 1, number + 200)
                    number += 200
                    frames = [codec.encode(FrameType.REQUEST, {"id": n, "op": "fetch", "args": {}}) for n in batch]
                    await line.near._socket.send(b"".join(frames))
                    await asyncio.sleep(0)
        assert isinstance(line.far._reason, ProtocolError), (session, number)
        assert begun <= 4 * limits.MAX_REQUESTS  # what else was sent is with the system, which takes no more
