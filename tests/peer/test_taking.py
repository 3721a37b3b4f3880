"""A value that is being taken has one end, whatever happens in between: somebody has it, or it is given back."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from peer.buffers import Buffer, BufferPool
from peer.execution import Execution
from peer.leases import Leases
from peer.objects import Objects, Temporary
from peer.spans import Spans
from peer.taking import Exporting, Taking
from peer.worker.remote import Exported
from peer.workers import WorkerPool
from protocol.errors import OperationFailed, WorkerLost
from protocol.tensors import TensorHeader
from tests.waiting import until

NBYTES = 100_000
HEADER = TensorHeader("uint8", (NBYTES,))
NOWHERE: Any = None


class Scene:
    """A temporary with a buffer of its own, whose worker was asked for it."""

    def __init__(self) -> None:
        self.pool = BufferPool()
        self.held = Temporary(bytes(16), "ann", ("ann", bytes(16)), frozenset(), time.time(), header=HEADER)
        self.held.buffer = self.filled()
        self.answer: asyncio.Future[Exported] = asyncio.get_running_loop().create_future()

    def filled(self) -> Buffer:
        buffer = self.pool.take(NBYTES)
        buffer.append(bytes(NBYTES))
        return buffer

    def taking(self, *, is_exporting: bool = True) -> Taking:
        exporting: Exporting | None = (NOWHERE, self.answer) if is_exporting else None
        return Taking(self.held, exporting, Spans(NOWHERE))

    @property
    def used(self) -> int:
        """Buffers that somebody has, besides the temporary's own."""
        assert self.held.buffer is not None
        self.held.buffer.release()
        self.held.buffer = None
        return self.pool.statistics().used


async def test_what_nobody_awaits_is_given_back_when_it_is_closed() -> None:
    for is_exporting in (False, True):
        scene = Scene()
        taking = scene.taking(is_exporting=is_exporting)
        taking.close()
        taking.close()
        assert scene.answer.cancelled() == is_exporting, "the worker's answer is to be let go when it comes"
        assert scene.used == 0


async def test_an_answer_that_nobody_awaits_is_given_back() -> None:
    scene = Scene()
    taking = scene.taking()
    scene.answer.set_result(Exported(HEADER, scene.filled()))
    taking.close()
    assert scene.used == 0


async def test_whoever_awaits_it_has_it() -> None:
    scene = Scene()
    answered = scene.filled()
    scene.answer.set_result(Exported(HEADER, answered))
    assert await scene.taking() == (HEADER, answered)
    answered.release()
    as_it_came = Scene()
    header, value = await as_it_came.taking(is_exporting=False)
    assert (header, value) == (HEADER, as_it_came.held.buffer)
    assert as_it_came.used == 1
    assert isinstance(value, Buffer)
    value.release()
    assert (scene.used, as_it_came.pool.statistics().used) == (0, 0)


async def test_a_failure_gives_all_back() -> None:
    scene = Scene()
    taking = scene.taking()
    scene.answer.set_result(Exported(HEADER, scene.filled()))
    scene.held.failure = OperationFailed("no")
    with pytest.raises(OperationFailed, match="no"):
        await taking
    assert scene.used == 0


async def test_an_asker_that_goes_in_the_moment_of_the_answer_takes_nothing_along() -> None:
    scene = Scene()

    async def ask() -> Any:
        return await scene.taking()

    task = asyncio.create_task(ask())
    await asyncio.sleep(0)
    scene.answer.set_result(Exported(HEADER, scene.filled()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert scene.used == 0


class Dying:
    """A worker that takes what it is asked and is lost before it answers."""

    is_lost = False
    key = SimpleNamespace(labels=frozenset())

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[Any]] = []

    def holds(self, _: bytes) -> bool:
        return True

    async def ready(self) -> None: ...

    def drop(self, _: Any) -> None: ...

    def run(self, _: Any) -> asyncio.Future[Any]:
        self.asked.append(asyncio.get_running_loop().create_future())
        return self.asked[-1]


async def test_a_request_that_loses_its_worker_lets_go_of_the_value_that_it_wanted() -> None:
    scene, worker = Scene(), Dying()
    objects = Objects(NOWHERE, Leases(), "alice")
    objects.add(scene.held)
    workers: Any = SimpleNamespace(find=lambda *_: worker, check_share=lambda _: None)
    pool: WorkerPool = workers
    execution = Execution(objects, NOWHERE, pool)
    zeros = ["aten.zeros.default", [[1]], {}, [b"1" * 16]]
    asked = asyncio.create_task(execution.run("ann", scene.held.lease, [zeros], fetch=scene.held.id))
    await until(lambda: worker.asked)
    worker.asked[0].set_exception(WorkerLost("gone"))
    with pytest.raises(WorkerLost):
        await asked
    assert scene.used == 0
