"""The peer's end of a worker, against a worker that is played by the test."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from peer.apart import Apart
from peer.awake import Rests, awake
from peer.buffers import BufferPool
from peer.worker.framing import encode
from peer.worker.remote import Made, Worker, WorkerKey
from protocol import limits
from protocol.errors import BadRequest, InternalError, NotFound, WorkerLost
from tests.waiting import PATIENCE, no_descriptors_left, until
from tests.worker.conftest import new_id

HOSTILE_ANSWERS: list[bytes] = [
    encode(["done", 1]),
    encode(["done", 1, "float32", [1 << 50], None]),
    encode(["done", 1, "float32", [-1], None]),
    encode(["done", 1, "os", [1], None]),
    encode(["done", 1, "float32", [2], b"1"]),
    encode(["done", 1, "float32", 7, None]),
    encode(["done", 1, "float32", [2], 7]),
    encode(["done", 1, "float32", [2], None]),  # "as provided", which it was not
    encode(["done", 99]),
    encode(["done"]),
    encode("done"),
    encode(None),
    encode(["fault", 1, {"code": 7, "fields": 7}]),
    encode(["fault", 1, []]),
    encode(["up"]),  # once more
    encode(["up", 1]),
    b"\xff" * 100,
]


@contextlib.asynccontextmanager
async def impostor(
    labels: frozenset[str] = frozenset(), *, is_up: bool = True
) -> AsyncIterator[tuple[Worker, socket.socket]]:
    """A peer's end whose worker is ours to play."""
    ours, theirs = socket.socketpair()
    worker = Worker(WorkerKey("somebody", labels), ours, BufferPool(), lambda worker: None)
    with theirs:
        if is_up:
            theirs.sendall(encode(["up"]))
            await until(lambda: worker._stretch.is_up)
        yield worker, theirs
    worker.kill()


@pytest.mark.parametrize("answer", HOSTILE_ANSWERS, ids=range(len(HOSTILE_ANSWERS)))
def test_a_worker_that_answers_nonsense_is_ended(answer: bytes) -> None:
    async def main() -> None:
        async with impostor() as (worker, theirs):
            future = worker.export(new_id())
            theirs.sendall(answer)
            with pytest.raises((WorkerLost, InternalError)):
                await asyncio.wait_for(future, PATIENCE)
            assert worker.is_lost

    with no_descriptors_left():
        asyncio.run(main())


def test_a_worker_that_does_not_begin_as_one_is_ended() -> None:
    """What it does before it is up is not held against its principal (turns.py)."""

    async def main() -> None:
        async with impostor(is_up=False) as (worker, theirs):
            future = worker.export(new_id())
            theirs.sendall(encode(["held", 1]))
            with pytest.raises(WorkerLost):
                await asyncio.wait_for(future, PATIENCE)

    with no_descriptors_left():
        asyncio.run(main())


def test_a_wrong_number_of_results_ends_the_worker() -> None:
    async def main() -> None:
        async with impostor() as (worker, theirs):
            future = worker.run([["a", [], {}, []]] * 3)
            theirs.sendall(encode(["done", 1, [[], []]]))
            with pytest.raises(InternalError):
                await asyncio.wait_for(future, PATIENCE)
            assert worker.is_lost

    asyncio.run(main())


@pytest.mark.parametrize("words", [[1, 2, 3, float("inf")], [float("inf"), 2, 3, 4.0], [{}, 2, 3, 4.0], [1] * 3])
def test_nobody_waits_for_an_account_that_makes_no_sense(words: list[Any]) -> None:
    async def main() -> None:
        async with impostor() as (worker, theirs):
            future = worker.usage()
            theirs.sendall(encode(["done", 1, *words]))
            with contextlib.suppress(InternalError):  # some of these are numbers
                await asyncio.wait_for(future, PATIENCE)

    asyncio.run(main())


