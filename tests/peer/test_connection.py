"""Sessions over real sockets: many requests at once, and their answers."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

from peer.calls import Answer, Call, Statistics
from protocol import limits
from protocol.errors import BadRequest, Denied, InternalError, NotFound, PeerLost, ProtocolError, TooLarge
from tests.peer.ends import LARGE, Connected, Source
from tests.waiting import PATIENCE, until


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


# --- the connection itself --------------------------------------------------------------------------------


async def test_a_future_that_nobody_awaits_is_no_defect(connected: Connected) -> None:
    async def handler(call: Call) -> Answer:
        raise NotFound("no")

    async with connected(handler) as line:
        for _ in range(10):
            line.near.post("run", {})
        await until(lambda: not line.near._session.unanswered)
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
