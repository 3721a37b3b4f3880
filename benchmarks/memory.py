"""How much memory of their own processes have: this one, and those that it started."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


def memory_of(pid: int) -> int:
    """Anonymous and shared memory as it is mapped (RssAnon, RssShmem): files that are mapped are the system's to
    keep. 0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    kib = [int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:"))]
    return sum(kib) * 1024


def descendants(pid: int) -> Iterator[int]:
    """The processes that it started, and those that these started."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield int(child)
            yield from descendants(int(child))
