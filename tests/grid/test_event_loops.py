"""Connections and event loops: what is used in another loop, or in none, is told so; nothing hangs, or makes noise."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

import grid
from grid import blocking
from peer.folders import Folders
from protocol.errors import BadRequest
from tests import loops


async def connected(peers: Folders) -> tuple[grid.Grid, Any]:
    g = await grid.connect(folders=peers)
    return g, await g["alice"].send(torch.arange(4.0))


def in_a_loop_of_its_own(work: Callable[[], Any]) -> Any:
    async def turned() -> Any:
        return await work()

    return loops.run(turned())


def test_a_connection_that_nobody_closed_ends_with_its_loop_without_a_word(
    peers: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    async def forgetful() -> Any:
        g, x = await connected(peers)
        w = await g["alice"].send(torch.ones(3, requires_grad=True))
        (await (w * 2).move(g["bob"])).sum().backward()
        return x + 1

    with caplog.at_level(logging.WARNING):
        left = loops.run(forgetful())
        with pytest.raises(BadRequest, match="ended with its event loop"):
            left + 1
        del left
        gc.collect()
    assert not caplog.records


def test_a_thread_that_goes_on_when_its_loop_ends_is_told_so(peers: Folders) -> None:
    """asyncio.run waits for such threads, and turns its loop meanwhile."""
    heard: list[BaseException] = []

    def work(x: Any, begun: Callable[[], Any]) -> None:
        try:
            while True:
                x.sum().item()
                begun()
        except BaseException as error:  # CancelledError of what it waited for, or what a later call says
            heard.append(error)
        try:
            (x + 1).sum().item()
        except BaseException as error:
            heard.append(error)

    async def scenario() -> None:
        _, x = await connected(peers)
        loop, began = asyncio.get_running_loop(), asyncio.Event()
        loop.run_in_executor(None, work, x, lambda: loop.call_soon_threadsafe(began.set))
        await began.wait()

    loops.run(scenario())
    assert isinstance(heard[1], grid.PeerLost) and "connect again" in str(heard[1])


async def test_a_peer_is_the_same_whatever_thread_asks_for_it_first(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g:
        bob = await asyncio.to_thread(lambda: g["bob"])
        carol = await asyncio.to_thread(in_a_loop_of_its_own, lambda: asyncio.sleep(0, g["carol"]))
        assert bob is g["bob"] and carol is g["carol"]
        assert torch.equal(await (await bob.send(torch.ones(2))).get(), torch.ones(2))
        assert torch.equal(await (await carol.send(torch.ones(2))).get(), torch.ones(2))


async def test_what_is_asked_in_another_loop_is_told_so(peers: Folders) -> None:
    plan = grid.plan(lambda a: a + 1)
    async with grid.connect(folders=peers) as g:
        alice, x = g["alice"], await g["alice"].send(torch.arange(4.0))
        chain = await x.send(g["bob"])
        stored = await plan.build(torch.ones(4)).send(alice)

        asks: list[Callable[[], Any]] = [
            lambda: g.run(plan, x),
            lambda: g.run(stored, x),
            lambda: stored(x),
            lambda: g.explain(plan, x),
            lambda: g.build(plan, x),
            lambda: g.map(plan, x),
            lambda: g.reduce([x]),
            lambda: g.settle(),
            lambda: g.running(),
            lambda: g.search("#nothing"),
            lambda: alice.objects(),
            lambda: x.send(g["bob"]),
            lambda: asyncio.sleep(0, chain + 1),
            lambda: asyncio.sleep(0, x.new_tensor([1.0, 2.0])),
            lambda: asyncio.sleep(0, x[torch.arange(3000) % 4]),
        ]
        for number, ask in enumerate(asks):
            with pytest.raises(BadRequest, match=r"another event loop: await it there, or connect in this one"):
                pytest.fail(f"{number} gave {await asyncio.to_thread(in_a_loop_of_its_own, ask)}")
        assert torch.equal(await (x + 1).get(), torch.arange(4.0) + 1)


async def test_a_loop_that_waits_for_the_thread_that_waits_for_it_is_found_out(
    peers: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "STUCK", 0.05)
    async with grid.connect(folders=peers) as g:
        x = await g["alice"].send(torch.arange(4.0))
        heard: list[str] = []

        def work() -> None:
            try:
                heard.append(str(x.sum().item()))
            except BadRequest as error:
                heard.append(str(error))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert "test_event_loops.py" in heard[0] and "await asyncio.to_thread" in heard[0]
        await asyncio.to_thread(work)
        assert heard[1] == "6.0"


def test_a_loop_that_stands_between_two_calls_is_told_from_one_that_is_over(peers: Folders) -> None:
    loop = loops.PatientLoop()
    try:
        g, x = loop.run_until_complete(connected(peers))
        bob = g["bob"]  # asked for while no loop runs
        for ask in (lambda: x.sum().item(), lambda: x[x > 1], lambda: bool(x.any())):
            with pytest.raises(BadRequest, match=r"does not run now.*run_until_complete"):
                ask()
        moved = loop.run_until_complete((x + 1).move(bob))
        assert torch.equal(loop.run_until_complete(moved.get()), torch.arange(4.0) + 1)
        loop.run_until_complete(g.close())
    finally:
        loop.close()


async def test_two_connections_to_one_peer_do_not_mix_and_it_is_said_why(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g, grid.connect(folders=peers) as again:
        x, y = await g["alice"].send(torch.ones(2)), await again["alice"].send(torch.ones(2))
        with pytest.raises(grid.NotCollocated, match=r"both at alice.*two connections.*await y\.tag\('#y'\)"):
            x + y


async def test_a_run_over_one_connection_waits_for_what_is_queued_on_another(peers: Folders) -> None:
    async with grid.connect(folders=peers) as g, grid.connect(folders=peers) as again:
        x = await g["alice"].send(torch.ones(200, 200))
        for _ in range(60):
            x.copy_((x @ x).clamp(0, 1))
        x.fill_(5)
        assert (await (await again.run(grid.plan(lambda a: a.mean()), x)).get()).item() == 5


async def test_a_grid_is_used_when_it_was_awaited(peers: Folders) -> None:
    for call, opening in (("grid.connect()", grid.connect(folders=peers)), ("grid.local('dora')", grid.local("dora"))):
        wrong: list[Callable[[Any], Any]] = [lambda g: g["alice"], lambda g: g.search("#a"), lambda g: g.__enter__()]
        for use in wrong:
            with pytest.raises((grid.NeedsAwait, AttributeError)) as caught:
                use(opening)
            assert f"async with {call} as g" in str(caught.value) and f"g = await {call}" in str(caught.value)
