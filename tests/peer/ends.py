"""Handlers and payloads that tests of sessions give to an end, and what stands between two."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from peer.calls import Answer, Call
from peer.payloads import MemoryPayload
from protocol import limits
from protocol.handshake import Introduction

Connected = Callable[..., contextlib.AbstractAsyncContextManager[Any]]
LARGE = 3 * limits.MIB + 17
DORA = Introduction("client", "dora")


class Gate:
    """A handler that holds every request until it is opened."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.started = asyncio.Event()
        self.waiting = 0
        self.cancelled = 0

    async def __call__(self, call: Call) -> Answer:
        if call.op != "wait":
            return Answer({"op": call.op})
        self.waiting += 1
        self.started.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Answer({"number": call.args.get("number")})


class Source:
    """A payload that notes how it was used, and can be made to fail."""

    def __init__(self, nbytes: int, error: Exception | None = None) -> None:
        self.nbytes = nbytes
        self.reads = 0
        self.closed = 0
        self._error = error

    async def read(self, offset: int, size: int) -> bytes:
        self.reads += 1
        if self._error is not None and (offset or self.nbytes <= limits.INLINE_PAYLOAD):
            raise self._error
        return bytes(size)

    def close(self) -> None:
        self.closed += 1


def giving(source: Any) -> Callable[[Call], Any]:
    """A handler that answers with this payload."""

    async def handler(call: Call) -> Answer:
        return Answer({"n": 1}, source)

    return handler


async def many(call: Call) -> Answer:
    """Answers `fetch` with two windows of zeros."""
    return Answer({}, MemoryPayload(bytes(2 * limits.WINDOW)) if call.op == "fetch" else None)


class Throttle:
    """Between two ends: passes on so many bytes at a time, and changes what it is told to."""

    def __init__(self, port: int, at_once: int = 1 << 16, every: float = 0.0) -> None:
        self._port = port
        self._at_once = at_once
        self._every = every
        self._tasks: list[asyncio.Task[None]] = []
        self.flip_down: int | None = None  # one bit of that byte on the way to the dialer
        self.is_stopped = asyncio.Event()
        self.url = ""

    async def __aenter__(self) -> Throttle:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=self._at_once)
        self.url = f"ws://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port, limit=self._at_once)
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._pass_on(reader, far_writer, False)))
        self._tasks.append(loop.create_task(self._pass_on(far_reader, writer, True)))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_down: bool) -> None:
        at = 0
        try:
            while data := bytearray(await reader.read(self._at_once)):
                if is_down and self.flip_down is not None and at <= self.flip_down < at + len(data):
                    data[self.flip_down - at] ^= 1
                at += len(data)
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(self._every)
        finally:
            writer.close()
