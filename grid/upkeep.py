"""Looking after the stores of this machine's peers: those that run are asked, those that do not are opened here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from peer.connection import Connection
from peer.folders import Folders
from peer.keys import Identity
from peer.neighbours import Neighbour, Neighbours
from peer.opening import open_as_dialer
from peer.store.store import Store
from peer.upkeep import verified
from protocol.errors import BadRequest, GridError, UnknownPeer
from protocol.handshake import Introduction
from protocol.rows import unpack_rows

Report = dict[str, Any]
Progress = Callable[[int, int], None]

_POLL_SECONDS: Final = 0.5
_MAX_DAMAGED: Final = 1_000_000


class Keeper:
    """The stores of one user of this machine."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self._running = {one.name: one for one in Neighbours(folders.peers).list()}

    def names(self) -> list[str]:
        """Peers that run here, and those that have kept something here."""
        root = self._folders.data
        kept = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
        return sorted({*self._running, *(name for name in kept if self._has_key(name))})

    def _has_key(self, name: str) -> bool:
        with contextlib.suppress(BadRequest):
            return self._folders.key_file(name).exists()
        return False

    async def verify(self, name: str, data_dir: Path | None, progress: Progress) -> Report:
        """Check every hash of a peer's store and its database: {objects, blobs, bytes, damaged, database}.

        Raises:
            UnknownPeer: none of that name ran here. Denied: not one's own peer. DataFolderInUse: another process has
            the folder. Corrupt: the database cannot be opened.
        """
        neighbour = self._neighbour(name, data_dir)
        if neighbour is None:
            async with self._opened(name, data_dir) as store:
                return verified(await store.verify_all(progress))
        async with self._connected(neighbour) as connection:
            watching = asyncio.create_task(_watch(connection, progress))
            try:
                answer = await connection.request("verify", {})
                damaged = unpack_rows(await answer.read(), _MAX_DAMAGED)
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            return {**answer.result, "damaged": damaged}

    async def compact(self, name: str, data_dir: Path | None) -> Report:
        """Free what nothing needs: {files, file_bytes, database_bytes, is_rewritten}. Raises as `verify`."""
        neighbour = self._neighbour(name, data_dir)
        if neighbour is None:
            async with self._opened(name, data_dir) as store:
                return asdict(await store.compact())
        async with self._connected(neighbour) as connection:
            return (await connection.request("compact", {})).result

    def _neighbour(self, name: str, data_dir: Path | None) -> Neighbour | None:
        """The running peer, which is asked; None for a folder that is opened here."""
        if data_dir is not None:
            if not data_dir.is_dir():
                raise BadRequest(f"there is no folder {data_dir}")
            return None
        found = self._running.get(name)
        if found is None and name not in self.names():
            known = ", ".join(self.names()) or "none"
            raise UnknownPeer(f"no peer named {name!r} runs on this machine or has kept anything here; known: {known}")
        return found

    @asynccontextmanager
    async def _connected(self, neighbour: Neighbour) -> AsyncIterator[Connection]:
        identity = Identity.load(self._folders.key_file("client"))
        connection = await open_as_dialer(neighbour.url, Introduction("client", "", neighbour.id), identity)
        try:
            yield connection
        finally:
            await connection.close()

    @asynccontextmanager
    async def _opened(self, name: str, data_dir: Path | None) -> AsyncIterator[Store]:
        if not self._has_key(name):
            raise UnknownPeer(f"there is no key of a peer named {name!r} here: name the peer whose folder it is")
        identity = Identity.load(self._folders.key_file(name))
        store = await Store.open(data_dir or self._folders.peer_data(name), identity.id, name=name)
        try:
            yield store
        finally:
            await store.close()


async def _watch(connection: Connection, progress: Progress) -> None:
    """Says how far the peer is, until cancelled."""
    with contextlib.suppress(GridError):
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            state = (await connection.request("verifying", {})).result
            if "of" in state:
                progress(state["done"], state["of"])
