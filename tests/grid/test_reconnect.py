"""What a user sees of a bad line: nothing, where the peer is still the same; the truth, where it is not.

The peer tells others only the proxy's address, so everything goes through the proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import grid
from peer.folders import Folders
from peer.peer import Settings
from peer.processes import PeerProcess
from protocol.errors import NotFound, PeerLost, Unreachable
from tests.faults import FaultProxy
from tests.waiting import until


@dataclass
class Behind:
    """alice, whom nobody reaches but through `proxy`; and a client of hers."""

    g: Any
    proxy: FaultProxy
    process: PeerProcess
    folders: Folders

    @property
    def alice(self) -> Any:
        return self.g["alice"]

    async def restart(self, *, kill: bool = False) -> None:
        await (self.process.kill() if kill else self.process.stop())
        await self.start()

    async def start(self) -> None:
        self.process = await start(self.folders, self.proxy.port)
        self.proxy.retarget(self.process.url)

    async def wait_known(self) -> None:
        """Until this client knows that its line is cut."""
        link = self.alice.outbox._link
        await until(lambda: link.connection is None)


async def start(folders: Folders, port: int) -> PeerProcess:
    settings = Settings("alice", port=0, folders=folders, advertise=(f"ws://127.0.0.1:{port}",))
    return await PeerProcess.start(settings, folders.logs / "alice.log")


@contextlib.contextmanager
def kept_port() -> Iterator[int]:
    """A port that proxies may listen at, one after another; in between it is nobody else's, as it stays bound."""
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        yield int(kept.getsockname()[1])


@dataclass
class Shared:
    """One alice for the tests that leave her as she is."""

    process: PeerProcess
    folders: Folders
    port: int

    @contextlib.asynccontextmanager
    async def behind_proxy(self, patience: float = 10.0) -> AsyncIterator[Behind]:
        async with (
            FaultProxy(self.process.url, port=self.port) as proxy,
            grid.connect(proxy.url, folders=self.folders, patience=patience) as g,
        ):
            yield Behind(g, proxy, self.process, self.folders)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folders = Folders.under(tmp_path_factory.mktemp("alice"))
    with kept_port() as port, asyncio.Runner() as runner:
        process = runner.run(start(folders, port))
        yield Shared(process, folders, port)
        runner.run(process.stop())


@contextlib.asynccontextmanager
async def behind_proxy(folders: Folders, patience: float = 10.0) -> AsyncIterator[Behind]:
    """With an alice who may be killed, and started again."""
    async with FaultProxy("ws://127.0.0.1:1") as proxy:
        made = Behind(None, proxy, await start(folders, proxy.port), folders)
        proxy.retarget(made.process.url)
        try:
            async with grid.connect(proxy.url, folders=folders, patience=patience) as made.g:
                yield made
        finally:
            await made.process.stop()


async def cut_at_random(it: Behind, seed: int) -> None:
    """Cut the line at random moments. In between it is open for longer and longer: in the end for any machine."""
    rng = random.Random(seed)
    longest = 0.04
    while True:
        await until(lambda: it.alice.outbox._link.connection is not None)
        await asyncio.sleep(rng.uniform(0, longest))
        it.proxy.cut(reset=rng.random() < 0.5)
        longest *= 1.1


async def test_a_hundred_changes_in_place_over_a_line_that_is_cut_again_and_again(shared: Shared) -> None:
    async with shared.behind_proxy(patience=100) as it:
        x = await it.alice.send(torch.zeros(4))
        x.add_(0)
        await x.fetch()
        before, number = it.proxy.connections, 0
        cutting = asyncio.create_task(cut_at_random(it, 3))
        try:
            while number < 100 or it.proxy.connections - before < 5:
                number += 1
                x.add_(1)
                await asyncio.sleep(0.003)
                if number % 9 == 0:
                    assert (await x.fetch()).tolist() == [number] * 4
                    assert (await (x * 2).get())[0] == 2 * number
        finally:
            cutting.cancel()
        assert (await x.fetch()).tolist() == [number] * 4


async def test_a_session_that_is_cut_between_and_in_the_middle_goes_on(shared: Shared) -> None:
    async with shared.behind_proxy() as it:
        x, y = await it.alice.send(torch.arange(3.0)), await it.alice.send(torch.ones(3))
        it.proxy.cut()
        assert (await (x + y).get()).tolist() == [1, 2, 3]
        it.proxy.cut(reset=True)
        z = x + y
        it.proxy.cut()
        await it.wait_known()
        w = z * 2  # asked while there is no line
        assert (await w.get()).tolist() == [2, 4, 6]
        it.proxy.down.stall_after = 0  # the answer does not arrive, and then the line breaks
        waiting = asyncio.create_task(z.get())
        await asyncio.sleep(0.05)
        it.proxy.down.stall_after = None
        it.proxy.cut()
        assert (await waiting).tolist() == [1, 2, 3]

        model = await it.alice.send(torch.nn.Linear(3, 2), tags=["#model"])
        it.proxy.cut()
        assert (await model(x).fetch()).shape == (2,)
        it.proxy.cut()
        hits = await it.g.search("#model")
        assert len(hits) == 1 and not hits.unreachable
        it.proxy.cut()
        assert len(await it.g.refresh()) == 1 and it.g.peers()[0].state == "alive"

        traffic = it.g.statistics()[it.alice.id]
        assert traffic.payload_sent >= 24 and traffic.sent_bytes > traffic.payload_sent
        assert it.alice.statistics().received_bytes >= traffic.received_bytes


