"""Workers that die in the middle of their work: whose they were is told and can go on at once; nobody else notices.

`PEERGRID_FULL=1` kills two hundred instead of a few.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

import grid
from grid.client import Grid
from peer import machine
from peer.folders import Folders
from peer.keys import Identity
from peer.peer import Peer, Settings
from peer.pool_settings import PoolSettings
from peer.processes import PeerProcess
from peer.worker.remote import Worker
from peer.workers import WorkerPool
from protocol import limits
from protocol.errors import GridError, TooLarge, WorkerLost
from tests.full import FULL
from tests.waiting import descriptors, process_ended, until

KILLS = 200 if FULL else 12
SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL)

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("real_zygotes")]


@contextlib.asynccontextmanager
async def alice(folder: Path, settings: PoolSettings | None = None) -> AsyncIterator[Peer]:
    """A peer in this very process, so that its workers can be found."""
    peer = await Peer.start(
        Settings("alice", port=0, folders=Folders.under(folder), workers=settings or PoolSettings())
    )
    try:
        yield peer
    finally:
        await peer.close()


def joined(peer: Peer, folder: Path, identity: Identity | None = None) -> grid.opening.Opening[grid.Grid]:
    return grid.connect(peer.url, identity=identity or Identity.generate(), folders=Folders.under(folder / "client"))


def pool_of(peer: Peer) -> WorkerPool:
    return peer._workers


async def worker_of(peer: Peer, identity: Identity) -> Worker:
    """Its process is there."""
    pool = pool_of(peer)
    await until(lambda: (found := pool.find((identity.id, frozenset()))) is not None and found.pid is not None)
    worker = pool.find((identity.id, frozenset()))
    assert worker is not None
    return worker


def memory() -> int:
    """Bytes of its own that this process has."""
    own = machine.own_memory(os.getpid())
    assert own is not None
    gc.collect()
    return own


async def worker_is_gone(worker: Worker) -> None:
    await until(lambda: worker.is_lost)


@grid.plan
def squares(x: torch.Tensor) -> torch.Tensor:
    return (x * x).sum()


class Bystander:
    """Somebody else, who computes all the while. `seen` is what happened to it."""

    def __init__(self, g: Grid) -> None:
        self._g = g
        self.rounds = 0
        self.slowest = 0.0
        self._is_over = False

    async def run(self) -> None:
        x = await self._g["alice"].send(torch.arange(1000))  # integers: they add up exactly, however often
        clock = asyncio.get_running_loop().time
        total = x.clone()
        while not self._is_over:
            begun = clock()
            total = total + x  # lives in the worker alone
            assert int(await (x * 2).sum().get()) == 999_000
            self.slowest = max(self.slowest, clock() - begun)
            self.rounds += 1
        assert torch.equal(await total.get(), torch.arange(1000) * (self.rounds + 1))

    def stop(self) -> None:
        self._is_over = True


async def lose_and_go_on(peer: Peer, g: Grid, ann: Identity, kills: int) -> int:
    """Kills ann's worker again and again while she computes; how often she was told so."""
    chance = random.Random(4)
    sent = await g["alice"].send(torch.arange(50_000.0))
    published = await g["alice"].send(torch.ones(50_000), tags=["#ones"])
    large = await g["alice"].send(torch.full((300, 300), 1e-3))
    told = 0
    for number in range(kills):
        made = [(sent + number).sum(), (published * 3).sum(), ((large @ large) @ large).sum()]
        asked = [asyncio.ensure_future(pointer.get()) for pointer in made]
        worker = await worker_of(peer, ann)
        await asyncio.sleep(chance.random() * 0.01)  # whenever it is: the claims hold at any moment
        assert worker.pid is not None
        os.kill(worker.pid, SIGNALS[number % len(SIGNALS)])
        values = await asyncio.gather(*asked, return_exceptions=True)
        for value in values:
            assert isinstance(value, torch.Tensor | WorkerLost), value
            told += isinstance(value, WorkerLost)
        await worker_is_gone(worker)
        # What came from outside is usable at once, and so is what is published; programs are sent again by themselves.
        assert float(await (sent + 1).sum().get()) == float((torch.arange(50_000.0) + 1).sum())
        assert float(await published.sum().get()) == 50_000
        assert float(await (await g.run(squares, published)).get()) == 50_000
    return told


async def test_workers_die_under_load_and_only_their_principal_is_told(tmp_path: Path) -> None:
    ann, bob = Identity.generate(), Identity.generate()
    async with alice(tmp_path) as peer, joined(peer, tmp_path, ann) as g, joined(peer, tmp_path, bob) as other:
        bystander = Bystander(other)
        beside = asyncio.create_task(bystander.run())
        await lose_and_go_on(peer, g, ann, 2)
        before, ended = descriptors(), pool_of(peer).statistics().ended
        processes, peak = len(with_all_below(os.getpid())), memory()
        told = await lose_and_go_on(peer, g, ann, KILLS)
        bystander.stop()
        await beside
        assert bystander.rounds > KILLS
        assert pool_of(peer).statistics().ended == ended + KILLS
        assert told <= 3 * KILLS
        await until(lambda: descriptors() <= before + 8, descriptors)  # a buffer or a socket more or less
        await until(lambda: len(with_all_below(os.getpid())) <= processes, lambda: with_all_below(os.getpid()))
        assert memory() < peak + 16 * limits.MIB + KILLS * 64 * limits.KIB
        workers = pool_of(peer).statistics().workers
        assert len(workers) == 2
        assert all(each.pending == 0 for each in workers)


