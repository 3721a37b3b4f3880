"""What is kept of values that are being fetched: for whom, for how long, and how much of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from peer.buffers import Buffer, BufferPool
from peer.calls import Answer
from peer.exports import Exports, Position, token_of
from peer.hashing import hash_of
from peer.payloads import MemoryPayload, Payload, Resumed
from protocol import limits
from protocol.errors import BadRequest, Changed

BLOCK = limits.BLOCK
START = Position(0)


@dataclass
class Kept:
    exports: Exports
    pool: BufferPool
    now: float = 0.0

    def buffer(self, data: bytes) -> Buffer:
        buffer = self.pool.take(len(data))
        buffer.append(data)
        return buffer

    async def snapshot(self, data: bytes, asker: str = "dora", at: Position = START) -> Answer:
        return await self.exports.snapshot(asker, {"dtype": "uint8"}, self.buffer(data), at)

    @property
    def used(self) -> int:
        return self.pool.statistics().used


@pytest.fixture
def kept() -> Iterator[Kept]:
    made = Kept(Exports(), BufferPool())
    made.exports = Exports(lambda: made.now)
    yield made
    made.exports.close()
    assert made.used == 0
    made.pool.close()


def payload_of(answer: Answer) -> Payload:
    assert answer.payload is not None and not isinstance(answer.payload, bytes)
    return answer.payload


async def all_of(payload: Payload) -> bytes:
    return bytes(await payload.read(0, payload.nbytes))


async def test_the_rest_of_a_snapshot_is_what_it_was_with_the_hashes_of_what_came_before(kept: Kept) -> None:
    data = bytes(range(256)) * (3 * BLOCK // 256) + b"end"
    first = await kept.snapshot(data)
    payload_of(first).close()
    rest = await kept.exports.rest("dora", Position(2 * BLOCK, first.result["token"]))
    payload = payload_of(rest)
    assert rest.result == first.result and isinstance(payload, Resumed)
    assert await all_of(payload) == data[2 * BLOCK :]
    assert payload.preceding == [hash_of(data[:BLOCK]), hash_of(data[BLOCK : 2 * BLOCK])]
    payload.close()


async def test_nobody_else_gets_it(kept: Kept) -> None:
    first = await kept.snapshot(bytes(2 * BLOCK))
    with pytest.raises(Changed):
        await kept.exports.rest("mallory", Position(BLOCK, first.result["token"]))
    kept.exports.fetched("mallory", first.result["token"])
    assert kept.exports.count == 1
    payload_of(first).close()


async def test_it_goes_when_the_asker_has_all_and_its_memory_with_the_last_reader(kept: Kept) -> None:
    first = await kept.snapshot(bytes(2 * BLOCK))
    kept.exports.fetched("dora", first.result["token"])
    assert kept.exports.count == 0 and kept.used == 1
    assert await all_of(payload_of(first)) == bytes(2 * BLOCK)
    payload_of(first).close()
    assert kept.used == 0
    kept.exports.fetched("dora", first.result["token"])  # nothing


async def test_it_goes_when_nobody_came_back_in_time_and_not_while_it_is_read(kept: Kept) -> None:
    first = await kept.snapshot(bytes(2 * BLOCK))
    kept.now += 10 * limits.RESUME_TIMEOUT
    kept.exports.sweep()
    assert kept.exports.count == 1
    payload_of(first).close()
    kept.now += limits.RESUME_TIMEOUT / 2
    kept.exports.sweep()
    assert kept.exports.count == 1
    kept.now += limits.RESUME_TIMEOUT
    kept.exports.sweep()
    assert kept.exports.count == 0 and kept.used == 0
    with pytest.raises(Changed, match="fetch it again"):
        await kept.exports.rest("dora", Position(BLOCK, first.result["token"]))


@pytest.mark.parametrize(("size", "at"), [(2 * BLOCK, Position()), (limits.INLINE_PAYLOAD, START)])
async def test_who_will_not_ask_again_and_what_goes_in_one_piece_keep_nothing(
    kept: Kept, size: int, at: Position
) -> None:
    answer = await kept.snapshot(bytes(size), at=at)
    assert answer.result == {"dtype": "uint8"} and kept.exports.count == 0
    payload_of(answer).close()


async def test_a_principal_has_so_many_and_no_more(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PARTIALS", 2)
    read, left = await kept.snapshot(bytes(2 * BLOCK)), await kept.snapshot(bytes(2 * BLOCK))
    payload_of(left).close()
    third = await kept.snapshot(bytes(2 * BLOCK))  # for which the one that nobody reads makes room
    assert "token" in third.result and kept.exports.count == 2
    fourth = await kept.snapshot(bytes(2 * BLOCK))
    assert "token" not in fourth.result and kept.exports.count == 2
    other = await kept.snapshot(bytes(2 * BLOCK), asker="erin")
    assert "token" in other.result
    for answer in (read, third, fourth, other):
        payload_of(answer).close()


async def test_a_principal_has_so_many_bytes_and_no_more(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PARTIAL_BYTES", 3 * BLOCK)
    first = await kept.snapshot(bytes(2 * BLOCK))
    second = await kept.snapshot(bytes(2 * BLOCK))
    assert "token" in first.result and "token" not in second.result
    payload_of(first).close()
    payload_of(second).close()


@pytest.mark.parametrize(
    "args",
    [
        {"offset": -BLOCK},
        {"offset": 1},
        {"offset": True},
        {"offset": 1.0},
        {"offset": "0"},
        {"offset": limits.MAX_TENSOR},
        {"offset": BLOCK},  # of what?
        {"offset": 0, "token": "text"},
    ],
)
def test_a_place_that_is_none_is_refused(args: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        Position.of(args)


async def test_an_offset_behind_the_end_is_refused_and_the_payload_closed(kept: Kept) -> None:
    closed: list[bool] = []
    for blocks in (None, bytes(8)):
        payload = MemoryPayload(bytes(BLOCK), lambda: closed.append(True))
        with pytest.raises(BadRequest):
            await kept.exports.resumed(payload, Position(BLOCK, b"t"), blocks)
    assert closed == [True, True]


async def test_hashes_of_what_is_read_from_the_disk_are_made_once(kept: Kept) -> None:
    class Disk:
        nbytes = 4 * BLOCK
        reads = 0

        async def read(self, offset: int, size: int) -> bytes:
            self.reads += 1
            await asyncio.sleep(0)
            return bytes(size)

        def close(self) -> None: ...

    disk = Disk()
    first = await kept.exports.resumed(disk, Position(0, b"t"))
    for offset in range(0, 3 * BLOCK, BLOCK):
        await first.read(offset, BLOCK)
    rest = await kept.exports.resumed(disk, Position(3 * BLOCK, b"t"))
    assert isinstance(rest, Resumed) and list(rest.preceding) == [hash_of(bytes(BLOCK))] * 3
    assert disk.reads == 3


def test_tokens_tell_contents_apart() -> None:
    tokens = {token_of("a", b"", 0, 9), token_of("b", b"", 0, 9), token_of("a", b"s", 0, 9), token_of("a", b"", 8, 1)}
    assert len(tokens) == 4
