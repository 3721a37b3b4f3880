"""Copies and moves whose ends are restarted: what was under way goes on, and what is remembered of it stays bounded."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
import torch

import grid
from grid.local_grid import Processes
from peer.folders import Folders
from protocol import limits
from protocol.errors import GridError, PeerLost, Unreachable
from tests.moves.two_peers import DORA, Two, two_peers
from tests.waiting import until

LARGE = os.urandom(6 * limits.CHUNK)
STRANGER = "s" * 52


async def begin_and_stall(two: Two, ticket: bytes, id: bytes) -> asyncio.Task[dict[str, Any]]:
    """A pull from alice that has half of the value, and gets no more over this line."""
    two.to_alice.down.stall_after = 3 * limits.CHUNK + 30_000
    pulling = asyncio.create_task(two.pull(ticket, id))
    await until(lambda: pulling.done() or two.to_alice.down.passed >= 3 * limits.CHUNK)
    assert not pulling.done()
    return pulling


async def test_a_copy_goes_on_after_its_source_was_restarted(folders: Folders) -> None:
    async with two_peers(folders) as two:
        id, copied = os.urandom(16), os.urandom(16)
        await two.put("alice", id, LARGE)
        pulling = await begin_and_stall(two, await two.offer(id, move=False), copied)
        await two.restart("alice")
        two.to_alice.down.stall_after = None
        two.to_alice.cut(reset=True)
        assert (await pulling)["id"] == copied
        assert await two.settled(id) == {"alice": LARGE} and await two.settled(copied) == {"bob": LARGE}
        resent = sum(traffic.payload_sent for traffic in two.peers["alice"]._links.traffic.all())
        assert resent <= 4 * limits.CHUNK  # by the restarted one: what was missing, not all of it


async def test_a_copy_that_is_asked_for_again_after_it_arrived_is_the_same_one(folders: Folders) -> None:
    async with two_peers(folders) as two:
        id, copied = os.urandom(16), os.urandom(16)
        await two.put("alice", id, LARGE)
        ticket = await two.offer(id, move=False)
        record = await two.pull(ticket, copied)
        moves = two.peers["alice"]._moves
        await until(lambda: (found := moves._tickets.find(ticket)) is not None and found.is_given_up)
        await two.restart("bob")  # the answer was lost with it
        assert (await two.pull(ticket, copied))["created"] == record["created"]


async def test_what_is_remembered_of_a_copy_goes_when_it_is_over(folders: Folders) -> None:
    async with two_peers(folders) as two:
        id = os.urandom(16)
        await two.put("alice", id, LARGE)
        used, unused = await two.offer(id, move=False), await two.offer(id, move=False)
        alice = two.peers["alice"]
        for ticket in (used, unused):
            offered = await alice._store.moves.find(ticket)
            assert offered is not None and not offered.is_move
        await two.pull(used, os.urandom(16))
        await until(lambda: used in alice._moves._lapsed)
        alice._moves._tickets.sweep(1e12)
        await alice._moves.sweep()
        for ticket in (used, unused):
            assert await alice._store.moves.find(ticket) is None


async def test_a_copy_does_not_wait_for_what_is_open_about_a_move(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody loses anything by a copy, so it needs no confirmation."""
    monkeypatch.setattr(limits, "RECONNECT_TIMEOUT", 0.2)
    async with two_peers(folders) as two:
        id = await moved_and_not_confirmed(two)
        carol = two.peers["alice"].id  # any other peer
        args = {"id": id, "target": carol, "move": False}
        assert (await two.ask("bob", "offer", args))["ticket"]


async def moved_and_not_confirmed(two: Two) -> bytes:
    """An object at bob, whose source alice cannot be told."""
    id, ticket = await two.offered(LARGE)
    two.cut_when_published()
    await two.pull(ticket, id)
    return id


async def test_what_is_not_confirmed_is_its_owners_after_a_restart_too(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RECONNECT_TIMEOUT", 0.2)
    async with two_peers(folders) as two:
        id = await moved_and_not_confirmed(two)
        await two.restart("bob")
        notes = two.peers["bob"]._notes
        assert [note.owner for note in notes.about(id)] == [DORA.id]
        await notes.settled(id, STRANGER)  # another's object under this id waits for nobody
        with pytest.raises(Unreachable, match="came from alice"):
            await notes.settled(id, DORA.id)
        two.to_alice.refuse = False
        assert await two.settled(id) == {"bob": LARGE}


async def test_a_move_waits_for_its_target_to_be_started_again(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than other requests do, when the process of the target is known to have ended."""
    monkeypatch.setattr(limits, "RECONNECT_ENDED", 0.05)
    value = torch.arange(700_000)
    processes = Processes(folders)
    try:
        await processes.start("alice")
        monkeypatch.setenv("PEERGRID_FAILPOINTS", "pull:receiving=kill")
        await processes.start("bob")
        monkeypatch.delenv("PEERGRID_FAILPOINTS")
        async with grid.connect(folders=folders) as g:
            x = await g["alice"].send(value, tags="#moving")
            moving = asyncio.create_task(x.move(g["bob"]))
            bob = processes["bob"]
            await until(lambda: not bob.is_running)
            with pytest.raises(GridError):  # given up by all others
                await g["bob"].status()
            assert not moving.done()
            await processes.stop("bob", kill=True)
            await processes.start("bob")
            moved = await moving
            assert moved.location.name == "bob" and torch.equal(await moved.fetch(), value)
    finally:
        await processes.close()


@pytest.mark.parametrize("doing", ["move", "copy"])
async def test_a_target_that_stays_away_is_told_in_the_words_of_who_asked(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, doing: str
) -> None:
    monkeypatch.setattr(limits, "RESUME_TIMEOUT", 0.5)
    monkeypatch.setattr(limits, "RECONNECT_ENDED", 0.05)
    processes = Processes(folders)
    try:
        await processes.start("alice")
        monkeypatch.setenv("PEERGRID_FAILPOINTS", "pull:described=kill")
        await processes.start("bob")
        async with grid.connect(folders=folders) as g:
            x = await g["alice"].send(torch.arange(9), tags="#moving")
            with pytest.raises(PeerLost) as cut:
                await (x.move if doing == "move" else x.copy)(g["bob"])
            words = cut.value.message
            assert words.startswith(f"the {doing} of #moving from alice to bob was cut off: bob cannot be reached")
            where = (
                "at alice still or at bob: move it again" if doing == "move" else "at alice, as it was: copy it again"
            )
            assert where in words and "pull" not in words
            assert torch.equal(await x.fetch(), torch.arange(9))
    finally:
        await processes.close()


async def test_a_source_that_is_gone_leaves_nothing_begun(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECONNECT_ENDED", 0.05)
    processes = Processes(folders)
    try:
        await processes.start("alice")
        await processes.start("bob")
        async with grid.connect(folders=folders) as g:
            x = await g["alice"].send(torch.arange(9), tags="#moving")
            await processes.stop("alice", kill=True)
            with pytest.raises(GridError, match=r"the move of object .* It is at alice, as it was"):
                await x.move(g["bob"])
    finally:
        await processes.close()
