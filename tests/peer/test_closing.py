"""How a session ends, from either end or in between: all that waits hears of it."""

from __future__ import annotations

import asyncio

import pytest

from peer import closing
from peer.calls import Answer, Call
from peer.payloads import MemoryPayload
from protocol import limits
from protocol.errors import PeerLost
from tests.peer.ends import LARGE, Connected, Gate, Source, giving, many
from tests.waiting import until


async def test_everything_that_waits_fails_when_the_other_end_closes(connected: Connected) -> None:
    gate = Gate()
    source = Source(LARGE)
    async with connected(gate) as line:
        futures = [line.near.post("wait", {}) for _ in range(limits.MAX_REQUESTS + 10)]
        futures.append(line.near.post("wait", {}, source))
        await gate.started.wait()
        await line.far.close()
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert {type(result) for result in results} == {PeerLost}
        assert source.closed == 1
        assert isinstance(await line.near.closed, PeerLost)
        with pytest.raises(PeerLost, match="alice closed the connection"):
            await line.near.request("late", {})


async def test_everything_that_waits_fails_when_the_line_breaks(connected: Connected) -> None:
    async with connected(many) as line:
        response = await line.near.request("fetch", {})
        reading = asyncio.create_task(response.read())
        await until(lambda: response.stream._arrived)
        line.far._socket.transport.abort()
        with pytest.raises(PeerLost):
            await reading
        assert isinstance(await line.near.closed, PeerLost)


async def test_what_has_arrived_can_be_read_when_the_line_is_gone(connected: Connected) -> None:
    async with connected(giving(MemoryPayload(bytes(limits.WINDOW)))) as line:
        response = await line.near.request("fetch", {})
        await until(lambda: response.stream.has_arrived)
        await line.far.close()
        assert len(await response.read()) == limits.WINDOW


async def test_handlers_are_cancelled_and_have_ended_when_close_returns(connected: Connected) -> None:
    gate = Gate()
    async with connected(gate) as line:
        line.near.post("wait", {})
        await gate.started.wait()
        await line.far.close()
        assert gate.cancelled == 1


async def test_what_was_asked_before_close_still_goes_out(connected: Connected) -> None:
    heard = []

    async def handler(call: Call) -> Answer:
        heard.append(call.op)
        return Answer({})

    async with connected(handler) as line:
        futures = [line.near.post(f"release{number}", {}, bytes(limits.INLINE_PAYLOAD)) for number in range(100)]
        await line.near.close()
        assert await line.near.closed is None
        assert {type(result) for result in await asyncio.gather(*futures, return_exceptions=True)} == {PeerLost}
        await line.far.closed
        assert heard == [f"release{number}" for number in range(100)]


async def test_what_the_writer_had_begun_before_close_still_goes_out(connected: Connected) -> None:
    heard = []

    async def handler(call: Call) -> Answer:
        heard.append(call.args["number"])
        return Answer({})

    async with connected(handler) as line:
        line.far._socket.transport.pause_reading()
        for number in range(400):
            line.near.post("put", {"number": number}, bytes(limits.INLINE_PAYLOAD))
        await until(lambda: line.near._socket.transport.get_write_buffer_size())
        closing = asyncio.create_task(line.near.close())
        await asyncio.sleep(0.01)
        line.far._socket.transport.resume_reading()
        await closing
        await line.far.closed
        assert heard == list(range(400))


async def test_close_may_be_called_by_many_and_from_a_handler(connected: Connected) -> None:
    async def handler(call: Call) -> Answer:
        await call.connection.close()
        return Answer({})

    async with connected(handler) as line:
        with pytest.raises(PeerLost):
            await line.near.request("close", {})
        await asyncio.gather(*(end.close() for end in (line.near, line.far) for _ in range(3)))
        assert line.near.is_closed and line.far.is_closed


async def test_an_end_that_does_not_read_cannot_hold_up_close(
    connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "PATIENCE", 0.1)
    async with connected(many) as line:
        line.near._socket.transport.pause_reading()
        line.near._reader.cancel()
        line.near.post("fetch", {})
        line.near.post("fetch", {})
        await until(lambda: line.far._sending._streams)
        await asyncio.sleep(0.05)
        started = asyncio.get_running_loop().time()
        await line.far.close()
        assert asyncio.get_running_loop().time() - started < 3


async def test_a_payload_of_a_closed_connection_is_closed(connected: Connected) -> None:
    source = Source(LARGE)
    async with connected() as line:
        await line.near.close()
        with pytest.raises(PeerLost):
            await line.near.request("put", {}, source)
    assert source.closed == 1
