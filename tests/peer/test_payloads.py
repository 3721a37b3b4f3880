"""Payloads of any size, beside small requests, read in every way; and those that cannot be read."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Any

import pytest

from peer.calls import Answer, Call
from peer.connection import Connection
from peer.keys import Identity
from peer.opening import open_as_dialer
from peer.payloads import MemoryPayload
from protocol import codec, limits
from protocol.codec import FrameType
from protocol.errors import Corrupt, GridError, PeerLost, ProtocolError, TooLarge
from tests.peer.ends import DORA, LARGE, Connected, Gate, Source, Throttle, giving, many
from tests.waiting import until


@pytest.mark.parametrize(
    "nbytes", [0, 1, limits.INLINE_PAYLOAD, limits.INLINE_PAYLOAD + 1, limits.CHUNK, 2 * limits.WINDOW + 12_345]
)
async def test_payloads_of_any_size_arrive_as_they_were(connected: Connected, nbytes: int) -> None:
    data = os.urandom(nbytes)
    async with connected() as line:
        response = await line.near.request("echo", {}, data)
        assert bytes(await response.read()) == data
        assert (response.stream is None) == (nbytes <= limits.INLINE_PAYLOAD)
        for end in (line.near, line.far):
            await until(lambda end=end: not end._sending._streams and not end._serving._tasks)
            assert not end._receiving._streams and not end._receiving._unread and not end._receiving.unread_bytes


def test_payloads_arrive_as_they_were_on_uvloop_too(connected: Connected) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def echoed() -> None:
        async with connected() as line:
            data = os.urandom(2 * limits.WINDOW + 12_345)
            response = await line.near.request("echo", {}, data)
            assert bytes(await response.read()) == data

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(echoed())


@pytest.mark.parametrize("is_up", [True, False])
async def test_large_chunks_do_not_pass_through_the_library(connected: Connected, is_up: bool) -> None:
    async def handler(call: Call) -> Answer:
        return Answer({}, MemoryPayload(bytes(2 * limits.WINDOW)))

    async with connected(handler, handler) as line:
        asking, answering = (line.far, line.near) if is_up else (line.near, line.far)
        placed = []
        put = asking.placed
        asking.placed = lambda size, chunk: (placed.append(chunk.offset), put(size, chunk))  # type: ignore[method-assign]
        assert len(await (await asking.request("fetch", {})).read()) == 2 * limits.WINDOW
        assert placed == list(range(0, 2 * limits.WINDOW, limits.CHUNK))
        assert answering.statistics().payload_sent == asking.statistics().payload_received == 2 * limits.WINDOW


async def test_large_payloads_go_both_ways_at_once(connected: Connected) -> None:
    async def handler(call: Call) -> Answer:
        data = bytearray(call.nbytes)
        await call.stream.into(memoryview(data))
        return Answer({}, MemoryPayload(data))

    async with connected(handler, handler) as line:
        up, down = os.urandom(20 * limits.MIB), os.urandom(20 * limits.MIB)

        async def send(end: Connection, data: bytes) -> bool:
            return bytes(await (await end.request("echo", {}, data)).read()) == data

        assert all(await asyncio.gather(send(line.near, up), send(line.far, down)))


async def test_more_payloads_than_may_run_at_once_take_turns(connected: Connected) -> None:
    async with connected() as line:
        data = [os.urandom(200_000 + n) for n in range(3 * limits.MAX_STREAMS)]

        async def echoed(one: bytes) -> bool:
            return bytes(await (await line.near.request("echo", {}, one)).read()) == one

        assert all(await asyncio.gather(*map(echoed, data)))


async def test_answers_that_wait_for_a_stream_are_sent_when_others_are_done(connected: Connected) -> None:
    async with connected(many) as line:
        responses = await asyncio.wait_for(_first(line.near, limits.MAX_STREAMS), 60)
        later = [line.near.post("fetch", {}) for _ in range(5)]
        small = await line.near.request("small", {})
        assert small.result == {} and not any(future.done() for future in later)
        for response in responses:
            response.stream.abort()
        for response in await asyncio.gather(*later):
            assert len(await anext(response.stream)) > 0
            response.stream.abort()


async def _first(end: Connection, count: int) -> list[Any]:
    return await asyncio.gather(*(end.request("fetch", {}) for _ in range(count)))


async def test_a_reader_that_stops_does_not_hold_up_small_requests(connected: Connected) -> None:
    async with connected(many) as line:
        slow = await line.near.request("fetch", {})
        await until(lambda: slow.stream._arrived == limits.WINDOW)
        for _ in range(50):
            await line.near.request("small", {}, timeout=60)
        assert slow.stream._arrived == limits.WINDOW  # and not a byte beyond its credit
        assert len(await slow.read()) == 2 * limits.WINDOW


async def test_two_large_answers_share_the_line(connected: Connected) -> None:
    async with connected(many) as line:
        one, other = await asyncio.gather(line.near.request("fetch", {}), line.near.request("fetch", {}))
        await until(lambda: one.stream._arrived and other.stream._arrived)
        assert abs(one.stream._arrived - other.stream._arrived) <= 2 * limits.CHUNK
        one.stream.abort()
        other.stream.abort()


async def test_a_handler_that_does_not_read_its_payload_ends_the_stream(connected: Connected) -> None:
    async def handler(call: Call) -> Answer:
        return Answer({"nbytes": call.nbytes})

    source = Source(100 * limits.MIB)
    async with connected(handler) as line:
        response = await line.near.request("put", {}, source)
        assert response.result == {"nbytes": 100 * limits.MIB}
        await until(lambda: source.closed)
        assert source.reads <= 2 * limits.WINDOW // limits.CHUNK
        assert line.far._receiving.unread_bytes == 0


@pytest.mark.parametrize("nbytes", [0, 10, limits.INLINE_PAYLOAD, LARGE])
async def test_a_payload_is_closed_once(connected: Connected, nbytes: int) -> None:
    up, down = Source(nbytes), Source(nbytes)
    async with connected(_drain_and(down)) as line:
        response = await line.near.request("put", {}, up)
        assert len(await response.read()) == nbytes
        await until(lambda: down.closed and up.closed)
    assert (up.closed, down.closed) == (1, 1)


def _drain_and(source: Source) -> Callable[[Call], Any]:
    async def handler(call: Call) -> Answer:
        if call.stream is not None:
            async for _ in call.stream:
                pass
        return Answer({}, source)

    return handler


@pytest.mark.parametrize("error", [Corrupt("bits have rotted"), OSError(5, "Input/output error"), KeyError("defect")])
@pytest.mark.parametrize("nbytes", [1_000, LARGE])
async def test_a_payload_that_cannot_be_read_ends_its_own_transfer(
    connected: Connected, caplog: pytest.LogCaptureFixture, nbytes: int, error: Exception
) -> None:
    source = Source(nbytes, error)

    async def handler(call: Call) -> Answer:
        return Answer({}, source if call.op == "fetch" else None)

    async with connected(handler) as line:
        with pytest.raises(GridError) as caught:
            await (await line.near.request("fetch", {})).read()
        assert "defect" not in caught.value.message or "log" in caught.value.message
        await line.near.request("go on", {})
        assert source.closed == 1 and not line.far._sending._streams


async def test_a_request_whose_payload_cannot_be_read_fails(connected: Connected) -> None:
    source = Source(LARGE, Corrupt("bits have rotted"))
    async with connected() as line:
        with pytest.raises(Corrupt, match="bits have rotted"):
            await line.near.request("echo", {}, source)
        await line.near.request("go on", {})
        assert source.closed == 1


async def test_what_breaks_on_the_way_is_found(connected: Connected) -> None:
    """One bit of a chunk: its stream fails and names the source, and the session goes on."""
    async with connected(many) as line, Throttle(line.acceptor.port) as proxy:
        proxy.flip_down = 5 * limits.CHUNK
        near = await open_as_dialer(proxy.url, DORA, Identity.generate())
        try:
            for read_whole in (True, False):
                response = await near.request("fetch", {})
                if read_whole:
                    with pytest.raises(Corrupt, match=r"block 4 of a transfer of 16777216 bytes from alice") as caught:
                        await response.read()
                    assert caught.value.peer == "alice" and len(response.stream.hashes) == 4
                else:
                    assert len(await response.read()) == 2 * limits.WINDOW
            assert not near.is_closed
        finally:
            await near.close()


# --- how they are read ------------------------------------------------------------------------------------


async def test_an_answer_larger_than_wanted_is_not_read(connected: Connected) -> None:
    source = Source(limits.MAX_TENSOR)
    async with connected(giving(source)) as line:
        with pytest.raises(TooLarge):
            await (await line.near.request("fetch", {})).read()
        await until(lambda: source.closed)


async def test_into_takes_a_buffer_of_exactly_the_size(connected: Connected) -> None:
    async with connected(many) as line:
        response = await line.near.request("fetch", {})
        for wrong in (0, 2 * limits.WINDOW - 1, 2 * limits.WINDOW + 1):
            with pytest.raises(ValueError, match="buffer"):
                await response.stream.into(memoryview(bytearray(wrong)))
        assert not line.near.is_closed
        await response.stream.into(memoryview(bytearray(2 * limits.WINDOW)))


async def test_a_cancelled_into_gives_the_stream_up(connected: Connected) -> None:
    source = Source(100 * limits.MIB)
    async with connected(giving(source)) as line:
        response = await line.near.request("fetch", {})
        task = asyncio.create_task(response.stream.into(memoryview(bytearray(source.nbytes))))
        await until(lambda: response.stream._arrived)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: source.closed)
        assert source.reads < 100


async def test_a_cancelled_read_has_lost_nothing(connected: Connected) -> None:
    async with connected(many) as line:
        response = await line.near.request("fetch", {})
        got = 0
        while got < response.stream.nbytes:
            task = asyncio.create_task(anext(response.stream))
            await asyncio.sleep(0)
            if not task.done():
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                got += len(await task)
        assert got == response.stream.nbytes


async def test_an_aborted_stream_stops_its_sender(connected: Connected) -> None:
    source = Source(100 * limits.MIB)
    async with connected(giving(source)) as line:
        response = await line.near.request("fetch", {})
        await anext(response.stream)
        response.stream.abort()
        with pytest.raises(PeerLost, match="this end gave"):
            await anext(response.stream)
        await until(lambda: source.closed)
        assert not line.near._receiving._streams


async def test_a_sender_of_tiny_chunks_is_cut_off(connected: Connected, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    async with connected(gate) as line:
        session = line.near._session
        made = session.request("wait", {}, stream_bytes=100_000)
        (request,) = session.data_to_send()
        chunk = codec.encode(FrameType.CHUNK, {"stream": made.stream, "offset": 0}, 1) + b"x"
        await line.near._socket.send(request + chunk)
        reason = await line.far.closed
        assert isinstance(reason, ProtocolError) and "100000 are due" in reason.message


async def test_what_handlers_do_not_read_is_bounded(connected: Connected, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small payloads are whole before anyone reads them: when too many lie there, no more is taken in."""
    monkeypatch.setattr(limits, "RECEIVE_BUFFER", limits.MIB)
    gate = Gate()
    async with connected(gate) as line:
        futures = [line.near.post("wait", {}, bytes(100_000)) for _ in range(100)]
        await until(lambda: line.far._is_full)
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert line.far._receiving.unread_bytes <= 2 * limits.MIB
        assert gate.waiting < 30
        gate.open.set()
        await asyncio.gather(*futures)
        assert line.far._receiving.unread_bytes == 0
