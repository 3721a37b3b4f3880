"""Connections to members: dialled when needed, shared, replaced when they are gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

import pytest

from peer.calls import Answer, Call
from peer.keys import Identity
from peer.links import Links, Traffic
from peer.membership import Member, Membership
from peer.neighbours import Neighbour, Neighbours
from peer.payloads import MemoryPayload
from protocol import limits
from protocol.errors import HandshakeFailed, Unreachable
from protocol.handshake import Introduction

DORA = Identity.generate()


def member_at(server: Any, *urls: str) -> Member:
    return Member(server.identity.id, "alice", urls or (server.url,))


def links_to(*members: Member) -> Links:
    table = Membership()
    table.learn(members)
    return Links(DORA, Introduction("client", "dora", lease=bytes(16)), table)


async def test_callers_share_one_connection(acceptor: Any) -> None:
    async with acceptor() as server:
        alice = member_at(server)
        links = links_to(alice)
        assert links.existing(alice.id) is None
        found = await asyncio.gather(*(links.to(alice) for _ in range(20)))
        assert len(set(found)) == 1 and links.existing(alice.id) is found[0]
        await links.close()


async def test_large_payloads_have_a_connection_of_their_own(acceptor: Any) -> None:
    async with acceptor() as server:
        alice = member_at(server)
        links = links_to(alice)
        small, bulk = await asyncio.gather(links.to(alice), links.to(alice, bulk=True))
        assert small is not bulk and links.existing(alice.id) is small
        assert {each.remote.lease for each in server.connections} == {bytes(16)}
        await links.close()


async def test_a_connection_that_is_gone_is_replaced(acceptor: Any) -> None:
    async with acceptor() as server:
        alice = member_at(server)
        links = links_to(alice)
        first = await links.to(alice)
        await server.connections[0].close()
        await first.closed
        assert links.existing(alice.id) is None
        second = await links.to(alice)
        assert second is not first and not second.is_closed
        await links.close()


async def test_a_failed_dial_is_tried_again_the_next_time(acceptor: Any) -> None:
    async with acceptor() as server:
        nowhere = member_at(server, "ws://127.0.0.1:1")
        links = links_to(nowhere)
        with pytest.raises(Unreachable, match="alice cannot be reached"):
            await links.to(nowhere)
        assert links._membership.find("alice").state == "unreachable"
        await links.to(member_at(server))
        assert links._membership.find("alice").state == "alive"
        await links.close()


async def test_each_address_is_tried(acceptor: Any) -> None:
    async with acceptor() as server:
        alice = member_at(server, "ws://127.0.0.1:1", server.url)
        links = links_to(alice)
        assert (await links.to(alice)).remote.id == alice.id
        await links.close()


async def test_another_peer_at_the_address_is_refused(acceptor: Any) -> None:
    async with acceptor() as server:
        bob = Member(Identity.generate().id, "bob", (server.url,))
        links = links_to(bob)
        with pytest.raises(HandshakeFailed, match="wrong peer"):
            await links.to(bob)
        await links.close()


async def test_a_caller_that_gives_up_does_not_take_the_dial_along(acceptor: Any) -> None:
    async with acceptor() as server:
        alice = member_at(server)
        links = links_to(alice)
        impatient = asyncio.create_task(links.to(alice))
        patient = asyncio.create_task(links.to(alice))
        await asyncio.sleep(0)
        impatient.cancel()
        assert not (await patient).is_closed
        await links.close()


async def test_who_waits_for_a_dial_when_the_end_closes_is_told_so(acceptor: Any) -> None:
    async with acceptor() as server:
        alice = member_at(server)
        links = links_to(alice)
        waiting = [asyncio.create_task(links.to(alice)) for _ in range(3)]
        await asyncio.sleep(0)
        await links.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(result) for result in results} == {Unreachable}


async def test_close_closes_all(acceptor: Any) -> None:
    async with acceptor() as server, acceptor(identity=Identity.generate()) as other:
        links = links_to(member_at(server), member_at(other))
        opened = [await links.to(member_at(each), bulk=bulk) for each in (server, other) for bulk in (False, True)]
        await links.close()
        await links.close()
        assert all(each.is_closed for each in opened)


async def test_traffic_is_added_up_by_end(acceptor: Any) -> None:
    async def handler(call: Call) -> Answer:
        return Answer({}, MemoryPayload(bytes(200_000)))

    async with acceptor(handler) as server:
        alice = member_at(server)
        links = links_to(alice)
        for bulk in (False, True):
            response = await (await links.to(alice, bulk=bulk)).request("fetch", {}, bytes(100_000))
            await response.read()
        assert links.traffic.all() == [Traffic("alice", alice.id, "peer", 200_000, 400_000)]
        assert links.statistics()[alice.id].payload_received == 400_000
        await links.close()
        assert links.traffic.all() == [Traffic("alice", alice.id, "peer", 200_000, 400_000)]
        assert links.statistics() == {}


async def test_traffic_remembers_so_many_ends(connected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_TRAFFIC", 3)
    log = links_to().traffic
    async with contextlib.AsyncExitStack() as lines:
        for number in range(6):
            line = await lines.enter_async_context(connected())
            object.__setattr__(line.near.remote, "id", f"{number}" * 52)
            log.follow(line.near)
        assert len(log.all()) == 3
    await asyncio.sleep(0)
    assert len(log.all()) == len(log._past) == 3


async def test_callers_share_one_lasting_link_and_its_connection_is_the_one_for_requests(acceptor: Any) -> None:
    async with acceptor() as server:
        alice = member_at(server)
        links = links_to(alice)
        link = links.lasting(alice)
        assert links.lasting(alice) is link
        await link.request("run", {})
        assert link.connection is links.existing(alice.id)
        await links.close()


async def test_an_address_that_the_caller_knows_is_tried_beside_those_of_the_table(acceptor: Any) -> None:
    async with acceptor() as server:
        links = links_to(member_at(server, "ws://127.0.0.1:1"))
        assert (await links.to(member_at(server))).remote.id == server.identity.id
        await links.close()


async def test_a_peer_of_this_machine_is_found_at_its_new_address(acceptor: Any, tmp_path: Path) -> None:
    async with acceptor() as server:
        alice = member_at(server, "ws://127.0.0.1:1")
        table = Membership()
        table.learn([alice])
        links = Links(DORA, Introduction("client", "dora"), table, neighbours=Neighbours(tmp_path))
        assert not links._has_ended(alice.id), "nothing is known of it"
        running = Neighbours(tmp_path)
        running.reserve("alice")
        running.announce(Neighbour("alice", alice.id, server.url, os.getpid()))
        assert (await links.to(alice)).remote.id == alice.id
        running.withdraw()
        assert links._has_ended(alice.id)
        await links.close()


async def test_another_peer_at_the_first_address_does_not_hide_the_right_one(acceptor: Any) -> None:
    async with acceptor() as server, acceptor(identity=Identity.generate()) as other:
        links = links_to(member_at(server, other.url, server.url))
        assert (await links.to(member_at(server))).remote.id == server.identity.id
        await links.close()


async def test_what_connections_carried_is_counted_over_all_of_them(acceptor: Any) -> None:
    async with acceptor() as server:
        alice = member_at(server)
        links = links_to(alice)
        for _ in range(2):
            await (await links.to(alice)).request("run", {}, bytes(1_000))
            before = links.traffic.statistics()[alice.id]
            await server.connections[-1].close()
            await (await links.to(alice)).request("run", {})
        after = links.traffic.statistics()[alice.id]
        assert after.sent_bytes > before.sent_bytes > 2_000 and after.sent_messages >= 4
        await links.close()
        assert links.traffic.statistics()[alice.id].sent_bytes >= after.sent_bytes
