"""Another principal, beside whom ours is measured: a client in its own process, whose worker computes all the time."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator

import torch

import grid
from peer.keys import Identity
from peer.process import run_loop

_SIDE = 600  # of the matrices that it multiplies: 10 to 20 ms each
_SETTLES = 0.5  # seconds until a change of what it does is felt
_STARTS_WITHIN = 60.0  # seconds


class Other:
    """It computes from `go_on` to `pause`; at first it does."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(_SETTLES)

    async def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        await asyncio.sleep(_SETTLES)


@contextlib.asynccontextmanager
async def computing(url: str) -> AsyncIterator[Other]:
    """Somebody else who computes at the peer of that URL."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", __name__, url, stdout=PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(_STARTS_WITHIN):
            if not await process.stdout.readline():
                raise RuntimeError("the other principal's process ended before it computed anything")
        yield Other(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _compute(url: str) -> None:
    async with grid.connect(url, identity=Identity.generate()) as g:
        (alice,) = g
        x = await alice.send(torch.randn(_SIDE, _SIDE) / _SIDE**0.5)
        print("computing", flush=True)
        product = x
        while True:
            for _ in range(4):
                product = product @ x
            await product.sum().get()


if __name__ == "__main__":
    run_loop(_compute(sys.argv[1]))
