"""verify and compact of this machine's peers, and who may ask for them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch

import grid
from grid.upkeep import Keeper
from peer.connection import Connection
from peer.folders import Folders
from peer.keys import Identity
from peer.opening import open_as_dialer
from peer.peer import Peer, Settings
from protocol.errors import Corrupt, DataFolderInUse, Denied, UnknownPeer
from protocol.handshake import Introduction


@asynccontextmanager
async def alice(folders: Folders) -> AsyncIterator[Peer]:
    peer = await Peer.start(Settings("alice", port=0, folders=folders))
    try:
        yield peer
    finally:
        await peer.close()


@asynccontextmanager
async def asking(peer: Peer, who: Identity) -> AsyncIterator[Connection]:
    connection = await open_as_dialer(peer.url, Introduction("client", "", peer.id), who)
    try:
        yield connection
    finally:
        await connection.close()


async def publish(folders: Folders, *, count: int = 1) -> None:
    async with grid.connect(folders=folders) as g:
        for number in range(count):
            await g["alice"].send(torch.full((100_000,), float(number)), tags="#a", name=f"a{number}")


def flip_a_bit(folders: Folders) -> None:
    blob = next(path for path in (folders.peer_data("alice") / "blobs").rglob("*") if path.is_file())
    blob.chmod(0o600)
    with blob.open("r+b") as file:
        file.seek(200_000)
        byte = file.read(1)[0]
        file.seek(200_000)
        file.write(bytes([byte ^ 1]))
        os.fsync(file.fileno())


@pytest.mark.parametrize("is_running", [True, False])
async def test_damage_is_found_and_named_whether_the_peer_runs_or_not(folders: Folders, is_running: bool) -> None:
    async with alice(folders):
        await publish(folders, count=2)
        if is_running:
            assert (await Keeper(folders).verify("alice", None, lambda *_: None))["damaged"] == []
            flip_a_bit(folders)
            report = await Keeper(folders).verify("alice", None, lambda *_: None)
    if not is_running:
        flip_a_bit(folders)
        report = await Keeper(folders).verify("alice", None, lambda *_: None)
    assert (report["objects"], report["blobs"], report["database"]) == (2, 2, [])
    assert len(report["damaged"]) == 1
    (damaged,) = report["damaged"]
    assert damaged["name"] in ("a0", "a1") and list(damaged["tags"]) == ["a"]
    assert "damaged" in damaged["what"]


@pytest.mark.parametrize("op", ["verify", "verifying", "compact"])
async def test_only_the_operator_of_the_machine_is_served(folders: Folders, op: str) -> None:
    async with alice(folders) as peer:
        async with asking(peer, Identity.generate()) as stranger:
            with pytest.raises(Denied, match="only the operator of this peer's machine"):
                await stranger.request(op, {})
        async with asking(peer, Identity.load(folders.key_file("client"))) as operator:
            await operator.request(op, {})


async def test_rubbish_is_freed_and_what_is_needed_stays(folders: Folders) -> None:
    async with alice(folders):
        await publish(folders)
        blobs = folders.peer_data("alice") / "blobs"
        (blobs / ("0" * 64)).write_bytes(bytes(5_000))
        report = await Keeper(folders).compact("alice", None)
        assert (report["files"], report["file_bytes"]) == (1, 5_000)
        async with grid.connect(folders=folders) as g:
            assert (await (await g.search("#a")).one().fetch()).tolist() == [0.0] * 100_000


async def test_the_folder_of_a_running_peer_is_not_opened_beside_it(folders: Folders) -> None:
    async with alice(folders):
        with pytest.raises(DataFolderInUse):
            await Keeper(folders).verify("alice", folders.peer_data("alice"), lambda *_: None)


async def test_a_database_that_cannot_be_opened_says_so(folders: Folders) -> None:
    async with alice(folders):
        await publish(folders)
    (folders.peer_data("alice") / "objects.sqlite").write_bytes(b"no database" * 1_000)
    with pytest.raises(Corrupt):
        await Keeper(folders).verify("alice", None, lambda *_: None)


async def test_a_peer_that_never_was_here_is_not_made(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(UnknownPeer, match="no peer named 'zed' runs on this machine"):
        await Keeper(folders).verify("zed", None, lambda *_: None)
    with pytest.raises(UnknownPeer, match="no key of a peer named 'zed'"):
        await Keeper(folders).compact("zed", tmp_path)
    assert not folders.key_file("zed").exists()
    assert Keeper(folders).names() == []


async def test_a_row_that_cannot_be_read_hides_no_other(folders: Folders) -> None:
    async with alice(folders):
        await publish(folders, count=3)
    with contextlib.closing(sqlite3.connect(folders.peer_data("alice") / "objects.sqlite")) as db:
        db.execute("UPDATE objects SET tags = '[' || tags WHERE name = 'a1'")
        db.commit()
    async with alice(folders), grid.connect(folders=folders) as g:
        hits = await g.search("#a")
        assert [record["name"] for record in hits.records] == ["a2", "a0"]
        assert hits.damaged == {"alice": 1} and hits.unreachable == {}
        assert "alice has 1 more that cannot be read" in repr(hits)
        assert (await g.search("#a name:a0")).damaged == {}
