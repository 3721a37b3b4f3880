"""The proxy of the tests does what it says: a test that relies on it can fail."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.faults import FaultProxy

Line = tuple[FaultProxy, asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def echo_behind_proxy() -> AsyncIterator[Line]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with FaultProxy(f"ws://127.0.0.1:{port}") as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        try:
            yield proxy, reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    server.close()
    await server.wait_closed()


async def test_it_passes_bytes_on_and_counts_them() -> None:
    async with echo_behind_proxy() as (proxy, reader, writer):
        data = bytes(range(256)) * 4_000
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        assert proxy.up.passed == proxy.down.passed == len(data) and proxy.connections == 1


async def test_it_slices_and_delays() -> None:
    async with echo_behind_proxy() as (proxy, reader, writer):
        proxy.up.slice = proxy.down.slice = 3
        proxy.up.latency = 0.02
        loop = asyncio.get_running_loop()
        started = loop.time()
        writer.write(b"0123456789")
        assert await reader.readexactly(10) == b"0123456789"
        assert loop.time() - started >= 0.02


@pytest.mark.parametrize("reset", [False, True])
async def test_it_cuts_after_so_many_bytes(reset: bool) -> None:
    async with echo_behind_proxy() as (proxy, reader, writer):
        proxy.down.cut_after, proxy.down.reset, proxy.down.cuts = 1_000, reset, 1
        writer.write(bytes(5_000))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await reader.readexactly(1_001)
        assert proxy.down.passed == 1_000 and proxy.cut_count == 1 and proxy.down.cuts == 0


async def test_it_stalls_and_goes_on() -> None:
    async with echo_behind_proxy() as (proxy, reader, writer):
        proxy.down.stall_after = 4
        writer.write(b"01234567")
        assert await reader.readexactly(4) == b"0123"
        rest = asyncio.create_task(reader.readexactly(4))
        done, _ = await asyncio.wait([rest], timeout=0.05)
        assert not done
        proxy.down.stall_after = None
        proxy.resume()
        assert await rest == b"4567"


async def test_it_corrupts_one_byte() -> None:
    async with echo_behind_proxy() as (proxy, reader, writer):
        proxy.up.corrupt_at, proxy.up.corruptions = 2, 1
        writer.write(bytes(5))
        assert await reader.readexactly(5) == b"\x00\x00\xff\x00\x00"


async def test_it_refuses_and_cuts_by_hand() -> None:
    async with echo_behind_proxy() as (proxy, reader, writer):
        writer.write(b"x")
        await reader.readexactly(1)
        proxy.refuse = True
        assert proxy.cut(reset=True) == 1
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        other, writing = await asyncio.open_connection("127.0.0.1", proxy.port)
        with pytest.raises(ConnectionResetError):
            await other.readexactly(1)
        writing.close()