async def test_what_was_only_in_the_worker_is_gone_and_says_so(tmp_path: Path) -> None:
    ann = Identity.generate()
    async with alice(tmp_path) as peer, joined(peer, tmp_path, ann) as g:
        x = await g["alice"].send(torch.ones(3))
        y = x + 1
        assert float(await y.sum().get()) == 6
        worker = await worker_of(peer, ann)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        await worker_is_gone(worker)
        with pytest.raises(WorkerLost, match="SIGKILL"):
            await (y * 2).get()
        assert (await (x + 1).get()).tolist() == [2, 2, 2]


async def test_a_zygote_that_dies_under_load_is_replaced(tmp_path: Path) -> None:
    ann = Identity.generate()
    async with alice(tmp_path) as peer, joined(peer, tmp_path, ann) as g:
        x = await g["alice"].send(torch.arange(10.0))
        for number in range(2):
            asked = [asyncio.ensure_future((x * factor).sum().get()) for factor in range(20)]
            worker = await worker_of(peer, ann)
            zygote = pool_of(peer).statistics().zygote
            assert zygote is not None
            assert worker.pid is not None
            os.kill(zygote, signal.SIGKILL)
            for factor, value in enumerate(await asyncio.gather(*asked, return_exceptions=True)):
                assert isinstance(value, WorkerLost) or float(value) == 45 * factor, value  # type: ignore[arg-type]
            process_ended(worker.pid)
            assert float(await x.sum().get()) == 45
            assert pool_of(peer).statistics().zygotes_started == 2 + number


def stop_and_go_on(pids: list[int], seconds: float) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    for pid in reversed(pids):
        os.kill(pid, signal.SIGCONT)


def with_all_below(pid: int) -> list[int]:
    """A process and all that came of it."""
    found = [pid]
    for parent in found:
        children = Path(f"/proc/{parent}/task").glob("*/children")
        found += [int(child) for file in children for child in file.read_text().split()]
    return found


async def test_a_peer_that_stands_still_while_its_workers_work_kills_none(tmp_path: Path) -> None:
    plain, folders = PoolSettings(), Folders.under(tmp_path)
    workers = dataclasses.replace(plain, worker=dataclasses.replace(plain.worker, seconds=1.0))
    process = await PeerProcess.start(Settings("alice", port=0, folders=folders, workers=workers), tmp_path / "log")
    async with grid.connect(process.url, identity=Identity.generate(), folders=folders) as g:
        total: torch.Tensor = await g["alice"].send(torch.eye(200))
        for is_peer_alone in (True, False):
            values = [torch.linalg.svdvals(total + number).sum() for number in range(50)]
            total = total + 1  # in the worker alone: it would be gone with it
            asked = [asyncio.ensure_future(value.get()) for value in values]
            await asked[0]
            stopped = [process.pid] if is_peer_alone else with_all_below(process.pid)
            await asyncio.to_thread(stop_and_go_on, stopped, 1.5 * (1.0 + limits.PROGRESS))
            await asyncio.gather(*asked)
        assert float(await total[0, 0].get()) == 3
        status = await g.status(g.find_member("alice"))
        assert [each["kills"] for each in status["principals"]] == [0]
    await process.stop()


async def test_budgets_hold_for_whoever_comes_over_the_wire(tmp_path: Path) -> None:
    ann, bob = Identity.generate(), Identity.generate()
    plain = PoolSettings()
    worker = dataclasses.replace(plain.worker, memory=256 << 20, seconds=1.0)
    settings = dataclasses.replace(plain, worker=worker, cpu=0.0001, burst=2.0)
    async with (
        alice(tmp_path, settings) as peer,
        joined(peer, tmp_path, ann) as g,
        joined(peer, tmp_path, bob) as other,
    ):
        await memory_is_bounded(g)
        await time_is_bounded(g)
        x = await other["alice"].send(torch.ones(3))
        assert float(await x.sum().get()) == 3
        await the_share_of_the_processors_is_bounded(g)
        assert float(await x.sum().get()) == 3
        status = await g.status(g.find_member("alice"))
        of = {each["id"]: each for each in status["principals"]}
        assert of[ann.id]["kills"] >= 1
        assert of[ann.id]["cpu"] > 0.5
        assert of[bob.id]["kills"] == 0


async def memory_is_bounded(g: Grid) -> None:
    x = await g["alice"].send(torch.zeros(1))
    kept = [x.expand(100 << 18).clone() for _ in range(3)]  # 100 MiB each
    with pytest.raises(TooLarge, match="--worker-memory") as caught:
        await kept[-1].sum().get()
    assert caught.value.fields["limit"] == "worker_memory"
    del kept[0]
    assert float(await x.expand(100 << 18).clone().sum().get()) == 0


async def time_is_bounded(g: Grid) -> None:
    wide = (await g["alice"].send(torch.ones(1))).expand(400_000, 400_000)  # of four bytes of memory
    with pytest.raises(TooLarge, match="--worker-seconds"):
        await wide.sum().get()
    # Eigenvalues are found by going on and on: a lower bound, from the shape, says next to nothing.
    x = await g["alice"].send(torch.rand(3000, 3000))
    with pytest.raises(WorkerLost, match="--worker-seconds"):
        await torch.linalg.eigvals(x).abs().sum().get()  # type: ignore[attr-defined]  # a pointer


async def the_share_of_the_processors_is_bounded(g: Grid) -> None:
    async def compute() -> None:
        x = await g["alice"].send(torch.rand(200, 200))
        while True:
            await torch.linalg.svdvals(x).sum().get()

    with pytest.raises(GridError, match="ask again in") as caught:
        await compute()
    assert isinstance(caught.value, TooLarge)
    assert caught.value.fields["wait"] > 0
