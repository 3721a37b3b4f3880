"""Tags on a temporary publish it while its owner goes on: what is seen of it meanwhile, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import grid
from peer.folders import Folders
from peer.peer import Peer, Settings
from peer.store.store import Store
from protocol.errors import BadRequest, StorageFull

WITHIN = 100


class SlowDisk:
    """Store.publish waits at it until it is let on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.on = asyncio.Event(), asyncio.Event()
        publish = Store.publish

        async def slow(store: Store, *args: Any, **kwargs: Any) -> None:
            self.reached.set()
            await self.on.wait()
            await publish(store, *args, **kwargs)

        monkeypatch.setattr(Store, "publish", slow)


@asynccontextmanager
async def alice(tmp_path: Path) -> AsyncIterator[tuple[grid.Grid, grid.Location]]:
    folders = Folders.under(tmp_path)
    peer = await Peer.start(Settings("alice", port=0, folders=folders))
    try:
        async with grid.connect(folders=folders) as g:
            yield g, g["alice"]
    finally:
        await peer.close()


async def test_other_requests_go_on_while_a_temporary_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with alice(tmp_path) as (g, peer), asyncio.timeout(WITHIN):
        x, y = await peer.send(torch.arange(40_000)), await peer.send(torch.ones(8))
        disk = SlowDisk(monkeypatch)
        tagging = asyncio.create_task(x.tag("#kept"))
        await disk.reached.wait()
        assert torch.equal(await (y + 1).fetch(), torch.full((8,), 2.0))
        with pytest.raises(BadRequest, match="being published"):
            await x.add_(1).fetch()
        disk.on.set()
        await tagging
        found = (await g.search("#kept")).one()
        assert isinstance(found, grid.Pointer) and torch.equal(await found.fetch(), torch.arange(40_000))


async def test_a_second_edit_and_a_deletion_wait_for_the_publication(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with alice(tmp_path) as (g, peer), asyncio.timeout(WITHIN):
        x = await peer.send(torch.arange(40_000))
        disk = SlowDisk(monkeypatch)
        first = asyncio.create_task(x.tag("#one"))
        await disk.reached.wait()
        second = asyncio.create_task(x.tag("#two"))
        await (await peer.send(torch.ones(2)) + 1).fetch()
        assert not second.done()
        disk.on.set()
        await asyncio.gather(first, second)
        assert len(await g.search("#one #two")) == 1
        disk.on.clear()
        disk.reached.clear()
        z = await peer.send(torch.arange(50_000))
        first = asyncio.create_task(z.tag("#gone"))
        await disk.reached.wait()
        deleting = asyncio.create_task(z.delete())
        await (await peer.send(torch.ones(2)) + 1).fetch()
        assert not deleting.done()
        disk.on.set()
        await asyncio.gather(first, deleting)
        assert len(await g.search("#gone")) == 0


async def test_a_publication_that_fails_leaves_the_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*args: Any, **kwargs: Any) -> None:
        raise StorageFull("no room")

    async with alice(tmp_path) as (g, peer), asyncio.timeout(WITHIN):
        x = await peer.send(torch.arange(40_000))
        with monkeypatch.context() as broken:
            broken.setattr(Store, "publish", full)
            with pytest.raises(StorageFull):
                await x.tag("#kept")
        assert len(await g.search("#kept")) == 0
        assert torch.equal(await x.fetch(), torch.arange(40_000))
        await x.tag("#kept")
        assert len(await g.search("#kept")) == 1
