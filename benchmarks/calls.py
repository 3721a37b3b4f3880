"""What awaited operations are held against: other ways to have something added in another process, awaited one by one.

Each is a function for references.Reference: it adds `count` floats when told to, and says the median of the times in
microseconds.

echo       64 bytes by bare websockets, both ends on the event loop that ours runs on (measured in the same process)
torch_rpc  torch.distributed.rpc: an addition at the other end, in C++, of tensors that go there with the call
torch_rpc_rref  the same of tensors that are there (RRefs, its pointers), in a function of Python
ray        a Ray actor that keeps one of the tensors, where Ray is installed
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from multiprocessing.connection import Connection as Pipe
from typing import Any

from websockets.asyncio import client, server

from benchmarks.references import Child, join_rpc, kept_there, serve, sum_there
from peer.process import run_loop

CALLS = 200


def installed() -> list[str]:
    """The names of the references that can be had here, the echo apart."""
    import torch

    has_rpc = torch.distributed.is_available() and hasattr(torch.distributed, "rpc")
    names = ["torch_rpc", "torch_rpc_rref"] if has_rpc else []
    return names + (["ray"] if importlib.util.find_spec("ray") is not None else [])


def p50(call: Callable[[], object]) -> float:
    """Microseconds of one call, the median of many."""
    times = []
    for _ in range(CALLS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def echo_process(pipe: Pipe) -> None:
    """The other end of the echo: says its port."""
    run_loop(_echo_server(pipe))


@contextlib.asynccontextmanager
async def echo(nbytes: int) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
    """What sends so many bytes to the other end and waits for them."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=echo_process, args=(theirs,), daemon=True)
    process.start()
    try:
        port = await asyncio.to_thread(ours.recv)
        async with client.connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None) as socket:

            async def round_trip() -> None:
                await socket.send(bytes(nbytes))
                await socket.recv()

            yield round_trip
    finally:
        process.terminate()
        process.join()


async def p50_awaited(call: Callable[[], Awaitable[Any]]) -> float:
    """Microseconds of one awaited call, the median of many."""
    times = []
    for _ in range(CALLS):
        started = time.perf_counter()
        await call()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


async def _echo_server(pipe: Pipe) -> None:
    async def echo(socket: server.ServerConnection) -> None:
        async for message in socket:
            await socket.send(message)

    async with server.serve(echo, "127.0.0.1", 0, compression=None) as serving:
        pipe.send(next(iter(serving.sockets)).getsockname()[1])
        await serving.serve_forever()


def torch_rpc(count: int, where: str) -> None:
    import torch
    from torch.distributed import rpc

    with tempfile.TemporaryDirectory() as folder, closing(Child("rpc_sink", folder)):
        join_rpc(0, folder)
        x, y = torch.randn(count), torch.randn(count)
        serve(lambda: p50(lambda: rpc.rpc_sync("1", torch.add, args=(x, y))))


def torch_rpc_rref(count: int, where: str) -> None:
    from torch.distributed import rpc

    with tempfile.TemporaryDirectory() as folder, closing(Child("rpc_sink", folder)):
        join_rpc(0, folder)
        x, y = (rpc.remote("1", kept_there, args=(count,)) for _ in range(2))
        serve(lambda: p50(lambda: rpc.rpc_sync("1", sum_there, args=(x, y))))


def ray(count: int, where: str) -> None:
    import torch

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # nobody else's cluster
    library: Any = importlib.import_module("ray")
    library.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)

    class Keeper:
        def __init__(self, x: Any) -> None:
            self._x = x

        def add(self, y: Any) -> Any:
            return self._x + y

    keeper = library.remote(Keeper).remote(torch.randn(count))
    y = torch.randn(count)
    serve(lambda: p50(lambda: library.get(keeper.add.remote(y))))
    library.shutdown()


def main() -> None:
    function, *args = sys.argv[1:]
    ways: dict[str, Callable[[int, str], None]] = {each.__name__: each for each in (torch_rpc, torch_rpc_rref, ray)}
    ways[function](int(args[0]), args[1])


if __name__ == "__main__":
    main()
