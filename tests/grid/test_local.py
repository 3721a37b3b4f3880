"""A grid of real processes for the length of a block: there when it begins, gone when it ends."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path

import pytest
import torch

import grid
from grid.local_grid import LocalGrid
from grid.pointer import Pointer
from peer.folders import Folders
from peer.neighbours import Neighbours
from protocol.errors import AlreadyExists, BadRequest, UnknownPeer


def pids(g: LocalGrid) -> list[int]:
    return [neighbour.pid for neighbour in Neighbours(g.folders.peers).list()]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_peers_and_their_folder_are_gone_after_the_block() -> None:
    async def scenario() -> tuple[list[int], Path]:
        async with grid.local("alice", "bob") as g:
            assert [peer.name for peer in g.peers()] == ["alice", "bob"]
            return pids(g), g.folders.runtime.parent

    started, folder = asyncio.run(scenario())
    assert len(started) == 2
    assert not any(map(is_running, started))
    assert not folder.exists()


def test_without_a_block_they_are_there_until_it_is_closed() -> None:
    """As in a notebook, whose cells are awaited one by one."""

    async def scenario() -> tuple[list[int], Path]:
        g = await grid.local("alice")
        gc.collect()
        x = await g["alice"].send(torch.ones(2))
        assert torch.equal(await (x + 1).get(), torch.full((2,), 2.0))
        started, folder = pids(g), g.folders.runtime.parent
        await g.close()
        await g.close()  # is as good
        return started, folder

    started, folder = asyncio.run(scenario())
    assert started and not any(map(is_running, started))
    assert not folder.exists()


def test_they_are_gone_after_an_error_too() -> None:
    seen: list[int] = []

    async def scenario() -> None:
        async with grid.local("alice") as g:
            seen.extend(pids(g))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(scenario())
    assert seen and not any(map(is_running, seen))


def test_a_peer_that_starts_late_is_found_and_one_that_stops_is_not_alive() -> None:
    async def scenario() -> None:
        async with grid.local("alice") as g:
            carol = await g.start_peer("carol")
            assert carol is g["carol"]
            assert (await carol.status())["name"] == "carol"
            await g.stop_peer("carol")
            states = {peer.name: peer.state for peer in await g.refresh()}
            assert states == {"alice": "alive", "carol": "unreachable"}
            with pytest.raises(UnknownPeer, match="running: alice"):
                await g.stop_peer("carol")

    asyncio.run(scenario())


def test_what_a_killed_peer_had_published_is_there_when_it_starts_again() -> None:
    async def scenario() -> None:
        async with grid.local("alice") as g:
            values = torch.arange(4)
            sent = await g["alice"].send(values, tags=["#kept"])
            await g.stop_peer("alice", kill=True)
            await g.start_peer("alice")
            found = (await g.search("#kept")).one()
            assert isinstance(found, Pointer)
            assert found.id_at_location == sent.id_at_location
            assert torch.equal(await found.fetch(), values)

    asyncio.run(scenario())


def test_folders_of_ones_own_are_left_as_they_are(tmp_path: Path) -> None:
    async def scenario() -> str:
        async with grid.local("alice", folders=Folders.under(tmp_path)) as g:
            return g["alice"].id

    assert asyncio.run(scenario()) == asyncio.run(scenario())


def test_names_that_cannot_be_leave_nothing_running(tmp_path: Path) -> None:
    folders = Folders.under(tmp_path)

    async def scenario(*names: str) -> None:
        async with grid.local(*names, folders=folders):
            raise AssertionError("it started")

    for names, error in (((), BadRequest), (("alice", "alice"), AlreadyExists), (("alice", "a b"), BadRequest)):
        with pytest.raises(error):
            asyncio.run(scenario(*names))
    assert not Neighbours(folders.peers).list()
