"""Moves between two peers over real lines, at the level of requests: whatever is cut or said twice, one has it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from peer import moves as moves_module
from peer import taken
from peer.connection import Connection
from peer.folders import Folders
from peer.keys import Identity
from peer.membership import Member
from peer.notes import Note
from peer.opening import open_as_dialer
from peer.peer import Peer, Settings
from peer.store.journal import note_arrival
from protocol import limits
from protocol.errors import AlreadyExists, BadRequest, Changed, Denied, NotFound, StorageFull, TooLarge, Unreachable
from protocol.handshake import Introduction
from tests.moves.two_peers import DORA, Two, tensor, two_peers

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
        id, ticket = await two.offered(LARGE)
        first, second = await asyncio.gather(two.pull(ticket, id), two.pull(ticket, id))
        assert first == second and carried(two) == (len(LARGE), len(LARGE))
        third = await two.pull(ticket, id)  # and later: the answer was lost
        assert third.items() >= first.items()
        await two.restart("bob")
        assert (await two.pull(ticket, id))["id"] == id
        assert await two.settled(id) == {"bob": LARGE} and carried(two)[0] == len(LARGE)


async def test_collected_can_be_said_again(folders: Folders) -> None:
    async with two_peers(folders) as two:
        id, ticket = await two.offered(SMALL)
        await two.pull(ticket, id)
        for _ in range(2):
            line = await two.as_bob()
            await line.request("collected", {"ticket": ticket, "version": bytes(16)})
            await two.restart("alice")
        # What has the id by now is another object: the old ticket does not reach it.
        await two.move(id, source="bob", target="alice")
        line = await two.as_bob()
        await line.request("collected", {"ticket": ticket, "version": bytes(16)})
        assert await two.settled(id) == {"alice": SMALL}


@pytest.mark.parametrize("edit", [{"add": ["more"]}, {"description": "other"}, {"remove": ["moving"]}])
async def test_what_changed_meanwhile_stays_as_it_is(folders: Folders, edit: dict[str, Any]) -> None:
    async with two_peers(folders) as two:
        id, ticket = await two.offered(LARGE)
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
        id, ticket = await two.offered(SMALL)
        line = await two.as_bob()
        told = (await line.request("collect", {"ticket": ticket})).result
        collected = {"ticket": ticket, "version": told["version"]}
        await two.ask("alice", "edit", {"id": id, "add": ["more"], "remove": []})
        with pytest.raises(Changed):
            await line.request("collected", collected)
        await two.ask("alice", "edit", {"id": id, "add": [], "remove": ["more"]})  # as it was
        for _ in range(2):
            line = await two.as_bob()
            with pytest.raises(Changed):
                await line.request("collected", collected)
            with pytest.raises(Changed):
                await line.request("collect", {"ticket": ticket})
            await two.restart("alice")
        assert await two.settled(id) == {"alice": SMALL}


async def test_what_was_deleted_while_it_was_moved_is_deleted(folders: Folders) -> None:
    async with two_peers(folders) as two:
        id, ticket = await two.offered(LARGE)
        pulling = await begin_and_stall(two, two.pull(ticket, id))
        assert await two.ask("alice", "delete", {"ids": [id]}) == {"deleted": 1}
        go_on(two)
        with pytest.raises(Changed, match="deleted, or moved to another peer"):
            await pulling
        assert await two.settled(id) == {}


async def test_a_source_that_cannot_be_told_is_told_later(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECONNECT_TIMEOUT", 0.2)
    async with two_peers(folders) as two:
        id, ticket = await two.offered(LARGE)
        published = two.cut_when_published()
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
        id, ticket = await two.offered(SMALL)
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
        id, ticket = await two.offered(data)
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
        id, ticket = await two.offered(LARGE)
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
        id, ticket = await two.offered(SMALL)
        for op in ("collect", "collected"):
            with pytest.raises(Denied, match="another peer"):
                await two.ask("alice", op, {"ticket": ticket, "version": bytes(16)})
            with pytest.raises(NotFound):
                await two.ask("alice", op, {"ticket": os.urandom(32), "version": bytes(16)})
            with pytest.raises(BadRequest):
                await two.ask("alice", op, {"ticket": b"short"})
        line = await two.as_bob()
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


async def collecting(two: Two, ticket: bytes) -> bytes:
    """`collect` of the ticket from alice, as bob; the version."""
    line = await two.as_bob()
    return bytes((await line.request("collect", {"ticket": ticket})).result["version"])


async def test_a_ticket_that_lapses_while_it_is_withdrawn_is_not_taken_up(folders: Folders) -> None:
    async with two_peers(folders) as two:
        id, ticket = await two.offered(SMALL)
        moves = two.peers["alice"]._moves
        withdraw, begun, go = moves._store.moves.withdraw, asyncio.Event(), asyncio.Event()

        async def slowly(*tokens: bytes) -> None:
            begun.set()
            await go.wait()
            await withdraw(*tokens)

        moves._store.moves.withdraw = slowly  # type: ignore[method-assign]
        moves._tickets.sweep(1e12)
        sweeping = asyncio.create_task(moves.sweep())
        async with asyncio.timeout(60):
            await begun.wait()
        with pytest.raises(NotFound, match="stale"):
            await collecting(two, ticket)
        go.set()
        await sweeping
        with pytest.raises(NotFound):
            await collecting(two, ticket)
        await two.move(id)
        assert await two.settled(id) == {"bob": SMALL}


async def test_a_lapsed_ticket_that_could_not_be_withdrawn_is_withdrawn_later(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_peers(folders) as two:
        _, ticket = await two.offered(SMALL)
        moves = two.peers["alice"]._moves

        async def full(*_: Any) -> None:
            raise StorageFull("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(moves._store.moves, "withdraw", full)
            moves._tickets.sweep(1e12)
            await moves.sweep()
            with pytest.raises(NotFound):
                await collecting(two, ticket)
        await moves.sweep()
        assert await moves._store.moves.find(ticket) is None


async def test_a_ticket_does_not_lapse_while_its_target_is_answered(folders: Folders) -> None:
    async with two_peers(folders) as two:
        id, ticket = await two.offered(SMALL)
        moves = two.peers["alice"]._moves
        find = moves._objects.find

        async def sweep_then_find(*args: Any) -> Any:
            moves._tickets.sweep(1e12)
            await moves.sweep()
            return await find(*args)

        moves._objects.find = sweep_then_find  # type: ignore[method-assign,assignment]
        assert await collecting(two, ticket)
        moves._objects.find = find  # type: ignore[method-assign]
        await two.pull(ticket, id)
        assert await two.settled(id) == {"bob": SMALL}


async def test_what_a_stranger_pulls_under_the_same_id_holds_up_nobody(folders: Folders) -> None:
    async with two_peers(folders) as two:
        id = os.urandom(16)
        await two.put("alice", id, SMALL)
        alice, bob = two.peers["alice"], two.peers["bob"]
        begun = asyncio.Event()
        describe = bob._pulls._described

        async def never_described(wish: Any) -> Any:
            if wish.asker == DORA.id:
                return await describe(wish)
            begun.set()
            return await asyncio.Future()

        bob._pulls._described = never_described  # type: ignore[method-assign]
        args = {"peer": alice.id, "ticket": os.urandom(32), "id": id, "publish": True}
        stranger = "s" * 52
        stalled = asyncio.create_task(bob._pulls.pull(stranger, (stranger, b""), args))
        async with asyncio.timeout(60):
            await begun.wait()
            # Nor what a stranger brought here, whose source does not answer.
            bob._notes.add(Note(os.urandom(32), "n" * 52, id, b"", False, stranger))
            await two.move(id)
        assert not stalled.done()
        assert list(await two.holders(id)) == ["bob"]
        stalled.cancel()
        await asyncio.gather(stalled, return_exceptions=True)


async def test_who_is_first_to_publish_has_the_id(folders: Folders) -> None:
    async with two_peers(folders) as two:
        id, ticket = await two.offered(LARGE)
        pulling = await begin_and_stall(two, two.pull(ticket, id))
        other = os.urandom(100)
        async with _stranger(two) as line:
            await line.request("put", tensor(id, len(other)), other)
        go_on(two)
        with pytest.raises(AlreadyExists):
            await pulling
        assert await two.settled(id) == {"alice": LARGE, "bob": other}


@pytest.mark.parametrize("is_durable", [True, False])
async def test_a_refusal_drops_nothing_that_another_has_made_under_the_id_since(
    folders: Folders, is_durable: bool
) -> None:
    async with two_peers(folders) as two:
        id, bob = os.urandom(16), two.peers["bob"]
        note = Note(os.urandom(32), "n" * 52, id, b"v" * 16, is_durable, "s" * 52)
        if is_durable:
            await bob._store._database.write(lambda db: note_arrival(db, note.arrived(), id, "s" * 52, 1.0))
        await two.put("bob", id, SMALL, tags=("mine",) if is_durable else ())
        await bob._notes._drop(note)
        assert (await two.ask("bob", "describe", {"id": id}))["record"]["id"] == id
        assert not await bob._store.moves.unconfirmed()


async def test_a_value_that_takes_long_to_make_breaks_no_line(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STALL_TIMEOUT", 0.05)
    async with two_peers(folders) as two:
        id = os.urandom(16)
        await two.put("alice", id, SMALL, tags=())
        alice = two.peers["alice"]
        asked, made, take = asyncio.Event(), asyncio.Event(), taken.take

        async def slowly(*args: Any) -> Any:
            asked.set()
            await made.wait()
            return await take(*args)

        monkeypatch.setattr(moves_module, "take", slowly)
        ticket = await two.offer(id)
        pulling = asyncio.create_task(two.pull(ticket, id, publish=False))
        async with asyncio.timeout(60):
            await asked.wait()
            line = await two.as_bob()
            until = asyncio.get_running_loop().time() + 4 * limits.STALL_TIMEOUT
            while asyncio.get_running_loop().time() < until:
                await line.request("peers", {})
            alice._moves._tickets.sweep(1e12)  # nor does the ticket lapse
            assert not pulling.done() and not line.is_closed
            made.set()
            assert (await pulling)["id"] == id
            assert not line.is_closed


async def test_a_strangers_offers_keep_nobody_out(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_TICKETS", 8)
    async with two_peers(folders) as two:
        mine, theirs = os.urandom(16), os.urandom(16)
        await two.put("alice", mine, SMALL)
        async with _stranger(two, "alice") as line:
            await line.request("put", tensor(theirs, 100), bytes(100))
            offer = {"id": theirs, "target": two.peers["bob"].id, "move": True}
            tickets = [(await line.request("offer", offer)).result["ticket"] for _ in range(8)]
            with pytest.raises(TooLarge):
                await line.request("offer", offer)
        await two.move(mine)
        assert await two.settled(mine) == {"bob": SMALL}
        alice = two.peers["alice"]
        await alice._moves.sweep()
        kept = [await alice._store.moves.find(ticket) is not None for ticket in tickets]
        assert kept == [False] + [True] * 7


@contextlib.asynccontextmanager
async def _stranger(two: Two, name: str = "bob") -> AsyncIterator[Connection]:
    line = await open_as_dialer(two.peers[name].url, Introduction("client", "mallory"), Identity.generate())
    try:
        yield line
    finally:
        await line.close()
