"""What old programs ask for that is not there any more, or was never awaited: each is told what to write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch

import grid
from peer.folders import Folders
from protocol.errors import BadRequest


async def test_names_of_old_programs_say_what_is_called_what_now(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        bob: Any = g["bob"]
        x: Any = await bob.send(torch.ones(2))
        asks: list[tuple[Callable[[], Any], str]] = [
            (lambda: x.id, "id_at_location"),
            (lambda: x.child, "id_at_location"),
            (lambda: x.get_, r"grid\.hook\(\) adds it"),
            (lambda: x.sum().move_, r"a pointer has no 'move_': grid\.hook"),
            (lambda: bob.objects_count, r"await bob\.objects\(\)"),
            (lambda: bob.search, "peer:bob"),
            (lambda: grid.TorchHook, r"grid\.hook\(\)"),
            (lambda: grid.VirtualWorker, r"g\['bob'\]"),  # type: ignore[attr-defined]
            (lambda: grid.search, r"await g\.search"),  # type: ignore[attr-defined]
            (lambda: x.nothing, "a pointer has no 'nothing'$"),
        ]
        for ask, text in asks:
            with pytest.raises(AttributeError, match=text):
                ask()
        assert not hasattr(x, "child") and getattr(bob, "nothing", 3) == 3


async def test_who_is_no_peer_is_told_so_wherever_a_peer_is_given(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x: Any = await g["bob"].send(torch.ones(2))
        for ask in (lambda: x.move(g), lambda: x.copy(g), lambda: x.send(g), lambda: x.send(), lambda: x.send("bob")):
            with pytest.raises(BadRequest, match=r"takes a peer.*for example \w+\(g\['alice'\]\)"):
                await ask()
        grid.hook()
        try:
            for peer in ((), ("bob",), (g,)):
                with pytest.raises(BadRequest, match=r"send\(\) takes a peer"):
                    await torch.ones(2).send(*peer)  # type: ignore[attr-defined]
        finally:
            grid.unhook()
        with pytest.raises(BadRequest, match="by its name or id"):
            g[0]  # type: ignore[index]


async def test_a_chain_that_was_moved_is_gone_for_operations_too(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.ones(2))
        chain = await x.send(g["bob"])
        moved = await chain.move(g["carol"])
        for use in (lambda: chain + 1, lambda: chain[0], lambda: chain.add_(1), lambda: x + chain.mul(2)):
            with pytest.raises(BadRequest, match="moved to carol; use the pointer that move"):
                use()
        with pytest.raises(BadRequest, match="it was moved to carol"):
            await g["alice"].send(torch.ones(1)) + chain
        assert torch.equal(await (await (moved + 1).get()).get(), torch.full((2,), 2.0))


async def test_the_value_of_a_chain_is_that_of_its_end(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        chain = await (await (await g["alice"].send(torch.arange(3.0))).send(g["bob"])).send(g["carol"])
        assert await asyncio.to_thread(lambda: (chain.sum().item(), chain.tolist())) == (3.0, [0.0, 1.0, 2.0])
        with pytest.raises(BadRequest, match=r"points to a pointer.*\(await x\.get\(\)\)\.fetch\(\).*remote_get\(\)"):
            await chain.fetch()
