"""What the workers of a pool take of this machine: looked at in each beat, booked, and bounded by killing.

The decisions are in peer/worker/watch.py (time), peer/worker/budgets.py (memory, shares of the processors) and
peer/worker/turns.py (who stands back); how processes are asked is in peer/machine.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection

from peer import machine
from peer.apart import Cores, is_crowded
from peer.worker.budgets import Budgets
from peer.worker.dedicated import Dedicated
from peer.worker.remote import Worker
from peer.worker.turns import Times, Turns
from peer.worker.watch import beat
from protocol import limits

_log = logging.getLogger("peergrid.workers")

Process = Worker | Dedicated


class Watching:
    """Looks at the workers of one pool.

    Args:
        budgets: the books.
        seconds: of the clock that one operation, or one program, may take; `threads`: of one worker.
        workers: those that there are now.
        runs: whether a worker is a process now, of which the system may be asked.
    """

    def __init__(
        self,
        budgets: Budgets,
        seconds: float,
        threads: int,
        workers: Callable[[], Collection[Process]],
        runs: Callable[[Process], bool],
    ) -> None:
        self._budgets = budgets
        self._beat = beat(seconds)
        self._workers = workers
        self._runs = runs
        self._clocks: dict[Process, float] = {}  # of the processors, when they were last asked
        self._asked = 0.0  # when that was
        self._turns: Turns[Process] = Turns()
        self._cores = Cores(machine.bind) if threads == 1 and is_crowded() else None
        self._looked = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._watch(), name="peergrid worker watch")

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._cores is not None:
            self._cores.divide(None)

    def began(self, worker: Process) -> None:
        """Opens the books of one."""
        self._clocks[worker] = 0.0
        self._budgets.began(worker.key.principal, worker)

    def ended(self, worker: Process) -> None:
        """Closes the books of one that is gone."""
        if self._taken(worker) is None and worker.is_busy:
            # Nobody can ask its clock any more: to die is no way not to be counted.
            self._book(worker, min(asyncio.get_running_loop().time() - self._asked, limits.BEAT))
        del self._clocks[worker]
        self._turns.ended(worker)
        self._budgets.ended(worker.key.principal, worker)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        self._looked = self._asked = loop.time()
        while True:
            principals = {worker.key.principal for worker in self._workers()}
            await asyncio.sleep(min(self._beat, limits.TURN) if len(principals) > 1 else self._beat)
            now = loop.time()
            try:
                if now >= self._looked + self._beat:
                    elapsed, self._looked = now - self._looked, now
                    self._look(elapsed)
                self._see_whose_turn_it_is(now)
            except Exception:  # a defect here must not leave workers unwatched from then on
                _log.exception("looking at the workers failed")

    def _see_whose_turn_it_is(self, now: float) -> None:
        """Who computes without a pause stands back while another principal computes too."""
        elapsed, self._asked = now - self._asked, now
        times = {
            worker: Times(worker.key.principal, self._taken(worker) or 0.0, worker.in_stretches(elapsed))
            for worker in self._workers()
        }
        for worker, is_back in self._turns.look(times, elapsed, now).items():
            if (pid := self._pid(worker)) is not None:
                machine.stand_back(pid, is_back=is_back)
        if self._cores is not None:
            alone = self._turns.alone(now)
            pids = {worker: pid for worker in self._workers() if (pid := self._pid(worker)) is not None}
            computing = pids.pop(alone, None) if alone is not None else None
            self._cores.divide(computing, pids.values())

    def _pid(self, worker: Process) -> int | None:
        """That of its process, while the system may be asked of it."""
        return worker.pid if self._runs(worker) else None

    def _look(self, elapsed: float) -> None:
        for worker in list(self._workers()):
            if worker.look(elapsed, machine.waits):
                self._budgets.killed(worker.key.principal)
        self._weigh()

    def _weigh(self) -> None:
        """Kills the largest worker of a principal whose workers together have far more memory than they may: each has
        the kernel's limit, but nobody tells the kernel whose they are."""
        of: dict[str, list[tuple[int, Process]]] = {}
        for worker in self._workers():
            pid = self._pid(worker)
            own = None if pid is None else machine.own_memory(pid)
            if own is not None:
                of.setdefault(worker.key.principal, []).append((max(0, own - limits.WORKER_OWN), worker))
        for principal, weighed in of.items():
            if self._budgets.is_far_over(sum(own for own, _ in weighed)):
                heaviest = max(weighed, key=lambda each: each[0])[1]
                heaviest.lose(
                    "was killed, because its principal's workers have more memory than --worker-memory gives,"
                )
                self._budgets.killed(principal)

    def _taken(self, worker: Process) -> float | None:
        """Seconds of the processors that a worker has taken since it was asked last, by the system's account."""
        pid = self._pid(worker)
        read = None if pid is None else machine.cpu_seconds(pid)
        if read is None:
            return None
        taken, self._clocks[worker] = read - self._clocks[worker], read
        self._book(worker, taken)
        return taken

    def _book(self, worker: Process, seconds: float) -> None:
        self._budgets.took(worker.key.principal, seconds, asyncio.get_running_loop().time())
