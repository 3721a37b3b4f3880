"""Either end of a move killed at each of its named steps: after recovery exactly one has the object, whole.

With PEERGRID_FULL set, both ends are killed, at each pair of steps.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import torch

import grid
from grid.local_grid import Processes
from peer import failpoints
from peer.folders import Folders
from peer.keys import Identity
from peer.store.store import Store
from protocol.errors import GridError
from tests.full import minutes_long

AT_SOURCE = tuple(step for step in failpoints.STEPS if not step.startswith("pull:"))
AT_TARGET = tuple(step for step in failpoints.STEPS if step.startswith("pull:"))
PATIENCE = 90.0  # seconds: a busy machine takes a while to start a peer
VALUE = torch.arange(700_000)  # 5.6 MB: several blocks


class Ends:
    """alice, who has the object, and bob, who is to get it, in processes of their own."""

    def __init__(self, folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
        self.processes = Processes(folders)
        self._monkeypatch = monkeypatch

    async def start(self, name: str, step: str | None) -> None:
        """Start a peer that will be killed at this step."""
        if step is not None:
            self._monkeypatch.setenv(failpoints.VARIABLE, f"{step}=kill")
        try:
            await self.processes.start(name)
        finally:
            self._monkeypatch.delenv(failpoints.VARIABLE, raising=False)

    async def revive(self, name: str, again: str | None = None) -> None:
        """Wait until it was killed, and start it again."""
        process = self.processes[name]
        await within(PATIENCE, lambda: asyncio.sleep(0, not process.is_running))
        await self.processes.stop(name, kill=True)
        await self.start(name, again)

    async def holders(self, object: bytes) -> list[str]:
        """Stop both, and look into what they have stored. What there is must be whole, and nothing unsettled."""
        found = []
        for name in ("alice", "bob"):
            await self.processes.stop(name)
            folders = self.processes.folders
            store = await Store.open(folders.peer_data(name), Identity.load(folders.key_file(name)).id, name=name)
            try:
                assert await store.moves.unconfirmed() == []
                stored = [each for each in (await store.find("")).records if each["id"] == object]
                for each in stored:
                    await store.verify((await store.get(each["id"])).content)
                    found.append(name)
            finally:
                await store.close()
        return found


async def within(seconds: float, is_so: Callable[[], Awaitable[object]]) -> None:
    """Wait until it is so; what cannot be asked is not so yet."""
    until = time.monotonic() + seconds
    while True:
        try:
            if await is_so():
                return
        except GridError:
            pass
        assert time.monotonic() < until, "it did not become so in time"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def both(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, source: str | None, target: str | None
) -> AsyncIterator[Ends]:
    ends = Ends(folders, monkeypatch)
    try:
        await asyncio.gather(ends.start("alice", source))
        await ends.start("bob", target)
        yield ends
    finally:
        await ends.processes.close()


async def move(x: grid.Pointer, g: grid.Grid) -> grid.Pointer:
    """As a person would: whatever goes wrong is said in words, and asked again it succeeds."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return await x.move(g["bob"])
        except GridError as error:
            assert len(error.message) > 20 and time.monotonic() < until, error
        await asyncio.sleep(0.1)


async def check(folders: Folders, monkeypatch: pytest.MonkeyPatch, source: str | None, target: str | None) -> None:
    async with both(folders, monkeypatch, source, target) as ends:
        async with grid.connect(folders=folders, patience=60.0) as g:
            x = await g["alice"].send(VALUE, tags="#moving", description="five")
            moving = asyncio.create_task(move(x, g))
            reviving = [
                asyncio.create_task(ends.revive(name))
                for name, step in (("alice", source), ("bob", target))
                if step is not None
            ]
            await asyncio.gather(*reviving)
            moved = await moving

            async def is_one() -> bool:
                hits = await g.search("#moving")
                assert len(hits) + len(hits.unreachable) > 0, "nobody has it"
                return len(hits) == 1 and not hits.unreachable

            await within(PATIENCE, is_one)
            assert moved.location.name == "bob" and torch.equal(await moved.fetch(), VALUE)
            assert (await g.search("#moving")).one().record["description"] == "five"
        assert await ends.holders(moved._handle.id) == ["bob"]


@pytest.mark.parametrize("step", AT_SOURCE)
async def test_the_source_killed_at_a_step(folders: Folders, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    await check(folders, monkeypatch, step, None)


@pytest.mark.parametrize("step", AT_TARGET)
async def test_the_target_killed_at_a_step(folders: Folders, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    await check(folders, monkeypatch, None, step)


@minutes_long
@pytest.mark.parametrize("target", AT_TARGET)
@pytest.mark.parametrize("source", AT_SOURCE)
async def test_both_killed(folders: Folders, monkeypatch: pytest.MonkeyPatch, source: str, target: str) -> None:
    await check(folders, monkeypatch, source, target)
