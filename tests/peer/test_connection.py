"""Sessions over real sockets: many requests at once, payloads of any size, and every way in which they end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from peer import closing, transport
from peer.calls import Answer, Call, Statistics
from peer.connection import Connection
from peer.keys import Identity
from peer.opening import open_as_dialer
from peer.payloads import MemoryPayload
from protocol import codec, limits
from protocol.codec import FrameType
from protocol.errors import (
    BadRequest,
    Corrupt,
    Denied,
    GridError,
    HandshakeFailed,
    InternalError,
    NotFound,
    PeerLost,
    ProtocolError,
    TimedOut,
    TooLarge,
    Unreachable,
)
from protocol.handshake import Introduction
from tests.waiting import PATIENCE, until

Connected = Callable[..., contextlib.AbstractAsyncContextManager[Any]]
LARGE = 3 * limits.MIB + 17
DORA = Introduction("client", "dora")


class Gate:
    """A handler that holds every request until it is opened."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.started = asyncio.Event()
        self.waiting = 0
        self.cancelled = 0

    async def __call__(self, call: Call) -> Answer:
        if call.op != "wait":
            return Answer({"op": call.op})
        self.waiting += 1
        self.started.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Answer({"number": call.args.get("number")})


class Source:
    """A payload that notes how it was used, and can be made to fail."""

    def __init__(self, nbytes: int, error: Exception | None = None) -> None:
        self.nbytes = nbytes
        self.reads = 0
        self.closed = 0
        self._error = error

    async def read(self, offset: int, size: int) -> bytes:
        self.reads += 1
        if self._error is not None and (offset or self.nbytes <= limits.INLINE_PAYLOAD):
            raise self._error
        return bytes(size)

    def close(self) -> None:
        self.closed += 1


def giving(source: Any) -> Callable[[Call], Any]:
    async def handler(call: Call) -> Answer:
        return Answer({"n": 1}, source)

    return handler


# --- requests ---------------------------------------------------------------------------------------------


async def test_a_request_is_answered(connected: Connected) -> None:
    async with connected() as line:
        response = await line.near.request("status", {"a": [1, "two", b"three"]}, b"payload")
        assert response.result == {"op": "status", "a": [1, "two", b"three"]}
        assert bytes(response.payload) == b"payload"


async def test_both_ends_ask_at_once(connected: Connected) -> None:
    async def handler(call: Call) -> Answer:
        return Answer({"asked": call.connection.remote.name})

    async with connected(handler, handler) as line:
        up, down = await asyncio.gather(line.near.request("who", {}), line.far.request("who", {}))
        assert (up.result, down.result) == ({"asked": "dora"}, {"asked": "alice"})


async def test_a_handler_may_ask_back(connected: Connected) -> None:
    async def handler(call: Call) -> Answer:
        back = await call.connection.request("secret", {})
        return Answer({"heard": back.result["secret"]})

    async def near(call: Call) -> Answer:
        return Answer({"secret": 42})

    async with connected(handler, near) as line:
        assert (await line.near.request("ask", {})).result == {"heard": 42}


async def test_thousands_of_requests_wait_for_room_and_are_all_answered(connected: Connected) -> None:
    most = 0

    async def handler(call: Call) -> Answer:
        nonlocal most
        most = max(most, len(call.connection._serving._tasks))
        await asyncio.sleep(0)
        return Answer(call.args)

    async with connected(handler) as line:
        futures = [line.near.post("run", {"number": number}) for number in range(2_000)]
        responses = await asyncio.gather(*futures)
        assert [response.result["number"] for response in responses] == list(range(2_000))
        assert most <= limits.MAX_REQUESTS
        assert line.near.statistics().sent_messages < 200  # what is posted in one turn shares messages