async def test_after_a_restart_published_objects_work_and_temporaries_say_what_happened(tmp_path: Path) -> None:
    async with behind_proxy(Folders.under(tmp_path)) as it:
        published = await it.alice.send(torch.ones(3), tags=["#kept"])
        x = await it.alice.send(torch.zeros(3))
        await (x + published).get()
        await it.restart(kill=True)
        assert (await (published + 1).get()).tolist() == [2, 2, 2]
        for use in (x.fetch, lambda: (x + 1).get(), lambda: x.tag("#late"), x.delete):
            with pytest.raises(PeerLost, match="alice was restarted, or was out of reach for too long"):
                await use()
        y = await it.alice.send(torch.ones(2))
        assert (await (y + y).get()).tolist() == [2, 2]


async def test_what_was_asked_while_the_peer_was_down_is_done_when_it_is_back(tmp_path: Path) -> None:
    async with behind_proxy(Folders.under(tmp_path), patience=60) as it:
        published = await it.alice.send(torch.ones(3), tags=["#kept"])
        await (published + 1).get()
        await it.process.stop()
        await it.wait_known()
        made = published * 3
        waiting = asyncio.create_task(made.get())
        await it.start()
        assert (await waiting).tolist() == [3, 3, 3]


async def test_what_is_under_way_when_the_peer_dies_is_said_not_to_be_known(tmp_path: Path) -> None:
    async with behind_proxy(Folders.under(tmp_path), patience=60) as it:
        x = await it.alice.send(torch.zeros(3))
        await (x + 1).get()
        it.proxy.down.stall_after = 0
        x.add_(1)
        waiting = asyncio.create_task(x.fetch())
        await asyncio.sleep(0.05)
        it.proxy.down.stall_after = None
        await it.process.kill()
        it.proxy.cut()  # else what is stalled stays so, and pings must find it out
        await it.start()
        with pytest.raises(PeerLost, match="whether it took effect is not known"):
            await waiting


async def test_a_peer_that_is_gone_is_given_up_soon(tmp_path: Path) -> None:
    """Its record on this machine says that its process has ended: nobody waits for all of the patience."""
    async with behind_proxy(Folders.under(tmp_path), patience=3600) as it:
        published = await it.alice.send(torch.ones(3), tags=["#kept"])
        await it.process.kill()
        await it.proxy.close()  # refused at every address
        with pytest.raises((Unreachable, PeerLost), match="alice cannot be reached"):
            await published.fetch()
        with pytest.raises(Unreachable):
            await (published + 1).get()


async def test_closing_does_not_wait_for_a_peer_that_is_away(shared: Shared) -> None:
    async with shared.behind_proxy(patience=3600) as it:
        x = await it.alice.send(torch.zeros(3))
        it.proxy.refuse = True
        it.proxy.cut()
        await it.wait_known()
        waiting = asyncio.create_task((x + 1).get())
        await asyncio.sleep(0)
        async with asyncio.timeout(60):
            await it.g.close()
            with pytest.raises(PeerLost):
                await waiting


async def test_a_cancelled_await_gives_up_and_the_link_goes_on(shared: Shared) -> None:
    async with shared.behind_proxy(patience=3600) as it:
        x = await it.alice.send(torch.zeros(3))
        it.proxy.refuse = True
        it.proxy.cut()
        await it.wait_known()
        waiting = asyncio.create_task(x.fetch())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        it.proxy.refuse = False
        assert (await x.fetch()).tolist() == [0, 0, 0]


async def test_a_deleted_object_stays_deleted_over_a_cut(shared: Shared) -> None:
    async with shared.behind_proxy() as it:
        x = await it.alice.send(torch.ones(3), tags=["#gone"])
        it.proxy.down.stall_after = 0
        deleting = asyncio.create_task(x.delete())
        await asyncio.sleep(0.05)
        it.proxy.down.stall_after = None
        it.proxy.cut()
        await deleting
        with pytest.raises(NotFound):
            (await it.g.search("#gone")).one()


async def test_what_was_queued_for_a_temporary_that_is_gone_says_what_happened(tmp_path: Path) -> None:
    """It is asked of the restarted peer, before this end knew of the restart."""
    async with behind_proxy(Folders.under(tmp_path), patience=60) as it:
        published = await it.alice.send(torch.ones(3), tags=["#kept"])
        x, y, z = [await it.alice.send(torch.zeros(3)) for _ in range(3)]
        plan = grid.plan(lambda a: a + 1)
        await it.g.run(plan, a=published)
        await it.process.kill()
        await it.wait_known()
        made, kept = x + 1, published + 1
        y.add_(1)
        uses = (made.fetch(), y.fetch(), z.tag("#late"), it.g.run(plan, a=z))
        waiting = [asyncio.create_task(use) for use in uses]
        await it.start()
        for use in waiting:
            with pytest.raises(PeerLost, match="alice was restarted, or was out of reach for too long"):
                await use
        assert (await kept.get()).tolist() == [2, 2, 2]
