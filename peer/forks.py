"""The processes that a peer's zygote forks, from the wish for one to its death, and the zygote itself."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from typing import Final, Protocol

from peer import machine
from peer.worker.confinement import described, missing
from peer.worker.framing import tune
from peer.worker.sandbox import Settings
from peer.worker.zygote_process import Kind, ZygoteEvents, ZygoteProcess
from protocol.errors import InternalError, SetupError

_log = logging.getLogger("peergrid.workers")
_KILLED: Final = -signal.SIGKILL


class Forked(Protocol):
    """What stands for a process here."""

    pid: int | None

    @property
    def is_wanted(self) -> bool:
        """Whether it is to go on."""
        ...

    def lose(self, how: str, status: int | None = None) -> None:
        """It has ended, or will at once: why is said behind "the process". Does nothing the second time."""
        ...


class Forks:
    """A zygote, started when the first process is wanted and again after its death, and the processes that it forked.

    Args:
        settings: what the zygote is started with.
        over: is told of each process that it is dead, and how: its status, or the negative number of a signal.
        ready: is told when a zygote has imported torch.
    """

    def __init__(self, settings: Settings, over: Callable[[Forked, int], None], ready: Callable[[], None]) -> None:
        self._settings = settings
        self._over = over
        self._on_ready = ready
        self._zygote: ZygoteProcess | None = None
        self._ready: asyncio.Future[None] | None = None
        self._confined: asyncio.Future[dict[str, str] | None] | None = None
        self._refused: dict[str, str] | None = None  # walls that processes do without; None: not known yet
        self._has_no_device = False
        self._by_seq: dict[int, Forked] = {}  # not there yet
        self._by_pid: dict[int, Forked] = {}
        self.zygotes_started = 0
        self.forked = 0

    @property
    def zygote(self) -> int | None:
        """The zygote's pid; None while none runs."""
        return self._zygote.pid if self._zygote else None

    @property
    def walls(self) -> str:
        """How well processes are confined, in words."""
        return "unknown yet" if self._refused is None else described(self._refused)

    # --- the zygote ---------------------------------------------------------------------------------------

    def start(self) -> ZygoteProcess:
        """Starts a zygote where none runs, so that the first process does not wait for it. InternalError: it cannot."""
        if self._zygote is None:
            loop = asyncio.get_running_loop()
            self._ready, self._confined = loop.create_future(), loop.create_future()
            events = ZygoteEvents(
                confined=self._zygote_confined,
                unavailable=self._zygote_has_no_device,
                ready=self._zygote_ready,
                spawned=self._spawned,
                refused=self._not_spawned,
                exited=self._exited,
                lost=self._zygote_lost,
            )
            try:
                self._zygote = ZygoteProcess(events, self._settings)
            except OSError as error:
                self._fail_ready(f"did not start: {error.strerror}")
                raise InternalError(f"the zygote process did not start: {error.strerror}") from None
            self.zygotes_started += 1
        return self._zygote

    async def confined(self) -> None:
        """Waits for the zygote's word on the walls around it, long before torch is there. Cancelling is safe.

        Raises:
            SetupError: they are no boundary, and the settings do not say that there need not be one.
            InternalError: the zygote ended without a word.
        """
        self.start()
        assert self._confined is not None
        refused = await asyncio.shield(self._confined)
        if refused is not None and (lacking := missing(refused)) is not None:
            raise SetupError(lacking)

    async def ready(self) -> None:
        """Waits until the zygote has imported torch. Cancelling is safe.

        Raises:
            SetupError: torch cannot compute on the device of the settings.
            InternalError: the zygote ended.
        """
        self.start()
        assert self._ready is not None
        await asyncio.shield(self._ready)

    async def close(self) -> None:
        """Ends the zygote, and all that it forked."""
        zygote, self._zygote = self._zygote, None
        self._lose_all("was ended with its peer")
        self._fail_ready("was ended with its peer")
        if zygote is not None:
            await zygote.close()

    def _zygote_confined(self, refused: dict[str, str] | None) -> None:
        self._refused = refused
        if self._confined is not None and not self._confined.done():
            self._confined.set_result(refused)
        for wall, reason in (refused or {}).items():
            _log.info("workers do without a wall: %s (%s)", wall, reason)

    def _zygote_has_no_device(self, reason: str) -> None:
        self._has_no_device = True
        if self._ready is not None and not self._ready.done():
            device = self._settings.device
            self._ready.set_exception(
                SetupError(f"this peer cannot compute on {device}: {reason}. Start it without --device {device}")
            )
            self._ready.exception()  # nobody may be waiting

    def _zygote_ready(self) -> None:
        if self._zygote is not None:
            machine.give_way(self._zygote.pid)  # not while it imports, which somebody may wait for
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)
        self._on_ready()

    def _zygote_lost(self, how: str) -> None:
        # One that found no device has said so, and its peer does not start.
        level = logging.DEBUG if self._has_no_device else logging.WARNING
        _log.log(level, "the zygote process %s; its workers are gone, the next request starts another", how)
        self._zygote = None
        self._fail_ready(how)
        self._lose_all(f"ended with its zygote ({how})")

    def _fail_ready(self, how: str) -> None:
        for waited in (self._ready, self._confined):
            if waited is not None and not waited.done():
                waited.set_exception(InternalError(f"the zygote process {how}; what it printed says why"))
                waited.exception()  # nobody may be waiting

    # --- what it forks ------------------------------------------------------------------------------------

    def fork(self, kind: Kind, process: Forked, settings: Settings, channel: socket.socket) -> None:
        """Has the zygote fork a process for `process` on the other end of `channel`, which is closed here. Never waits:
        `process` is told its pid, or that it is lost."""
        zygote = self.start()
        self.forked += 1
        self._by_seq[self.forked] = process
        with channel:
            try:
                zygote.spawn(kind, self.forked, settings, channel)
            except OSError as error:
                self._not_spawned(self.forked, f"no descriptor is left ({error.strerror})")

    def is_running(self, process: Forked) -> bool:
        """From the zygote's word that it is there to that that it has exited."""
        return process.pid in self._by_pid

    def kill(self, process: Forked) -> None:
        """It is to be dead. `over` is told when it is; one that is not there yet is killed when it is."""
        if self._zygote is not None and process.pid is not None and self.is_running(process):
            self._zygote.kill(process.pid)

    def _spawned(self, seq: int, pid: int) -> None:
        process = self._by_seq.pop(seq)
        process.pid = pid
        self._by_pid[pid] = process
        machine.give_way(pid)  # it may have been forked before its zygote was told to
        if not process.is_wanted:
            self.kill(process)

    def _not_spawned(self, seq: int, reason: str) -> None:
        process = self._by_seq.pop(seq)
        process.lose(f"could not start: {reason}")
        self._over(process, _KILLED)

    def _exited(self, pid: int, status: int) -> None:
        process = self._by_pid.pop(pid, None)
        if process is not None:
            self._over(process, status)

    def _lose_all(self, how: str) -> None:
        lost = [*self._by_seq.values(), *self._by_pid.values()]
        for process in lost:
            process.lose(how)
            self._over(process, _KILLED)
        self._by_seq.clear()
        self._by_pid.clear()


def channel() -> tuple[socket.socket, socket.socket]:
    """Two ends between a process and us. InternalError where there are no more."""
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise InternalError(f"no socket for another worker: {error.strerror}") from None
    tune(ours)
    tune(theirs)
    return ours, theirs