async def test_requests_begin_in_the_order_of_asking(connected: Connected) -> None:
    begun: list[int] = []

    async def handler(call: Call) -> Answer:
        begun.append(call.args["number"])
        return Answer({})

    async with connected(handler) as line:
        sizes = [0, limits.INLINE_PAYLOAD, 10, LARGE // 20]
        await asyncio.gather(
            *(line.near.post("put", {"number": n}, bytes(sizes[n % 4])) for n in range(200)), return_exceptions=True
        )
        assert begun == list(range(200))


async def _turns(seen: Callable[[], int], until_it_is: int) -> list[int]:
    """How much `seen` grew in each turn of the loop."""
    grown, last = [], seen()
    async with asyncio.timeout(PATIENCE):
        while last < until_it_is:
            await asyncio.sleep(0)
            grown.append(seen() - last)
            last = seen()
    return grown


def _one_message(connection: Any, numbers: range) -> bytes:
    """So many requests of a client that asks for much at once."""
    for number in numbers:
        connection._session.request("any", {"number": number})
    (message,) = connection._session.data_to_send()
    assert isinstance(message, bytes)
    return message


async def test_one_message_with_many_requests_leaves_others_their_turns(connected: Connected) -> None:
    begun: list[int] = []

    async def handler(call: Call) -> Answer:
        begun.append(call.args["number"])
        return Answer({})

    async with connected(handler) as line:
        for numbers in (range(200), range(200, 201), range(201, 400)):
            await line.near._socket.send(_one_message(line.near, numbers))
        grown = await _turns(lambda: len(begun), 400)
        assert begun == list(range(400))
        assert max(grown) <= 16


async def test_what_stands_behind_a_broken_frame_is_not_begun(connected: Connected) -> None:
    begun: list[int] = []

    async def handler(call: Call) -> Answer:
        begun.append(call.args["number"])
        return Answer({})

    async with connected(handler) as line:
        first, last = _one_message(line.near, range(40)), _one_message(line.near, range(40, 41))
        await line.near._socket.send(first + b"PGRX" + last[4:] + last)
        assert isinstance(await line.far.closed, ProtocolError)
        assert 40 not in begun


async def test_an_error_answers_its_own_request_only(connected: Connected) -> None:
    async def handler(call: Call) -> Answer:
        if call.op == "fetch":
            raise Denied("not yours", owners=["x"])
        return Answer({})

    async with connected(handler) as line:
        results = await asyncio.gather(
            line.near.request("fetch", {}), line.near.request("peers", {}), return_exceptions=True
        )
        assert isinstance(results[0], Denied)
        assert (results[0].fields, results[0].operation) == ({"owners": ["x"]}, "fetch")
        assert results[1].result == {}


async def test_a_defect_in_a_handler_is_told_without_its_traceback(
    connected: Connected, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(call: Call) -> Answer:
        if call.op == "bad":
            raise RuntimeError("secret detail")
        return Answer({})

    async with connected(handler) as line:
        with pytest.raises(InternalError) as caught:
            await line.near.request("bad", {})
        assert "secret" not in str(caught.value.to_fault())
        assert "secret detail" in caplog.text
        await line.near.request("good", {})


async def test_a_handler_that_returns_no_answer_is_a_defect(
    connected: Connected, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(call: Call) -> Any:
        return None

    async with connected(handler) as line:
        with pytest.raises(InternalError):
            await line.near.request("any", {})
        assert not line.near.is_closed


async def test_a_handler_that_is_cancelled_from_within_answers_all_the_same(connected: Connected) -> None:
    async def handler(call: Call) -> Answer:
        lost = asyncio.get_running_loop().create_future()
        lost.cancel()
        await lost
        raise AssertionError

    async with connected(handler) as line:
        with pytest.raises(InternalError, match="dropped"):
            await line.near.request("any", {})


async def test_an_end_without_handler_refuses_requests(connected: Connected) -> None:
    async with connected() as line:
        with pytest.raises(BadRequest, match="answers no requests"):
            await line.far.request("run", {})


@pytest.mark.parametrize(
    ("args", "error"),
    [({"x": object()}, BadRequest), ({"x": bytes(70_000)}, TooLarge), ({"x": [0] * 5_000}, TooLarge)],
    ids=["unpackable", "too large", "too many"],
)
async def test_arguments_that_cannot_travel_fail_here(connected: Connected, args: Any, error: type) -> None:
    source = Source(LARGE)
    async with connected() as line:
        with pytest.raises(error):
            await line.near.request("put", args, source)
        await line.near.request("still", {})
    assert (source.reads, source.closed) == (0, 1)


@pytest.mark.parametrize("payload", [0, 10, LARGE])
async def test_an_answer_that_cannot_travel_is_a_fault(connected: Connected, payload: int) -> None:
    source = Source(payload)

    async def handler(call: Call) -> Answer:
        return Answer({"records": ["x" * 1_000] * 100}, source) if call.op == "bad" else Answer({})

    async with connected(handler) as line:
        with pytest.raises(TooLarge):
            await line.near.request("bad", {})
        await line.near.request("good", {})
        assert source.closed == 1


async def test_an_error_that_cannot_travel_is_answered_all_the_same(connected: Connected) -> None:
    async def handler(call: Call) -> Answer:
        raise NotFound("x" * 500_000, hint=object())

    async with connected(handler) as line:
        with pytest.raises(NotFound):
            await line.near.request("any", {})


# --- giving up --------------------------------------------------------------------------------------------


async def test_a_cancelled_request_is_cancelled_at_the_other_end(connected: Connected) -> None:
    gate = Gate()
    async with connected(gate) as line:
        task = asyncio.create_task(line.near.request("wait", {}))
        await gate.started.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: gate.cancelled)
        await line.near.request("go on", {})
        assert line.near._session.unanswered == 0


async def test_a_request_that_is_not_answered_in_time_is_given_up(connected: Connected) -> None:
    gate = Gate()
    async with connected(gate) as line:
        with pytest.raises(TimedOut, match=r"no answer within 0\.05 s") as caught:
            await line.near.request("wait", {}, timeout=0.05)
        assert (caught.value.operation, caught.value.peer) == ("wait", "alice")
        await until(lambda: gate.cancelled)


async def test_a_timeout_at_the_other_end_is_told_as_such(connected: Connected) -> None:
    async def handler(call: Call) -> Answer:
        raise TimedOut("the disk is slow", peer="alice")

    async with connected(handler) as line:
        for timeout in (None, 5.0):
            with pytest.raises(TimedOut, match="the disk is slow"):
                await line.near.request("any", {}, timeout=timeout)


async def test_requests_that_were_given_up_leave_room_for_others(connected: Connected) -> None:
    """More than the limit, before their handlers even began, on both sides of it."""
    gate = Gate()
    async with connected(gate) as line:
        for _ in range(3):
            futures = [line.near.post("wait", {}) for _ in range(limits.MAX_REQUESTS + 50)]
            await asyncio.sleep(0)
            for future in futures:
                future.cancel()
            await line.near.request("go on", {})
        await until(lambda: not line.far._serving._tasks)
        assert not line.far._session._theirs


async def test_what_waits_for_room_goes_out_when_others_are_given_up(connected: Connected) -> None:
    gate = Gate()
    async with connected(gate) as line:
        blocking = [line.near.post("wait", {}) for _ in range(limits.MAX_REQUESTS)]
        held = line.near.post("go on", {})
        given_up = line.near.post("never", {}, Source(LARGE))
        given_up.cancel()
        await until(lambda: gate.waiting == limits.MAX_REQUESTS)
        assert not held.done()
        for future in blocking:
            future.cancel()
        assert (await held).result == {"op": "go on"}


async def test_a_large_request_that_is_given_up_stops_sending(connected: Connected) -> None:
    async def handler(call: Call) -> Answer:
        if call.op == "put":
            await asyncio.Event().wait()  # never reads
        return Answer({})

    source = Source(100 * limits.MIB)
    async with connected(handler) as line:
        future = line.near.post("put", {}, source)
        await until(lambda: source.reads * limits.CHUNK >= limits.WINDOW)
        future.cancel()
        await until(lambda: source.closed)
        await line.near.request("go on", {})
        assert source.reads == limits.WINDOW // limits.CHUNK
        await until(lambda: not line.far._receiving._streams and not line.far._serving._tasks)
        assert line.far._receiving.unread_bytes == 0


async def test_an_answer_that_comes_while_it_is_given_up_leaves_nothing(connected: Connected) -> None:
    """However the cancellation and the answer with its stream cross, no stream stays open."""
    async with connected() as line:
        data = bytes(limits.INLINE_PAYLOAD + 1)
        for turns in range(40):
            task = asyncio.create_task(line.near.request("echo", {}, data))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                response = await task
                response.stream.abort()
        await line.near.request("go on", {})
        await until(lambda: not line.far._sending._streams and not line.far._serving._tasks)
        assert not line.near._receiving._streams and not line.near._sending._streams


async def test_an_answer_in_the_very_turn_of_the_cancellation_is_not_kept(
    connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(100 * limits.MIB)
    async with connected(giving(source)) as line:
        task = asyncio.create_task(line.near.request("fetch", {}))
        resolve = line.near._asking.resolve

        def and_cancel(reply: Any, stream: Any) -> None:
            resolve(reply, stream)
            task.cancel()

        monkeypatch.setattr(line.near._asking, "resolve", and_cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: source.closed)
        assert not line.near._receiving._streams


# --- payloads ---------------------------------------------------------------------------------------------


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
    async with connected(_many) as line:
        responses = await asyncio.wait_for(_first(line.near, limits.MAX_STREAMS), 60)
        later = [line.near.post("fetch", {}) for _ in range(5)]
        small = await line.near.request("small", {})
        assert small.result == {} and not any(future.done() for future in later)
        for response in responses:
            response.stream.abort()
        for response in await asyncio.gather(*later):
            assert len(await anext(response.stream)) > 0
            response.stream.abort()


async def _many(call: Call) -> Answer:
    return Answer({}, MemoryPayload(bytes(2 * limits.WINDOW)) if call.op == "fetch" else None)


async def _first(end: Connection, count: int) -> list[Any]:
    return await asyncio.gather(*(end.request("fetch", {}) for _ in range(count)))


async def test_a_reader_that_stops_does_not_hold_up_small_requests(connected: Connected) -> None:
    async with connected(_many) as line:
        slow = await line.near.request("fetch", {})
        await until(lambda: slow.stream._arrived == limits.WINDOW)
        for _ in range(50):
            await line.near.request("small", {}, timeout=60)
        assert slow.stream._arrived == limits.WINDOW  # and not a byte beyond its credit
        assert len(await slow.read()) == 2 * limits.WINDOW


async def test_two_large_answers_share_the_line(connected: Connected) -> None:
    async with connected(_many) as line:
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


async def test_a_transfer_without_progress_fails(connected: Connected, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(Source):
        async def read(self, offset: int, size: int) -> bytes:
            if offset:
                await asyncio.Event().wait()
            return await super().read(offset, size)

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
    class Stuck(Source):
        async def read(self, offset: int, size: int) -> bytes:
            if offset:
                await asyncio.Event().wait()
            return await super().read(offset, size)

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


class Throttle:
    """Between two ends: passes on so many bytes at a time, and changes what it is told to."""

    def __init__(self, port: int, at_once: int = 1 << 16, every: float = 0.0) -> None:
        self._port = port
        self._at_once = at_once
        self._every = every
        self._tasks: list[asyncio.Task[None]] = []
        self.flip_down: int | None = None  # one bit of that byte on the way to the dialer
        self.is_stopped = asyncio.Event()
        self.url = ""

    async def __aenter__(self) -> Throttle:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=self._at_once)
        self.url = f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port, limit=self._at_once)
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._pass_on(reader, far_writer, False)))
        self._tasks.append(loop.create_task(self._pass_on(far_reader, writer, True)))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_down: bool) -> None:
        at = 0
        try:
            while data := bytearray(await reader.read(self._at_once)):
                if is_down and self.flip_down is not None and at <= self.flip_down < at + len(data):
                    data[self.flip_down - at] ^= 1
                at += len(data)
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(self._every)
        finally:
            writer.close()


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


