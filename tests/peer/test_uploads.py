"""What a peer keeps of values on their way in: who may go on with it, where, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from peer.arrivals import Arrival
from peer.intake import pieces_of
from peer.uploads import Uploads
from protocol import limits
from protocol.errors import BadRequest, Corrupt, GridError, PeerLost, StorageFull, TimedOut, TooLarge
from tests.waiting import until

BLOCK = limits.BLOCK


class Stream:
    """What a line brings: `bring` blocks, then `fail`."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.hashes: list[int] = []
        self.preceding: tuple[int, ...] = ()
        self._left = nbytes
        self._pieces: asyncio.Queue[bytes | BaseException] = asyncio.Queue()

    def bring(self, count: int = 1) -> None:
        for _ in range(count):
            self._pieces.put_nowait(bytes(BLOCK))

    def fail(self, error: BaseException) -> None:
        self._pieces.put_nowait(error)

    def abort(self, message: str = "") -> None:
        self.fail(PeerLost(message))

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        piece = await self._pieces.get()
        if isinstance(piece, BaseException):
            raise piece
        self._left -= len(piece)
        self.hashes.append(len(self.preceding) + len(self.hashes))
        return piece


@dataclass
class Connection:
    is_closed: bool = False


@dataclass
class Call:
    stream: Stream | None
    connection: Connection = field(default_factory=Connection)
    payload: bytes = b""

    @property
    def nbytes(self) -> int:
        return self.stream.nbytes if self.stream is not None else len(self.payload)


class Intake:
    def __init__(self, nbytes: int, failure: GridError | None = None) -> None:
        self.nbytes = nbytes
        self.taken = 0
        self.failure = failure
        self.finished = 0
        self.is_aborted = self.is_withdrawn = False
        self.may_finish = asyncio.Event()
        self.may_finish.set()

    @property
    def memory(self) -> int:
        return self.nbytes

    async def take(self, source: Any) -> None:
        async for piece in pieces_of(source):
            self.taken += len(piece)

    async def content(self) -> str | None:
        return None

    async def finish(self, arrived: Any = None) -> dict[str, Any]:
        await asyncio.sleep(0)
        await self.may_finish.wait()
        if self.failure is not None:
            raise self.failure
        self.finished += 1
        return {"nbytes": self.taken}

    async def abort(self) -> None:
        self.is_aborted = True

    async def withdraw(self) -> None:
        self.is_withdrawn = True


@dataclass
class Peer:
    now: float = 0.0
    made: list[Intake] = field(default_factory=list)
    failure: GridError | None = None

    def __post_init__(self) -> None:
        self.uploads = Uploads(lambda: self.now)

    def put(
        self, stream: Stream | None, offset: int = 0, number: int = 0, asker: str = "dora", **call: Any
    ) -> asyncio.Task[dict[str, Any]]:
        return asyncio.ensure_future(
            self.uploads.put(asker, described(number), offset, Call(stream, **call), self.begin)  # type: ignore[arg-type]
        )

    async def begin(self, nbytes: int) -> Intake:
        self.made.append(Intake(nbytes, self.failure))
        return self.made[-1]

    async def resume(self, number: int = 0) -> dict[str, Any]:
        return await self.uploads.resume("dora", described(number))

    async def broken(self, blocks: int, of: int, number: int = 0, asker: str = "dora") -> None:
        """An upload whose line broke after so many blocks."""
        stream, connection = Stream(of * BLOCK), Connection()
        putting = self.put(stream, number=number, asker=asker, connection=connection)
        stream.bring(blocks)
        await settle()
        connection.is_closed = True
        stream.fail(PeerLost("the line broke"))
        with pytest.raises(PeerLost):
            await putting

    async def cut_off(self, blocks: int, of: int) -> None:
        """An upload whose line broke, and with it its task, before so many blocks that had come were put away."""
        stream, connection = Stream(of * BLOCK), Connection()
        putting = self.put(stream, connection=connection)
        await settle()
        stream.bring(blocks)
        stream.fail(PeerLost("the line broke"))
        connection.is_closed = True
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting

    async def taken(self) -> tuple[asyncio.Task[dict[str, Any]], Connection]:
        """An upload of one block, which is taken and has not been answered."""
        stream, connection = Stream(BLOCK), Connection()
        stream.bring()
        putting = self.put(stream, connection=connection)
        await until(lambda: self.made and self.made[0].taken)
        return putting, connection


