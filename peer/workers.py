"""The worker processes of a peer: one for each principal and set of labels, forked from a zygote on first use."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass

from peer import machine
from peer.buffers import BufferPool
from peer.forks import Forked, Forks, channel
from peer.pool_settings import PoolSettings
from peer.watching import Watching
from peer.worker.answers import Exported, Result, Usage
from peer.worker.budgets import Budgets, PrincipalStatistics
from peer.worker.confinement import FLAG
from peer.worker.dedicated import Dedicated
from peer.worker.job import Job
from peer.worker.outgoing import Outgoing
from peer.worker.remote import Worker, WorkerKey, WorkerStatistics
from peer.worker.sandbox import Settings
from peer.worker.seat import Seat
from protocol import limits
from protocol.errors import GridError, InternalError, WorkerLost
from protocol.sizes import beyond

__all__ = [
    "Exported",
    "PoolStatistics",
    "PrincipalStatistics",
    "Result",
    "Settings",
    "Usage",
    "Worker",
    "WorkerKey",
    "WorkerPool",
    "WorkerStatistics",
]

_log = logging.getLogger("peergrid.workers")


def _report(error: WorkerLost) -> None:
    _log.log(logging.WARNING if "signal" in error.fields else logging.DEBUG, "%s", error.message)


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    zygote: int | None  # pid, None while none runs
    zygotes_started: int
    workers: tuple[WorkerStatistics, ...]
    spawned: int
    ended: int
    principals: tuple[PrincipalStatistics, ...]


class WorkerPool:
    """Starts, finds and ends workers.

    `start` returns when the zygote process is running, not when it has imported torch: requests queue meanwhile,
    and `ready` waits for it. A zygote that died takes its workers with it; the next `worker` starts another.
    """

    def __init__(self, settings: PoolSettings | None = None, buffers: BufferPool | None = None) -> None:
        self.settings = settings or PoolSettings()
        worker = self.settings.worker
        memory = worker.memory or max(limits.MIN_MEMORY, machine.memory() // limits.MEMORY_SHARE)
        self._worker_settings = dataclasses.replace(worker, memory=memory, has_jails=self.settings.jails.has_any)
        self._budgets = Budgets(memory, self.settings.cpu, self.settings.burst)
        self.buffers = buffers or BufferPool()
        self._workers: dict[tuple[str, frozenset[str]], Worker] = {}  # by WorkerKey, or what is equal to one
        self.find: Callable[[tuple[str, frozenset[str]]], Worker | None] = self._workers.get
        """The worker for values of this principal under these labels, if it is there."""
        self.has_shares = self.settings.cpu is not None
        """Whether principals have shares of the processors: else no operations are refused for having taken more."""
        self._dedicated: set[Dedicated] = set()
        self._spares: list[Job] = []  # processes for jails, that nobody has used
        self._forks = Forks(self._worker_settings, self._process_over, self._keep_spares)
        self._watching = Watching(
            self._budgets, worker.seconds, worker.threads, self._processes, self._forks.is_running
        )
        self._sweeper: asyncio.Task[None] | None = None
        self._ended = 0
        self._is_closed = False

    async def start(self) -> None:
        """Starts the zygote, so that the first request does not wait for it."""
        if not self.settings.worker.is_sandboxed:
            _log.warning("UNPROTECTED (%s): who computes here can do whatever this user can", FLAG)
        self._forks.start()
        self._sweeper = asyncio.create_task(self._sweep(), name="peergrid worker sweeper")
        self._watching.start()

    async def confined(self) -> None:
        """As `Forks.confined`."""
        await self._forks.confined()

    @property
    def protection(self) -> str:
        """How well workers are confined, in words."""
        if not self.settings.worker.is_sandboxed:
            return f"NONE ({FLAG})"
        return self._forks.walls

    async def ready(self) -> None:
        """As `Forks.ready`."""
        await self._forks.ready()

    async def close(self) -> None:
        """Ends every worker and the zygote; pending futures fail with WorkerLost. Safe to call twice."""
        self._is_closed = True
        sweeper, self._sweeper = self._sweeper, None
        if sweeper is not None:
            sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sweeper
        await self._watching.close()
        for worker in list(self._workers.values()):
            worker.kill()
        await self._forks.close()

    def worker(self, principal: str, labels: frozenset[str] = frozenset()) -> Worker:
        """The worker for values of `principal` under `labels`; started if there is none. Never waits.

        Raises:
            TooLarge: there are as many workers as this peer runs, and none is idle.
        """
        key = WorkerKey(principal, labels)
        worker = self._workers.get(key)
        return self._spawn(key) if worker is None else worker

    def jail(self, principal: str, labels: frozenset[str], name: str) -> Job:
        """A process for one jail of this principal's, on data under these labels; `name` is what people call it. Never
        waits. It is killed when the peer closes."""
        if self._is_closed:
            raise InternalError("the peer is closing; no more jails run here")
        job = self._spares.pop() if self._spares else self._new_job()
        job.assign(WorkerKey(principal, labels), name)
        self._dedicated.add(job)
        self._watching.began(job)
        asyncio.get_running_loop().call_soon(self._keep_spares)
        return job

    def _new_job(self) -> Job:
        self._forks.start()
        ours, theirs = channel()
        job = Job(ours, self._jail_settings, self._forks.kill)
        self._forks.fork("jail", job, self._jail_settings, theirs)
        return job

    def seat(self, principal: str, labels: frozenset[str], name: str) -> Seat:
        """A process for this peer in one secure session of this principal's. Never waits; killed when closed."""
        if self._is_closed:
            raise InternalError("the peer is closing; no more secure runs begin here")
        self._forks.start()
        ours, theirs = channel()
        settings = dataclasses.replace(self._worker_settings, device="cpu")
        seat = Seat(ours, settings, self._forks.kill, WorkerKey(principal, labels), name, self.buffers)
        self._dedicated.add(seat)
        self._watching.began(seat)
        self._forks.fork("party", seat, settings, theirs)
        return seat

    def _keep_spares(self) -> None:
        """Has processes at hand that have done nothing yet, where jails run at all."""
        if self._is_closed or self._forks.zygote is None or not self.settings.jails.has_any:
            return
        with contextlib.suppress(GridError):
            while len(self._spares) < limits.JAIL_SPARES:
                self._spares.append(self._new_job())

    @property
    def _jail_settings(self) -> Settings:
        rules = self.settings.jails
        memory = rules.memory or self._worker_settings.memory
        return dataclasses.replace(self._worker_settings, memory=memory, seconds=rules.seconds, device="cpu")

    def _processes(self) -> list[Worker | Dedicated]:
        return [*self._workers.values(), *self._dedicated]

    def _process_over(self, process: Forked, status: int) -> None:
        """The zygote's word that it is dead, or was never there."""
        if isinstance(process, Worker):
            process.exited(status)
        elif isinstance(process, Dedicated):
            if process in self._dedicated:
                self._watching.ended(process)
                self._dedicated.discard(process)
            elif isinstance(process, Job) and process in self._spares:
                self._spares.remove(process)
                process.close()
            process.exited(status)

    def check_share(self, principal: str) -> None:
        """TooLarge, with how long to wait, for a principal whose operations took more than its share of processors."""
        if self.has_shares:
            self._budgets.check(principal, asyncio.get_running_loop().time())

    def is_overdrawn(self, principal: str) -> bool:
        """Whether `check_share` would refuse."""
        return self.has_shares and self._budgets.wait(principal, asyncio.get_running_loop().time()) > 0

    def statistics(self) -> PoolStatistics:
        return PoolStatistics(
            zygote=self._forks.zygote,
            zygotes_started=self._forks.zygotes_started,
            workers=tuple(worker.statistics() for worker in self._workers.values()),
            spawned=self._forks.forked,
            ended=self._ended,
            principals=self._budgets.statistics(),
        )

    def _spawn(self, key: WorkerKey) -> Worker:
        if self._is_closed:
            raise InternalError("the peer is closing; no more operations run here")
        self._make_room()
        self._forks.start()
        ours, theirs = channel()
        seconds = self.settings.worker.seconds
        outgoing = Outgoing(self.buffers, self._budgets, key.principal)
        worker = Worker(key, ours, outgoing, self._worker_gone, self._worker_holds, seconds)
        worker.on_lost(_report)
        self._watching.began(worker)
        self._workers[key] = worker
        self._forks.fork("spawn", worker, self._worker_settings, theirs)
        self._share_memory(key.principal)
        return worker

    def _make_room(self) -> None:
        if len(self._workers) < self.settings.max_workers:
            return
        idle = [worker for worker in self._workers.values() if worker.is_idle]
        if not idle:
            most = self.settings.max_workers
            sentence = "this peer runs {allowed} workers at once, and all are in use; try again later"
            raise beyond("MAX_WORKERS", most + 1, sentence, allowed=most)
        min(idle, key=lambda worker: worker.idle_since).kill()

    def _worker_holds(self, worker: Worker, nbytes: int) -> None:
        self._budgets.holds(worker.key.principal, worker, nbytes)
        self._share_memory(worker.key.principal)

    def _share_memory(self, principal: str) -> None:
        """Tells the workers of a principal what the others leave to each."""
        workers = [worker for worker in self._workers.values() if worker.key.principal == principal]
        if len(workers) > 1 or (workers and workers[0].is_rationed):
            for worker in workers:
                worker.allow(self._budgets.allowed(principal, worker))

    def _worker_gone(self, worker: Worker) -> None:
        if self._workers.get(worker.key) is worker:
            self._watching.ended(worker)
            del self._workers[worker.key]
            self._ended += 1
            self._share_memory(worker.key.principal)
        self._forks.kill(worker)

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.settings.idle / 4)
            for worker in list(self._workers.values()):
                if worker.is_idle and loop.time() - worker.idle_since > self.settings.idle:
                    worker.kill()
            self.buffers.sweep()
