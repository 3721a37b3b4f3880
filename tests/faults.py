"""A TCP proxy that does to a line what bad networks do, for tests: `async with FaultProxy(url) as proxy: proxy.url`.

What happens is said for each direction (`proxy.up` from who dials, `proxy.down` to it), and may be changed at any time:

    proxy.down.cut_after = 100_000      each connection ends after so many bytes of that direction
    proxy.up.cuts = 3                   but only three times
    proxy.up.reset = True               by RST; otherwise by FIN
    proxy.down.stall_after = 5_000      nothing passes beyond them, and the line stays open
    proxy.down.stalls = 1               but only on one connection
    proxy.up.slice = 7                  in pieces of at most so many bytes
    proxy.down.corrupt_at = 40_000      this byte (of each connection; once: `corruptions = 1`) is another one
    proxy.up.latency = 0.02             seconds on the way; bytes still follow each other
    proxy.down.rate = 10_000_000        bytes a second, over all connections
    proxy.down.watch = heard.extend     shows all bytes that pass
    proxy.cut(reset=True)               ends all connections now
    proxy.refuse = True                 new connections end at once
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

_PIECE = 256 << 10
_AHEAD = 64  # pieces on their way in one direction of a connection: what latency delays


@contextlib.contextmanager
def faulty(target: str) -> Iterator[FaultProxy]:
    """A proxy for tests that have no loop: it runs in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="faulty")
    thread.start()
    proxy = FaultProxy(target)
    try:
        asyncio.run_coroutine_threadsafe(proxy.__aenter__(), loop).result()
        yield proxy
        asyncio.run_coroutine_threadsafe(proxy.close(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@dataclass(slots=True)
class Faults:
    """What happens in one direction. Offsets are bytes of that direction, and begin anew with each connection."""

    latency: float = 0.0
    rate: float | None = None
    slice: int | None = None
    cut_after: int | None = None
    cuts: int | None = None  # how many more; None: without end
    reset: bool = False
    stall_after: int | None = None
    stalls: int | None = None  # how many more connections; None: all of them
    corrupt_at: int | None = None
    corruptions: int | None = None  # how many more; None: without end
    passed: int = 0  # bytes so far, over all connections
    watch: Callable[[bytes], object] | None = None  # told all that passes


class FaultProxy:
    """Passes connections on to `target` (a URL). `connections` were made so far, `cut_count` of them were cut."""

    def __init__(self, target: str, host: str = "127.0.0.1", port: int = 0) -> None:
        parts = urlsplit(target)
        assert parts.hostname is not None and parts.port is not None
        self.target = (parts.hostname, parts.port)
        self.host = host
        self.port = port
        self.up = Faults()
        self.down = Faults()
        self.refuse = False
        self.connections = 0
        self.cut_count = 0
        self.changed = asyncio.Event()  # set by `resume`: stalled lines look again
        self._lines: set[_Line] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"ws://{self.host}:{self.port}"

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._lines)

    def retarget(self, target: str) -> None:
        """New connections go to another address."""
        parts = urlsplit(target)
        assert parts.hostname is not None and parts.port is not None
        self.target = (parts.hostname, parts.port)

    def cut(self, *, reset: bool = False) -> int:
        """End all connections now; how many there were."""
        lines = list(self._lines)
        for line in lines:
            line.cut(reset)
        return len(lines)

    def resume(self) -> None:
        """Lines that are stalled go on (after `stall_after` was set to None)."""
        self.changed.set()
        self.changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Nobody listens any more, and all lines end."""
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: writer.transport.abort())  # one that was cancelled may never have begun

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuse:
            _end(writer, reset=True)
            return
        try:
            there = await asyncio.open_connection(*self.target)
        except OSError:
            _end(writer, reset=True)
            return
        self.connections += 1
        line = _Line(self, (reader, writer), there)
        self._lines.add(line)
        try:
            await line.run()
        finally:
            self._lines.discard(line)
            line.end(reset=False)


class _Line:
    """One connection through the proxy."""

    def __init__(
        self,
        proxy: FaultProxy,
        near: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        far: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._near = near
        self._far = far
        self._over = asyncio.Event()

    async def run(self) -> None:
        proxy = self._proxy
        pumps = [
            asyncio.create_task(self._pump(self._near[0], self._far[1], lambda: proxy.up)),
            asyncio.create_task(self._pump(self._far[0], self._near[1], lambda: proxy.down)),
        ]
        over = asyncio.create_task(self._over.wait())
        try:
            both = asyncio.gather(*pumps)
            either: list[asyncio.Future[Any]] = [both, over]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*pumps, over):
                task.cancel()
            await asyncio.gather(*pumps, over, both, return_exceptions=True)

    def cut(self, reset: bool) -> None:
        self._proxy.cut_count += 1
        self.end(reset)

    def end(self, reset: bool) -> None:
        _end(self._near[1], reset)
        _end(self._far[1], reset)
        self._over.set()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, faults: Callable[[], Faults]
    ) -> None:
        """Pass bytes on until the end; an end of one direction is passed on as such."""
        loop = asyncio.get_running_loop()
        ahead: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_AHEAD)
        delivering = asyncio.create_task(self._deliver(ahead, writer, faults))
        try:
            while True:
                try:
                    data = await reader.read(_PIECE)
                except OSError:
                    data = b""
                await ahead.put((loop.time() + faults().latency, data))
                if not data:
                    break
            await delivering
        finally:
            delivering.cancel()
            await asyncio.gather(delivering, return_exceptions=True)

    async def _deliver(
        self, ahead: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, faults: Callable[[], Faults]
    ) -> None:
        loop = asyncio.get_running_loop()
        done = 0
        while True:
            due, data = await ahead.get()
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            if not data:
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            while data:
                piece = await self._next_piece(data, done, faults)
                data = data[len(piece) :]
                if not await self._write(writer, _corrupted(piece, done, faults()), faults()):
                    return
                done += len(piece)
                if (watch := faults().watch) is not None:
                    watch(piece)
                at = faults()
                if at.cut_after is not None and done >= at.cut_after and at.cuts != 0:
                    if at.cuts is not None:
                        at.cuts -= 1
                    self.cut(at.reset)
                    return

    async def _next_piece(self, data: bytes, done: int, faults: Callable[[], Faults]) -> bytes:
        """As many of these bytes as may pass now; waits while the line is stalled."""
        is_stalled = False
        while (stop := faults().stall_after) is not None and done >= stop and (is_stalled or faults().stalls != 0):
            if not is_stalled and faults().stalls is not None:
                faults().stalls -= 1
            is_stalled = True
            await self._proxy.changed.wait()
        at = faults()
        size = len(data)
        if at.slice is not None:
            size = min(size, at.slice)
        if at.stall_after is not None and at.stalls != 0 and at.stall_after > done:
            size = min(size, at.stall_after - done)
        if at.cut_after is not None and at.cuts != 0 and at.cut_after > done:
            size = min(size, at.cut_after - done)
        if at.rate is not None:
            size = min(size, max(1, int(at.rate / 50)))
        return data[:size]

    async def _write(self, writer: asyncio.StreamWriter, piece: bytes, at: Faults) -> bool:
        if writer.is_closing():
            return False
        try:
            writer.write(piece)
            await writer.drain()
        except OSError:
            self._over.set()
            return False
        at.passed += len(piece)
        if at.rate is not None:
            await asyncio.sleep(len(piece) / at.rate)
        elif at.slice is not None:
            await asyncio.sleep(0)  # so that pieces arrive as pieces, mostly
        return True


def _corrupted(piece: bytes, done: int, at: Faults) -> bytes:
    if at.corrupt_at is None or not done <= at.corrupt_at < done + len(piece) or at.corruptions == 0:
        return piece
    if at.corruptions is not None:
        at.corruptions -= 1
    changed = bytearray(piece)
    changed[at.corrupt_at - done] ^= 0xFF
    return bytes(changed)


def _end(writer: asyncio.StreamWriter, reset: bool) -> None:
    if reset:
        sock = writer.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()