def described(number: int = 0, description: str = "") -> Arrival:
    args = {"id": number.to_bytes(16, "big"), "kind": "tensor", "dtype": "uint8", "shape": [1]}
    return Arrival.of({**args, "description": description}, "dora", frozenset())


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def _peer() -> AsyncIterator[Peer]:
    made = Peer()
    yield made
    await made.uploads.close()
    assert made.uploads.count == 0
    assert all(intake.is_aborted or intake.finished for intake in made.made)


@pytest.fixture
def peer() -> Callable[[], contextlib.AbstractAsyncContextManager[Peer]]:
    return _peer


async def test_it_goes_on_where_it_broke_with_the_hashes_of_what_came(peer: Any) -> None:
    async with peer() as alice:
        await alice.broken(2, of=4)
        assert await alice.resume() == {"offset": 2 * BLOCK}
        rest = Stream(2 * BLOCK)
        putting = alice.put(rest, offset=2 * BLOCK)
        rest.bring(2)
        assert await putting == {"nbytes": 4 * BLOCK}
        assert rest.preceding == (0, 1) and len(alice.made) == 1


async def test_the_end_may_come_beside_the_request(peer: Any) -> None:
    async with peer() as alice:
        stream = Stream(BLOCK + 5)
        connection = Connection()
        putting = alice.put(stream, connection=connection)
        stream.bring()
        await settle()
        connection.is_closed = True
        stream.fail(PeerLost("the line broke"))
        putting.cancel()  # as the end of a connection does
        with pytest.raises(asyncio.CancelledError):
            await putting
        assert await alice.put(None, offset=BLOCK, payload=b"12345") == {"nbytes": BLOCK + 5}


async def test_another_place_another_size_and_another_value_are_refused(peer: Any) -> None:
    async with peer() as alice:
        await alice.broken(2, of=4)
        for offset, nbytes in ((BLOCK, 3 * BLOCK), (3 * BLOCK, BLOCK), (2 * BLOCK, 3 * BLOCK)):
            with pytest.raises(BadRequest, match=f"{2 * BLOCK} bytes of .* are here"):
                await alice.put(Stream(nbytes), offset=offset)
        other = described(description="another one")
        with pytest.raises(BadRequest):
            await alice.uploads.put("dora", other, 2 * BLOCK, Call(Stream(2 * BLOCK)), alice.begin)
        with pytest.raises(BadRequest, match="another description"):
            await alice.uploads.resume("dora", other)
        assert await alice.resume() == {"offset": 2 * BLOCK}  # none of them did any harm


async def test_nobody_else_knows_of_it(peer: Any) -> None:
    async with peer() as alice:
        await alice.broken(2, of=4)
        assert await alice.uploads.resume("mallory", described()) == {"offset": 0}
        with pytest.raises(BadRequest, match="0 bytes of"):
            await alice.put(Stream(2 * BLOCK), offset=2 * BLOCK, asker="mallory")


async def test_a_line_that_seems_to_bring_it_still_is_taken_over(peer: Any) -> None:
    async with peer() as alice:
        dead = Stream(4 * BLOCK)
        first = alice.put(dead)
        dead.bring(3)
        await settle()
        assert await alice.resume() == {"offset": 3 * BLOCK}
        with pytest.raises(PeerLost, match="another connection"):
            await first
        rest = Stream(BLOCK)
        rest.bring()
        assert await alice.put(rest, offset=3 * BLOCK) == {"nbytes": 4 * BLOCK}


async def test_of_two_that_go_on_at_once_one_is_taken_over(peer: Any) -> None:
    async with peer() as alice:
        dead = Stream(2 * BLOCK)
        first = alice.put(dead)
        dead.bring()
        await settle()
        lines = [Stream(BLOCK), Stream(BLOCK)]
        both = [alice.put(line, offset=BLOCK) for line in lines]
        await settle()
        for line in lines:
            line.bring()
        results = await asyncio.gather(first, *both, return_exceptions=True)
        assert sum(isinstance(result, dict) for result in results) == 1
        assert alice.made[0].taken == 2 * BLOCK and alice.made[0].finished == 1


