"""The peer's end of a worker, against a worker that is played by the test."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from peer.buffers import BufferPool
from peer.worker.channel import encode
from peer.worker.remote import Worker, WorkerKey
from protocol.errors import BadRequest, InternalError, WorkerLost
from tests.waiting import PATIENCE, no_descriptors_left
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
    b"\xff" * 100,
]


@contextlib.asynccontextmanager
async def impostor() -> AsyncIterator[tuple[Worker, socket.socket]]:
    """A peer's end whose worker is ours to play."""
    ours, theirs = socket.socketpair()
    worker = Worker(WorkerKey("somebody", frozenset()), ours, BufferPool(), lambda worker: None)
    with theirs:
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


def test_a_wrong_number_of_results_ends_the_worker() -> None:
    async def main() -> None:
        async with impostor() as (worker, theirs):
            future = worker.run([["a", [], {}, []]] * 3)
            theirs.sendall(encode(["done", 1, [[], []]]))
            with pytest.raises(InternalError):
                await asyncio.wait_for(future, PATIENCE)
            assert worker.is_lost

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
