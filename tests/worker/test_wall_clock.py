"""The clock of a worker: what runs for too long is ended, and what only waits is not."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from compute.program import Input, Node, Program
from peer.pool_settings import PoolSettings
from peer.worker.remote import Result
from peer.worker.watch import Watch, beat
from protocol import limits
from protocol.errors import GridError, TooLarge, WorkerLost
from tests.waiting import PATIENCE, process_ended
from tests.worker.conftest import Asker, Workplace, new_id

SECONDS = 1.0


# --- decisions --------------------------------------------------------------------------------------------


def looks(watch: Watch, at: object, count: int, elapsed: float) -> list[bool]:
    return [watch.look(at, elapsed) for _ in range(count)]  # type: ignore[arg-type]


def test_what_takes_longer_than_it_may_is_condemned_at_the_second_look() -> None:
    watch = Watch(10.0)
    assert beat(10.0) == 0.5
    assert not any(looks(watch, "a", 1 + 20, 0.5))  # the first look is when it begins
    assert looks(watch, "a", 4, 0.5)[-2:] == [False, True]  # what it did before it, and told nobody, is given on top


def test_each_thing_has_the_whole_time() -> None:
    watch = Watch(10.0)
    for number in range(50):
        assert not any(looks(watch, number, 15, 0.5))


def test_idle_time_does_not_count() -> None:
    watch = Watch(10.0)
    for _ in range(10):
        assert not any(looks(watch, "a", 15, 0.5))
        assert not any(looks(watch, None, 100, 0.5))


def test_a_peer_that_stood_still_condemns_nobody() -> None:
    watch = Watch(10.0)
    assert not any(looks(watch, "a", 15, 0.5))
    assert not watch.look("a", 3600.0)  # the machine slept
    assert watch.spent <= 8.0
    assert not any(looks(watch, "b", 3, 3600.0))


def test_an_answer_that_came_while_the_peer_stood_still_is_heard_first() -> None:
    watch = Watch(10.0)
    assert not any(looks(watch, "a", 22, 0.5))
    assert not watch.look("a", 3600.0)  # over, but not condemned: the answer may lie in the channel
    assert not watch.look("b", 0.5)
    assert not watch.look(None, 0.5)


def test_the_wait_for_a_processor_does_not_count() -> None:
    watch = Watch(10.0)
    assert not any(watch.look("a", 0.5, {1: number * 0.4}) for number in range(100))
    assert any(watch.look("a", 0.5, {1: 40.0}) for _ in range(20))


def test_a_late_peer_on_a_busy_machine_counts_what_the_worker_had() -> None:
    watch = Watch(10.0)
    assert not watch.look("a", 0.5, {1: 0.0})
    for number in range(1, 6):
        assert not watch.look("a", 4.0, {1: number * 3.2})
    assert watch.spent == pytest.approx(4.0)


def test_of_threads_that_wait_for_each_other_the_slowest_counts() -> None:
    watch = Watch(10.0)
    for number in range(100):  # the first sleeps until the others are there
        assert not watch.look("a", 0.5, {1: 0.0, 2: number * 0.1, 3 + number // 2: (number % 2) * 0.5 + 0.4})
    assert watch.spent < 10.0


def test_one_of_many_operations_has_the_whole_time_wherever_it_begins() -> None:
    # It was told of what was done a moment too early to tell of the operation before the long one.
    watch = Watch(10.0)
    assert not any(looks(watch, (1, 3), 1 + round((limits.PROGRESS + 9.5) / 0.5), 0.5))
    assert not watch.look((1, 5), 0.5)


def test_a_beat_is_never_longer_than_a_second() -> None:
    assert beat(1e6) == limits.BEAT
    assert beat(0.2) == pytest.approx(0.01)


# --- workers ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hasty() -> Iterator[Workplace]:
    """Workers whose operations may take SECONDS, by the clock; by an estimate whatever they like."""
    place = Workplace(PoolSettings(dataclasses.replace(PoolSettings().worker, seconds=SECONDS)))
    yield place
    place.close()


@pytest.fixture
def slow(hasty: Workplace) -> Iterator[Asker]:
    someone = hasty.asker()
    yield someone

    someone.end()


def svd(x: bytes) -> list[Any]:
    return ["aten.linalg_svd.default", [x], {}, [new_id() for _ in "usv"]]


def endless(asker: Asker) -> list[Any]:
    """Longer than any clock: eigenvalues are found by going on and on, for which a lower bound says next to nothing."""
    return ["aten.linalg_eig.default", [asker.op("aten.rand.default", [4000, 4000])], {}, [new_id(), new_id()]]


def ask(asker: Asker, *requests: list[list[Any]]) -> list[list[Result] | GridError]:
    """What became of each; all are asked at once."""

    async def work() -> list[list[Result] | GridError]:
        futures = [asker.worker.run(operations) for operations in requests]
        await asyncio.wait(futures, timeout=PATIENCE)
        return [future.exception() or future.result() for future in futures]  # type: ignore[misc]

    return asker.do(work())


def kills(asker: Asker) -> int:
    return next(each.kills for each in asker.pool.statistics().principals if each.principal == asker.principal)


def test_an_operation_that_runs_too_long_costs_its_worker_alone(slow: Asker) -> None:
    other = slow.workplace.asker()
    kept = other.op("aten.ones.default", [3])
    bomb = endless(slow)
    pid = slow.pid
    (error, queued) = ask(slow, [bomb], [["aten.ones.default", [[1]], {}, [new_id()]]])
    process_ended(pid)
    for lost in (error, queued):
        assert isinstance(lost, WorkerLost)
        assert "aten.linalg_eig.default" in lost.message
        assert f"{SECONDS:g} s" in lost.message
        assert "--worker-seconds" in lost.message
        assert "smaller pieces" in lost.message
    assert kills(slow) == 1
    assert slow.value(slow.op("aten.ones.default", [2])).tolist() == [1, 1]
    assert other.value(kept).tolist() == [1, 1, 1]
    assert kills(other) == 0
    other.end()


def test_a_stopped_worker_is_one_that_takes_too_long(slow: Asker) -> None:
    slow.op("aten.ones.default", [1])
    pid = slow.pid
    os.kill(pid, signal.SIGSTOP)
    (error,) = ask(slow, [["aten.ones.default", [[1]], {}, [new_id()]]])
    assert isinstance(error, WorkerLost)
    process_ended(pid)
    slow.op("aten.ones.default", [1])


def test_a_worker_that_is_asked_nothing_may_take_its_time(slow: Asker) -> None:
    slow.op("aten.ones.default", [1])
    pid = slow.pid

    async def wait() -> None:
        await asyncio.sleep(1.5 * SECONDS)  # what must not happen happens in this time, if it does

    slow.do(wait())
    slow.op("aten.ones.default", [1])
    assert slow.pid == pid


def test_many_operations_may_take_longer_than_one(slow: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how far it is, and what it is at then is another thing for the watch."""
    x = slow.op("aten.rand.default", [300, 300])
    seen: set[Any] = set()
    monkeypatch.setattr(Watch, "look", lambda watch, at, elapsed, waits=None: seen.add(at))

    async def work() -> None:
        requests = 0
        while len({at for at in seen if at is not None and at[1] > 0}) < 2:
            await slow.worker.run([svd(x) for _ in range(160)])
            requests += 1
            assert requests < 1000, "it never said how far it was"

    slow.do(work())


