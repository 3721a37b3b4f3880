"""Requests that are given up, or take too long: the other end hears of it, and nothing stays of them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from peer.calls import Answer, Call
from protocol import limits
from protocol.errors import TimedOut
from tests.peer.ends import LARGE, Connected, Gate, Source, giving
from tests.waiting import until


async def test_a_cancelled_request_is_cancelled_at_the_other_end(connected: Connected) -> None:
    gate = Gate()
    async with connected(gate) as line:
        task = asyncio.create_task(line.near.request("wait", {}))
        await gate.started.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: gate.cancelled)
        await line.near.request("go on", {})
        assert not line.near._session.unanswered


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
