"""What a worker gives up before it reads a byte from the principal that it works for.

`enter` is the seam. Today it makes the worker a small, quiet process: it leaves no core file, cannot be traced by
its equals, dies with its zygote, and holds no descriptor but its channel. It is NOT a boundary against code that
runs in the worker: files, sockets and other processes of this user are still within reach of it. The kernel
sandbox (user and network namespaces, landlock, seccomp, memory and CPU limits) is a later step and belongs here.
It must leave open what the runtime does: sendmsg and recvmsg on the channel, mmap, munmap, madvise, fstat and close of
what comes by it, memfd_create, ftruncate, pwrite and fcntl for what goes out.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import resource
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from protocol.errors import BadRequest

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
DEVICES: Final = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class Settings:
    """What one worker is allowed.

    Attributes:
        threads: threads that one operation may use.
        memory: bytes of its own that it may have; None: as many as the machine gives.
        device: where its tensors and operations are: "cpu" or "cuda".
        is_sandboxed: the kernel confines it; False only where the owner of the peer said so aloud.
    """

    threads: int = 1
    memory: int | None = None
    device: str = "cpu"
    is_sandboxed: bool = True

    def __post_init__(self) -> None:
        if type(self.threads) is not int or not 1 <= self.threads <= 1_024:
            raise BadRequest(f"a worker runs 1 to 1024 threads, not {self.threads!r}")
        if self.device not in DEVICES:
            raise BadRequest(f"a worker computes on {' or '.join(DEVICES)}, not on {self.device!r}")

    def to_wire(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_wire(cls, value: Mapping[str, Any]) -> Settings:
        return cls(**value)


def enter(settings: Settings, channel: int, parent: int) -> int:
    """Gives up what the worker does not need; returns the channel's descriptor, which may have moved.

    Args:
        settings: what this worker may use; the limits to come are read from here.
        channel: the one descriptor that it keeps.
        parent: the zygote's pid, as it was before the fork.
    """
    reset_signals()
    die_with(parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    channel = _close_all_but(channel)
    _prctl(_PR_SET_DUMPABLE, 0)
    return channel


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
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _close_all_but(channel: int) -> int:
    """0, 1 and 2 become /dev/null, 3 the channel; nothing else stays open."""
    null = os.open(os.devnull, os.O_RDWR)
    kept = os.dup(channel) if channel <= 3 else channel
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.dup2(kept, 3, inheritable=False)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    return 3


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
