"""Transfers that go on after the line broke: nothing is lost, little is sent twice, and what cannot go on says so."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from peer.arrivals import Arrival
from peer.calls import Answer, Call
from peer.exports import Exports, Position, token_of
from peer.keys import Identity
from peer.links import Links
from peer.membership import Member, Membership
from peer.payloads import JoinedPayload, MemoryPayload
from peer.resuming import Download, upload
from peer.uploads import Uploads
from protocol import limits
from protocol.errors import BadRequest, Changed, Corrupt, LinkError, NotFound, PeerLost, Unreachable
from protocol.handshake import Introduction
from tests.faults import FaultProxy
from tests.waiting import until

DORA = Identity.generate()
BLOCK = limits.BLOCK
ID = bytes(16)
ARGS = {"id": ID, "kind": "tensor", "dtype": "uint8"}


def value_of(nbytes: int) -> bytes:
    return random.Random(nbytes).randbytes(nbytes)


class Kept:
    """An intake that keeps what comes in a list."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.is_aborted = self.is_withdrawn = False
        self.finished = asyncio.Event()
        self.may_finish = asyncio.Event()
        self.may_finish.set()

    @property
    def taken(self) -> int:
        return len(self.data)

    @property
    def memory(self) -> int:
        return len(self.data)

    async def take(self, source: Any) -> None:
        self.data += source.payload
        if source.stream is not None:
            async for piece in source.stream:
                self.data += piece

    async def content(self) -> str | None:
        return None

    async def finish(self, arrived: Any = None) -> dict[str, Any]:
        await self.may_finish.wait()
        self.finished.set()
        return {"nbytes": len(self.data)}

    async def abort(self) -> None:
        self.is_aborted = True

    async def withdraw(self) -> None:
        self.is_withdrawn = True


@dataclass
class Holder:
    """Serves one value, and takes values in, as a peer does."""

    value: bytes = b""
    exports: Exports = field(default_factory=Exports)
    uploads: Uploads = field(default_factory=Uploads)
    intakes: list[Kept] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    holds_back: bool = False  # what comes is finished when the test lets it, by `may_finish`

    async def serve(self, call: Call) -> Answer:
        self.asked.append(call.op)
        match call.op:
            case "fetch":
                return await self.fetch(Position.of(call.args))
            case "fetched" | "delete" | "release":
                return Answer({})
            case "put":
                arrival = Arrival.of({**call.args, "shape": [1]}, "x", frozenset())
                record = await self.uploads.put("x", arrival, call.args["offset"], call, self.begin)
                return Answer({"record": record})
            case "resume":
                return Answer(await self.uploads.resume("x", Arrival.of({**call.args, "shape": [1]}, "x", frozenset())))
        raise BadRequest(call.op)

    async def begin(self, nbytes: int) -> Kept:
        self.intakes.append(made := Kept())
        if self.holds_back:
            made.may_finish.clear()
        return made

    async def fetch(self, at: Position) -> Answer:
        token = token_of(str(hash(self.value)), b"", 0, len(self.value))
        if at.token not in (None, token):
            raise Changed("another one by now")
        payload = await self.exports.resumed(MemoryPayload(self.value), Position(at.offset, token))
        return Answer({"token": token}, payload)


@dataclass
class Bad:
    """A line to a holder through a proxy. `before` is called whenever a connection is asked for."""

    holder: Holder
    proxy: FaultProxy
    links: Links
    member: Member
    before: Callable[[], None] = lambda: None

    async def connect(self) -> Any:
        self.before()
        return await self.links.to(self.member, bulk=True)

    async def download(self) -> Download:
        return await Download.begin(self.connect, "fetch", {"id": ID}, "alice")

    async def fetched(self) -> bytes:
        download = await self.download()
        data = bytearray(download.nbytes)
        await download.into(memoryview(data))
        return bytes(data)

    async def put(self, value: bytes, progress: Any = None) -> dict[str, Any]:
        answer = await upload(self.connect, ARGS, JoinedPayload([value]), "alice", progress)
        return dict(answer.result["record"])

    async def put_and_cut_before_the_answer(self, value: bytes) -> asyncio.Future[dict[str, Any]]:
        """All bytes are there, and their disk takes as long as `may_finish` of the intake says."""
        self.holder.holds_back = True
        putting = asyncio.ensure_future(self.put(value))
        await until(lambda: self.holder.intakes and self.holder.intakes[0].taken == len(value))
        self.proxy.cut()
        return putting


