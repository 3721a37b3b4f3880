"""What the machine lets this process have."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")


def memory() -> int:
    """Bytes of memory that this process can have: the machine's, or fewer where its address space (`ulimit -v`) or a
    control group of Linux bounds it."""
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_of_control_groups()]
    return min(bounds if space == resource.RLIM_INFINITY else [*bounds, space])


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
