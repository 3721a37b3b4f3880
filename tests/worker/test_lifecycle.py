"""Workers come and go: started on first use, lost without harm to others, ended when they hold nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from peer.pool_settings import PoolSettings
from peer.worker.remote import Result, Worker
from peer.workers import Settings, WorkerPool
from protocol.errors import GridError, InternalError, NotFound, TooLarge, WorkerLost
from tests.waiting import PATIENCE, descriptors, no_descriptors_left, process_ended
from tests.worker.conftest import Asker, Workplace, content, header_of, new_id

pytestmark = pytest.mark.usefixtures("real_zygotes")

SIDE = 900  # a singular value decomposition of a square matrix of this side takes most of a second


def begin_something_slow(asker: Asker) -> asyncio.Future[Any]:
    x = asker.op("aten.rand.default", [SIDE, SIDE])

    async def begin() -> asyncio.Future[Any]:
        decompositions = [["aten.linalg_svd.default", [x], {}, [new_id() for _ in "usv"]] for _ in range(20)]
        future = asker.worker.run(decompositions)
        await asyncio.sleep(0.05)  # most likely in the middle of it now; the claims hold at any time
        return future

    return asker.do(begin())


def outcome(asker: Asker, future: asyncio.Future[Any]) -> Any:
    """The result, or the error."""

    async def work() -> Any:
        try:
            return await asyncio.wait_for(future, PATIENCE)
        except GridError as error:
            return error

    return asker.do(work())


def loss(asker: Asker, worker: Worker) -> WorkerLost:
    async def work() -> WorkerLost:
        return await asyncio.wait_for(asyncio.shield(worker.lost), PATIENCE)

    return asker.do(work())


def test_a_principal_keeps_its_process(asker: Asker) -> None:
    asker.op("aten.zeros.default", [1])
    pid = asker.pid
    asker.op("aten.zeros.default", [1])
    assert asker.pid == pid
    assert asker.pool.find((asker.principal, frozenset())) is asker.worker


def test_other_labels_are_another_process(asker: Asker) -> None:
    x = asker.op("aten.zeros.default", [1])

    async def other() -> tuple[Worker, BaseException | None]:
        worker = asker.pool.worker(asker.principal, frozenset({"owner"}))
        future = worker.export(x)
        await asyncio.wait([future])
        worker.kill()
        return worker, future.exception()

    worker, error = asker.do(other())
    assert worker is not asker.worker
    assert isinstance(error, NotFound)


def test_a_killed_worker_fails_what_was_asked_of_it_and_nothing_else(asker: Asker) -> None:
    other = asker.workplace.asker()
    kept = other.op("aten.neg.default", other.send(torch.ones(3)))
    slow = begin_something_slow(asker)
    worker, pid = asker.worker, asker.pid
    told: list[WorkerLost] = []

    async def ask_more() -> asyncio.Future[Any]:
        worker.on_lost(told.append)
        return worker.export(new_id())

    queued = asker.do(ask_more())
    os.kill(pid, signal.SIGKILL)
    for future in (slow, queued):
        error = outcome(asker, future)
        assert isinstance(error, WorkerLost)
        assert error.fields["signal"] == "SIGKILL"
        assert "SIGKILL" in error.message
    assert len(told) == 1
    assert other.value(kept).tolist() == [-1, -1, -1]
    other.end()


def test_what_is_no_message_ends_a_worker_when_what_came_before_it_is_done(asker: Asker) -> None:
    x = asker.op("aten.ones.default", [400, 400])
    slow = [["aten.mm.default", [x, x], {}, [new_id()]] for _ in range(40)]

    async def ask() -> list[Result]:
        first, others = worker.run(slow[:20]), worker.run(slow[20:])
        await first
        worker.channel._socket.send(b"\1\0\0\0\0\xc1")  # it looks at what has come while it is at the others
        return await asyncio.wait_for(others, PATIENCE)

    worker = asker.worker
    assert not any(isinstance(result, GridError) for result in asker.do(ask()))
    assert "defect" in loss(asker, worker).message


def test_after_a_loss_the_next_request_has_a_new_worker(asker: Asker) -> None:
    x = asker.send(torch.ones(3))
    asker.op("aten.neg.default", x)
    worker = asker.worker
    os.kill(asker.pid, signal.SIGKILL)
    loss(asker, worker)
    assert worker.is_lost
    assert not worker.holds(x)

    async def ask_the_dead() -> Any:
        worker.provide(x, header_of(torch.ones(1)), content(torch.ones(1)))
        return await worker.export(x)

    with pytest.raises(WorkerLost):
        asker.do(ask_the_dead())
    with pytest.raises(NotFound):
        asker.op("aten.neg.default", x)
    assert asker.worker is not worker


def test_ending_a_worker_does_not_wait_for_its_operation(asker: Asker) -> None:
    slow = begin_something_slow(asker)
    pid = asker.pid
    asker.end()
    error = outcome(asker, slow)
    assert isinstance(error, WorkerLost)
    assert "ended by its peer" in error.message
    process_ended(pid)


def test_a_crash_says_its_signal_and_what_was_running(asker: Asker) -> None:
    x = asker.op("aten.rand.default", [3 * SIDE, 3 * SIDE])

    async def begin() -> asyncio.Future[Any]:
        return asker.worker.run([["aten.linalg_svd.default", [x], {}, [new_id() for _ in "usv"]]])

    slow = asker.do(begin())
    os.kill(asker.pid, signal.SIGSEGV)
    error = outcome(asker, slow)
    assert error.fields["signal"] == "SIGSEGV"
    assert "aten.linalg_svd.default" in error.message


def test_a_thousand_values_provided_and_dropped_leave_nothing_behind(asker: Asker, memory_file: Any) -> None:
    fd = memory_file(bytes(4096))
    header = header_of(torch.zeros(1024))

    async def provide_and_drop(count: int) -> int:
        worker = asker.worker
        for _ in range(count):
            given, made = new_id(), new_id()
            worker.provide(given, header, fd)
            worker.run([["aten.add.Scalar", [given, 1], {}, [made]]])
            worker.drop([given, made])
            await worker.ready()
        return (await worker.usage()).objects

    def left() -> tuple[int, int, int]:
        mapped = Path(f"/proc/{asker.pid}/maps").read_text().count("memfd")
        return descriptors(), descriptors(asker.pid), mapped

    assert asker.do(provide_and_drop(10)) == 0
    before = left()
    assert asker.do(provide_and_drop(1000)) == 0
    # Fewer than before: the workers of earlier tests end in their own time.
    assert all(now <= then for now, then in zip(left(), before, strict=True)), (left(), before)


def test_exports_of_large_values_leave_nothing_behind(asker: Asker) -> None:
    x = asker.op("aten.zeros.default", [20_000])

    async def caught_up() -> None:
        await asker.worker.usage()  # by then it has closed what it sent last

    asker.value(x)
    asker.do(caught_up())
    theirs = descriptors(asker.pid)
    with no_descriptors_left():
        for _ in range(50):
            asker.value(x)
        asker.do(caught_up())
    assert descriptors(asker.pid) == theirs
    assert asker.pool.buffers.statistics().used == 0


def test_an_answer_that_nobody_waits_for_any_more_is_let_go(asker: Asker) -> None:
    x = asker.op("aten.zeros.default", [20_000])

    async def cancel() -> None:
        asker.worker.export(x).cancel()
        await asker.worker.usage()

    asker.do(cancel())
    assert asker.pool.buffers.statistics().used == 0


def test_a_pool_bounds_its_workers_ends_idle_ones_and_outlives_its_zygote() -> None:
    # One test, because each pool costs an import of torch.
    place = Workplace(PoolSettings(Settings(threads=2), max_workers=2, idle=0.2))
    try:
        all_workers_in_use_are_too_many(place)
        one_that_holds_nothing_of_its_own_is_ended(place)
        a_dead_zygote_takes_its_workers_and_is_replaced(place)
    finally:
        place.close()


def all_workers_in_use_are_too_many(place: Workplace) -> None:
    one, two, three = place.asker(), place.asker(), place.asker()
    one.op("aten.zeros.default", [1])
    x = two.op("aten.zeros.default", [1])
    with pytest.raises(TooLarge) as caught:
        three.op("aten.zeros.default", [1])
    assert caught.value.fields["limit"] == "MAX_WORKERS"
    two.drop(x)
    three.op("aten.zeros.default", [1])
    assert place.pool.find((one.principal, frozenset())) is not None
    assert place.pool.find((two.principal, frozenset())) is None
    one.end()
    three.end()


def one_that_holds_nothing_of_its_own_is_ended(place: Workplace) -> None:
    asker = place.asker()
    published, made = new_id(), new_id()

    async def idle() -> tuple[bool, WorkerLost]:
        worker = asker.worker
        value = torch.ones(3)
        # It can be provided again, so that it keeps nothing alive; what is made of it does, if it is asked for at once.
        worker.provide(published, header_of(value), content(value), 0, True)
        await worker.run([["aten.neg.default", [published], {}, [made]]])
        await asyncio.sleep(0.5)
        survived = not worker.is_lost
        worker.drop([made])
        return survived, await asyncio.wait_for(asyncio.shield(worker.lost), PATIENCE)

    survived, _ = place.do(idle())
    assert survived
    assert place.pool.find((asker.principal, frozenset())) is None


def a_dead_zygote_takes_its_workers_and_is_replaced(place: Workplace) -> None:
    asker = place.asker()
    slow = begin_something_slow(asker)
    pid, zygote = asker.pid, place.pool.statistics().zygote
    assert zygote is not None
    os.kill(zygote, signal.SIGKILL)
    error = outcome(asker, slow)
    assert isinstance(error, WorkerLost)
    assert "zygote" in error.message
    process_ended(pid)
    asker.op("aten.zeros.default", [1])
    assert place.pool.statistics().zygotes_started == 2


def test_closing_a_pool_that_is_still_starting_leaves_nothing() -> None:
    async def main() -> tuple[int | None, BaseException | None]:
        pool = WorkerPool()
        await pool.start()
        zygote = pool.statistics().zygote
        future = pool.worker("somebody").usage()
        await pool.close()
        await pool.close()
        with pytest.raises(InternalError):
            pool.worker("somebody")
        return zygote, future.exception()

    threads = threading.active_count()  # ours, and those of pools and peers that other tests share
    with no_descriptors_left():
        zygote, error = asyncio.run(main())
    assert isinstance(error, WorkerLost)
    assert not Path(f"/proc/{zygote}").exists()
    assert threading.active_count() <= threads


def test_a_zygote_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")

    async def main() -> None:
        pool = WorkerPool()
        await pool.start()
        worker = pool.worker("somebody")
        with pytest.raises(InternalError, match="ended with status 1"):
            await pool.ready()
        with pytest.raises(WorkerLost, match="ended with status 1"):
            await worker.usage()
        await pool.close()

    asyncio.run(main())


def test_workers_die_with_their_peer() -> None:
    script = """if True:
        import asyncio, os, signal
        from peer.workers import WorkerPool
        async def main():
            pool = WorkerPool()
            await pool.start()
            worker = pool.worker("somebody")
            await worker.usage()
            while worker.pid is None:
                await asyncio.sleep(0.001)
            print(pool.statistics().zygote, worker.pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        asyncio.run(main())
    """
    peer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert peer.returncode == -signal.SIGKILL
    for pid in map(int, peer.stdout.split()):
        process_ended(pid)


def test_the_peer_imports_no_torch_and_its_workers_fill_what_torch_leaves_uninitialised() -> None:
    script = """if True:
        import sys
        import peer.workers, peer.buffers
        assert "torch" not in sys.modules
        from peer.worker import process
        process.warm()
        import torch
        for _ in range(10):
            torch.full((1000,), 7.0)
            assert torch.empty(1000).isnan().all()
            assert (torch.empty(1000, dtype=torch.int32) == torch.iinfo(torch.int32).max).all()
    """
    subprocess.run([sys.executable, "-c", script], check=True, timeout=200)


def test_a_zygote_that_is_not_there_is_an_error_and_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")

    async def main() -> None:
        pool = WorkerPool()
        with pytest.raises(InternalError, match="did not start"):
            await pool.start()
        with pytest.raises(InternalError, match="did not start"):
            pool.worker("somebody")
        await pool.close()

    with no_descriptors_left():
        asyncio.run(main())


def test_waiting_for_a_pool_that_is_closed_ends_with_an_error() -> None:
    async def main() -> None:
        pool = WorkerPool()
        waits = asyncio.create_task(pool.ready())
        await asyncio.sleep(0)
        await pool.close()
        with pytest.raises(InternalError, match="ended with its peer"):
            await waits

    asyncio.run(main())