async def test_what_breaks_on_the_way_is_found(connected: Connected) -> None:
    """One bit of a chunk: its stream fails and names the source, and the session goes on."""
    async with connected(_many) as line, Throttle(line.acceptor.port) as proxy:
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


async def test_an_answer_larger_than_wanted_is_not_read(connected: Connected) -> None:
    source = Source(limits.MAX_TENSOR)
    async with connected(giving(source)) as line:
        with pytest.raises(TooLarge):
            await (await line.near.request("fetch", {})).read()
        await until(lambda: source.closed)


async def test_into_takes_a_buffer_of_exactly_the_size(connected: Connected) -> None:
    async with connected(_many) as line:
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
    async with connected(_many) as line:
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


# --- the end ----------------------------------------------------------------------------------------------


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
    async with connected(_many) as line:
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
    async with connected(_many) as line:
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


async def test_a_future_that_nobody_awaits_is_no_defect(connected: Connected) -> None:
    async def handler(call: Call) -> Answer:
        raise NotFound("no")

    async with connected(handler) as line:
        for _ in range(10):
            line.near.post("run", {})
        await until(lambda: line.near._session.unanswered == 0)
        line.near.post("run", {"x": object()})
    line.near.post("late", {})
    gc.collect()


async def test_one_message_that_had_to_wait_makes_no_later_one_wait(connected: Connected) -> None:
    async with connected() as line:
        line.far._receiving.unread_bytes = limits.RECEIVE_BUFFER + 1
        await line.near.request("any", {})  # by way of the reader
        line.far._receiving.unread_bytes = 0
        line.far._room.set()
        await line.near.request("any", {})
        assert line.far._socket.queued == 0


