"""Published objects over real peers: tags, search, ownership, privacy, and what survives."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

import grid
from grid.local_grid import Processes
from peer.folders import Folders
from peer.keys import Identity
from protocol.errors import BadRequest, BadTag
from tests.tags import fresh_tag


async def test_published_objects_are_found_by_tag_at_every_peer(peers: Folders) -> None:
    tag = fresh_tag()
    async with grid.connect(folders=peers) as g:
        await g["alice"].send(torch.ones(2), tags=[f"#{tag}", "#a"], description="two ones")
        await g["bob"].send(torch.ones(3), tags=f"#{tag} #b")
        hits = await g.search(f"#{tag}")
        assert {name: len(found) for name, found in hits.by_peer.items()} == {"alice": 1, "bob": 1}
        assert not hits.unreachable
        one = (await g.search(f"#{tag} #a ones")).one()
        assert isinstance(one, grid.Pointer) and one.tags == (f"#{tag}", "#a") and one.owner == g.id
        assert one.record["description"] == "two ones"
        assert [hit.location.name async for hit in g.stream(f"#{tag} -#a")] == ["bob"]
        with pytest.raises(grid.Ambiguous, match="2 objects match"):
            hits.one()
        with pytest.raises(grid.NotFound, match="nothing matches"):
            (await g.search(f"#{tag} #c")).one()


async def test_hits_do_not_own_and_published_objects_outlive_their_publisher(peers: Folders) -> None:
    tag = fresh_tag()
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.ones(2), tags=tag)
        await x.get()
        del x
    async with grid.connect(folders=peers) as g:
        hit = (await g.search(f"#{tag}")).one()
        assert torch.equal(await hit.get(), torch.ones(2))
        assert len(await g.search(f"#{tag}")) == 1
        await hit.delete()
        assert len(await g.search(f"#{tag}")) == 0
        with pytest.raises(BadRequest, match="deleted"):
            await hit.fetch()


async def test_a_tag_publishes_a_temporary_and_tags_can_change(peers: Folders) -> None:
    tag, other = fresh_tag(), fresh_tag()
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.arange(40_000))
        y = x * 2
        await y.tag(tag)
        await y.tag(other)
        await y.untag(tag)
        await y.describe("doubled")
        hit: Any = (await g.search(f"#{other} doubled")).one()
        assert hit.id_at_location == y.id_at_location and hit.tags == (f"#{other}",)
        assert torch.equal(await hit.fetch(), torch.arange(40_000) * 2)
        assert torch.equal(await (hit + 1).get(), torch.arange(40_000) * 2 + 1)
        with pytest.raises(BadTag):
            await y.tag("no spaces")
        await y.delete()


async def test_published_objects_are_read_only(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.zeros(3), tags=fresh_tag())

        def assign() -> None:
            x[0] = 1

        with torch.no_grad():
            row = x[1:]
        for write in (
            lambda: x.add_(1),
            lambda: torch.add(x, 1, out=x),
            assign,
            lambda: x[0].add_(1),
            lambda: x.view(3, 1).T[:, 1:].detach().zero_(),
            lambda: row.mul_(2),
        ):
            with pytest.raises(grid.ReadOnly, match="clone"):  # at once: x stays as good as it was
                write()
        assert torch.equal(await (x[0] + row).get(), torch.zeros(2))
        copy = x.clone().add_(1)
        assert torch.equal(await copy.get(), torch.ones(3))
        assert torch.equal(await x.fetch(), torch.zeros(3))
        await x.delete()


async def test_private_values_are_computed_on_by_all_and_taken_by_their_owner_alone(peers: Folders) -> None:
    tag = fresh_tag()
    async with (
        grid.connect(folders=peers) as owner,
        grid.connect(folders=peers, identity=Identity.generate()) as other,
    ):
        x = await owner["alice"].send(torch.ones(4), tags=tag, private=True)
        hit: Any = (await other.search(f"#{tag}")).one()
        derived = hit.sum() * 2
        for refused in (hit.get(), hit.fetch(), derived.get(), hit.copy(other["bob"]), derived.copy(other["bob"])):
            with pytest.raises(grid.Denied, match="private") as caught:
                await refused
            assert caught.value.fields["owners"] == [owner.id]
        # In place, through a public tensor, published again: the label follows the data.
        public = await other["alice"].send(torch.zeros(4))
        public.add_(hit)
        with pytest.raises(grid.Denied):
            await public.get()
        kept = fresh_tag()
        await derived.tag(kept)
        with pytest.raises(grid.Denied):
            await (await other.search(f"#{kept}")).one().get()
        assert float(await (x.sum() * 2).get()) == 8.0
        copied = await x.copy(owner["bob"])
        with pytest.raises(grid.Denied):
            await (await other.search(f"#{tag} peer:bob")).one().get()
        await copied.delete()
        await x.delete()


async def test_only_the_owner_changes_or_removes_an_object(peers: Folders) -> None:
    tag = fresh_tag()
    async with (
        grid.connect(folders=peers) as owner,
        grid.connect(folders=peers, identity=Identity.generate()) as other,
    ):
        x = await owner["alice"].send(torch.ones(4), tags=tag)
        hit = (await other.search(f"#{tag}")).one()
        for refused in (hit.tag("mine"), hit.describe("mine"), hit.delete(), hit.move(other["bob"])):
            with pytest.raises(grid.Denied, match="belongs to"):
                await refused
        await other["alice"].clear()
        assert torch.equal(await hit.get(), torch.ones(4))
        await x.delete()


async def test_a_temporary_is_nobody_elses(peers: Folders) -> None:
    async with (
        grid.connect(folders=peers) as owner,
        grid.connect(folders=peers, identity=Identity.generate()) as other,
    ):
        x = await owner["alice"].send(torch.ones(4))
        with pytest.raises(grid.NotFound):
            await other["alice"].describe_object(x._handle.id)
        with pytest.raises(grid.NotFound):
            await other["alice"].request("fetch", {"id": x._handle.id})


async def test_moving_a_published_object_keeps_id_tags_and_owner(peers: Folders) -> None:
    tag = fresh_tag()
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.randn(50_000), tags=tag, description="big", private=True)
        value = await x.fetch()
        moved = await x.move(g["bob"])
        hit = (await g.search(f"#{tag}")).one()
        assert hit.location is g["bob"] and hit.id_at_location == x.id_at_location and hit.owner == g.id
        assert hit.record["description"] == "big" and hit.record["private"]
        assert torch.equal(await moved.fetch(), value)
        await moved.delete()


async def test_clear_removes_all_of_ones_own(peers: Folders) -> None:
    async with grid.connect(folders=peers, identity=Identity.generate()) as g:
        await g["alice"].send(torch.ones(2), tags=fresh_tag())
        await g["alice"].send(torch.ones(2), tags=fresh_tag())
        x = await g["alice"].send(torch.ones(2))
        assert await g["alice"].clear() == 3
        with pytest.raises(grid.NotFound):
            await x.fetch()


async def test_a_query_that_does_not_parse_points_at_the_column(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        with pytest.raises(grid.QueryError) as caught:
            await g.search("#a | (#b")
        assert caught.value.column == 5 and "^" in str(caught.value)


async def test_peers_are_found_by_name_and_id(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        assert [info.name for info in g.peers()] == ["alice", "bob", "carol"]
        alice = g["alice"]
        assert g[alice.id] is alice and g[alice.id[:10]] is alice
        with pytest.raises(grid.UnknownPeer, match="alice, bob, carol"):
            g["dave"]
        info = g.peers()[0]
        assert info.state == "alive" and info.urls[0].startswith("ws://127.0.0.1:") and info.objects is not None


async def test_a_killed_peer_is_unreachable_and_has_all_it_published_when_it_is_back(folders: Folders) -> None:
    processes = Processes(folders)
    await processes.start("alice", "bob")
    try:
        async with grid.connect(folders=folders) as g:
            small = await g["alice"].send(torch.arange(5), tags="kept small")
            large = torch.randn(200_000)
            await g["alice"].send(large, tags="kept large")
            x = await g["alice"].send(torch.ones(3))
            await processes.stop("alice", kill=True)
            with pytest.raises(grid.GridError):
                await (x + 1).get()
            hits = await g.search("#kept")
            assert len(hits) == 0 and list(hits.unreachable) == ["alice"]
            await processes.start("alice")
            await g.wait_for("alice")
            hits = await g.search("#kept")
            assert len(hits) == 2 and not hits.unreachable
            found: Any = (await g.search("#kept #large")).one()
            assert torch.equal(await found.fetch(), large)
            assert torch.equal(await small.fetch(), torch.arange(5))
    finally:
        await processes.close()


async def test_a_client_killed_midway_leaves_nothing_but_what_it_published(folders: Folders) -> None:
    processes = Processes(folders)
    await processes.start("alice")
    try:
        g = await grid.connect(folders=folders)
        await g["alice"].send(torch.ones(3), tags="kept")
        temporary = await g["alice"].send(torch.ones(3))
        for link in g._links._links.values():
            link.result()._socket.transport.abort()
        await asyncio.sleep(0)
        async with grid.connect(folders=folders) as again:
            assert len(await again.search("#kept")) == 1
        del temporary
        await g.close()
    finally:
        await processes.close()
