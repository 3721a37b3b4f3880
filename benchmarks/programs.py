"""What programs cost: a training step as one request, a tiny plan by its hash, an operation of one, a loop, a capture.

References, in the same run: local torch, a bare websockets echo of 64 bytes between two processes on loopback (the same
event loop as ours), and the same loop as operations that are awaited one by one.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import torch

import grid
from benchmarks import calls, networks, steps, training, worker
from benchmarks.harness import Figure, Measure, interleaved, options, report
from compute.program import Input, Node, Program
from peer.pool_settings import default_threads
from peer.process import run_loop

_FLOATS = 64
_NODES = 1_000
_ITERATIONS = 1_000


async def measure(quick: bool) -> list[Figure]:
    torch.set_num_threads(default_threads())  # as a worker has them
    rounds = 5 if quick else 15
    async with contextlib.AsyncExitStack() as stack:
        round_trip = await stack.enter_async_context(calls.echo(_FLOATS))
        g = await stack.enter_async_context(grid.local("alice", jails=True))
        alice = g["alice"]
        tiny = await _tiny(g, alice)
        plan = steps.Training()
        remote = await steps.RemoteTraining.of(g, alice, plan)
        local = training.Trial(training.network(), plan.images, plan.labels)
        measured: dict[str, Measure] = {
            "echo": lambda: calls.p50_awaited(round_trip),
            "by hash": lambda: calls.p50_awaited(tiny),
            "step": lambda: steps.milliseconds(remote.step),
            "local step": lambda: local.measure(training.local_value),
            **await _loops(g, alice),
        }
        measured.update(await stack.enter_async_context(_nodes()))
        for call in measured.values():
            await call()
        median = await interleaved(rounds, measured)
        jail = await _jail(quick)
    captured = _captures(1 if quick else 3)
    return _figures(median, len(plan.plan().program.nodes), captured, jail)


def _figures(median: dict[str, float], nodes: int, captured: float, jail: list[Figure]) -> list[Figure]:
    local, trip = median["local step"], median["by hash"] / 1e3
    return [
        Figure(
            "step",
            f"a training step of {nodes} operations as one program, by its hash, its loss awaited",
            "ms",
            median["step"],
            {"local": local, "allowed": 1.3 * local + trip},
            "at most 1.3 x local and one round trip, which is allowed",
        ),
        Figure(
            "by_hash_p50",
            "a stored plan of one operation run on 64 floats, its value awaited",
            "us",
            median["by hash"],
            {"echo": median["echo"]},
            "at most 5 x echo",
        ),
        Figure(
            "node_overhead",
            f"an operation of a program of {_NODES}, in a worker, without what torch takes for it",
            "us",
            median["nodes"] - median["torch nodes"],
            {"torch": median["torch nodes"]},
            "at most 15",
        ),
        Figure(
            "loop_1000",
            f"{_ITERATIONS} iterations of one addition as one program",
            "s",
            median["loop"],
            {"awaited": median["awaited loop"]},
            "at most 0.05 of awaited",
        ),
        *jail,
        Figure("capture_resnet18", "a ResNet-18 captured as a plan", "s", captured, bar="at most 3"),
    ]


# --- a tiny plan, a loop ----------------------------------------------------------------------------------


@grid.plan
def _add_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1


@grid.plan
def _count(x: torch.Tensor) -> torch.Tensor:
    return grid.repeat(_ITERATIONS, lambda _, x: x + 1, x)  # type: ignore[no-any-return]


async def _tiny(g: grid.Grid, alice: grid.RemotePeer) -> Callable[[], Awaitable[Any]]:
    x = await alice.send(torch.randn(_FLOATS))
    plan = await _add_one.build(torch.randn(_FLOATS)).send(alice, tags=["#tiny"])

    async def run() -> None:
        await (await g.run(plan, x)).get()

    return run


async def _loops(g: grid.Grid, alice: grid.RemotePeer) -> dict[str, Measure]:
    """Seconds of the loop as a program, and as awaited operations."""
    x = await alice.send(torch.zeros(_FLOATS))
    plan = await _count.build(torch.zeros(_FLOATS)).send(alice, tags=["#count"])

    async def program() -> float:
        started = time.perf_counter()
        value = await (await g.run(plan, x)).get()
        assert int(value[0]) == _ITERATIONS
        return time.perf_counter() - started

    async def awaited() -> float:
        started = time.perf_counter()
        total: Any = x
        for _ in range(_ITERATIONS):
            total = await (total + 1)
        return time.perf_counter() - started

    return {"loop": program, "awaited loop": awaited}


# --- nodes ------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _nodes() -> AsyncIterator[dict[str, Measure]]:
    """Microseconds of one node of a long program in a worker as a peer has it, and of its operation by torch alone."""
    nodes = tuple(Node("aten.add.Tensor", [{"node": number}, 1]) for number in range(_NODES))
    program = Program((Input("x", "float32", (_FLOATS,)),), nodes, {"node": _NODES})
    id = bytes.fromhex(program.id)
    async with worker.ready(_FLOATS) as confined:

        async def in_worker() -> float:
            started = time.perf_counter()
            done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            confined.run_program(done, id, program.to_bytes(), [worker.GIVEN], [worker.MADE])
            await done
            confined.drop([worker.MADE])
            return (time.perf_counter() - started) / _NODES * 1e6

        async def by_torch() -> float:
            x, add = torch.zeros(_FLOATS), torch.ops.aten.add.Tensor
            started = time.perf_counter()
            for _ in range(_NODES):
                x = add(x, 1)
            return (time.perf_counter() - started) / _NODES * 1e6

        yield {"nodes": in_worker, "torch nodes": by_torch}


# --- capture, jails ---------------------------------------------------------------------------------------


def _captures(rounds: int) -> float:
    """Seconds of the capture of a ResNet-18, each time a new one."""
    times = []
    for _ in range(rounds):
        network, image = networks.ResNet18(), torch.randn(1, 3, 224, 224)

        def classify(images: torch.Tensor, network: torch.nn.Module = network) -> Any:
            return network(images)

        started = time.perf_counter()
        grid.plan(classify).build(image)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


async def _jail(quick: bool) -> list[Figure]:
    """The figure of jails (jails.py)."""
    if importlib.util.find_spec("benchmarks.jails") is None or os.name != "posix":
        return []
    from benchmarks import jails

    return [figure for figure in await jails.measure(quick) if figure.id == "jail_p50"]


def main() -> None:
    chosen = options(__doc__)
    report("programs", run_loop(measure(chosen.quick)), chosen)


if __name__ == "__main__":
    main()