def test_a_wrong_number_of_results_of_a_program_ends_the_worker() -> None:
    async def main() -> None:
        async with impostor() as (worker, theirs):
            future: asyncio.Future[Made] = asyncio.get_running_loop().create_future()
            worker.run_program(future, new_id(), b"", [], [new_id()])
            theirs.sendall(encode(["done", 1, [], None]))
            with pytest.raises(InternalError):
                await asyncio.wait_for(future, PATIENCE)
            assert worker.is_lost

    asyncio.run(main())


def test_a_worker_does_not_speak_as_its_peer() -> None:
    """What is said of a lost worker is shown to whoever asks, even where nothing else of private data is."""

    async def main() -> None:
        async with impostor() as (worker, theirs):
            future = worker.export(new_id())
            theirs.sendall(encode(["fault", 1, {"code": "worker_lost", "message": "3.14159"}]))
            with pytest.raises(InternalError) as caught:
                await asyncio.wait_for(future, PATIENCE)
            assert worker.is_lost and "3.14159" not in str(caught.value)

    asyncio.run(main())


def test_a_fault_takes_little_room() -> None:
    async def main() -> None:
        async with impostor() as (worker, theirs):
            future = worker.run([["a", [], {}, [new_id()]]])
            fault = {
                "code": "not_found",
                "message": "m" * 100_000,
                "fields": {"f": "x" * 100_000},
                "operation": "o" * 9_000,
            }
            theirs.sendall(encode(["done", 1, [fault], None]))
            (error,) = await asyncio.wait_for(future, PATIENCE)
            assert isinstance(error, NotFound) and len(str(error.to_fault())) < limits.WORKER_FAULT
            assert not worker.is_lost

    asyncio.run(main())


@pytest.mark.parametrize("labels", [frozenset(), frozenset({"another"})], ids=["its own data", "private data"])
def test_what_a_worker_says_of_its_defect_is_one_line_and_tells_nothing_private(labels: frozenset[str]) -> None:
    async def main() -> None:
        async with impostor(labels) as (worker, theirs):
            future = worker.export(new_id())
            theirs.sendall(encode(["defect", "secret\nWARNING: \x1b[2Jforged"]))
            worker.pid = -3  # it was dead before its number could be read
            worker.exited(70)
            theirs.close()
            with pytest.raises(WorkerLost) as caught:
                await asyncio.wait_for(future, PATIENCE)
            assert caught.value.message.isprintable() and "-3" not in caught.value.message
            assert ("secret" in caught.value.message) != bool(labels)

    asyncio.run(main())


def test_a_worker_that_does_not_read_is_not_told_without_end_what_it_may_hold() -> None:
    async def main() -> None:
        async with impostor() as (worker, _):
            for nbytes in range(100_000):
                worker.allow(nbytes)
                if not nbytes % 1_000:
                    await asyncio.sleep(0)
            assert worker.statistics().unsent_bytes < limits.MIB

    asyncio.run(main())


def test_an_argument_that_cannot_travel_is_refused_and_nothing_is_asked() -> None:
    async def main() -> None:
        async with impostor() as (worker, _):
            with pytest.raises(BadRequest):
                worker.run([["a", [1 << 70], {}, [new_id()]]])
            assert worker.is_idle

    asyncio.run(main())


def test_a_worker_that_does_not_read_makes_the_peer_wait() -> None:
    async def main() -> None:
        async with impostor() as (worker, _):
            for _ in range(100):
                worker.run([["a", [b"x" * 100_000], {}, []]])
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(worker.ready(), 0.05)
            worker.kill()
            await asyncio.wait_for(worker.ready(), PATIENCE)

    asyncio.run(main())


@pytest.mark.parametrize("is_crowded", [True, False])
async def test_where_cores_are_few_it_is_waited_for_asleep(monkeypatch: pytest.MonkeyPatch, is_crowded: bool) -> None:
    stays = awake()
    monkeypatch.setattr(stays, "apart", Apart(lambda: -1, lambda seconds, call: None) if is_crowded else None)
    monkeypatch.setattr(stays, "rests", Rests(time.perf_counter, lambda: None))
    async with impostor() as (worker, _):
        asked = worker.run([["aten.neg.default", [], {}, []]])
        assert stays._is_turning is not is_crowded
    with pytest.raises(WorkerLost):
        await asked
