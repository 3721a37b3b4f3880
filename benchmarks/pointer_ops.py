"""What operations on pointers cost: awaited one by one, pipelined, as a training step, and what they leave in memory.

References, in the same run: a bare websockets echo of 64 bytes between two processes on loopback (the same event
loop as ours), torch.distributed.rpc and Ray actors where they are installed (calls.py), and local torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import torch

import grid
from benchmarks import beside, calls, training, worker
from benchmarks.harness import Figure, Measure, interleaved, options, report
from benchmarks.memory import descendants, memory_of
from benchmarks.references import Reference
from peer.pool_settings import default_threads
from peer.process import run_loop

_FLOATS = 64
_PIPELINED = 4_000
_SHORT_LIVED = 1_000_000
_SHORT_LIVED_QUICK = 100_000
_FOR_P99 = 2_000
_TURNS = 60  # of awaited calls; a machine's pace changes within seconds, and all are to have their part of it
_TURNS_QUICK = 20
_RPC = ("torch_rpc", "torch_rpc_rref")
_SEEN = 0.5  # seconds by which a peer has seen who computes without a pause (peer/worker/turns.py)


async def measure(quick: bool) -> list[Figure]:
    torch.set_num_threads(default_threads())  # as a worker has them
    rounds = 5 if quick else 15
    async with contextlib.AsyncExitStack() as stack:
        echo = await stack.enter_async_context(calls.echo(_FLOATS))
        g = await stack.enter_async_context(grid.local("alice"))
        measured = await _of_operations(g, echo)
        measured["worker"] = await stack.enter_async_context(_worker())
        ours, local = await training.trials(g["alice"])
        measured["step"] = lambda: ours.measure(training.remote_value)
        measured["local step"] = lambda: local.measure(training.local_value)
        in_turns = {name: measured.pop(name) for name in ("awaited", "echo")}
        for name in calls.installed():
            if name in _RPC:
                in_turns[name] = stack.enter_context(_reference(name))
        for warm in (*in_turns.values(), measured["pipelined"]):
            await warm()  # all are warm, and nobody starts while others are measured
        median = await interleaved(_TURNS_QUICK if quick else _TURNS, in_turns)
        median |= await interleaved(rounds, measured)
        operations = local.operations()
        growth = await _growth(g, _SHORT_LIVED_QUICK if quick else _SHORT_LIVED)
        shared = await _beside(g, 3 if quick else 9)
    if "ray" in calls.installed():  # by itself: its daemons are never quite idle
        with _reference("ray") as call:
            median["ray"] = (await interleaved(rounds, {"ray": call}))["ray"]
    return [*_figures(median, operations), *shared, growth]


def _figures(median: dict[str, float], operations: int) -> list[Figure]:
    others: dict[str, float] = {name: median[name] for name in ("echo", *_RPC, "ray") if name in median}
    for name in (*_RPC, "ray"):
        if name not in median:
            print(f"{name}: not installed", file=sys.stderr)
    allowed = median["local step"] + median["awaited"] / 1e3
    return [
        Figure(
            "await_p50",
            "z = x + y; await z.get(), 64 floats",
            "us",
            median["awaited"],
            others,
            "at most 4 x echo, and ahead of the others",
        ),
        Figure(
            "pipelined",
            "x + y without awaiting, one client",
            "ops/s",
            median["pipelined"],
            {"local": median["local"]},
            "at least 20,000",
        ),
        Figure(
            "train_step",
            f"a training step of {operations} operations, its loss awaited",
            "ms",
            median["step"],
            {"local": median["local step"], "local_and_round_trip": allowed},
            "at most 1.5 x local_and_round_trip",
        ),
        Figure("worker_p50", "peer to worker and back, one addition", "us", median["worker"], bar="at most 100"),
    ]


# --- operations -------------------------------------------------------------------------------------------


async def _of_operations(g: grid.Grid, round_trip: Callable[[], Awaitable[Any]]) -> dict[str, Measure]:
    alice = g["alice"]
    x, y = await alice.send(torch.randn(_FLOATS)), await alice.send(torch.randn(_FLOATS))
    here = torch.randn(_FLOATS), torch.randn(_FLOATS)

    async def awaited() -> float:
        return await calls.p50_awaited(lambda: (x + y).get())  # type: ignore[attr-defined]  # to torch's types a sum is a tensor

    async def echo() -> float:
        return await calls.p50_awaited(round_trip)

    async def pipelined() -> float:
        started = time.perf_counter()
        await _run(x, y, _PIPELINED)
        return _PIPELINED / (time.perf_counter() - started)

    async def local() -> float:
        count = 20_000
        started = time.perf_counter()
        for _ in range(count):
            here[0] + here[1]
        return count / (time.perf_counter() - started)

    return {"awaited": awaited, "echo": echo, "pipelined": pipelined, "local": local}


async def _run(x: Any, y: Any, count: int) -> None:
    """So many additions, each result let go at once, until the last one is here."""
    for number in range(count):
        z = x + y
        if number % 200 == 199:
            await asyncio.sleep(0)  # lets what is queued leave while more is queued
    await z.get()


@contextlib.asynccontextmanager
async def _worker() -> AsyncIterator[Measure]:
    """One addition in a worker."""
    async with worker.ready(_FLOATS) as confined:
        addition = [["aten.add.Tensor", [worker.GIVEN, worker.GIVEN], {}, [worker.MADE]]]

        async def call() -> None:
            (result,) = await confined.run(addition)
            assert type(result) is list, result
            confined.drop([worker.MADE])

        await call()
        yield lambda: calls.p50_awaited(call)


# --- beside others ----------------------------------------------------------------------------------------


async def _beside(g: grid.LocalGrid, rounds: int) -> list[Figure]:
    """What a principal's operations take while another one's worker computes without a pause: from the first moment,
    and when the peer has had half a second to see it."""
    alice = g["alice"]
    x, y = await alice.send(torch.randn(_FLOATS)), await alice.send(torch.randn(_FLOATS))

    async def p99() -> float:
        times = []
        for _ in range(_FOR_P99):
            started = time.perf_counter()
            await (x + y).get()
            times.append(time.perf_counter() - started)
        return sorted(times)[_FOR_P99 * 99 // 100] * 1e6

    async with beside.computing(g.processes["alice"].url) as other:

        async def alone() -> float:
            await other.pause()
            return await p99()

        async def begun() -> float:
            await other.go_on()
            return await p99()

        async def with_other() -> float:  # goes on since `begun`
            seen = time.perf_counter() + _SEEN
            while time.perf_counter() < seen:
                await (x + y).get()
            return await p99()

        median = await interleaved(rounds, {"alone": alone, "begun": begun, "beside": with_other})
    what = f"p99 of {_FOR_P99:,} times z = x + y; await z.get(), beside another principal who"
    beside_alone = {"alone": median["alone"]}
    return [
        Figure("beside_p99", f"{what} computes", "us", median["beside"], beside_alone, "at most 2 x alone"),
        Figure("begun_p99", f"{what} begins to", "us", median["begun"], beside_alone),
    ]


# --- memory -----------------------------------------------------------------------------------------------


async def _growth(g: grid.Grid, count: int) -> Figure:
    """What so many pointers that lived for a moment leave behind, in the process where that is most."""
    alice = g["alice"]
    x, y = await alice.send(torch.randn(_FLOATS)), await alice.send(torch.randn(_FLOATS))
    await _in_bursts(x, y, count // 4)  # what grows to its full size does so now
    pids = [os.getpid(), *descendants(os.getpid())]
    before = {pid: memory_of(pid) for pid in pids}
    await _in_bursts(x, y, count)
    grown = max(memory_of(pid) - before[pid] for pid in pids)
    what = f"memory that {count:,} short-lived pointers leave, in the process where that is most"
    return Figure("growth", what, "MiB", grown / (1 << 20), bar="at most 4")


async def _in_bursts(x: Any, y: Any, count: int) -> None:
    for _ in range(count // _PIPELINED):
        await _run(x, y, _PIPELINED)


# --- references -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _reference(name: str) -> Any:
    reference = Reference(name, _FLOATS, module="benchmarks.calls")

    async def call() -> float:
        return await asyncio.to_thread(reference.measure)

    try:
        yield call
    finally:
        reference.close()


def main() -> None:
    chosen = options(__doc__)
    report("pointer_ops", run_loop(measure(chosen.quick)), chosen)


if __name__ == "__main__":
    main()
