"""What a jail costs, against starting Python and against reading the same memory here.

jail_p50           a warm jail of one sum, from `await` to its number
jail_100mb         the same on 100 MB that a client sent
jail_100mb_stored  and on 100 MB that are published: its blocks are checked on the way
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import torch

import grid
from benchmarks.harness import Figure, interleaved, options, report
from peer.process import run_loop

_LARGE = 25_000_000  # floats
_REST = 0.02  # seconds between two jails: somebody who awaits one looks at it


@grid.jail
def _sum(x: Any) -> Any:
    return x.sum().item()


async def measure(quick: bool = False) -> list[Figure]:
    """The figures, in milliseconds; on Linux alone."""
    values = torch.ones(_LARGE)
    async with grid.local("alice", jails=True) as g:
        small, large = await g["alice"].send(torch.ones(5)), await g["alice"].send(values)
        stored = await g["alice"].send(values, tags=["#jails-benchmark"])
        for each in (small, small, small, large, stored):
            await _sum(each)
        measured = {"jail": _jail(small), "python": _python}
        tiny = await interleaved(20 if quick else 100, measured)
        measured = {"sent": _jail(large), "stored": _jail(stored), "copy": _copy(values)}
        long = await interleaved(3 if quick else 9, measured)
        await stored.delete()
    return [
        Figure("jail_p50", "a warm jail of one sum", "ms", tiny["jail"], {"python": tiny["python"]}, "at most 15"),
        Figure("jail_100mb", "100 MB in, a number out", "ms", long["sent"], {"copy": long["copy"]}, "at most 120"),
        Figure("jail_100mb_stored", "of published data", "ms", long["stored"], {"copy": long["copy"]}, "at most 120"),
    ]


def _jail(pointer: grid.Pointer) -> Callable[[], Awaitable[float]]:
    async def once() -> float:
        begun = time.perf_counter()
        await _sum(pointer)
        taken = time.perf_counter() - begun
        await asyncio.sleep(_REST)
        return taken * 1e3

    return once


async def _python() -> float:
    """To start a Python that does nothing."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-S", "-c", "pass"], check=True)  # noqa: ASYNC221
    return (time.perf_counter() - begun) * 1e3


def _copy(values: torch.Tensor) -> Callable[[], Awaitable[float]]:
    async def once() -> float:
        begun = time.perf_counter()
        values.clone().sum().item()
        return (time.perf_counter() - begun) * 1e3

    return once


def main() -> None:
    chosen = options(__doc__)
    report("jails", run_loop(measure(chosen.quick)), chosen)


if __name__ == "__main__":
    main()
