"""What an operation on a pointer costs: awaited one by one, and pipelined from one client.

References, in the same run: a bare websockets echo of 64 bytes between two processes on loopback (the same event
loop as ours), and local torch.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection as Pipe

import torch
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve

import grid
from benchmarks.harness import Figure, interleaved, options, report
from peer.process import run_loop

_CALLS = 200


def _echo_process(pipe: Pipe) -> None:
    run_loop(_echo_server(pipe))


async def _echo_server(pipe: Pipe) -> None:
    async def echo(socket: ServerConnection) -> None:
        async for message in socket:
            await socket.send(message)

    async with serve(echo, "127.0.0.1", 0, compression=None) as server:
        pipe.send(next(iter(server.sockets)).getsockname()[1])
        await server.serve_forever()


async def measure(quick: bool) -> list[Figure]:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_echo_process, args=(theirs,), daemon=True)
    process.start()
    try:
        port = await asyncio.to_thread(ours.recv)
        async with connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None) as socket, grid.local("alice") as g:
            return await _figures(socket, g, quick)
    finally:
        process.terminate()
        process.join()


async def _figures(socket: ClientConnection, g: grid.Grid, quick: bool) -> list[Figure]:
    alice = g["alice"]
    x, y = await alice.send(torch.randn(64)), await alice.send(torch.randn(64))
    here = torch.randn(64), torch.randn(64)

    async def awaited() -> float:
        return await _p50(lambda: (x + y).get())

    async def echo() -> float:
        return await _p50(lambda: _round_trip(socket))

    async def pipelined() -> float:
        count = 4_000
        started = time.perf_counter()
        for number in range(count):
            z = x + y
            if number % 200 == 199:
                await asyncio.sleep(0)  # lets what is queued leave while more is queued
        await z.get()
        return count / (time.perf_counter() - started)

    async def local() -> float:
        count = 20_000
        started = time.perf_counter()
        for _ in range(count):
            here[0] + here[1]
        return count / (time.perf_counter() - started)

    await awaited()
    await pipelined()
    rounds = 5 if quick else 15
    median = await interleaved(rounds, {"awaited": awaited, "echo": echo, "pipelined": pipelined, "local": local})
    return [
        Figure(
            "await_p50",
            "z = x + y; await z.get(), 64 floats",
            "us",
            median["awaited"],
            {"echo": median["echo"]},
            "at most 6 x echo",
        ),
        Figure(
            "pipelined",
            "x + y without awaiting, one client",
            "ops/s",
            median["pipelined"],
            {"local": median["local"]},
            "at least 8,000",
        ),
    ]


async def _round_trip(socket: ClientConnection) -> None:
    await socket.send(bytes(64))
    await socket.recv()


async def _p50(call) -> float:  # type: ignore[no-untyped-def]
    """Microseconds of one awaited call, the median of many."""
    times = []
    for _ in range(_CALLS):
        started = time.perf_counter()
        await call()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def main() -> None:
    chosen = options(__doc__)
    report("pointer_ops", run_loop(measure(chosen.quick)), chosen)


if __name__ == "__main__":
    main()
