"""The worker processes of a peer: one for each principal and set of labels, forked from a zygote on first use."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from peer.buffers import BufferPool
from peer.worker.answers import Exported, Result, Usage
from peer.worker.channel import tune
from peer.worker.remote import Worker, WorkerKey, WorkerStatistics
from peer.worker.sandbox import Settings
from peer.worker.zygote_process import ZygoteEvents, ZygoteProcess
from protocol import limits
from protocol.errors import BadRequest, InternalError, TooLarge, WorkerLost

__all__ = [
    "Exported",
    "PoolSettings",
    "PoolStatistics",
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
    """How many workers, what each may use, and how long one is kept that holds nothing."""

    worker: Settings = field(default_factory=_settings)
    max_workers: int = limits.MAX_WORKERS
    idle: float = limits.WORKER_IDLE

    def __post_init__(self) -> None:
        if self.max_workers < 1 or self.idle <= 0:
            raise BadRequest("a pool needs at least one worker, and a positive idle time")

    def to_plain(self) -> dict[str, Any]:
        """As values that JSON holds; `from_plain` takes them back."""
        return asdict(self)

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> PoolSettings:
        fields = dict(value)
        if "worker" in fields:
            fields["worker"] = Settings(**fields["worker"])
        return cls(**fields)


def _report(error: WorkerLost) -> None:
    _log.log(logging.WARNING if "signal" in error.fields else logging.DEBUG, "%s", error.message)


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    zygote: int | None  # pid, None while none runs
    zygotes_started: int
    workers: tuple[WorkerStatistics, ...]
    spawned: int
    ended: int


class WorkerPool:
    """Starts, finds and ends workers.

    `start` returns when the zygote process is running, not when it has imported torch: requests queue meanwhile,
    and `ready` waits for it. A zygote that died takes its workers with it; the next `worker` starts another.
    """

    def __init__(self, settings: PoolSettings | None = None, buffers: BufferPool | None = None) -> None:
        self.settings = settings or PoolSettings()
        self.buffers = buffers or BufferPool()
        self._workers: dict[WorkerKey, Worker] = {}
        self._by_seq: dict[int, Worker] = {}
        self._by_pid: dict[int, Worker] = {}
        self._zygote: ZygoteProcess | None = None
        self._ready: asyncio.Future[None] | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._seq = 0
        self._zygotes_started = 0
        self._ended = 0
        self._is_closed = False

    async def start(self) -> None:
        """Starts the zygote, so that the first request does not wait for it."""
        self._running_zygote()
        self._sweeper = asyncio.create_task(self._sweep(), name="peergrid worker sweeper")

    async def ready(self) -> None:
        """Waits until the zygote has imported torch. InternalError if it ended instead. Cancelling is safe."""
        self._running_zygote()
        assert self._ready is not None
        await asyncio.shield(self._ready)

    async def close(self) -> None:
        """Ends every worker and the zygote; pending futures fail with WorkerLost. Safe to call twice."""
        self._is_closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
            self._sweeper = None
        zygote, self._zygote = self._zygote, None
        for worker in list(self._workers.values()):
            worker.kill()
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

    def find(self, principal: str, labels: frozenset[str] = frozenset()) -> Worker | None:
        """The worker, if it is there."""
        return self._workers.get(WorkerKey(principal, labels))

    def statistics(self) -> PoolStatistics:
        return PoolStatistics(
            zygote=self._zygote.pid if self._zygote else None,
            zygotes_started=self._zygotes_started,
            workers=tuple(worker.statistics() for worker in self._workers.values()),
            spawned=self._seq,
            ended=self._ended,
        )

    def _spawn(self, key: WorkerKey) -> Worker:
        if self._is_closed:
            raise InternalError("the peer is closing; no more operations run here")
        self._make_room()
        zygote = self._running_zygote()
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise InternalError(f"no socket for another worker: {error.strerror}") from None
        tune(ours)
        tune(theirs)
        worker = Worker(key, ours, self.buffers, self._worker_gone)
        worker.on_lost(_report)
        self._seq += 1
        self._workers[key] = self._by_seq[self._seq] = worker
        with theirs:
            try:
                zygote.spawn(self._seq, self.settings.worker, theirs)
            except OSError as error:
                self._worker_refused(self._seq, f"no descriptor is left ({error.strerror})")
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
            events = ZygoteEvents(
                self._zygote_ready, self._worker_spawned, self._worker_refused, self._worker_exited, self._zygote_lost
            )
            try:
                self._zygote = ZygoteProcess(events)
            except OSError as error:
                self._fail_ready(f"did not start: {error.strerror}")
                raise InternalError(f"the zygote process did not start: {error.strerror}") from None
            self._zygotes_started += 1
        return self._zygote

    def _zygote_ready(self) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    def _zygote_lost(self, how: str) -> None:
        _log.warning("the zygote process %s; its workers are gone, the next request starts another", how)
        self._zygote = None
        self._fail_ready(how)
        for worker in list(self._workers.values()):
            worker.lose(f"ended with its zygote, which {how},")
        self._by_seq.clear()
        self._by_pid.clear()

    def _fail_ready(self, how: str) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(InternalError(f"the zygote process {how}; what it printed says why"))
            self._ready.exception()  # nobody may be waiting

    def _worker_spawned(self, seq: int, pid: int) -> None:
        worker = self._by_seq.pop(seq)
        worker.pid = pid
        self._by_pid[pid] = worker
        if worker.is_lost:  # before it was there
            self._worker_gone(worker)

    def _worker_refused(self, seq: int, reason: str) -> None:
        self._by_seq.pop(seq).lose(f"could not start: {reason}")

    def _worker_exited(self, pid: int, status: int) -> None:
        worker = self._by_pid.pop(pid, None)
        if worker is not None:
            worker.exited(status)

    def _worker_gone(self, worker: Worker) -> None:
        if self._workers.get(worker.key) is worker:
            del self._workers[worker.key]
            self._ended += 1
        if worker.pid in self._by_pid and self._zygote is not None:  # until the zygote says that it has exited
            self._zygote.kill(worker.pid)

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.settings.idle / 4)
            for worker in list(self._workers.values()):
                if worker.is_idle and loop.time() - worker.idle_since > self.settings.idle:
                    worker.kill()
            self.buffers.sweep()
