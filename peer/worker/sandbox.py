"""What a worker gives up before it reads a byte from the principal that it works for.

`enter` is the seam: signals, descriptors, limits of its resources, and then the kernel's walls (confinement). What runs
behind them may be anything, machine code of the principal's choice included: it has one channel and its own memory.
They leave open what the runtime does: sendmsg and recvmsg on the channel, mmap, munmap, madvise, fstat and close of
what comes by it, memfd_create, ftruncate, pwrite and fcntl for what goes out. Nothing can be imported or opened any
more, so that the zygote has imported and warmed all that operations need.
"""

from __future__ import annotations

import dataclasses
import fcntl
import math
import os
import resource
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from peer.worker import kernel
from peer.worker.confinement import Confinement, missing
from protocol import limits
from protocol.errors import BadRequest, SetupError
from protocol.sizes import shown

DEVICES: Final = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class Settings:
    """What one worker is allowed.

    Attributes:
        threads: threads that one operation may use.
        memory: bytes of its own that it may have; None: as many as the machine gives.
        seconds: of the clock that one operation, or one program, may take; then the worker is killed.
        device: where its tensors and operations are: "cpu" or "cuda".
        is_sandboxed: the kernel confines it; False only where the owner of the peer said so aloud.
        has_jails: of a zygote: jails are forked from it too, so that it gets ready for what they run.
    """

    threads: int = 1
    memory: int | None = None
    seconds: float = limits.OPERATION_SECONDS
    device: str = "cpu"
    is_sandboxed: bool = True
    has_jails: bool = False

    def __post_init__(self) -> None:
        if type(self.threads) is not int or not 1 <= self.threads <= 1_024:
            raise BadRequest(f"a worker runs 1 to 1024 threads, not {self.threads!r}")
        if self.memory is not None and (type(self.memory) is not int or self.memory < limits.MIN_MEMORY):
            given = shown(self.memory) if type(self.memory) is int else repr(self.memory)
            raise BadRequest(f"a worker has {shown(limits.MIN_MEMORY)} of memory or more, not {given}")
        if type(self.seconds) not in (int, float) or not 0 < self.seconds < float("inf"):
            raise BadRequest(f"an operation has a positive number of seconds, not {self.seconds!r}")
        if self.device not in DEVICES:
            raise BadRequest(f"a worker computes on {' or '.join(DEVICES)}, not on {self.device!r}")

    def to_wire(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_wire(cls, value: Mapping[str, Any]) -> Settings:
        return cls(**value)


@dataclass(frozen=True, slots=True)
class Ground:
    """What a zygote keeps at hand for its workers, who cannot get it any more.

    Attributes:
        null: a descriptor of /dev/null.
        data: bytes of private memory that a worker has before it has done anything.
        walls: those around the zygote; None where nothing is confined.
    """

    null: int
    data: int
    walls: Confinement | None

    @classmethod
    def laid(cls, walls: Confinement | None) -> Ground:
        """The last of what a zygote does outside; it is behind `walls` when this returns.

        Raises:
            SetupError: too few of them could be raised.
        """
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        ground = cls(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), _private_memory(), walls)
        if walls is not None:
            walls.leave()
            _check(walls)
        return ground


def enter(ground: Ground, settings: Settings, channel: int, parent: int) -> int:
    """Gives up what the worker does not need; returns the channel's descriptor, which may have moved.

    Args:
        ground: what the zygote has prepared.
        settings: what this worker may use.
        channel: the one descriptor that it keeps.
        parent: the zygote's pid, as it was before the fork.

    Raises:
        SetupError, OSError: it is not confined as it should be, and must end.
    """
    reset_signals()
    os.umask(0o077)
    channel = _close_all_but(channel, ground.null)
    _limit(settings, ground.data)
    if ground.walls is not None:
        ground.walls.become_nobody(settings.threads)
    die_with(parent)  # after that: who becomes another has no parent to die with
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    if ground.walls is not None:
        ground.walls.close(os.getpid(), settings.threads)
        _check(ground.walls)
    return channel


def enter_jail(ground: Ground, settings: Settings, channel: int, parent: int) -> int:
    """The first half of a jail's walls, before it is given its job by `channel`; returns that descriptor.

    Raises:
        SetupError, OSError: it is not confined as it should be, and must end.
    """
    if ground.walls is None:
        raise SetupError("jails run behind the sandbox's walls or not at all")
    reset_signals()
    os.umask(0o077)
    channel = _close_all_but(channel, ground.null)
    _limit(settings, ground.data)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_OUTPUT, _OUTPUT))
    seconds = math.ceil(settings.seconds * settings.threads) + 1  # of the processors
    # First SIGXCPU, which says why; a second later SIGKILL, for one that ignores that. If both are due it is SIGKILL.
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    ground.walls.become_nobody(settings.threads)
    die_with(parent)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    ground.walls.close_files()
    return channel


def close_jail(ground: Ground, settings: Settings, outputs: Sequence[int]) -> tuple[int, ...]:
    """The second half, when it has its job: nothing stays open but `outputs`, whose numbers are returned.

    Raises:
        SetupError, OSError: it is not confined as it should be, and must end.
    """
    assert ground.walls is not None
    places = tuple(range(3, 3 + len(outputs)))
    held = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for fd in outputs]
    for fd, place in zip(held, places, strict=True):
        os.dup2(fd, place, inheritable=False)
    os.closerange(3 + len(outputs), os.sysconf("SC_OPEN_MAX"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits.JAIL_DESCRIPTORS, limits.JAIL_DESCRIPTORS))
    ground.walls.mute(os.getpid(), settings.threads)
    _check(ground.walls)
    return places


_ABOVE: Final = 16  # the numbers that they get
_OUTPUT: Final = limits.JAIL_OUTPUT + limits.JAIL_HEADER  # of one file


def reset_signals() -> None:
    """Default handlers, apart from those that a terminal sends: a worker ends with its peer, not before it."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is not None:  # None: not Python's, and so not ours
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)


def die_with(parent: int) -> None:
    """This process is killed when its parent, `parent`, ends; at once if it has already."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _check(walls: Confinement) -> None:
    lacking = missing(walls.refused)
    if lacking is not None:
        raise SetupError(lacking)


def _limit(settings: Settings, data: int) -> None:
    limits_of_it = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: limits.MAX_MEMORY_TENSOR,  # of one memory file: an export
        resource.RLIMIT_NOFILE: limits.WORKER_DESCRIPTORS,
        resource.RLIMIT_MEMLOCK: 0,
    }
    if hasattr(resource, "RLIMIT_MSGQUEUE"):
        limits_of_it[resource.RLIMIT_MSGQUEUE] = 0
    if settings.memory is not None and settings.device == "cpu":
        # Private memory that can be written to; not mapped files, which may be larger than the machine's memory.
        own = settings.memory + settings.memory // 4 + limits.WORKER_OVERHEAD * settings.threads
        limits_of_it[resource.RLIMIT_DATA] = data + own
    for what, most in limits_of_it.items():
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def _private_memory() -> int:
    """Bytes that RLIMIT_DATA counts of this process so far."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[5]) * resource.getpagesize()
    except OSError:
        return 0


def _close_all_but(channel: int, null: int) -> int:
    """0, 1 and 2 become /dev/null, 3 the channel; nothing else stays open."""
    kept = os.dup(channel) if channel <= 3 else channel
    null = os.dup(null) if null <= 3 else null
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.dup2(kept, 3, inheritable=False)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    return 3
