"""A run whose small results are settled is answered before its end; what becomes of the rest is told to who uses it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch

import grid
from peer.folders import Folders
from peer.keys import Identity
from peer.peer import Peer, Settings
from peer.worker.line import Line
from protocol import limits
from protocol.errors import WorkerLost
from tests.waiting import until

SIZE = 3_000


@grid.plan
def step(weights: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    loss = (weights * images).sum()
    for _ in range(limits.SETTLED_STEPS):
        weights = weights + images
    return weights, loss


class Held:
    """Hears what workers say, and within its context holds back what they say of the end of a program."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._held: list[Any] = []
        self._is_open = True
        self.settled = 0
        whole = Line._heard

        def heard(line: Line, message: Any, descriptors: list[int]) -> None:
            self.settled += message[0] == "settled"
            is_of_program = message[0] == "done" and len(message) == 5 and type(message[2]) is not str
            if is_of_program and not self._is_open:
                self._held.append(lambda: whole(line, message, descriptors))
            else:
                whole(line, message, descriptors)

        monkeypatch.setattr(Line, "_heard", heard)

    def __enter__(self) -> None:
        self._is_open = False

    def __exit__(self, *_: object) -> None:
        self.open()

    def release(self) -> None:
        held, self._held = self._held, []
        for say in held:
            say()

    def open(self) -> None:
        self._is_open = True
        self.release()

    async def came(self) -> None:
        await until(lambda: self._held)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(monkeypatch)


class Place:
    """A peer in this process, a client, and what it trains there: it has run once."""

    def __init__(self, peer: Peer, g: grid.Grid, plan: Any, weights: Any, images: Any) -> None:
        self.peer, self.g, self.alice = peer, g, g["alice"]
        self.plan, self.weights, self.images = plan, weights, images

    async def step(self) -> float:
        self.weights, loss = await self.g.run(self.plan, self.weights, self.images)
        return float(await loss.get())


@contextlib.asynccontextmanager
async def training(folder: Path, folders: Folders | None = None) -> AsyncIterator[Place]:
    peer = await Peer.start(Settings("alice", port=0, folders=Folders.under(folder)))
    try:
        ours = Folders.under(folder / "client")
        async with grid.connect(peer.url, identity=Identity.generate(), folders=ours) as g:
            alice = g["alice"]
            weights, images = await alice.send(torch.zeros(SIZE)), await alice.send(torch.ones(SIZE))
            plan = await step.build(torch.zeros(SIZE), torch.ones(SIZE)).send(alice, tags=["#step"])
            place = Place(peer, g, plan, weights, images)
            assert await place.step() == 0.0
            yield place
    finally:
        await peer.close()


async def test_the_next_step_is_asked_for_while_the_last_one_runs(tmp_path: Path, held: Held) -> None:
    async with training(tmp_path) as place:
        with held:
            assert await place.step() == SIZE * limits.SETTLED_STEPS
            await held.came()
            (run,) = await place.g.running()
            assert run.kind == "program"
            held.release()
            assert not await place.g.running()
            held.open()
            for number in range(2, 6):
                assert await place.step() == SIZE * limits.SETTLED_STEPS * number
            assert held.settled == 5
            assert (await place.weights.get()).tolist() == [6.0 * limits.SETTLED_STEPS] * SIZE


async def test_a_worker_that_dies_after_the_answer_takes_its_results_along(tmp_path: Path, held: Held) -> None:
    async with training(tmp_path) as place:
        with held:
            await place.step()
            await held.came()
            (run,) = await place.g.running()
            assert run.process is not None
            os.kill(run.process, signal.SIGKILL)
            with pytest.raises(WorkerLost):
                await place.weights.get()
            assert not await place.g.running()
            held.open()
            place.weights = await place.alice.send(torch.zeros(SIZE))
            assert [await place.step() for _ in range(3)] == [
                SIZE * limits.SETTLED_STEPS * number for number in range(3)
            ]


async def test_results_that_nobody_wants_are_let_go_of(tmp_path: Path, held: Held) -> None:
    async with training(tmp_path) as place:
        with held:
            before = (await place.alice.status())["temporaries"]
            for _ in range(4):
                made = await place.g.run(place.plan, place.weights, place.images)
                del made
                await held.came()
                held.release()
            held.open()
            await place.step()
            await place.alice.outbox.settle()
            assert (await place.alice.status())["temporaries"] == before


async def test_a_run_that_is_cancelled_leaves_nothing(tmp_path: Path, held: Held) -> None:
    async with training(tmp_path) as place:
        before = (await place.alice.status())["temporaries"]
        for turns in range(40):
            asked = asyncio.ensure_future(place.g.run(place.plan, place.weights, place.images))
            for _ in range(turns):
                await asyncio.sleep(0)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        del asked
        while await place.g.running():
            pass
        await place.step()
        assert (await place.alice.status())["temporaries"] == before


async def test_a_wait_for_a_large_result_is_a_wait_for_the_end(tmp_path: Path, held: Held) -> None:
    async with training(tmp_path) as place:
        with held:
            weights, _ = await place.g.run(place.plan, place.weights, place.images)
            asked = asyncio.ensure_future(weights.get())
            await held.came()
            held.open()
            assert (await asked).tolist() == [2.0 * limits.SETTLED_STEPS] * SIZE


async def test_of_private_data_nothing_is_told_before_the_end(tmp_path: Path, held: Held) -> None:
    async with training(tmp_path) as place:
        theirs = Folders.under(tmp_path / "theirs")
        async with grid.connect(place.peer.url, identity=Identity.generate(), folders=theirs) as other:
            await other["alice"].send(torch.ones(SIZE), tags=["#theirs"], private=True)
            found = (await place.g.search("#theirs")).one()
            with held:
                for _ in range(2):
                    asked = asyncio.ensure_future(place.g.run(place.plan, place.weights, found))
                    await held.came()
                    assert not asked.done() and held.settled == 0
                    held.release()
                    await asked
                held.open()