async def test_from_the_beginning_is_begun_anew(peer: Any) -> None:
    async with peer() as alice:
        await alice.broken(2, of=4)
        stream = Stream(BLOCK)
        stream.bring()
        assert await alice.put(stream) == {"nbytes": BLOCK}
        assert [intake.is_aborted for intake in alice.made] == [True, False]


@pytest.mark.parametrize("error", [TimedOut("stalled"), Corrupt("block 2")])
async def test_a_line_that_is_bad_and_open_keeps_what_came(peer: Any, error: GridError) -> None:
    async with peer() as alice:
        stream = Stream(4 * BLOCK)
        putting = alice.put(stream)
        stream.bring(2)
        stream.fail(error)
        with pytest.raises(type(error)):
            await putting
        assert await alice.resume() == {"offset": 2 * BLOCK}


async def test_what_its_sender_gives_up_goes_at_once(peer: Any) -> None:
    async with peer() as alice:
        cancelled, aborted = Stream(4 * BLOCK), Stream(4 * BLOCK)
        first, second = alice.put(cancelled), alice.put(aborted, number=1)
        cancelled.bring()
        await settle()
        first.cancel()
        aborted.fail(PeerLost("dora gave the transfer up"))
        await asyncio.gather(first, second, return_exceptions=True)
        assert alice.uploads.count == 0 and all(intake.is_aborted for intake in alice.made)


async def test_what_is_right_block_by_block_and_wrong_as_a_whole_goes_at_once(peer: Any) -> None:
    async with peer() as alice:

        class WrongAtItsEnd(Stream):
            async def __anext__(self) -> bytes:
                if not self._left:
                    raise Corrupt("the whole")
                return await super().__anext__()

        stream = WrongAtItsEnd(2 * BLOCK)
        stream.bring(2)
        with pytest.raises(Corrupt):
            await alice.put(stream)
        assert await alice.resume() == {"offset": 0}


async def test_a_value_that_is_refused_goes_at_once_and_says_why_to_who_comes_back(peer: Any) -> None:
    async with peer() as alice:
        alice.failure = StorageFull("the disk is full")
        putting, _ = await alice.taken()
        with pytest.raises(StorageFull):
            await putting
        assert alice.uploads.count == 0 and alice.made[0].is_aborted


async def test_one_that_was_finished_while_its_asker_was_away_is_answered_again(peer: Any) -> None:
    async with peer() as alice:
        putting, connection = await alice.taken()
        connection.is_closed = True
        putting.cancel()
        await asyncio.gather(putting, return_exceptions=True)
        assert await alice.resume() == {"record": {"nbytes": BLOCK}}
        assert await alice.resume() == {"record": {"nbytes": BLOCK}}
        with pytest.raises(BadRequest):
            await alice.put(None, offset=BLOCK)


async def test_it_goes_when_nobody_came_back_in_time(peer: Any) -> None:
    async with peer() as alice:
        await alice.broken(2, of=4)
        alice.now += limits.RESUME_TIMEOUT - 1
        await alice.uploads.sweep()
        assert await alice.resume() == {"offset": 2 * BLOCK}
        alice.now += 2
        await alice.uploads.sweep()
        assert await alice.resume() == {"offset": 0} and alice.made[0].is_aborted


async def test_one_that_is_being_brought_has_no_time(peer: Any) -> None:
    async with peer() as alice:
        stream = Stream(2 * BLOCK)
        putting = alice.put(stream)
        stream.bring()
        await settle()
        alice.now += 100 * limits.RESUME_TIMEOUT
        await alice.uploads.sweep()
        stream.bring()
        assert await putting == {"nbytes": 2 * BLOCK}


@pytest.mark.parametrize(("limit", "value"), [("MAX_PARTIALS", 2), ("PARTIAL_BYTES", 9 * BLOCK)])
async def test_a_principal_keeps_so_many_and_the_oldest_give_way(
    peer: Any, limit: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, limit, value)
    async with peer() as alice:
        await alice.broken(1, of=4, number=9, asker="erin")
        for number in range(3):
            await alice.broken(1, of=4, number=number)
        assert [intake.is_aborted for intake in alice.made] == [False, True, False, False]


