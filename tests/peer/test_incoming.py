"""A payload as it arrives, without a connection."""

from __future__ import annotations

import asyncio

import pytest

from peer import blocks
from peer.hashing import digest_of, hash_of
from peer.incoming import IncomingStream, owned
from protocol import limits
from protocol.errors import Corrupt, PeerLost, TimedOut
from protocol.messages import Chunk
from tests.waiting import until


class Line:
    peer_name = "alice"
    brought = 0

    def __init__(self) -> None:
        self.read: list[int] = []
        self.given_up: list[str] = []

    def stream_read(self, stream: int, nbytes: int) -> None:
        self.read.append(nbytes)

    def stream_given_up(self, stream: int, message: str) -> None:
        self.given_up.append(message)


def chunks(data: bytes, size: int) -> list[Chunk]:
    """As their sender makes them: each with its hash, the last one with the digest."""
    pieces = [memoryview(data)[at : at + size] for at in range(0, len(data), size)]
    hashes = [hash_of(piece) for piece in pieces]
    digests = [None] * (len(pieces) - 1) + [digest_of(hashes)]
    return [
        Chunk(2, number * size, piece, hash, digest)
        for number, (piece, hash, digest) in enumerate(zip(pieces, hashes, digests, strict=True))
    ]


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


# --- what is not as it was sent ---------------------------------------------------------------------------


def bad(chunk: Chunk) -> Chunk:
    payload = bytearray(chunk.payload)
    payload[-1] ^= 1
    return Chunk(chunk.stream, chunk.offset, memoryview(payload), chunk.hash, chunk.digest)


async def test_a_bad_block_is_found_before_it_is_used_and_names_its_source() -> None:
    line = Line()
    stream = IncomingStream(line, 2, len(DATA))
    first, second, *rest = chunks(DATA, BIG)
    for chunk in (first, bad(second), *rest):
        stream.feed(chunk)
    assert bytes(await anext(stream)) == DATA[:BIG]
    with pytest.raises(Corrupt, match=r"block 1 .* from alice is not what was sent: ask again") as caught:
        await anext(stream)
    assert caught.value.peer == "alice" and line.given_up == ["block 1 arrived corrupt"]
    assert stream.hashes == [first.hash]


async def test_a_bad_block_fails_a_buffer_that_is_being_filled() -> None:
    stream = IncomingStream(Line(), 2, len(DATA))
    reading = asyncio.create_task(stream.into(memoryview(bytearray(len(DATA)))))
    await asyncio.sleep(0)
    *before, last = chunks(DATA, BIG)
    for chunk in (*before, bad(last)):
        stream.feed(chunk)
    with pytest.raises(Corrupt, match="block 3 "):
        await reading


@pytest.mark.parametrize("is_into", [False, True])
async def test_sound_blocks_in_the_wrong_order_are_found_at_the_end(is_into: bool) -> None:
    """Each has its own hash; only the digest knows how they belong together."""
    stream = IncomingStream(Line(), 2, len(DATA))
    made = chunks(DATA[:BIG] + bytes(BIG) + DATA[: 2 * BIG], BIG)
    made[0], made[1] = (
        Chunk(2, made[0].offset, made[1].payload, made[1].hash),
        Chunk(2, made[1].offset, made[0].payload, made[0].hash),
    )
    for chunk in made:
        stream.feed(chunk)
    with pytest.raises(Corrupt, match="the whole of a transfer"):
        if is_into:
            await stream.into(memoryview(bytearray(len(DATA))))
        async for _ in stream:
            pass


async def test_a_stream_from_the_middle_of_a_value_is_checked_with_what_came_before() -> None:
    first, *rest = chunks(DATA, BIG)
    for preceding in ([hash_of(first.payload)], [0], []):
        stream = IncomingStream(Line(), 2, len(DATA) - BIG)
        stream.preceding = preceding
        for chunk in rest:
            stream.feed(Chunk(2, chunk.offset - BIG, chunk.payload, chunk.hash, chunk.digest))
        if preceding == [hash_of(first.payload)]:
            assert b"".join([piece async for piece in stream]) == DATA[BIG:]
            assert stream.hashes == [chunk.hash for chunk in rest]
        else:
            with pytest.raises(Corrupt):
                async for _ in stream:
                    pass


