"""Moves and copies over real peers in processes of their own, as users ask for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import grid
from grid.local_grid import Processes
from peer.folders import Folders
from peer.keys import Identity
from protocol.errors import Changed
from tests.tags import fresh_tag

Edges = dict[tuple[str, str], int]


async def edges(g: grid.Grid) -> Edges:
    """Value bytes that went from one end to another so far; the client is "me"."""
    sent: Edges = {}
    for info in g.peers():
        for end in (await g[info.id].status())["traffic"]:
            name = "me" if end["role"] == "client" else end["name"]
            if end["payload_sent"]:
                key = (info.name, name)
                sent[key] = sent.get(key, 0) + end["payload_sent"]
    return sent


def since(before: Edges, after: Edges) -> Edges:
    grown = {edge: nbytes - before.get(edge, 0) for edge, nbytes in after.items()}
    return {edge: nbytes for edge, nbytes in grown.items() if nbytes}


VALUES = [
    torch.zeros(0),
    torch.zeros(0, 3, dtype=torch.int64),
    torch.tensor(3.5),
    torch.tensor(True),
    torch.arange(10),
    torch.randn(300, 400),
    torch.randn(1_100_000).to(torch.bfloat16),
]


@pytest.mark.parametrize("tags", [(), ("#tagged",)], ids=["temporary", "published"])
async def test_every_kind_of_value_is_moved_and_copied(peers: Folders, tags: tuple[str, ...]) -> None:
    async with grid.connect(folders=peers) as g:
        for value in VALUES:
            x = await g["alice"].send(value, tags=[*tags, fresh_tag()] if tags else ())
            copied = await x.copy(g["carol"])
            again = await x.copy(g["carol"])
            moved = await x.move(g["bob"])
            assert moved.location is g["bob"] and moved.id_at_location == x.id_at_location
            assert len({copied.id_at_location, again.id_at_location, x.id_at_location}) == 3
            for each in (copied, again, moved):
                assert each.dtype == value.dtype and torch.equal(await each.fetch(), value)
            with pytest.raises(grid.GridError, match="moved to bob"):
                await x.fetch()
            for each in (copied, again, moved):
                await each.delete()


async def test_a_move_to_where_it_is_does_nothing(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        for tags in ((), fresh_tag()):
            x = await g["alice"].send(torch.ones(3), tags=tags)
            same = await x.move(g["alice"])
            assert torch.equal(await same.fetch(), torch.ones(3)) and torch.equal(await x.fetch(), torch.ones(3))
            twice = await x.copy(g["alice"])
            assert twice.id_at_location != x.id_at_location and torch.equal(await twice.fetch(), torch.ones(3))
            await x.delete()
            await twice.delete()


async def test_models_plans_and_pointers_are_moved(peers: Folders) -> None:
    @grid.plan
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    async with grid.connect(folders=peers) as g:
        model = nn.Sequential(nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 2))
        tag, value = fresh_tag(), torch.randn(4, 300)
        stored = await g["alice"].send(model, tags=tag)
        moved = await stored.move(g["bob"])
        x = await g["bob"].send(value)
        assert torch.allclose(await moved(x).get(), model(value), atol=1e-5)
        found = (await g.search(f"#{tag}")).one()
        assert found.location is g["bob"] and torch.allclose(await found(x).get(), model(value), atol=1e-5)
        again = await found.move(g["carol"])
        assert torch.allclose(await again(await g["carol"].send(value)).get(), model(value), atol=1e-5)
        await again.delete()

        double.build(torch.ones(2))
        kept = await double.send(g["alice"], tags=fresh_tag())
        there = await kept.move(g["carol"])
        assert there.location is g["carol"]
        await there.delete()

        x = await g["alice"].send(value)
        chain = await x.send(g["bob"])
        carried = await chain.move(g["carol"])
        assert carried.location is g["carol"]
        back = await carried.get()
        assert back.location is g["alice"] and torch.equal(await back.fetch(), value)


async def test_an_object_in_use_is_moved(peers: Folders) -> None:
    """Searching, fetching and computing go on around a move: each either succeeds or says that it is not there."""
    async with grid.connect(folders=peers) as g:
        value, tag = torch.randn(400_000), fresh_tag()
        here = await g["alice"].send(value, tags=tag)
        over, done = False, 0

        async def use(name: str) -> None:
            nonlocal done
            while not over:
                try:
                    hits: Any = await g.search(f"#{tag} peer:{name}")
                    for hit in hits:
                        assert torch.equal(await hit.fetch(), value)
                        assert torch.equal(await (hit + 1).get(), value + 1)
                        done += 1
                except (grid.NotFound, grid.GridError) as error:
                    assert "no object" in str(error) or "deleted" in str(error), error

        users = [asyncio.create_task(use(name)) for name in ("alice", "bob")]
        turn = 0
        while turn < 6 or not done:
            here = await here.move(g["bob" if turn % 2 == 0 else "alice"])
            turn += 1
        over = True
        await asyncio.gather(*users)
        await searched(g, tag, lambda names: names == [here.location.name])
        assert torch.equal(await here.fetch(), value)
        await here.delete()


async def test_a_temporary_that_is_written_to_while_it_is_moved_stays(peers: Folders) -> None:
    """Whatever the order in which they are done, no write is lost."""
    async with grid.connect(folders=peers) as g:
        stayed = 0
        for turn in range(10):
            x = await g["alice"].send(torch.zeros(1_000_000))
            view = x[:10]
            moving = asyncio.create_task(x.move(g["bob"]))
            for _ in range(turn):
                await asyncio.sleep(0.001)
            view.add_(1)
            try:
                moved = await moving
            except Changed as error:
                stayed += 1
                assert "changed while it was being moved" in error.message
                assert float(await x.sum().get()) == 10.0
            else:
                total = float(await moved.sum().get())
                # Written before it left, or after: then to the view, which is an object of its own, and stayed.
                assert total == 10.0 or float(await view.sum().get()) == 10.0


async def test_writing_to_other_things_does_not_hinder_a_move(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x, other = await g["alice"].send(torch.randn(500_000)), await g["alice"].send(torch.zeros(3))
        for source in (x * 2, (x + 1)[1000:400_000]):
            expected = await source.fetch()
            moving = asyncio.create_task(source.move(g["bob"]))
            while not moving.done():
                other.add_(1)
                await asyncio.sleep(0)
            assert torch.equal(await (await moving).fetch(), expected)


async def test_a_view_of_a_published_object_is_moved(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        value = torch.randn(1000, 1000)
        x = await g["alice"].send(value, tags=fresh_tag())
        for view, expected in ((x[100:700], value[100:700]), (x[:, 3:9], value[:, 3:9])):
            moved = await view.move(g["bob"])
            assert torch.equal(await moved.fetch(), expected) and torch.equal(await (moved + 1).get(), expected + 1)
        assert torch.equal(await x.fetch(), value)
        await x.delete()


async def test_a_model_in_memory_is_moved(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        model = nn.Linear(300, 300)
        there = await g["alice"].send(model)
        moved: Any = await there.move(g["bob"])
        value = torch.randn(2, 300)
        assert torch.allclose(await moved(await g["bob"].send(value)).get(), model(value), atol=1e-5)


async def searched(g: grid.Grid, tag: str, is_so: Callable[[list[str]], bool]) -> None:
    """Search until it is so of the names of those who have it."""
    async with asyncio.timeout(60):
        while not is_so([hit.location.name for hit in await g.search(f"#{tag}")]):
            pass


async def test_a_cancelled_move_leaves_one_holder(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        value = torch.randn(500_000)
        for turn in range(12):
            tag = fresh_tag()
            x = await g["alice"].send(value, tags=tag)
            moving = asyncio.create_task(x.move(g["bob"]))
            await asyncio.sleep(0.003 * turn)
            moving.cancel()
            await asyncio.gather(moving, return_exceptions=True)
            # For a moment both have it; and one search, that asks bob before and alice after it, may find none.
            await searched(g, tag, lambda names: len(names) == 1)
            moved = moving.result() if not moving.cancelled() else await x.move(g["bob"])
            assert moved.location is g["bob"] and torch.equal(await moved.fetch(), value)
            await searched(g, tag, lambda names: names == ["bob"])
            await moved.delete()


async def test_who_may_not_move_an_object_leaves_it_as_it_was(peers: Folders) -> None:
    async with (
        grid.connect(folders=peers) as owner,
        grid.connect(folders=peers, identity=Identity.generate()) as other,
    ):
        tag = fresh_tag()
        x = await owner["alice"].send(torch.ones(3), tags=tag)
        hit = (await other.search(f"#{tag}")).one()
        with pytest.raises(grid.Denied, match="belongs to"):
            await hit.move(other["bob"])
        assert [each.location.name for each in await owner.search(f"#{tag}")] == ["alice"]
        await x.delete()


async def test_targets_that_are_not_there(folders: Folders) -> None:
    processes = Processes(folders)
    await processes.start("alice", "bob")
    try:
        async with grid.connect(folders=folders, patience=1.0) as g:
            alice, bob = g["alice"], g["bob"]
            with pytest.raises(grid.UnknownPeer, match="alice, bob"):
                g["zoe"]
            x = await alice.send(torch.arange(300_000), tags="#here")
            await processes.stop("bob", kill=True)
            with pytest.raises(grid.GridError, match="bob"):
                await x.move(bob)
            assert torch.equal(await x.fetch(), torch.arange(300_000))
            await processes.start("bob")
            await g.wait_for("bob")
            moved = await x.move(g["bob"])
            await processes.stop("alice", kill=True)
            assert torch.equal(await moved.fetch(), torch.arange(300_000))
            # Whose holder is gone cannot be moved, and says so.
            y = await bob.send(torch.ones(3))
            del y
    finally:
        await processes.close()


async def test_a_chain_over_four_peers_carries_each_value_once(folders: Folders) -> None:
    """get, move, remote_get, an operation, delete: each value crosses each edge once, and never passes the asker."""
    async with grid.local("alice", "bob", "carol", "dave", folders=folders) as g:
        alice, bob, carol, dave = (g[name] for name in ("alice", "bob", "carol", "dave"))
        value = torch.randn(50_000)
        nbytes = value.numel() * 4
        x = await alice.send(value)
        start = await edges(g)
        assert start == {}

        at_bob = await x.send(bob)
        at_carol = await at_bob.send(carol)
        at_dave = await at_carol.send(dave)
        sums = at_dave + at_dave  # it is done where the data are: no value moves
        assert sums.location is dave
        assert await edges(g) == {}

        assert (await at_dave.get()).location is carol
        hop = await at_carol.remote_get()  # carol takes over bob's pointer: again no value
        assert hop.location is carol and await edges(g) == {}
        data = await hop.remote_get()  # and now the data: alice → carol
        assert data.location is carol
        assert await edges(g) == {("alice", "carol"): nbytes}

        moved = await data.move(dave)
        double = moved * 2
        there = await double.move(bob)
        assert await edges(g) == {("alice", "carol"): nbytes, ("carol", "dave"): nbytes, ("dave", "bob"): nbytes}
        assert all(end.payload_received == 0 for end in g.traffic())  # the asker has not seen a byte

        assert torch.equal(await there.get(), value * 2)
        assert (await edges(g))[("bob", "me")] == nbytes
        await moved.delete()
        with pytest.raises(grid.GridError, match="deleted"):
            await moved.fetch()