async def test_what_had_come_over_a_line_that_broke_is_put_away_first(peer: Any) -> None:
    async with peer() as alice:
        await alice.cut_off(3, of=4)
        assert await alice.resume() == {"offset": 3 * BLOCK}


async def test_what_had_come_whole_over_a_line_that_broke_is_finished(peer: Any) -> None:
    async with peer() as alice:
        await alice.cut_off(2, of=2)
        assert await alice.resume() == {"record": {"nbytes": 2 * BLOCK}}


async def test_of_two_that_begin_at_once_none_is_left_in_no_table(peer: Any) -> None:
    async with peer() as alice:
        connections = [Connection(), Connection()]
        streams = [Stream(2 * BLOCK), Stream(2 * BLOCK)]
        begin = alice.begin

        async def slowly(nbytes: int) -> Intake:
            await asyncio.sleep(0)
            return await begin(nbytes)

        alice.begin = slowly
        both = [alice.put(stream, connection=line) for stream, line in zip(streams, connections, strict=True)]
        await settle()
        for stream, line in zip(streams, connections, strict=True):
            line.is_closed = True
            stream.fail(PeerLost("the line broke"))
        await asyncio.gather(*both, return_exceptions=True)
        await settle()
        assert alice.uploads.count == 1
        assert [intake.is_aborted for intake in alice.made] == [True, False]


async def test_one_that_is_cancelled_while_room_is_made_is_thrown_away(
    peer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_PARTIALS", 1)
    async with peer() as alice:
        await alice.broken(1, of=4)
        slow = asyncio.Event()
        abort = alice.made[0].abort

        async def slowly() -> None:
            await slow.wait()
            await abort()

        alice.made[0].abort = slowly
        putting = alice.put(Stream(4 * BLOCK), number=1)
        await settle()
        putting.cancel()
        await asyncio.gather(putting, return_exceptions=True)
        assert alice.made[1].is_aborted and alice.uploads.count == 0
        alice.made[0].is_aborted = True  # what the test held back


@pytest.mark.parametrize(("limit", "value"), [("MAX_PARTIALS", 2), ("PARTIAL_BYTES", 9 * BLOCK)])
async def test_those_that_break_together_give_way_too(
    peer: Any, limit: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with peer() as alice:
        connection, streams = Connection(), [Stream(4 * BLOCK) for _ in range(5)]
        puts = [alice.put(stream, number=number, connection=connection) for number, stream in enumerate(streams)]
        for stream in streams:
            stream.bring()
        await settle()
        monkeypatch.setattr(limits, limit, value)
        connection.is_closed = True
        for stream in streams:
            stream.fail(PeerLost("the line broke"))
        await asyncio.gather(*puts, return_exceptions=True)
        await settle()
        assert alice.uploads.count == 2
        assert [intake.is_aborted for intake in alice.made] == [True, True, True, False, False]


@pytest.mark.parametrize(("limit", "value"), [("MAX_PARTIALS", 2), ("PARTIAL_BYTES", 7 * BLOCK)])
async def test_more_than_may_be_kept_is_refused_while_lines_bring_it(
    peer: Any, limit: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, limit, value)
    async with peer() as alice:
        streams = [Stream(4 * BLOCK) for _ in range(2)]
        puts = [alice.put(stream, number=number) for number, stream in enumerate(streams)]
        await settle()
        with pytest.raises(TooLarge, match="transfers of yours"):
            await alice.put(Stream(4 * BLOCK), number=2)
        others = alice.put(Stream(0), number=3, asker="erin")
        assert await others == {"nbytes": 0}
        for stream in streams:
            stream.bring(4)
        assert await asyncio.gather(*puts) == 2 * [{"nbytes": 4 * BLOCK}]


async def test_what_its_sender_gives_up_while_it_is_finished_goes_then(peer: Any) -> None:
    async with peer() as alice:
        stream = Stream(BLOCK)
        putting = alice.put(stream)
        await until(lambda: alice.made)
        alice.made[0].may_finish.clear()
        stream.bring()
        await settle()
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        alice.made[0].may_finish.set()
        await until(lambda: alice.made[0].is_withdrawn)
        assert alice.made[0].finished == 1 and alice.uploads.count == 0