def test_a_program_has_the_time_of_one_operation(slow: Asker) -> None:
    nodes = tuple(Node("aten.linalg_svdvals.default", [{"node": 0}]) for _ in range(400))
    program = Program((Input("x"),), nodes, {"node": 400})
    x = slow.op("aten.rand.default", [1000, 1000])

    async def run() -> GridError | None:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        slow.worker.run_program(future, bytes.fromhex(program.id), program.to_bytes(), [x], [new_id()])
        await asyncio.wait([future], timeout=PATIENCE)
        error = future.exception()
        assert isinstance(error, GridError)
        return error

    error = slow.do(run())
    assert isinstance(error, WorkerLost | TooLarge)
    if isinstance(error, WorkerLost):
        assert "program" in error.message


def test_what_is_known_to_be_too_long_does_not_cost_the_worker(slow: Asker) -> None:
    x = slow.op("aten.expand.default", slow.op("aten.ones.default", [1]), [20_000, 20_000])
    pid = slow.pid
    (result,) = slow.run(["aten.mm.default", [x, x], {}, [new_id()]])
    assert isinstance(result, TooLarge)
    assert result.fields["limit"] == "worker_seconds"
    assert slow.pid == pid


def test_whoever_goes_away_leaves_nothing_that_runs_for_ever(slow: Asker) -> None:
    bomb = endless(slow)
    pid = slow.pid

    async def go() -> None:
        future = slow.worker.run([bomb])
        await asyncio.sleep(0)
        future.cancel()

    slow.do(go())
    process_ended(pid)
