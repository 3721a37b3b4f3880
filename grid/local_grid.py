"""A grid of real peer processes on this machine, for as long as a block of code runs: for demos and tests."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from grid.client import Grid
from grid.opening import Opening
from grid.remote import RemotePeer
from peer.folders import Folders
from peer.jail_rules import JailRules
from peer.keys import Identity
from peer.membership import Member
from peer.peer import Settings
from peer.pool_settings import PoolSettings
from peer.processes import PeerProcess
from protocol import limits
from protocol.errors import AlreadyExists, BadRequest, UnknownPeer


class Processes:
    """Peer processes that share folders, and so find each other. All of them end with this process."""

    def __init__(self, folders: Folders, workers: PoolSettings | None = None) -> None:
        self.folders = folders
        self._workers = workers or PoolSettings()
        self._running: dict[str, PeerProcess] = {}

    def __getitem__(self, name: str) -> PeerProcess:
        """The process of that name; UnknownPeer."""
        process = self._running.get(name)
        if process is None:
            raise UnknownPeer(f"no peer named {name!r} was started here; running: {', '.join(self._running) or 'none'}")
        return process

    async def start(self, *names: str) -> None:
        """Start peers at once; returns when all can be found. If one cannot start, none of these runs.

        Raises:
            what PeerProcess.start raises.
        """
        if len(set(names)) < len(names) or self._running.keys() & set(names):
            raise AlreadyExists(f"each peer needs a name of its own, not {', '.join(names)}")
        starting = [asyncio.create_task(self._start(name)) for name in names]
        try:
            await asyncio.gather(*starting)
        except BaseException:
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
            await asyncio.gather(*(self.stop(name) for name in names if name in self._running))
            raise

    async def _start(self, name: str) -> None:
        settings = Settings(name, port=0, folders=self.folders, workers=self._workers)
        self._running[name] = await PeerProcess.start(settings, self.folders.logs / f"{name}.log")

    async def stop(self, name: str, *, kill: bool = False) -> None:
        """End a peer in order, or with `kill` as a power cut would. What it has published is there when it restarts."""
        process = self[name]
        await (process.kill() if kill else process.stop())
        del self._running[name]

    async def close(self) -> None:
        await asyncio.gather(*(self.stop(name) for name in list(self._running)))


class LocalGrid(Grid):
    """A grid whose peers were started here: `grid.local(...)` gives it. Peers may come and go while it is open."""

    processes: Processes
    _undo: contextlib.AsyncExitStack | None = None  # what is left to be done when it is closed

    async def close(self) -> None:
        """Leave, and end the peers."""
        try:
            await super().close()
        finally:
            undo, self._undo = self._undo, None
            if undo is not None:
                await undo.aclose()

    @property
    def folders(self) -> Folders:
        """Where these peers keep their things; `grid.connect(folders=...)` gives another client's view of them."""
        return self.processes.folders

    async def start_peer(self, name: str) -> RemotePeer:
        """One more peer, found when this returns. A name that ran here before has its published objects still."""
        await self.processes.start(name)
        started = self.processes[name]
        self._membership.learn([Member(started.id, name, (started.url,))])  # a new address, where it ran before
        return self[started.id]

    async def stop_peer(self, name: str, *, kill: bool = False) -> None:
        """One peer less; `kill` ends it as a power cut would."""
        await self.processes.stop(name, kill=kill)


def local(
    *names: str,
    folders: Folders | None = None,
    identity: Identity | None = None,
    name: str = "",
    patience: float = limits.RECONNECT_TIMEOUT,
    unsafe_no_sandbox: bool = False,
    jails: bool | Sequence[str] = False,
) -> Opening[LocalGrid]:
    """Start peers of these names as processes here, join them, and end them at the end of the block: `async with
    grid.local("alice") as g`; or `g = await grid.local("alice")`, and `await g.close()` later.

    They keep their things in a temporary folder, or in `folders`, which are left as they are at the end. The
    processes end with this one, however it ends. `identity`, `name` and `patience` are yours; see `connect`.
    `unsafe_no_sandbox` is for systems that cannot confine workers, and for computations of your own only: they can do
    there what you can. `jails`: whether the peers run them (docs/jails.md), or the ids of whose they do.

    Raises:
        what PeerProcess.start raises.
    """
    workers = _workers(unsafe_no_sandbox, jails)

    async def opened() -> LocalGrid:
        if not names:
            raise BadRequest('a grid needs a peer: grid.local("alice")')
        async with contextlib.AsyncExitStack() as undo:
            processes = Processes(folders or Folders.under(await _temporary_folder(undo)), workers)
            undo.push_async_callback(processes.close)
            await processes.start(*names)
            made = await LocalGrid.open(identity=identity, folders=processes.folders, name=name, patience=patience)
            made.processes = processes
            made._undo = undo.pop_all()
            return made

    return Opening(f"grid.local({', '.join(map(repr, names))})", opened)


def _workers(unsafe_no_sandbox: bool, jails: bool | Sequence[str]) -> PoolSettings:
    usual = PoolSettings()
    rules = JailRules(for_all=jails) if isinstance(jails, bool) else JailRules(principals=tuple(jails))
    worker = dataclasses.replace(usual.worker, is_sandboxed=not unsafe_no_sandbox)
    return dataclasses.replace(usual, worker=worker, jails=rules)


async def _temporary_folder(undo: contextlib.AsyncExitStack) -> Path:
    path = Path(tempfile.mkdtemp(prefix="peergrid-local-"))
    undo.push_async_callback(asyncio.to_thread, shutil.rmtree, path, ignore_errors=True)
    return path
