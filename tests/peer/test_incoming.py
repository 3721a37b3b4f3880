"""A payload as it arrives, without a connection."""

from __future__ import annotations

import asyncio

import pytest

from peer.incoming import IncomingStream, owned
from protocol import limits
from protocol.errors import PeerLost
from protocol.messages import Chunk


class Line:
    peer_name = "alice"

    def __init__(self) -> None:
        self.read: list[int] = []
        self.given_up: list[str] = []

    def stream_read(self, stream: int, nbytes: int) -> None:
        self.read.append(nbytes)

    def stream_given_up(self, stream: int, message: str) -> None:
        self.given_up.append(message)


def chunks(data: bytes, size: int) -> list[Chunk]:
    return [Chunk(2, at, memoryview(data)[at : at + size]) for at in range(0, len(data), size)]


BIG = 64 * limits.KIB
DATA = bytes(range(256)) * 1024


async def test_chunks_are_read_in_order() -> None:
    line = Line()
    stream = IncomingStream(line, 2, len(DATA))
    for chunk in chunks(DATA, BIG):
        stream.feed(chunk)
    assert [bytes(piece) async for piece in stream] == [DATA[at : at + BIG] for at in range(0, len(DATA), BIG)]


async def test_room_is_given_back_when_the_next_chunk_is_asked_for() -> None:
    line = Line()
    stream = IncomingStream(line, 2, len(DATA))
    for chunk in chunks(DATA, BIG):
        stream.feed(chunk)
    await anext(stream)
    assert line.read == []
    await anext(stream)
    assert line.read == [BIG]


async def test_a_reader_waits_for_chunks() -> None:
    stream = IncomingStream(Line(), 2, 2)
    reading = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    assert not reading.done()
    stream.feed(Chunk(2, 0, memoryview(b"ab")))
    assert bytes(await reading) == b"ab"
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_into_fills_a_buffer_from_before_and_after() -> None:
    line = Line()
    stream = IncomingStream(line, 2, len(DATA))
    first, *rest = chunks(DATA, BIG)
    stream.feed(first)
    target = bytearray(len(DATA))
    reading = asyncio.create_task(stream.into(memoryview(target)))
    await asyncio.sleep(0)
    for chunk in rest:
        stream.feed(chunk)
    await reading
    assert bytes(target) == DATA and sum(line.read) == len(DATA)


async def test_small_chunks_are_joined() -> None:
    stream = IncomingStream(Line(), 2, 10_000)
    for chunk in chunks(bytes(10_000), 1):
        stream.feed(chunk)
    assert [len(piece) async for piece in stream] == [10_000]


async def test_what_came_before_a_failure_can_be_read() -> None:
    stream = IncomingStream(Line(), 2, 10)
    stream.feed(Chunk(2, 0, memoryview(b"abc")))
    stream.fail(PeerLost("gone"))
    assert bytes(await anext(stream)) == b"abc"
    with pytest.raises(PeerLost, match="gone"):
        await anext(stream)


async def test_a_stream_that_has_arrived_does_not_fail() -> None:
    stream = IncomingStream(Line(), 2, 3)
    stream.feed(Chunk(2, 0, memoryview(b"abc")))
    stream.fail(PeerLost("gone"))
    assert [bytes(piece) async for piece in stream] == [b"abc"]


async def test_abort_wakes_the_reader() -> None:
    line = Line()
    stream = IncomingStream(line, 2, 10)
    reading = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    stream.abort("enough")
    with pytest.raises(PeerLost):
        await reading
    assert line.given_up == ["enough"]


def test_a_small_payload_does_not_keep_a_large_message_alive() -> None:
    message = bytes(limits.MIB)
    small = owned(memoryview(message)[10:20])
    assert small.obj is not message and bytes(small) == bytes(10)


def test_a_large_payload_is_kept_as_it_is() -> None:
    message = bytes(limits.MIB)
    assert owned(memoryview(message)[100:]).obj is message
