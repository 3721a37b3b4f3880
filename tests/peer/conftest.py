"""Ends that talk over real sockets on loopback, and a loop that forgives nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from websockets.asyncio.server import Server

from peer import transport
from peer.calls import Answer, Call, Handler
from peer.connection import Connection
from peer.keys import Identity
from peer.near import listening
from peer.opening import open_as_acceptor, open_as_dialer
from peer.payloads import MemoryPayload
from protocol.errors import LinkError
from protocol.handshake import Introduction
from tests import loops
from tests.waiting import PATIENCE, until

ALICE, DORA = Identity.generate(), Identity.generate()
TEST_TIMEOUT = PATIENCE + 30  # seconds


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test; it fails, too, if it leaves tasks behind or errors that nobody looked at."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    loops.run(_strictly(pyfuncitem.obj, arguments))
    return True


async def _strictly(test: Callable[..., Any], arguments: dict[str, Any]) -> None:
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    async with asyncio.timeout(TEST_TIMEOUT):
        await test(**arguments)
    for _ in range(3):
        await asyncio.sleep(0)
    gc.collect()
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not left, left
    assert not problems, problems


async def echo(call: Call) -> Answer:
    """Sends back what came: arguments and payload."""
    if call.stream is None:
        return Answer({"op": call.op, **call.args}, MemoryPayload(bytes(call.payload)))
    data = bytearray()
    async for chunk in call.stream:
        data += chunk
    return Answer({"op": call.op, **call.args}, MemoryPayload(data))


@dataclass
class Acceptor:
    """Accepts sessions; what became of them is in `connections` and `failures`. `is_near`: by the short way, too."""

    handler: Handler | None = echo
    identity: Identity = ALICE
    introduction: Introduction = field(default_factory=lambda: Introduction("peer", "alice"))
    connections: list[Connection] = field(default_factory=list)
    failures: list[LinkError] = field(default_factory=list)
    is_near: bool = False
    server: Server | None = None
    beside: Server | None = None

    @property
    def port(self) -> int:
        assert self.server is not None
        return int(self.server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    async def accept(self, socket: transport.GuardedServerConnection) -> None:
        try:
            connection = await open_as_acceptor(socket, self.introduction, self.identity, self.handler)
        except LinkError as error:
            self.failures.append(error)
            return
        self.connections.append(connection)
        await asyncio.shield(connection.closed)

    async def __aenter__(self) -> Acceptor:
        self.server = await transport.listen("127.0.0.1", 0, self.accept)
        if self.is_near:
            pipe = listening("127.0.0.1", self.port)
            assert pipe is not None
            self.beside = await transport.listen_at(pipe, self.accept)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(connection.close() for connection in self.connections))
        for server in (self.server, self.beside):
            if server is not None:
                server.close()
                await server.wait_closed()


@dataclass
class Line:
    """One session: the dialer's end, the acceptor's end."""

    near: Connection
    far: Connection
    acceptor: Acceptor


@contextlib.asynccontextmanager
async def _connected(
    handler: Handler | None = echo, near_handler: Handler | None = None, *, is_near: bool = False, **introduction: Any
) -> AsyncIterator[Line]:
    async with Acceptor(handler, is_near=is_near) as acceptor:
        ours = Introduction("client", "dora", **introduction)
        near = await open_as_dialer(acceptor.url, ours, DORA, near_handler)
        try:
            await until(lambda: acceptor.connections)
            assert transport.origin(near._socket).startswith("process" if is_near else "127.0.0.1")
            yield Line(near, acceptor.connections[0], acceptor)
        finally:
            await near.close()


_IS_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="there are no abstract names of Unix sockets here")


@pytest.fixture(scope="session", params=["tcp", pytest.param("near", marks=_IS_LINUX)])
def connected(request: pytest.FixtureRequest) -> Callable[..., contextlib.AbstractAsyncContextManager[Line]]:
    """connected(handler of the acceptor, handler of the dialer): an async context that gives both ends."""
    return partial(_connected, is_near=request.param == "near")


@pytest.fixture(scope="session")
def acceptor() -> type[Acceptor]:
    """An async context: `async with acceptor(handler) as made: made.url`."""
    return Acceptor
