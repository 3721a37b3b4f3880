"""Deleting large objects: other requests of their owner go on while their files go, which are gone when it is said."""

from __future__ import annotations

import asyncio
import os

import pytest

from peer.folders import Folders
from protocol import limits
from tests.moves.two_peers import two_peers


@pytest.mark.parametrize("how", ["delete", "clear"])
async def test_who_deletes_is_served_while_the_file_goes(folders: Folders, how: str) -> None:
    async with two_peers(folders) as two:
        large, small = os.urandom(16), os.urandom(16)
        await two.put("alice", large, bytes(3 * limits.BLOCK))
        alice = two.peers["alice"]
        blobs, begun, go = alice._store._blobs, asyncio.Event(), asyncio.Event()
        remove = blobs.remove

        async def slowly(name: str) -> int:
            begun.set()
            await go.wait()
            return await remove(name)

        blobs.remove = slowly  # type: ignore[method-assign]
        deleting = asyncio.create_task(two.ask("alice", how, {"ids": [large]} if how == "delete" else {}))
        try:
            async with asyncio.timeout(30):
                await begun.wait()
                await two.ask("alice", "put", {"id": small, "kind": "tensor", "dtype": "uint8", "shape": [3]}, b"abc")
                await two.ask("alice", "edit", {"id": small, "add": ["small"], "remove": []})
            assert not deleting.done()
        finally:
            go.set()
        assert await deleting == {"deleted": 1}
        assert list((folders.peer_data("alice") / "blobs").iterdir()) == []
        assert list(await two.holders(small)) == ["alice"]
