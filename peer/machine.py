"""What the machine lets this process have, and what other processes take of it."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from protocol import limits

_CGROUPS: Final = Path("/sys/fs/cgroup")


def memory() -> int:
    """Bytes of memory that this process can have: the machine's, or fewer where its address space (`ulimit -v`) or a
    control group of Linux bounds it."""
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_of_control_groups()]
    return min(bounds if space == resource.RLIM_INFINITY else [*bounds, space])


def cpu_seconds(pid: int) -> float | None:
    """What a process has taken of the processors so far, its threads together; None where that cannot be known."""
    if sys.platform != "linux" or pid <= 0:
        return None
    try:
        # The clock of a process, of its scheduler's account: clock_getcpuclockid(3), which Python does not offer.
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return None


def waits(pid: int) -> dict[int, float]:
    """How long each thread of a process could have run and had no processor; empty where that cannot be known.

    Reference: Documentation/scheduler/sched-stats.rst of Linux, "/proc/<pid>/schedstat".
    """
    found: dict[int, float] = {}
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                found[int(thread)] = int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[1]) / 1e9
    return found


def give_way(pid: int) -> None:
    """A group of processes, and what it will fork, runs when we and others need not: also as against other sessions of
    this user, which Linux would share the processors with evenly, whatever their priorities (sched(7), autogroup)."""
    for which in (os.PRIO_PGRP, os.PRIO_PROCESS):
        with contextlib.suppress(OSError):
            os.setpriority(which, pid, limits.WORKER_NICE)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(limits.WORKER_NICE))


def own_memory(pid: int) -> int | None:
    """Bytes of memory that a process has to itself, files left out; its memory files count where we may see them (as
    root). None where that cannot be known. proc(5), statm."""
    try:
        resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
    except (OSError, ValueError):
        return None
    return (int(resident) - int(shared)) * resource.getpagesize() + _memory_files(pid)


def _memory_files(pid: int) -> int:
    """Bytes of those that a process has open, each once: what it maps of them is among its shared pages."""
    sizes: dict[int, int] = {}
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                path = f"/proc/{pid}/fd/{number}"
                if os.readlink(path).startswith("/memfd:"):
                    status = os.stat(path)
                    sizes[status.st_ino] = status.st_blocks * 512
    return sum(sizes.values())


def _of_control_groups(own: Path = Path("/proc/self/cgroup"), root: Path = _CGROUPS) -> Iterator[int]:
    """The limits of the groups that this process is in, and of those around them.

    Reference: cgroups(7), "/proc/[pid]/cgroup": `0::PATH` in version 2, `N:memory:PATH` in version 1.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" or "memory" in controllers.split(","):
            base, name = (root, "memory.max") if number == "0" else (root / "memory", "memory.limit_in_bytes")
            group = base / path.lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(base):
                    yield from _read(folder / name)


def _read(file: Path) -> Iterator[int]:
    try:
        text = file.read_text().strip()
    except OSError:
        return
    if text.isdigit():  # or "max"
        yield int(text)
