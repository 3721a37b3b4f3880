"""What stands still is given up, transfer or session, and what is only slow is not."""

from __future__ import annotations

import asyncio
import os

import pytest

from peer import closing
from peer.calls import Answer, Call
from peer.keys import Identity
from peer.opening import open_as_dialer
from peer.payloads import MemoryPayload
from protocol import limits
from protocol.errors import PeerLost, TimedOut
from tests.peer.ends import DORA, LARGE, Connected, Gate, Source, Throttle, giving
from tests.waiting import until


class Stuck(Source):
    """Gives its beginning, and nothing more."""

    async def read(self, offset: int, size: int) -> bytes:
        if offset:
            await asyncio.Event().wait()
        return await super().read(offset, size)


async def test_a_transfer_without_progress_fails(connected: Connected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STALL_TIMEOUT", 0.1)
    async with connected(giving(Stuck(LARGE))) as line:
        response = await line.near.request("fetch", {})
        with pytest.raises(TimedOut, match=r"no byte came for 0\.1 s"):
            await response.read()
        assert not line.near._receiving._streams


async def test_a_receiver_that_takes_nothing_is_given_up(
    connected: Connected, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its stream only: others of that session go on, and what it held at the sender is free."""
    monkeypatch.setattr(limits, "STALL_TIMEOUT", 0.2)
    source = Source(100 * limits.MIB)

    async def handler(call: Call) -> Answer:
        return Answer({}, source if call.op == "stuck" else MemoryPayload(bytes(2 * limits.WINDOW)))

    async with connected(handler) as line:
        stuck = await line.near.request("stuck", {})
        while not source.closed:
            await (await line.near.request("fetch", {})).read()
        assert not line.far._sending._streams and not line.near.is_closed
        got = 0
        with pytest.raises(PeerLost, match=r"nothing was taken of it for 0\.2 s, after 8388608 of 104857600"):
            async for piece in stuck.stream:
                got += len(piece)
        assert got == limits.WINDOW  # what came can be read
        assert "a payload for dora is given up" in caplog.text


async def test_a_payload_that_cannot_be_read_in_time_is_given_up(
    connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(giving(Stuck(LARGE))) as line:
        response = await line.near.request("fetch", {})
        monkeypatch.setattr(limits, "STALL_TIMEOUT", 0.1)
        line.far._sending._look()
        with pytest.raises((PeerLost, TimedOut), match=r"for 0\.1 s"):
            await response.read()
        await until(lambda: not line.far._sending._streams)


async def test_a_payload_that_takes_its_time_holds_up_nobody(connected: Connected) -> None:
    class Slow(Source):
        asked = asyncio.Event()
        go_on = asyncio.Event()

        async def read(self, offset: int, size: int) -> bytes:
            self.asked.set()
            await self.go_on.wait()
            return await super().read(offset, size)

    source = Slow(LARGE)

    async def handler(call: Call) -> Answer:
        return Answer({}, source if call.op == "slow" else MemoryPayload(bytes(LARGE)))

    async with connected(handler) as line:
        slow = await line.near.request("slow", {})
        await source.asked.wait()
        assert len(await (await line.near.request("fetch", {})).read()) == LARGE
        source.go_on.set()
        assert len(await slow.read()) == LARGE


async def test_a_slow_transfer_is_not_given_up(connected: Connected, monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece now and then, for many times what an end may be silent."""
    monkeypatch.setattr(limits, "STALL_TIMEOUT", 0.2)
    nbytes = limits.WINDOW + 12 * limits.CHUNK
    async with connected(giving(MemoryPayload(bytes(nbytes)))) as line:
        response = await line.near.request("fetch", {})
        started, got = asyncio.get_running_loop().time(), 0
        async for piece in response.stream:
            got += len(piece)
            if got > limits.WINDOW:
                await asyncio.sleep(0.05)
        assert got == nbytes and asyncio.get_running_loop().time() - started > 2 * limits.STALL_TIMEOUT


async def test_a_slow_line_is_not_given_up(connected: Connected, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk takes longer than an end may be silent, but its bytes come."""
    async with connected() as line, Throttle(line.acceptor.port, 20_000, 0.01) as slow:
        monkeypatch.setattr(limits, "STALL_TIMEOUT", 0.15)
        near = await open_as_dialer(slow.url, DORA, Identity.generate())
        try:
            data = os.urandom(2 * limits.CHUNK)
            response = await near.request("echo", {}, data)
            assert bytes(await response.read()) == data
        finally:
            await near.close()


# --- an end that is gone ----------------------------------------------------------------------------------


async def test_an_end_that_hangs_is_given_up(connected: Connected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PING_INTERVAL", 0.1)
    monkeypatch.setattr(limits, "PING_TIMEOUT", 0.1)
    monkeypatch.setattr(closing, "PATIENCE", 0.1)
    async with connected(Gate()) as line:
        line.far._socket.transport.pause_reading()
        line.far._liveness.stop()
        with pytest.raises(PeerLost, match="nothing was heard for"):
            await line.near.request("wait", {})
        assert isinstance(await line.near.closed, PeerLost)


async def test_an_end_that_hangs_is_given_up_though_one_goes_on_asking_it(
    connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its system takes what is sent, for as long as it has room; that is no sign of life."""
    monkeypatch.setattr(limits, "PING_INTERVAL", 0.1)
    monkeypatch.setattr(limits, "PING_TIMEOUT", 0.4)
    monkeypatch.setattr(closing, "PATIENCE", 0.1)
    async with connected(Gate()) as line:
        line.far._socket.transport.pause_reading()
        line.far._liveness.stop()
        asked = []

        def ask_again() -> bool:
            if len(asked) < limits.MAX_REQUESTS:
                asked.append(line.near.post("wait", {}))
            return line.near.is_closed

        await until(ask_again)
        assert len(asked) < limits.MAX_REQUESTS, "it was given up because there was nothing more to ask"
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(answer, PeerLost) for answer in answers)


async def test_an_end_that_is_silent_and_well_is_kept(connected: Connected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PING_INTERVAL", 0.05)
    monkeypatch.setattr(limits, "PING_TIMEOUT", 5.0)
    async with connected() as line:
        pinged = []
        ping = line.near._liveness._ping
        monkeypatch.setattr(line.near._liveness, "_ping", lambda now: (pinged.append(now), ping(now)))
        await until(lambda: len(pinged) >= 3)
        assert not line.near.is_closed and not line.far.is_closed


async def test_an_end_that_is_slow_to_answer_because_the_line_is_slow_is_kept(
    connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pong comes behind megabytes; meanwhile the line moves."""
    async with connected() as line, Throttle(line.acceptor.port, 30_000, 0.01) as slow:
        monkeypatch.setattr(limits, "PING_INTERVAL", 0.1)
        monkeypatch.setattr(limits, "PING_TIMEOUT", 0.6)
        near = await open_as_dialer(slow.url, DORA, Identity.generate())
        try:
            response = await near.request("put", {}, bytes(3 * limits.MIB))
            response.stream.abort()
            assert not near.is_closed
        finally:
            await near.close()
