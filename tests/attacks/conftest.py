"""A peer to attack, and an authenticated but hostile connection to it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from grid.local_grid import Processes
from peer.connection import Connection
from peer.folders import Folders
from peer.keys import Identity
from peer.neighbours import Neighbours
from peer.opening import open_as_dialer
from protocol.handshake import Introduction
from tests import zygotes
from tests.attacks.den import Den, Worker


@pytest.fixture(autouse=True)
def as_everywhere(real_zygotes: None) -> None:
    """What is attacked is a peer as it is, its zygote's start included."""


@pytest.fixture(scope="session")
def victim() -> Iterator[Folders]:
    """A peer named victim runs; its records are in these folders."""
    with tempfile.TemporaryDirectory(prefix="grid-attacks-") as folder:
        folders = Folders.under(Path(folder))
        with zygotes.real(), asyncio.Runner() as runner:
            processes = Processes(folders)
            runner.run(processes.start("victim"))
            yield folders
            runner.run(processes.close())


@pytest.fixture(scope="module")
def neighbour(den: Den) -> Iterator[Worker]:
    """Another principal's worker in the den of the module, which holds a value."""
    worker = den.spawn()
    assert worker.run("import builtins; builtins.kept = torch.arange(4); got = 1") == "ran 1"
    yield worker
    worker.close()


@asynccontextmanager
async def attacking(folders: Folders, identity: Identity | None = None) -> AsyncIterator[Connection]:
    """A session with the victim, of a stranger who proved a key of its own."""
    (running,) = Neighbours(folders.peers).list()
    connection = await open_as_dialer(running.url, Introduction("client", "mallory"), identity or Identity.generate())
    try:
        yield connection
    finally:
        await connection.close()
