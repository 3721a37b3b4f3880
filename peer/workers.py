"""The worker processes of a peer: one for each principal and set of labels, forked from a zygote on first use."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from peer import machine
from peer.buffers import BufferPool
from peer.jail_rules import JailRules
from peer.watching import Watching
from peer.worker.answers import Exported, Result, Usage
from peer.worker.budgets import Budgets, PrincipalStatistics
from peer.worker.channel import tune
from peer.worker.confinement import FLAG, described, missing
from peer.worker.job import Job
from peer.worker.outgoing import Outgoing
from peer.worker.part import Part
from peer.worker.remote import Worker, WorkerKey, WorkerStatistics
from peer.worker.sandbox import Settings
from peer.worker.zygote_process import ZygoteEvents, ZygoteProcess
from protocol import limits
from protocol.errors import BadRequest, GridError, InternalError, SetupError, TooLarge, WorkerLost

__all__ = [
    "Exported",
    "PoolSettings",
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


def default_threads() -> int:
    """Half of the cores for one operation: a peer has several workers, and itself to run."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2)


def _settings() -> Settings:
    return Settings(threads=default_threads())


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How many workers, what each may use, and how long one is kept that holds nothing.

    Attributes:
        worker: what each is allowed. Its memory is that of all workers of one principal together; where that is None,
            they have a part of the machine's (limits.MEMORY_SHARE).
        cpu: cores that the workers of one principal may keep busy in the long run; None: as many as they can.
        burst: seconds of processors that they may take before that counts.
        jails: whose jails run here.
    """

    worker: Settings = field(default_factory=_settings)
    max_workers: int = limits.MAX_WORKERS
    idle: float = limits.WORKER_IDLE
    cpu: float | None = None
    burst: float = limits.CPU_BURST
    jails: JailRules = field(default_factory=JailRules)

    def __post_init__(self) -> None:
        if self.max_workers < 1 or self.idle <= 0:
            raise BadRequest("a pool needs at least one worker, and a positive idle time")
        if (self.cpu is not None and not 0 < self.cpu < float("inf")) or not 0 < self.burst < float("inf"):
            given = f"not {'none' if self.cpu is None else f'{self.cpu:g}'} and {self.burst:g}"
            raise BadRequest(f"a principal's share of the processors, and its burst, are positive numbers, {given}")
        if self.jails.has_any and not self.worker.is_sandboxed:
            raise BadRequest(
                f"jails run behind the sandbox's walls or not at all: {FLAG} and --jails exclude each other"
            )

    def to_plain(self) -> dict[str, Any]:
        """As values that JSON holds; `from_plain` takes them back."""
        return {**asdict(self), "jails": self.jails.to_plain()}

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> PoolSettings:
        fields = dict(value)
        if "worker" in fields:
            fields["worker"] = Settings(**fields["worker"])
        if "jails" in fields:
            fields["jails"] = JailRules.from_plain(fields["jails"])
        return cls(**fields)


def _channel() -> tuple[socket.socket, socket.socket]:
    """Two ends between a process and us. InternalError where there are no more."""
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise InternalError(f"no socket for another worker: {error.strerror}") from None
    tune(ours)
    tune(theirs)
    return ours, theirs


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
        self._watching = Watching(self._budgets, worker.seconds, self._processes, self._is_running)
        self.buffers = buffers or BufferPool()
        self._workers: dict[WorkerKey, Worker] = {}
        self._jobs: set[Job | Part] = set()
        self._spares: list[Job] = []  # processes for jails, that nobody has used
        self._by_seq: dict[int, Worker | Job | Part] = {}
        self._by_pid: dict[int, Worker | Job | Part] = {}
        self._zygote: ZygoteProcess | None = None
        self._has_no_device = False
        self._ready: asyncio.Future[None] | None = None
        self._confined: asyncio.Future[dict[str, str] | None] | None = None
        self._refused: dict[str, str] | None = None  # walls that workers do without; None: they have none
        self._sweeper: asyncio.Task[None] | None = None
        self._seq = 0
        self._zygotes_started = 0
        self._ended = 0
        self._is_closed = False

    async def start(self) -> None:
        """Starts the zygote, so that the first request does not wait for it."""
        if not self.settings.worker.is_sandboxed:
            _log.warning("UNPROTECTED (%s): who computes here can do whatever this user can", FLAG)
        self._running_zygote()
        self._sweeper = asyncio.create_task(self._sweep(), name="peergrid worker sweeper")
        self._watching.start()

    async def confined(self) -> None:
        """Waits for the zygote's word on the walls around it, long before torch is there. Cancelling is safe.

        Raises:
            SetupError: they are no boundary, and the settings do not say that there need not be one.
            InternalError: the zygote ended without a word.
        """
        self._running_zygote()
        assert self._confined is not None
        refused = await asyncio.shield(self._confined)
        if refused is not None and (lacking := missing(refused)) is not None:
            raise SetupError(lacking)

    @property
    def protection(self) -> str:
        """How well workers are confined, in words."""
        if not self.settings.worker.is_sandboxed:
            return f"NONE ({FLAG})"
        return "unknown yet" if self._refused is None else described(self._refused)

    async def ready(self) -> None:
        """Waits until the zygote has imported torch. Cancelling is safe.

        Raises:
            SetupError: torch cannot compute on the device of the settings.
            InternalError: the zygote ended.
        """
        self._running_zygote()
        assert self._ready is not None
        await asyncio.shield(self._ready)

    async def close(self) -> None:
        """Ends every worker and the zygote; pending futures fail with WorkerLost. Safe to call twice."""
        self._is_closed = True
        sweeper, self._sweeper = self._sweeper, None
        if sweeper is not None:
            sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sweeper
        await self._watching.close()
        zygote, self._zygote = self._zygote, None
        for worker in list(self._workers.values()):
            worker.kill()
        for job in [*self._jobs, *self._spares]:
            job.lose("was ended with its peer")
            self._job_over(job, -signal.SIGKILL)
        self._fail_ready("was ended with its peer")
        if zygote is not None:
            await zygote.close()

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
        self._jobs.add(job)
        self._watching.began(job)
        asyncio.get_running_loop().call_soon(self._keep_spares)
        return job

    def _new_job(self) -> Job:
        zygote, (ours, theirs) = self._running_zygote(), _channel()
        job = Job(ours, self._jail_settings, self._job_gone)
        self._seq += 1
        self._by_seq[self._seq] = job
        with theirs:
            try:
                zygote.spawn_jail(self._seq, self._jail_settings, theirs)
            except OSError as error:
                self._worker_refused(self._seq, f"no descriptor is left ({error.strerror})")
        return job

    def part(self, principal: str, labels: frozenset[str], name: str) -> Part:
        """A process for this peer's part in one secure run of this principal's. Never waits; killed when closed."""
        if self._is_closed:
            raise InternalError("the peer is closing; no more secure runs begin here")
        zygote, (ours, theirs) = self._running_zygote(), _channel()
        settings = dataclasses.replace(self._worker_settings, device="cpu")
        part = Part(ours, settings, self._job_gone, WorkerKey(principal, labels), name, self.buffers)
        self._jobs.add(part)
        self._watching.began(part)
        self._seq += 1
        self._by_seq[self._seq] = part
        with theirs:
            try:
                zygote.spawn_party(self._seq, settings, theirs)
            except OSError as error:
                self._worker_refused(self._seq, f"no descriptor is left ({error.strerror})")
        return part

    def _keep_spares(self) -> None:
        """Has processes at hand that have done nothing yet, where jails run at all."""
        if self._is_closed or self._zygote is None or not self.settings.jails.has_any:
            return
        with contextlib.suppress(GridError):
            while len(self._spares) < limits.JAIL_SPARES:
                self._spares.append(self._new_job())

    @property
    def _jail_settings(self) -> Settings:
        rules = self.settings.jails
        memory = rules.memory or self._worker_settings.memory
        return dataclasses.replace(self._worker_settings, memory=memory, seconds=rules.seconds, device="cpu")

    def _processes(self) -> list[Worker | Job | Part]:
        return [*self._workers.values(), *self._jobs]

    def _job_gone(self, job: Job | Part) -> None:
        """It is to be dead, and forgotten when it is."""
        if self._zygote is None:
            self._job_over(job, -signal.SIGKILL)
        elif job.pid is not None and self._is_running(job):
            self._zygote.kill(job.pid)

    def _job_over(self, job: Job | Part, status: int) -> None:
        if job in self._jobs:
            self._watching.ended(job)
            self._jobs.discard(job)
        elif isinstance(job, Job) and job in self._spares:
            self._spares.remove(job)
            job.close()
        job.exited(status)

    def find(self, principal: str, labels: frozenset[str] = frozenset()) -> Worker | None:
        """The worker, if it is there."""
        key: Any = (principal, labels)  # equal to their WorkerKey, and made without a call
        return self._workers.get(key)

    def check_share(self, principal: str) -> None:
        """TooLarge, with how long to wait, for a principal whose operations took more than its share of processors."""
        if self.settings.cpu is not None:
            self._budgets.check(principal, asyncio.get_running_loop().time())

    def is_overdrawn(self, principal: str) -> bool:
        """Whether `check_share` would refuse."""
        if self.settings.cpu is None:
            return False
        return self._budgets.wait(principal, asyncio.get_running_loop().time()) > 0

    def statistics(self) -> PoolStatistics:
        return PoolStatistics(
            zygote=self._zygote.pid if self._zygote else None,
            zygotes_started=self._zygotes_started,
            workers=tuple(worker.statistics() for worker in self._workers.values()),
            spawned=self._seq,
            ended=self._ended,
            principals=self._budgets.statistics(),
        )

    def _spawn(self, key: WorkerKey) -> Worker:
        if self._is_closed:
            raise InternalError("the peer is closing; no more operations run here")
        self._make_room()
        zygote = self._running_zygote()
        ours, theirs = _channel()
        seconds = self.settings.worker.seconds
        outgoing = Outgoing(self.buffers, self._budgets, key.principal)
        worker = Worker(key, ours, outgoing, self._worker_gone, self._worker_holds, seconds)
        worker.on_lost(_report)
        self._watching.began(worker)
        self._seq += 1
        self._workers[key] = self._by_seq[self._seq] = worker
        with theirs:
            try:
                zygote.spawn(self._seq, self._worker_settings, theirs)
            except OSError as error:
                self._worker_refused(self._seq, f"no descriptor is left ({error.strerror})")
        self._share_memory(key.principal)
        return worker

    def _make_room(self) -> None:
        if len(self._workers) < self.settings.max_workers:
            return
        idle = [worker for worker in self._workers.values() if worker.is_idle]
        if not idle:
            raise TooLarge(
                f"this peer runs {self.settings.max_workers} workers at once, and all are in use; try again later",
                limit="MAX_WORKERS",
                size=self.settings.max_workers + 1,
                allowed=self.settings.max_workers,
            )
        min(idle, key=lambda worker: worker.idle_since).kill()

    def _running_zygote(self) -> ZygoteProcess:
        if self._zygote is None:
            self._ready = asyncio.get_running_loop().create_future()
            self._confined = asyncio.get_running_loop().create_future()
            events = ZygoteEvents(
                self._zygote_confined,
                self._zygote_has_no_device,
                self._zygote_ready,
                self._worker_spawned,
                self._worker_refused,
                self._worker_exited,
                self._zygote_lost,
            )
            try:
                self._zygote = ZygoteProcess(events, self._worker_settings)
            except OSError as error:
                self._fail_ready(f"did not start: {error.strerror}")
                raise InternalError(f"the zygote process did not start: {error.strerror}") from None
            self._zygotes_started += 1
        return self._zygote

    def _zygote_confined(self, refused: dict[str, str] | None) -> None:
        self._refused = refused
        if self._confined is not None and not self._confined.done():
            self._confined.set_result(refused)
        for wall, reason in (refused or {}).items():
            _log.info("workers do without a wall: %s (%s)", wall, reason)

    def _zygote_has_no_device(self, reason: str) -> None:
        self._has_no_device = True
        if self._ready is not None and not self._ready.done():
            device = self.settings.worker.device
            self._ready.set_exception(
                SetupError(f"this peer cannot compute on {device}: {reason}. Start it without --device {device}")
            )
            self._ready.exception()  # nobody may be waiting

    def _zygote_ready(self) -> None:
        if self._zygote is not None:
            machine.give_way(self._zygote.pid)  # not while it imports, which somebody may wait for
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)
        self._keep_spares()

    def _zygote_lost(self, how: str) -> None:
        # One that found no device has said so, and its peer does not start.
        level = logging.DEBUG if self._has_no_device else logging.WARNING
        _log.log(level, "the zygote process %s; its workers are gone, the next request starts another", how)
        self._zygote = None
        self._fail_ready(how)
        for worker in list(self._workers.values()):
            worker.lose(f"ended with its zygote, which {how},")
        for job in [*self._jobs, *self._spares]:
            job.lose(f"ended with its zygote, which {how}")
            self._job_over(job, -signal.SIGKILL)
        self._by_seq.clear()
        self._by_pid.clear()

    def _fail_ready(self, how: str) -> None:
        for waited in (self._ready, self._confined):
            if waited is not None and not waited.done():
                waited.set_exception(InternalError(f"the zygote process {how}; what it printed says why"))
                waited.exception()  # nobody may be waiting

    def _worker_spawned(self, seq: int, pid: int) -> None:
        worker = self._by_seq.pop(seq)
        worker.pid = pid
        self._by_pid[pid] = worker
        machine.give_way(pid)  # it may have been forked before its zygote was told to
        if isinstance(worker, Job | Part):
            if worker.is_lost or worker.is_over:
                self._job_gone(worker)
        elif worker.is_lost:  # before it was there
            self._worker_gone(worker)

    def _worker_refused(self, seq: int, reason: str) -> None:
        worker = self._by_seq.pop(seq)
        worker.lose(f"could not start: {reason}")
        if isinstance(worker, Job | Part):
            self._job_over(worker, -signal.SIGKILL)

    def _worker_exited(self, pid: int, status: int) -> None:
        worker = self._by_pid.pop(pid, None)
        if isinstance(worker, Job | Part):
            self._job_over(worker, status)
        elif worker is not None:
            worker.exited(status)

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
        if self._zygote is not None and worker.pid is not None and self._is_running(worker):
            self._zygote.kill(worker.pid)

    def _is_running(self, worker: Worker | Job | Part) -> bool:
        """From the zygote's word that it is there to that that it has exited."""
        return worker.pid in self._by_pid

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.settings.idle / 4)
            for worker in list(self._workers.values()):
                if worker.is_idle and loop.time() - worker.idle_since > self.settings.idle:
                    worker.kill()
            self.buffers.sweep()
