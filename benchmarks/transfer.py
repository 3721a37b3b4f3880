"""How fast a 256 MiB tensor goes to a peer, comes back, and moves from peer to peer.

Reference, in the same run: a plain blocking TCP copy of as many bytes between two processes on loopback, 1 MiB
sends into a buffer that is already there. Ours counts from the call to the acknowledged or finished tensor.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import time
from multiprocessing.connection import Connection as Pipe

import torch

import grid
from benchmarks.harness import Figure, interleaved, options, report
from peer.process import run_loop

_MIB = 1 << 20


def _sink_process(pipe: Pipe, nbytes: int) -> None:
    """Receives `nbytes` at a time into one warm buffer, and answers each with a byte."""
    buffer = bytearray(nbytes)
    buffer[::4096] = b"\x01" * len(buffer[::4096])
    view = memoryview(buffer)
    with socket.create_server(("127.0.0.1", 0)) as server:
        pipe.send(server.getsockname()[1])
        connection, _ = server.accept()
        with connection:
            while True:
                at = 0
                while at < nbytes:
                    got = connection.recv_into(view[at:])
                    if not got:
                        return
                    at += got
                connection.sendall(b"k")


async def measure(quick: bool) -> list[Figure]:
    nbytes = 256 * _MIB
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_sink_process, args=(theirs, nbytes), daemon=True)
    process.start()
    try:
        port = await asyncio.to_thread(ours.recv)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            async with grid.local("alice", "bob") as g:
                return await _figures(g, connection, nbytes, 3 if quick else 9)
    finally:
        process.terminate()
        process.join()


async def _figures(g: grid.Grid, connection: socket.socket, nbytes: int, rounds: int) -> list[Figure]:
    alice, bob = g["alice"], g["bob"]
    tensor = torch.randn(nbytes // 4)
    view = memoryview(tensor.numpy()).cast("B")

    def copy_by_tcp() -> float:
        started = time.perf_counter()
        for at in range(0, nbytes, _MIB):
            connection.sendall(view[at : at + _MIB])
        connection.recv(1)
        return _rate(nbytes, started)

    async def tcp() -> float:
        return await asyncio.to_thread(copy_by_tcp)

    async def send() -> float:
        started = time.perf_counter()
        pointer = await alice.send(tensor)
        rate = _rate(nbytes, started)
        await pointer.delete()
        return rate

    async def fetch() -> float:
        pointer = await alice.send(tensor)
        started = time.perf_counter()
        value = await pointer.fetch()
        rate = _rate(nbytes, started)
        assert torch.equal(value, tensor)
        await pointer.delete()
        return rate

    async def move() -> float:
        pointer = await alice.send(tensor)
        started = time.perf_counter()
        moved = await pointer.move(bob)
        rate = _rate(nbytes, started)
        await moved.delete()
        return rate

    measured = {"tcp": tcp, "send": send, "fetch": fetch, "move": move}
    await interleaved(1, measured)
    median = await interleaved(rounds, measured)
    what = {"send": "a tensor to a peer", "fetch": "its value into a new tensor", "move": "directly from peer to peer"}
    return [
        Figure(f"{name}{suffix}", f"256 MiB: {text}", "MB/s", median[name], {"tcp": median["tcp"]}, "at least 0.25")
        for (name, text), suffix in zip(what.items(), ("_tmp", "", "_tmp"), strict=True)
    ]


def _rate(nbytes: int, started: float) -> float:
    """MB/s, with MB = 2^20 bytes."""
    return nbytes / _MIB / (time.perf_counter() - started)


def main() -> None:
    chosen = options(__doc__)
    report("transfer", run_loop(measure(chosen.quick)), chosen)


if __name__ == "__main__":
    main()