async def test_a_bad_block_is_numbered_within_the_whole_value() -> None:
    _, second, *_ = chunks(DATA, BIG)
    stream = IncomingStream(Line(), 2, len(DATA) - BIG)
    stream.preceding = [0]
    stream.feed(bad(Chunk(2, 0, second.payload, second.hash)))
    with pytest.raises(Corrupt, match="block 1 "):
        await anext(stream)


async def test_chunks_without_a_hash_are_taken_as_they_are() -> None:
    stream = IncomingStream(Line(), 2, len(DATA))
    for chunk in chunks(DATA, BIG):
        stream.feed(Chunk(2, chunk.offset, chunk.payload))
    assert b"".join([piece async for piece in stream]) == DATA
    assert stream.hashes == [chunk.hash for chunk in chunks(DATA, BIG)]


# --- chunks that are put into place by the system ---------------------------------------------------------


async def test_a_chunk_belongs_into_the_buffer_that_is_being_filled() -> None:
    stream = IncomingStream(Line(), 2, len(DATA))
    target = bytearray(len(DATA))
    reading = asyncio.create_task(stream.into(memoryview(target)))
    await asyncio.sleep(0)
    for chunk in chunks(DATA, BIG):
        place = stream.place(chunk.offset, BIG)
        assert place.obj is target
        place[:] = chunk.payload
        stream.feed(Chunk(2, chunk.offset, place, chunk.hash, chunk.digest), is_placed=True)
    await reading
    assert bytes(target) == DATA


async def test_a_chunk_that_came_before_its_buffer_is_copied_into_it() -> None:
    stream = IncomingStream(Line(), 2, len(DATA))
    target = bytearray(len(DATA))
    first, *rest = chunks(DATA, BIG)
    place = stream.place(0, BIG)
    reading = asyncio.create_task(stream.into(memoryview(target)))
    await asyncio.sleep(0)
    place[:] = first.payload
    stream.feed(Chunk(2, 0, place, first.hash), is_placed=True)
    for chunk in rest:
        stream.feed(chunk)
    await reading
    assert bytes(target) == DATA


async def test_a_piece_that_is_kept_is_nobody_elses() -> None:
    stream = IncomingStream(Line(), 2, 2 * limits.CHUNK)
    kept = []
    for number in range(2):
        place = stream.place(number * limits.CHUNK, limits.CHUNK)
        place[:] = bytes([number]) * limits.CHUNK
        stream.feed(Chunk(2, number * limits.CHUNK, place), is_placed=True)
        kept.append(await anext(stream))
    assert [piece[0] for piece in kept] == [0, 1]
    del place, kept


# --- deadlines --------------------------------------------------------------------------------------------


async def test_a_line_that_brings_nothing_fails_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STALL_TIMEOUT", 0.02)
    line = Line()
    stream = IncomingStream(line, 2, 10)
    with pytest.raises(TimedOut, match=r"no byte came for 0\.02 s, after 0 of 10"):
        await anext(stream)
    assert line.given_up == ["stalled"]


async def test_a_slow_line_that_brings_something_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STALL_TIMEOUT", 0.02)

    class Slow(Line):
        looked = 0

        @property
        def brought(self) -> int:  # type: ignore[override]
            self.looked += 1
            return self.looked

    line = Slow()
    stream = IncomingStream(line, 2, 2)
    reading = asyncio.ensure_future(anext(stream))
    await until(lambda: line.looked >= 8)  # four deadlines have passed
    stream.feed(Chunk(2, 0, memoryview(b"ab")))
    assert bytes(await reading) == b"ab"


# --- blocks -----------------------------------------------------------------------------------------------


def test_a_block_is_used_again_when_its_last_view_is_gone() -> None:
    stock = blocks.Blocks(keep=2)
    block = stock.take()
    assert len(block) == limits.CHUNK and not block.readonly
    part = block[10:20]
    part[:] = b"0123456789"
    del block
    assert (stock.lent, stock.free) == (1, 0)
    other = stock.take()
    assert bytes(part) == b"0123456789" and bytes(other[10:20]) != bytes(part)
    del part, other
    assert (stock.lent, stock.free) == (0, 2)
    again = stock.take()
    assert (stock.lent, stock.free) == (1, 1)
    del again


def test_only_so_many_free_blocks_are_kept() -> None:
    stock = blocks.Blocks(keep=2)
    taken = [stock.take() for _ in range(5)]
    assert stock.lent == 5
    taken.clear()
    assert (stock.lent, stock.free) == (0, 2)
