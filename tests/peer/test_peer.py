"""A peer's life: starting, what prevents it, joining others, and what is left when it stops."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import grid
from peer.connection import Connection
from peer.folders import Folders
from peer.keys import Identity
from peer.opening import open_as_dialer, open_or_line
from peer.peer import Peer, Settings
from peer.transport import dial
from protocol import limits
from protocol.errors import (
    AmbiguousPeer,
    BadRequest,
    DataFolderInUse,
    DataFolderMismatch,
    NameTaken,
    PortInUse,
    SetupError,
    Unreachable,
)
from protocol.handshake import Introduction
from tests.faults import FaultProxy
from tests.waiting import until


@asynccontextmanager
async def running(*settings: Settings) -> AsyncIterator[list[Peer]]:
    peers: list[Peer] = []
    try:
        for each in settings:
            peers.append(await Peer.start(each))
        yield peers
    finally:
        for peer in peers:
            await peer.close()


async def test_peers_of_two_machines_find_each_other_by_joining_one(tmp_path: Path) -> None:
    here, there = Folders.under(tmp_path / "here"), Folders.under(tmp_path / "there")
    async with running(Settings("alice", port=0, folders=here), Settings("bob", port=0, folders=here)) as (alice, bob):
        async with running(Settings("carol", port=0, join=(alice.url,), folders=there)) as (carol,):
            for folders in (here, there):
                async with grid.connect(folders=folders) as g:
                    assert [info.name for info in g.peers()] == ["alice", "bob", "carol"]
                    assert g["carol"].id == carol.id and g["bob"].id == bob.id


async def test_two_peers_of_one_name_in_a_grid_are_told_apart_by_id(tmp_path: Path) -> None:
    here, there = Folders.under(tmp_path / "here"), Folders.under(tmp_path / "there")
    async with running(Settings("alice", port=0, folders=here)) as (first,):
        async with running(Settings("alice", port=0, join=(first.url,), folders=there)) as (second,):
            async with grid.connect(folders=here) as g:
                with pytest.raises(AmbiguousPeer, match=second.id[:12]):
                    g["alice"]
                assert g[second.id].id == second.id


async def test_a_peer_that_has_ended_is_known_as_unreachable_and_again_alive_when_it_is_back(folders: Folders) -> None:
    async with running(Settings("alice", port=0, folders=folders)):
        async with running(Settings("bob", port=0, folders=folders)):
            async with grid.connect(folders=folders) as g:
                assert [info.state for info in g.peers()] == ["alive", "alive"]
        async with grid.connect(folders=folders) as g:
            assert {info.name: info.state for info in g.peers()} == {"alice": "alive", "bob": "unreachable"}
            async with running(Settings("bob", port=0, folders=folders)):
                assert {info.name: info.state for info in await g.refresh()} == {"alice": "alive", "bob": "alive"}


async def test_a_name_is_taken_once_on_a_machine(folders: Folders) -> None:
    async with running(Settings("alice", port=0, folders=folders)):
        with pytest.raises(NameTaken, match="grid down alice"):
            await Peer.start(Settings("alice", port=0, folders=folders))
    async with running(Settings("alice", port=0, folders=folders)):
        pass  # free again


async def test_a_port_in_use_is_named(folders: Folders) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"{port} is in use.*--port"):
            await Peer.start(Settings("alice", port=port, folders=folders))
    async with running(Settings("alice", port=0, folders=folders)):
        pass  # the failed start kept nothing


async def test_a_data_folder_serves_one_peer(tmp_path: Path) -> None:
    here, there = Folders.under(tmp_path / "here"), Folders.under(tmp_path / "there")
    data = tmp_path / "data"
    async with running(Settings("alice", port=0, data_dir=data, folders=here)):
        with pytest.raises(DataFolderInUse):
            await Peer.start(Settings("bob", port=0, data_dir=data, folders=there))
    with pytest.raises(DataFolderMismatch, match=f"Its key is kept in {there.key_file('bob')}"):
        await Peer.start(Settings("bob", port=0, data_dir=data, folders=there))


async def test_joining_nobody_is_an_error_and_leaves_nothing(folders: Folders) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # kept from others, and nobody listens
        join = (f"ws://127.0.0.1:{nobody.getsockname()[1]}",)
        with pytest.raises(Unreachable):
            await Peer.start(Settings("alice", port=0, join=join, folders=folders))
    async with running(Settings("alice", port=0, folders=folders)):
        pass


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "example.org"])
def test_a_peer_listens_on_loopback_only(folders: Folders, host: str) -> None:
    with pytest.raises(SetupError, match="loopback"):
        Settings("alice", host=host, folders=folders)


@pytest.mark.parametrize("port", [-1, 65_536, 99_999])
def test_a_port_that_is_none_is_refused(folders: Folders, port: int) -> None:
    with pytest.raises(SetupError, match=f"{port} is no port"):
        Settings("alice", port=port, folders=folders)


@pytest.mark.parametrize("name", ["", "a b", "../x", "a" * 65, "-a", "ä"])
def test_a_name_that_is_none_is_refused(folders: Folders, name: str) -> None:
    with pytest.raises(BadRequest, match="name"):
        Settings(name, folders=folders)


async def test_temporaries_outlive_their_session_by_a_grace_and_then_go(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from peer import leases

    monkeypatch.setattr(leases.limits, "LEASE_GRACE", 0.3)
    async with running(Settings("alice", port=0, folders=folders)) as (alice,):
        alice._leases._grace = 0.3
        async with grid.connect(folders=folders) as g:
            x = await g["alice"].send(torch.ones(3))
            y = x + 1
            await y.fetch()
            kept = await g["alice"].send(torch.ones(3), tags="kept")
        assert alice._objects.count == 2
        await until(lambda: not alice._objects.count)
        async with grid.connect(folders=folders) as g:
            assert (await g.search("#kept")).one().id_at_location == kept.id_at_location
        del x, y


async def test_a_peer_tells_others_the_addresses_that_it_is_to_advertise(tmp_path: Path) -> None:
    here, there = Folders.under(tmp_path / "here"), Folders.under(tmp_path / "there")
    async with FaultProxy("ws://127.0.0.1:1") as tunnel:
        settings = Settings("alice", port=0, folders=here, advertise=(tunnel.url,))
        async with running(settings) as (alice,), running(Settings("bob", port=0, folders=there)) as (bob,):
            tunnel.retarget(alice.url)
            await alice._joining.join(bob.url, alice._membership.find("alice"))
            assert bob._membership.find("alice").urls == (tunnel.url,)
            assert tunnel.connections, "bob dialled it there before he believed it"
            async with grid.connect(folders=here) as g:
                assert g["alice"].member.urls == (tunnel.url,)
            async with grid.connect(alice.url, folders=there) as g:
                assert g["alice"].member.urls == (alice.url, tunnel.url), "what was given comes first"


def test_only_addresses_of_this_machine_are_advertised(folders: Folders) -> None:
    with pytest.raises(SetupError, match="loopback"):
        Settings("alice", folders=folders, advertise=("ws://10.0.0.5:7700",))


async def test_it_ends_though_a_client_comes_just_then(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    shaken, go_on = asyncio.Event(), asyncio.Event()

    async def open_slowly(*arguments: Any) -> Connection | None:
        session = await open_or_line(*arguments)
        shaken.set()
        await go_on.wait()
        return session

    monkeypatch.setattr("peer.peer.open_or_line", open_slowly)
    alice = await Peer.start(Settings("alice", port=0, folders=folders))
    client = await open_as_dialer(alice.url, Introduction("client", "dora"), Identity.generate())
    await shaken.wait()
    closing = asyncio.create_task(alice.close())
    await until(lambda: alice._links._is_closed)  # the sessions that it knew are closed
    go_on.set()
    await closing
    await client.closed


async def test_who_connects_and_says_nothing_keeps_nobody_out(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_UNPROVED", 4)
    async with running(Settings("alice", port=0, folders=folders)) as (alice,):
        silent = [await dial(alice.url) for _ in range(3)]
        for number in range(2):
            silent.append(await dial(alice.url))
            await until(lambda: len(alice._unproved) == 4)
            session = await open_as_dialer(alice.url, Introduction("client", "late"), Identity.generate())
            await silent[number].wait_closed()
            await until(lambda: len(alice._unproved) == 3)
            await session.close()
        assert [each.state.name for each in silent[2:]] == ["OPEN"] * 3
        for each in silent[2:]:
            each.transport.abort()
            await each.wait_closed()
