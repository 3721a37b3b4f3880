"""How long the asker waits for those who take part."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

import grid
from grid.client import Grid
from grid.secure_waiting import Answering
from protocol import limits
from protocol.errors import PartyFailed
from protocol.rows import unpack_rows

TEAM: dict[str, Any] = {"parties": ["alice", "bob"], "provider": "carol"}
_ALICE, _BOB, _CAROL = (cast(Any, SimpleNamespace(id=name * 8, name=name)) for name in ("alice", "bob", "carol"))


async def _now() -> str:
    return "done"


def _task(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(work)


async def test_who_is_silent_when_a_party_is_done_is_named() -> None:
    answering = Answering(0.01, [_ALICE.id, _BOB.id])
    silent = _task(answering.of(_BOB, asyncio.sleep(3600)))
    assert await answering.of(_ALICE, _now()) == "done"
    with pytest.raises(PartyFailed, match=r"bob has not answered for 0\.01 s") as failed:
        await silent
    assert failed.value.peer == "bob"


async def test_who_has_its_part_done_before_the_parties_ends_nobody_s_time() -> None:
    answering = Answering(0.0, [_ALICE.id, _BOB.id])
    waiting = [_task(answering.of(peer, asyncio.sleep(3600))) for peer in (_ALICE, _BOB)]
    await answering.of(_CAROL, _now())
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in ended)


async def test_nobody_is_given_up_when_all_have_answered() -> None:
    answering = Answering(0.0, [_ALICE.id])
    await answering.of(_ALICE, _now())
    answering.close()
    late = _task(answering.of(_BOB, asyncio.sleep(0.01, "late")))
    assert await late == "late"


@grid.plan
def long(x: Any) -> Any:
    for _ in range(60):
        x = (x * 0.9).relu()
    return x


async def _process(g: Grid, peer: str) -> int:
    """The process of a run that is under way there."""
    while True:
        answer = await (await g[peer].outbox.flush()).request("running", {})
        for row in unpack_rows(await answer.read(1 << 20), 1_000):
            if row["kind"] == "secure" and row["process"] is not None:
                return int(row["process"])


async def test_a_peer_that_stalls_is_named_though_its_process_does_its_part() -> None:
    """The process computes on, and what it has to say goes by its peer."""
    async with grid.local("alice", "bob", "carol") as g:
        x = torch.rand(50)
        run = _task(g.run(long, x=x, **TEAM))
        process, peer = await _process(g, "bob"), g.processes["bob"].pid
        await run
        os.kill(process, signal.SIGSTOP)
        run = _task(g.run(long, x=x, patience=3, **TEAM))
        # In a session that stands the process has been told its part by the time that the run is listed: a peer that
        # stalls before it has not met the others, or leaves them waiting for what its process was never told.
        assert await _process(g, "bob") == process
        os.kill(peer, signal.SIGSTOP)
        os.kill(process, signal.SIGCONT)
        try:
            with pytest.raises(PartyFailed, match=r"bob has not answered for 3 s"):
                await run
        finally:
            os.kill(peer, signal.SIGCONT)
        assert torch.allclose((await g.run(long, x=x, **TEAM)).value, long(x), atol=1e-2)


async def test_a_party_that_stalls_while_it_is_dealt_for_ahead_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last party has all of it, and nobody but the asker waits for the others."""
    monkeypatch.setattr(limits, "SECURE_PATIENCE", 2.0)  # what the asker tells all who take part
    async with grid.local("alice", "bob", "carol") as g:
        x = torch.rand(50)
        await g.run(long, x=x, **TEAM)
        ahead = _task(g.prepare(long, x=x, runs=300, **TEAM))
        os.kill(await _process(g, "alice"), signal.SIGSTOP)
        with pytest.raises(PartyFailed) as failed:
            await ahead
        assert failed.value.peer == "alice"
        assert torch.allclose((await g.run(long, x=x, **TEAM)).value, long(x), atol=1e-2)
