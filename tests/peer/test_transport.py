"""Addresses, upgrades, and who is let in."""

from __future__ import annotations

import asyncio
import contextlib
from socket import socket as System
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin, Subprotocol

from peer import transport
from protocol.errors import BadRequest, Unreachable
from tests.waiting import PATIENCE, no_descriptors_left


@pytest.mark.parametrize(
    "url",
    [
        "",
        "alice",
        "127.0.0.1:7700",
        "http://127.0.0.1:7700",
        "ws://",
        "ws://:7700",
        "ws://127.0.0.1:0",
        "ws://127.0.0.1:99999",
        "ws://127.0.0.1:port",
        "ws://[::1",
        "ws://127.0.0.1:7700/#part",
    ],
)
async def test_what_is_no_address_is_refused_as_such(url: str) -> None:
    with pytest.raises(BadRequest, match="address of a peer"):
        await transport.dial(url)


async def answering(reply: bytes) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(reply)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


@pytest.mark.parametrize(
    "reply",
    [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", b"\x00" * 100],
    ids=["nothing", "ssh", "http", "zeros"],
)
async def test_what_answers_and_is_no_peer_is_unreachable(reply: bytes) -> None:
    server = await answering(reply)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unreachable, match="no peer at"):
            await transport.dial(f"ws://127.0.0.1:{port}")


async def test_redirects_are_not_followed(acceptor: Any) -> None:
    """An address that a peer gave leads to that address and to no other."""
    async with acceptor() as elsewhere:
        server = await answering(
            f"HTTP/1.1 302 Found\r\nLocation: {elsewhere.url}/\r\nContent-Length: 0\r\n\r\n".encode()
        )
        async with server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(Unreachable, match="302"):
                await transport.dial(f"ws://127.0.0.1:{port}")
        assert not elsewhere.failures


async def test_a_peer_that_does_not_answer_in_time_is_unreachable() -> None:
    ended = asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        ended.set()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unreachable, match="nobody answered"):
            await transport.dial(f"ws://127.0.0.1:{port}", timeout=0.1)
        await ended.wait()


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1"])
async def test_a_web_page_is_refused(acceptor: Any, origin: str) -> None:
    async with acceptor() as server:
        with pytest.raises(InvalidStatus) as caught:
            await connect(server.url, origin=Origin(origin), subprotocols=[Subprotocol("peergrid.1")], proxy=None)
        assert caught.value.response.status_code == 403


async def test_proxies_of_the_environment_are_not_used(acceptor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with acceptor() as server:
        socket = await transport.dial(server.url)
        assert socket.subprotocol == "peergrid.1"
        await socket.close()


async def test_messages_are_not_compressed(acceptor: Any) -> None:
    async with acceptor() as server, connect(server.url, subprotocols=["peergrid.1"], proxy=None) as socket:  # type: ignore[list-item]
        assert socket.protocol.extensions == []


@pytest.mark.parametrize("turns", range(6))
async def test_who_comes_while_a_server_stops_is_not_left_with_an_open_line(turns: int) -> None:
    async def mute(socket: transport.GuardedServerConnection) -> None:
        await socket.wait_closed()

    with no_descriptors_left():
        server = await transport.listen("127.0.0.1", 0, mute)
        loop = asyncio.get_running_loop()
        with System() as line:
            line.connect(server.sockets[0].getsockname())
            line.setblocking(False)
            for _ in range(turns):
                await asyncio.sleep(0)
            stopping = asyncio.create_task(transport.stop_listening(server))
            line.send(b"GET / HTTP/1.1\r\n\r\n")  # no handshake: it is refused, where anybody reads it
            with contextlib.suppress(ConnectionResetError):
                async with asyncio.timeout(PATIENCE):
                    while await loop.sock_recv(line, 4096):
                        pass
            await stopping
        await server.wait_closed()