@pytest.fixture
def bad(acceptor: Any) -> Callable[..., contextlib.AbstractAsyncContextManager[Bad]]:
    @contextlib.asynccontextmanager
    async def make(value: bytes = b"") -> AsyncIterator[Bad]:
        holder = Holder(value)
        async with acceptor(holder.serve) as server, FaultProxy(server.url) as proxy:
            member = Member(server.identity.id, "alice", (proxy.url,))
            table = Membership()
            table.learn([member])
            links = Links(DORA, Introduction("client", "dora", lease=bytes(16)), table)
            try:
                yield Bad(holder, proxy, links, member)
            finally:
                await links.close()
                await holder.uploads.close()
                holder.exports.close()

    return make


def cutting(faults: Any, cuts: int, seed: int = 0, most: int = 4 * BLOCK) -> Callable[[], None]:
    """Before each connection: where the next one is cut."""
    chosen = random.Random(seed)
    faults.cuts = cuts

    def choose() -> None:
        faults.cut_after = chosen.randrange(2 * BLOCK + BLOCK // 2, most)

    return choose


# --- down -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reading", ["into", "pieces"])
async def test_a_fetch_that_is_cut_20_times_finishes_and_sends_a_block_twice_at_most(bad: Any, reading: str) -> None:
    value = value_of(64 * BLOCK + 12_345)
    async with bad(value) as line:
        line.before = cutting(line.proxy.down, 20)
        if reading == "into":
            got = await line.fetched()
        else:
            got = b"".join([bytes(piece) async for piece in await line.download()])
        assert got == value
        assert line.proxy.cut_count == 20
        overhead = 64 * limits.KIB * 21  # handshakes and headers
        assert line.proxy.down.passed <= len(value) + 20 * BLOCK + overhead


@pytest.mark.parametrize("reset", [False, True])
async def test_a_line_that_ends_by_reset_costs_no_more_than_what_was_under_way(bad: Any, reset: bool) -> None:
    value = value_of(20 * BLOCK)
    async with bad(value) as line:
        line.proxy.down.reset = reset
        line.before = cutting(line.proxy.down, 5)
        assert await line.fetched() == value
        assert line.proxy.cut_count == 5
        assert line.proxy.down.passed <= len(value) + 5 * (4 if reset else 1) * BLOCK + limits.MIB


async def test_a_line_that_stalls_is_left_for_another(bad: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STALL_TIMEOUT", 0.3)
    value = value_of(8 * BLOCK)
    async with bad(value) as line:
        line.proxy.down.stall_after = 3 * BLOCK
        download = await line.download()
        line.before = lambda: setattr(line.proxy.down, "stall_after", None)
        assert b"".join([bytes(piece) async for piece in download]) == value
        assert line.proxy.connections == 2


async def test_a_line_that_is_slow_and_moves_is_not_cut(bad: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STALL_TIMEOUT", 0.3)
    value = value_of(2 * BLOCK)
    async with bad(value) as line:
        line.proxy.down.rate = line.proxy.up.rate = 2_000_000  # a block takes half a second
        assert await line.fetched() == value
        await line.put(value)
        assert line.proxy.connections == 1 and line.holder.intakes[0].data == value


async def test_a_line_in_tiny_slices_brings_it_all(bad: Any) -> None:
    value = value_of(2 * BLOCK + 7)
    async with bad(value) as line:
        line.proxy.down.slice = line.proxy.up.slice = 1_001
        assert await line.fetched() == value
        await line.put(value)
        assert line.holder.intakes[0].data == value


@pytest.mark.parametrize("reading", ["into", "pieces"])
async def test_a_byte_that_came_out_wrong_is_found_and_its_block_asked_for_again(bad: Any, reading: str) -> None:
    value = value_of(12 * BLOCK)
    async with bad(value) as line:
        line.proxy.down.corrupt_at, line.proxy.down.corruptions = 5 * BLOCK + BLOCK // 2, 1
        if reading == "into":
            assert await line.fetched() == value
        else:
            assert b"".join([bytes(piece) async for piece in await line.download()]) == value
        assert line.proxy.down.corruptions == 0
        assert line.holder.asked.count("fetch") == 2 and line.proxy.connections == 1


async def test_blocks_that_are_wrong_every_time_are_an_error_that_names_the_source(
    bad: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("exports", "sending"):
        monkeypatch.setattr(f"peer.{module}.hash_of", lambda block: 1)
    async with bad(value_of(8 * BLOCK)) as line:
        with pytest.raises(Corrupt, match=r"block 0 .*from alice"):
            await line.fetched()
        assert line.holder.asked.count("fetch") == limits.BLOCK_TRIES
        with pytest.raises(Corrupt, match=r"block 0 .*from dora"):
            await line.put(value_of(8 * BLOCK))
        assert line.holder.asked.count("put") == limits.BLOCK_TRIES


async def test_a_fetch_goes_on_at_a_peer_that_was_started_again(bad: Any, acceptor: Any) -> None:
    value = value_of(9 * BLOCK)
    async with bad(value) as line:
        again = Holder(value)
        async with acceptor(again.serve) as server:
            line.proxy.down.cut_after, line.proxy.down.cuts = 4 * BLOCK, 1
            download = await line.download()
            line.proxy.retarget(server.url)
            assert b"".join([bytes(piece) async for piece in download]) == value
            assert again.asked[0] == "fetch"


async def test_what_was_changed_meanwhile_is_not_mixed_into_it(bad: Any) -> None:
    async with bad(value_of(9 * BLOCK)) as line:
        line.proxy.down.cut_after, line.proxy.down.cuts = 4 * BLOCK, 1
        download = await line.download()
        line.holder.value = bytes(9 * BLOCK)
        with pytest.raises(Changed):
            async for _ in download:
                pass


async def test_a_peer_that_stays_away_is_given_up_with_what_there_is(bad: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RESUME_TIMEOUT", 0.3)
    async with bad(value_of(9 * BLOCK)) as line:
        line.proxy.down.cut_after = 4 * BLOCK
        download = await line.download()
        line.proxy.refuse = True
        with pytest.raises(PeerLost, match=f"stands at {3 * BLOCK} of {9 * BLOCK} bytes") as lost:
            async for _ in download:
                pass
        assert lost.value.peer == "alice" and lost.value.fields == {"done": 3 * BLOCK, "nbytes": 9 * BLOCK}


async def test_a_transfer_does_not_outlive_its_own_end(bad: Any) -> None:
    async with bad(value_of(40 * BLOCK)) as line:
        download = await line.download()
        putting = asyncio.ensure_future(line.put(value_of(40 * BLOCK)))
        await anext(download)
        await line.links.close()
        with pytest.raises(Unreachable, match="this end is closed"):
            async for _ in download:
                pass
        with pytest.raises(LinkError):
            await putting


async def test_what_the_peer_answers_is_final(bad: Any) -> None:
    async with bad() as line:

        async def refuse(at: Position) -> Answer:
            raise NotFound("no such object")

        line.holder.fetch = refuse  # type: ignore[method-assign]
        with pytest.raises(NotFound):
            await line.fetched()
        assert line.holder.asked == ["fetch"]


async def test_a_small_value_comes_beside_the_answer(bad: Any) -> None:
    async with bad(b"small") as line:
        download = await line.download()
        assert (download.stream, bytes(download.payload), download.nbytes) == (None, b"small", 5)
        assert await line.fetched() == b"small"
        assert [bytes(piece) async for piece in await line.download()] == [b"small"]


async def test_a_download_that_is_not_wanted_any_more_stops(bad: Any) -> None:
    async with bad(value_of(40 * BLOCK)) as line:
        download = await line.download()
        await anext(download)
        download.abort()
        await asyncio.wait_for(line.fetched(), 60)  # the line is free
        taking = asyncio.ensure_future(line.fetched())
        await until(lambda: line.holder.asked.count("fetch") == 3)
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking


# --- up ---------------------------------------------------------------------------------------------------


async def test_a_put_that_is_cut_20_times_finishes_and_sends_a_block_twice_at_most(bad: Any) -> None:
    value = value_of(64 * BLOCK + 12_345)
    progress: list[int] = []
    async with bad() as line:
        line.before = cutting(line.proxy.up, 20)
        assert await line.put(value, lambda done, of: progress.append(done)) == {"nbytes": len(value)}
        assert [bytes(each.data) for each in line.holder.intakes] == [value]
        assert line.proxy.cut_count == 20
        assert line.proxy.up.passed <= len(value) + 20 * BLOCK + 21 * 64 * limits.KIB
        assert progress == sorted(progress) and progress[-1] == len(value)


async def test_a_put_over_a_line_that_stalls_goes_on_over_another(bad: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STALL_TIMEOUT", 0.3)
    value = value_of(24 * BLOCK)
    async with bad() as line:
        line.proxy.up.stall_after = 3 * BLOCK
        asked = 0

        def second_is_good() -> None:
            nonlocal asked
            asked += 1
            line.proxy.up.stall_after = 3 * BLOCK if asked == 1 else None

        line.before = second_is_good
        await line.put(value)
        assert [bytes(each.data) for each in line.holder.intakes] == [value]
        assert line.proxy.connections == 2


async def test_a_byte_of_a_put_that_came_out_wrong_is_found_and_sent_again(bad: Any) -> None:
    value = value_of(12 * BLOCK)
    async with bad() as line:
        line.proxy.up.corrupt_at, line.proxy.up.corruptions = 5 * BLOCK + BLOCK // 2, 1
        await line.put(value)
        assert [bytes(each.data) for each in line.holder.intakes] == [value]
        assert line.proxy.up.corruptions == 0


async def test_an_answer_that_was_lost_is_given_again(bad: Any) -> None:
    value = value_of(3 * BLOCK)
    async with bad() as line:
        putting = await line.put_and_cut_before_the_answer(value)
        line.holder.intakes[0].may_finish.set()
        assert await putting == {"nbytes": len(value)}
        assert len(line.holder.intakes) == 1 and line.holder.asked.count("put") == 1


async def test_a_put_that_is_given_up_leaves_nothing(bad: Any) -> None:
    async with bad() as line:
        line.proxy.up.rate = 8_000_000
        putting = asyncio.ensure_future(line.put(value_of(3 * limits.WINDOW)))
        await until(lambda: line.holder.intakes and line.holder.intakes[0].taken)
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        await until(lambda: line.holder.intakes[0].is_aborted)
        assert line.holder.uploads.count == 0


async def test_a_put_whose_client_vanished_is_thrown_away_when_its_time_is_over(bad: Any) -> None:
    async with bad() as line:
        now = 100.0
        line.holder.uploads = Uploads(lambda: now)
        line.proxy.up.rate = 8_000_000
        putting = asyncio.ensure_future(line.put(value_of(3 * limits.WINDOW)))
        await until(lambda: line.holder.intakes and line.holder.intakes[0].taken)
        line.proxy.refuse = True
        line.proxy.cut()
        await until(lambda: not any(upload.is_busy for upload in line.holder.uploads._uploads.values()))
        await line.holder.uploads.sweep()
        assert line.holder.uploads.count == 1 and not line.holder.intakes[0].is_aborted
        now += limits.RESUME_TIMEOUT
        await line.holder.uploads.sweep()
        assert line.holder.uploads.count == 0 and line.holder.intakes[0].is_aborted
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting


async def test_a_source_that_cannot_be_read_says_why_and_leaves_nothing(bad: Any) -> None:
    class Broken(JoinedPayload):
        def now(self, offset: int, size: int) -> Any:
            if offset:
                raise NotFound("the file was cut short")
            return super().now(offset, size)

    async with bad() as line:
        with pytest.raises(NotFound, match="cut short"):
            await upload(line.connect, ARGS, Broken([value_of(4 * BLOCK)]), "alice")
        await until(lambda: not line.holder.uploads.count)
        assert line.holder.intakes[0].is_aborted


async def test_a_disk_that_takes_long_to_finish_is_waited_for_after_a_break(
    bad: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STALL_TIMEOUT", 0.05)
    monkeypatch.setattr(limits, "RESUME_TIMEOUT", 0.2)
    value = value_of(3 * BLOCK)
    async with bad() as line:
        putting = await line.put_and_cut_before_the_answer(value)
        await until(lambda: "resume" in line.holder.asked)
        await asyncio.wait({putting}, timeout=0.6)
        line.holder.intakes[0].may_finish.set()
        assert await putting == {"nbytes": len(value)}
        assert line.holder.asked.count("resume") == 1 and line.proxy.connections == 2


async def test_the_rest_of_a_fetch_may_wait_its_turn_at_the_peer(bad: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    value = value_of(9 * BLOCK)
    async with bad(value) as line:
        line.proxy.down.cut_after, line.proxy.down.cuts = 4 * BLOCK, 1
        download = await line.download()
        turn, fetch = asyncio.Event(), line.holder.fetch

        async def wait(at: Position) -> Answer:
            await turn.wait()
            return await fetch(at)

        line.holder.fetch = wait
        monkeypatch.setattr(limits, "STALL_TIMEOUT", 0.05)
        reading = asyncio.ensure_future(download.into(memoryview(bytearray(len(value)))))
        await until(lambda: line.holder.asked.count("fetch") == 2)
        await asyncio.wait({reading}, timeout=0.3)
        monkeypatch.undo()
        turn.set()
        await reading
        assert line.holder.asked.count("fetch") == 2


@pytest.mark.parametrize("is_cut", [False, True])
async def test_a_put_that_is_given_up_when_all_is_there_is_undone(bad: Any, is_cut: bool) -> None:
    value = value_of(3 * BLOCK)
    async with bad() as line:
        line.holder.holds_back = True
        putting = asyncio.ensure_future(line.put(value))
        await until(lambda: any(upload.finishing for upload in line.holder.uploads._uploads.values()))
        if is_cut:
            line.proxy.refuse = True
            line.proxy.cut()
            await until(lambda: not any(upload.source for upload in line.holder.uploads._uploads.values()))
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        line.proxy.refuse = False
        if is_cut:  # what undoes it waits for the end of what is being finished
            line.holder.intakes[0].may_finish.set()
            await until(lambda: "release" in line.holder.asked)
        else:  # it comes before that end: the peer itself sees to it
            await until(lambda: "release" in line.holder.asked)
            line.holder.intakes[0].may_finish.set()
            await until(lambda: line.holder.intakes[0].is_withdrawn)
