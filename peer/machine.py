"""What the machine lets this process have, and what other processes take of it."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Collection, Iterator, Set
from pathlib import Path
from typing import Final

from peer.worker import kernel
from protocol import limits

_CGROUPS: Final = Path("/sys/fs/cgroup")


def memory() -> int:
    """Bytes of memory that this process can have: the machine's, or fewer where its address space (`ulimit -v`) or a
    control group of Linux bounds it."""
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_of_control_groups()]
    return min(bounds if space == resource.RLIM_INFINITY else [*bounds, space])


def descriptors(most: int) -> int:
    """A part of the descriptors that this process may have, and at most so many."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else min(most, max(1, soft // limits.DESCRIPTORS))


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
    for thread in _threads(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            found[thread] = int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[1]) / 1e9
    return found


def give_way(pid: int) -> None:
    """A group of processes, and what it will fork, runs when we and others need not: also as against other sessions of
    this user, which Linux would share the processors with evenly, whatever their priorities (sched(7), autogroup)."""
    for which in (os.PRIO_PGRP, os.PRIO_PROCESS):
        with contextlib.suppress(OSError):
            os.setpriority(which, pid, limits.WORKER_NICE)
    _weigh_session(pid, limits.WORKER_NICE)


def stand_back(pid: int, *, is_back: bool) -> None:
    """Whether a process computes when nobody else wants to, and is interrupted by everybody. As `give_way` where not.

    Linux lets a process that it has begun with run for its slice (EEVDF), 3 to 4 ms, whoever wakes meanwhile, unless
    that one's slice is shorter and it has had less than its share. So who stands back has a long slice, and its session
    little weight. The first needs Linux 6.12, the second a worker that is ours to write to, as root's are.

    References: sched(7), autogroup; sched_setattr(2); Documentation/scheduler/sched-eevdf.rst of Linux, latency-nice.
    """
    _weigh_session(pid, limits.TURN_NICE if is_back else limits.WORKER_NICE)
    for thread in _threads(pid):
        with contextlib.suppress(OSError):
            kernel.set_slice(thread, limits.TURN_SLICE if is_back else 0.0)


def bind(pid: int, cores: Set[int]) -> bool:
    """Have all threads of a process on these cores; whether that was for us to say (of a worker that is another user
    for the system it is not, without CAP_SYS_NICE), and the process is there."""
    threads = _threads(pid)
    try:
        for thread in threads:
            os.sched_setaffinity(thread, cores)
    except (OSError, AttributeError):
        return False
    return bool(threads)


def _weigh_session(pid: int, nice: int) -> None:
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))


def _threads(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(thread) for thread in os.listdir(f"/proc/{pid}/task")]
    return []


def own_memory(pid: int) -> int | None:
    """Bytes of memory that a process has to itself, files left out; what the kernel keeps to find its pages counts, and
    its memory files where we may see them (as root). None where that cannot be known. proc(5), status."""
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        own = sum(int(fields[name].split()[0]) for name in ("RssAnon", "VmSwap", "VmPTE")) * limits.KIB
        mapped = int(fields["VmSize"].split()[0]) * limits.KIB
    except (OSError, ValueError, KeyError):
        return None
    return own + _memory_files(pid, has_room=mapped - own > limits.WORKER_MAPS)


def _memory_files(pid: int, has_room: bool = False) -> int:
    """Bytes of those that a process has open or, if there is room for that in what it maps, has mapped and closed; each
    once. What it maps of them is among its shared pages, or among nobody's until it touches them."""
    sizes: dict[int, int] = {}
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            _weigh_file(f"/proc/{pid}/fd/{number}", sizes)
    if has_room and sys.platform == "linux":
        theirs: dict[int, int] = {}
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps") as maps:
            for line in maps:
                if "/memfd:" in line:
                    start, end = (int(at, 16) for at in line.split(maxsplit=1)[0].split("-"))
                    _weigh_file(f"/proc/{pid}/map_files/{start:x}-{end:x}", theirs)
        ours = _our_memory_files() if theirs else ()
        sizes = {inode: nbytes for inode, nbytes in theirs.items() if inode not in ours} | sizes
    return sum(sizes.values())


def _our_memory_files() -> Collection[int]:
    """Those that we have open, or mapped: ours, or on their way through us, and counted as that."""
    sizes: dict[int, int] = {}
    for number in os.listdir("/proc/self/fd"):
        _weigh_file(f"/proc/self/fd/{number}", sizes)
    with open("/proc/self/maps") as maps:
        return {*sizes, *(int(line.split(maxsplit=5)[4]) for line in maps if "/memfd:" in line)}


def _weigh_file(path: str, sizes: dict[int, int]) -> None:
    with contextlib.suppress(OSError):
        if os.readlink(path).startswith("/memfd:"):
            status = os.stat(path)
            sizes[status.st_ino] = status.st_blocks * 512


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
