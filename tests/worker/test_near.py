"""A worker is kept on its peer's core for as long as the peer waits awake for it, and not a moment longer."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest

from peer.awake import awake
from peer.buffers import BufferPool
from peer.worker.line import WorkerKey
from peer.worker.near import Near
from peer.worker.remote import Worker
from protocol.errors import WorkerLost
from tests.waiting import until

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two processors, and Linux"
)


@pytest.fixture
def pid() -> Iterator[int]:
    """Of a process that waits."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.communicate(b"\n", timeout=30)


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """All of them; this process stays on the first until the test puts it elsewhere."""
    everywhere = os.sched_getaffinity(0)
    monkeypatch.setattr("peer.awake.cores", lambda: len(everywhere))
    found = sorted(everywhere)
    os.sched_setaffinity(0, {found[0]})
    yield found
    os.sched_setaffinity(0, everywhere)


def test_it_comes_to_our_core_and_may_leave_it(pid: int, cores: list[int]) -> None:
    near = Near(set(cores))
    near.draw(pid, lambda: -1)
    assert os.sched_getaffinity(pid) == {cores[0]}
    near.free(pid)
    assert os.sched_getaffinity(pid) == set(cores)


def test_it_follows_us(pid: int, cores: list[int]) -> None:
    near = Near(set(cores))
    near.draw(pid, lambda: -1)
    os.sched_setaffinity(0, {cores[1]})
    near.draw(pid, lambda: -1)
    assert os.sched_getaffinity(pid) == {cores[1]}


def test_where_the_asker_is_we_do_not_stay(pid: int, cores: list[int]) -> None:
    near, seen = Near(set(cores)), set()
    for _ in range(100):
        near.draw(pid, lambda: cores[0])
        seen |= os.sched_getaffinity(pid)
    assert seen - {cores[0]}
    assert os.sched_getaffinity(0) == set(cores), "we may be anywhere, as before"


def test_what_is_free_is_left_alone(pid: int) -> None:
    one = {min(os.sched_getaffinity(pid))}
    os.sched_setaffinity(pid, one)
    Near().free(pid)
    assert os.sched_getaffinity(pid) == one


def test_a_process_that_is_gone_is_no_error() -> None:
    near = Near()
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(timeout=30)
    near.draw(process.pid, lambda: -1)
    near.draw(None, lambda: -1)
    near.free(process.pid)


def test_where_we_may_not_move_ourselves_any_more_nothing_fails(
    pid: int, cores: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    near, move = Near(set(cores)), os.sched_setaffinity

    def refuse(who: int, where: set[int]) -> None:
        if who == 0:
            raise OSError("these cores are another group's now")
        move(who, where)

    with monkeypatch.context() as patch:
        patch.setattr("os.sched_setaffinity", refuse)
        for _ in range(100):
            near.draw(pid, lambda: cores[0])
        near.free(pid)
    assert os.sched_getaffinity(pid) == set(cores)


# --- whom a peer waits for ----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _worker(pid: int, *, is_crowded: bool = True) -> AsyncIterator[Worker]:
    """One that is asked something and never answers, and whose process is this one."""
    awake().asker_core = (lambda: -1) if is_crowded else None
    ours, theirs = socket.socketpair()
    worker = Worker(WorkerKey("somebody", frozenset()), ours, BufferPool(), lambda worker: None)
    worker.pid = pid
    with theirs:
        yield worker
    worker.kill()


async def test_a_worker_comes_for_as_long_as_it_is_waited_for_awake(pid: int, cores: list[int]) -> None:
    os.sched_setaffinity(pid, cores[1:])
    async with _worker(pid) as worker:
        asked = worker.run([["aten.neg.default", [], {}, []]])
        assert os.sched_getaffinity(pid) == {cores[0]}
        await until(lambda: len(os.sched_getaffinity(pid)) > 1)
    with pytest.raises(WorkerLost):
        await asked


async def test_it_stays_where_it_is_for_many_operations(pid: int, cores: list[int]) -> None:
    os.sched_setaffinity(pid, cores[1:])
    async with _worker(pid) as worker:
        asked = worker.run([["aten.neg.default", [], {}, []]] * 2)
        assert os.sched_getaffinity(pid) == set(cores[1:])
    with pytest.raises(WorkerLost):
        await asked


async def test_it_stays_where_it_is_while_there_are_cores_for_all(pid: int, cores: list[int]) -> None:
    os.sched_setaffinity(pid, cores[1:])
    async with _worker(pid, is_crowded=False) as worker:
        asked = worker.run([["aten.neg.default", [], {}, []]])
        assert os.sched_getaffinity(pid) == set(cores[1:])
    with pytest.raises(WorkerLost):
        await asked


async def test_a_number_that_may_be_somebody_elses_by_now_is_left_alone(pid: int, cores: list[int]) -> None:
    async with _worker(pid) as worker:
        asked = worker.run([["aten.neg.default", [], {}, []]])
        assert os.sched_getaffinity(pid) == {cores[0]}
        worker.kill()
        await until(lambda: not awake()._is_turning)
        assert os.sched_getaffinity(pid) == {cores[0]}
    with pytest.raises(WorkerLost):
        await asked