async def test_a_defect_of_the_reader_closes_the_connection(
    connected: Connected, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected() as line:
        line.near._on_message = None
        with pytest.raises(PeerLost, match="defect at this end"):
            await line.near.request("any", {})
        assert "TypeError" in caplog.text


async def test_a_defect_of_the_writer_closes_the_connection(
    connected: Connected, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected() as line:
        line.near._sending._send_chunks = None
        with pytest.raises(PeerLost, match="defect at this end"):
            await line.near.request("any", {})
        assert "TypeError" in caplog.text


async def test_bytes_are_counted_at_both_ends_alike(connected: Connected) -> None:
    async with connected() as line:
        await (await line.near.request("echo", {"dtype": "uint8"}, bytes(10))).read()
        await line.near.request("rows", {}, bytes(5))  # describes no value: not counted
        await (await line.near.request("echo", {}, bytes(LARGE))).read()
        await until(lambda: line.near.statistics().received_bytes == line.far.statistics().sent_bytes)
        near, far = line.near.statistics(), line.far.statistics()
        assert near.payload_sent == far.payload_received == near.payload_received == far.payload_sent == LARGE + 10
        assert (near.sent_messages, near.sent_bytes) == (far.received_messages, far.received_bytes)
        assert near + Statistics() == near


async def test_a_connection_shows_itself(connected: Connected) -> None:
    async with connected() as line:
        assert repr(line.near) == "<Connection to peer alice open>"
        assert repr(line.far) == "<Connection to client dora open>"
    assert repr(line.near) == "<Connection to peer alice closed>"


# --- hostile ends -----------------------------------------------------------------------------------------


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


async def test_an_acceptor_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT", 0.1)

    async def mute(ws: Any) -> None:
        await ws.wait_closed()

    server = await transport.listen("127.0.0.1", 0, mute)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(TimedOut, match="no handshake"):
        await open_as_dialer(f"ws://127.0.0.1:{port}", DORA, Identity.generate())
    server.close()
    await server.wait_closed()


async def test_an_acceptor_that_hangs_up_is_no_peer() -> None:
    async def rude(ws: Any) -> None:
        await ws.close()

    server = await transport.listen("127.0.0.1", 0, rude)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(Unreachable, match="closed the connection during the handshake"):
        await open_as_dialer(f"ws://127.0.0.1:{port}", DORA, Identity.generate())
    server.close()
    await server.wait_closed()


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
