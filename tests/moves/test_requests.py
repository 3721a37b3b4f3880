"""Moves between two peers over real lines, at the level of requests: whatever is cut or said twice, one has it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

import pytest

from peer.folders import Folders
from peer.membership import Member
from peer.peer import Peer, Settings
from protocol import limits
from protocol.errors import BadRequest, Changed, Denied, NotFound, StorageFull, Unreachable
from tests.moves.two_peers import Two, two_peers

SMALL = bytes(range(256)) * 16
LARGE = os.urandom(3 * limits.CHUNK + 5)


def carried(two: Two) -> tuple[int, int]:
    """Value bytes that alice has sent to bob, and to anybody."""
    log = two.peers["alice"]._links.traffic.all()
    bob = two.peers["bob"].id
    return sum(t.payload_sent for t in log if t.id == bob), sum(t.payload_sent for t in log)


async def begin_and_stall(
    two: Two, pull: Coroutine[Any, Any, dict[str, Any]], chunks: int = 1
) -> asyncio.Task[dict[str, Any]]:
    """Begin a pull from alice, and stop the line after so many chunks of the value; it is open still."""
    two.to_alice.down.stall_after = chunks * limits.CHUNK + 30_000
    pulling = asyncio.create_task(pull)
    while two.to_alice.down.passed < chunks * limits.CHUNK:
        assert not pulling.done()
        await asyncio.sleep(0)
    return pulling


def go_on(two: Two) -> None:
    two.to_alice.down.stall_after = None
    two.to_alice.resume()


@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
async def test_a_move_takes_the_object_from_one_to_the_other(folders: Folders, data: bytes) -> None:
    async with two_peers(folders) as two:
        id = os.urandom(16)
        await two.put("alice", id, data)
        record = await two.move(id)
        assert record["id"] == id and record["tags"] == ["moving"] and record["description"] == "d"
        assert await two.settled(id) == {"bob": data}
        assert carried(two) == (len(data), len(data))
        back = await two.move(id, source="bob", target="alice")
        assert back["id"] == id and await two.settled(id) == {"alice": data}


async def test_a_pull_that_is_asked_twice_is_one(folders: Folders) -> None:
    async with two_peers(folders) as two:
        id = os.urandom(16)
        await two.put("alice", id, LARGE)
        ticket = await two.offer(id)
        first, second = await asyncio.gather(two.pull(ticket, id), two.pull(ticket, id))
        assert first == second and carried(two) == (len(LARGE), len(LARGE))
        third = await two.pull(ticket, id)  # and later: the answer was lost
        assert third.items() >= first.items()
        await two.restart("bob")
        assert (await two.pull(ticket, id))["id"] == id
        assert await two.settled(id) == {"bob": LARGE} and carried(two)[0] == len(LARGE)


async def test_collected_can_be_said_again(folders: Folders) -> None:
    async with two_peers(folders) as two:
        id = os.urandom(16)
        await two.put("alice", id, SMALL)
        ticket = await two.offer(id)
        await two.pull(ticket, id)
        bob = two.peers["bob"]
        member = bob._member(two.peers["alice"].id)
        assert member is not None
        for _ in range(2):
            line = await bob._links.to(member)
            await line.request("collected", {"ticket": ticket, "version": bytes(16)})
            await two.restart("alice")
        # What has the id by now is another object: the old ticket does not reach it.
        await two.move(id, source="bob", target="alice")
        member = bob._member(two.peers["alice"].id)
        assert member is not None
        line = await bob._links.to(member)
        await line.request("collected", {"ticket": ticket, "version": bytes(16)})
        assert await two.settled(id) == {"alice": SMALL}


@pytest.mark.parametrize("edit", [{"add": ["more"]}, {"description": "other"}, {"remove": ["moving"]}])
async def test_what_changed_meanwhile_stays_as_it_is(folders: Folders, edit: dict[str, Any]) -> None:
    async with two_peers(folders) as two:
        id = os.urandom(16)
        await two.put("alice", id, LARGE)
        ticket = await two.offer(id)
        pulling = await begin_and_stall(two, two.pull(ticket, id))
        await two.ask("alice", "edit", {"id": id, "add": [], "remove": [], **edit})
        go_on(two)
        with pytest.raises(Changed, match="was changed while it was being moved"):
            await pulling
        assert await two.settled(id) == {"alice": LARGE}
        await two.move(id)  # again, it succeeds
        assert await two.settled(id) == {"bob": LARGE}


async def test_a_refusal_stays_a_refusal(folders: Folders) -> None:
    """A second `collected` that was long on its way must not take the object when the target has dropped its copy."""
    async with two_peers(folders) as two:
        id = os.urandom(16)
        await two.put("alice", id, SMALL)
        ticket = await two.offer(id)
        bob = two.peers["bob"]
        alice = bob._member(two.peers["alice"].id)
        assert alice is not None
        line = await bob._links.to(alice)
        told = (await line.request("collect", {"ticket": ticket})).result
        collected = {"ticket": ticket, "version": told["version"]}
        await two.ask("alice", "edit", {"id": id, "add": ["more"], "remove": []})
        with pytest.raises(Changed):
            await line.request("collected", collected)
        await two.ask("alice", "edit", {"id": id, "add": [], "remove": ["more"]})  # as it was
        for _ in range(2):
            line = await bob._links.to(bob._member(alice.id) or alice)
            with pytest.raises(Changed):
                await line.request("collected", collected)
            with pytest.raises(Changed):
                await line.request("collect", {"ticket": ticket})
            await two.restart("alice")
        assert await two.settled(id) == {"alice": SMALL}


async def test_what_was_deleted_while_it_was_moved_is_deleted(folders: Folders) -> None:
    async with two_peers(folders) as two:
        id = os.urandom(16)
        await two.put("alice", id, LARGE)
        ticket = await two.offer(id)
        pulling = await begin_and_stall(two, two.pull(ticket, id))
        assert await two.ask("alice", "delete", {"ids": [id]}) == {"deleted": 1}
        go_on(two)
        with pytest.raises(Changed, match="deleted, or moved to another peer"):
            await pulling
        assert await two.settled(id) == {}


async def test_a_source_that_cannot_be_told_is_told_later(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECONNECT_TIMEOUT", 0.2)
    async with two_peers(folders) as two:
        id = os.urandom(16)
        await two.put("alice", id, LARGE)
        ticket = await two.offer(id)
        published = asyncio.Event()
        notes = two.peers["bob"]._notes
        add = notes.add

        def cut_then_add(note: Any) -> None:
            two.to_alice.refuse = True
            two.to_alice.cut()
            add(note)
            published.set()

        notes.add = cut_then_add  # type: ignore[method-assign]
        record = await two.pull(ticket, id)  # it is safe at bob: that is what was asked for
        assert record["id"] == id and published.is_set()
        assert await two.holders(id) == {"alice": LARGE, "bob": LARGE}
        # bob cannot give it on, nor be restarted out of his word, until alice has been told.
        with pytest.raises(Unreachable, match="came from alice"):
            await two.offer(id, source="bob", target="alice")
        await two.restart("bob")
        two.to_alice.refuse = False
        assert await two.settled(id) == {"bob": LARGE}


async def test_a_source_that_forgot_the_ticket_makes_nobody_drop_anything(folders: Folders) -> None:
    async with two_peers(folders) as two:
        id = os.urandom(16)
        await two.put("alice", id, SMALL)
        ticket = await two.offer(id)
        alice = two.peers["alice"]

        notes = two.peers["bob"]._notes
        tell = notes.tell

        async def forget_then_tell(note: Any) -> bool:
            await alice._store.moves.withdraw(ticket)
            alice._moves._tickets.spend(ticket)
            return await tell(note)

        notes.tell = forget_then_tell  # type: ignore[method-assign]
        assert (await two.pull(ticket, id))["id"] == id
        assert await two.settled(id) == {"alice": SMALL, "bob": SMALL}


async def test_the_same_contents_do_not_travel_twice(folders: Folders) -> None:
    async with two_peers(folders) as two:
        first, second, third = os.urandom(16), os.urandom(16), os.urandom(16)
        for id in (first, second, third):
            await two.put("alice", id, LARGE, tags=(f"t{id.hex()}",))
        await two.move(first)
        sent, _ = carried(two)
        await two.move(second)
        await two.pull(await two.offer(third, move=False), fresh := os.urandom(16))
        assert carried(two)[0] == sent == len(LARGE)
        assert await two.settled(second) == {"bob": LARGE}
        assert await two.settled(fresh) == {"bob": LARGE}
        assert await two.settled(third) == {"alice": LARGE}


async def test_a_transfer_goes_on_after_the_source_was_restarted(folders: Folders) -> None:
    data = os.urandom(6 * limits.CHUNK)
    async with two_peers(folders) as two:
        id = os.urandom(16)
        await two.put("alice", id, data)
        ticket = await two.offer(id)
        pulling = await begin_and_stall(two, two.pull(ticket, id), 3)
        await two.restart("alice")
        two.to_alice.down.stall_after = None
        two.to_alice.cut(reset=True)
        assert (await pulling)["id"] == id
        assert await two.settled(id) == {"bob": data}
        again = carried(two)[0]
        assert again <= 4 * limits.CHUNK  # from the restarted one: what was missing, not all of it


@pytest.mark.parametrize("publish", [True, False])
async def test_a_cancelled_pull_leaves_the_object_where_it_was(folders: Folders, publish: bool) -> None:
    async with two_peers(folders) as two:
        id = os.urandom(16)
        await two.put("alice", id, LARGE)
        ticket = await two.offer(id)
        pulling = await begin_and_stall(two, two.pull(ticket, id, publish=publish))
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling
        go_on(two)
        assert await two.settled(id) == {"alice": LARGE}
        assert not [path for path in two.folders.peer_data("bob").rglob("*") if path.suffix == ".tmp"]
        await two.move(id)
        assert await two.settled(id) == {"bob": LARGE}


async def test_nobody_else_can_use_a_ticket(folders: Folders) -> None:
    async with two_peers(folders) as two:
        id = os.urandom(16)
        await two.put("alice", id, SMALL)
        ticket = await two.offer(id)
        for op in ("collect", "collected"):
            with pytest.raises(Denied, match="another peer"):
                await two.ask("alice", op, {"ticket": ticket, "version": bytes(16)})
            with pytest.raises(NotFound):
                await two.ask("alice", op, {"ticket": os.urandom(32), "version": bytes(16)})
            with pytest.raises(BadRequest):
                await two.ask("alice", op, {"ticket": b"short"})
        bob = two.peers["bob"]
        member = bob._member(two.peers["alice"].id)
        assert member is not None
        line = await bob._links.to(member)
        with pytest.raises(Changed):  # bob says what he got, and that is not it
            await line.request("collected", {"ticket": ticket, "version": bytes(16)})
        assert await two.holders(id) == {"alice": SMALL}


async def test_a_disk_that_is_full_leaves_everything_as_it_was(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_peers(folders) as two:
        id = os.urandom(16)
        await two.put("alice", id, LARGE)
        store = two.peers["bob"]._store

        async def full(*_: Any, **__: Any) -> None:
            raise StorageFull("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(store, "writer", full)
            with pytest.raises(StorageFull):
                await two.move(id)
        assert await two.settled(id) == {"alice": LARGE}
        await two.move(id)
        assert await two.settled(id) == {"bob": LARGE}


async def test_two_moves_to_different_peers_have_one_winner(folders: Folders) -> None:
    async with two_peers(folders) as two:
        carol = two.peers["carol"] = await Peer.start(Settings("carol", port=0, folders=folders))
        two.client_to["carol"] = two.client_to["bob"]
        two.links._membership.learn([Member(carol.id, "carol", (carol.url,))])
        for _ in range(5):
            id = os.urandom(16)
            await two.put("alice", id, LARGE, tags=(f"t{id.hex()}",))
            ends = await asyncio.gather(
                two.move(id, target="bob"), two.move(id, target="carol"), return_exceptions=True
            )
            failed = [end for end in ends if isinstance(end, BaseException)]
            assert len(failed) == 1 and isinstance(failed[0], Changed | NotFound), ends
            assert "ticket" not in str(failed[0])
            winner = "bob" if failed[0] is ends[1] else "carol"
            assert await two.settled(id) == {winner: LARGE}


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_a_pull_cancelled_at_any_moment_and_asked_for_anew(folders: Folders, data: bytes) -> None:
    """By another ticket, at once: what the first has left behind must not take the object from both."""
    async with two_peers(folders) as two:
        id, ways = os.urandom(16), ("alice", "bob")
        await two.put("alice", id, data)
        for turns in range(0, 120, 2):
            source, target = ways
            ticket = await two.offer(id, source=source, target=target)
            pulling = asyncio.create_task(two.pull(ticket, id, source=source, target=target))
            for _ in range(turns):
                await asyncio.sleep(0)
            pulling.cancel()
            await asyncio.gather(pulling, return_exceptions=True)
            try:
                await two.move(id, source=source, target=target)
            except NotFound:  # the first had come to its end
                assert list(await two.settled(id)) == [target]
            assert await two.settled(id) == {target: data}
            ways = (target, source)
