"""Whoever fails in a secure run, everybody else stops with an error that names it, and the grid goes on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from typing import Any, cast

import msgpack
import pytest
import torch

import grid
from compute.capture import capture
from grid.client import Grid
from grid.ids import fresh_id
from peer.agreement import program_hash
from peer.folders import Folders
from peer.secure_lines import Frame
from peer.secure_session import HELLO, Session
from peer.worker.seat import Failed
from protocol.errors import BadRequest, Cancelled, GridError, PartyFailed
from tests.secure.agreements import told
from tests.secure.teams import TEAM, processes_of, secure_runs, short
from tests.waiting import process_ended, until


@grid.plan
def long(x: Any) -> Any:
    for _ in range(60):
        x = (x * 0.9).relu()
    return x


@contextlib.asynccontextmanager
async def _under_way(g: Grid, **more: Any) -> AsyncIterator[tuple[asyncio.Task[Any], dict[str, int]]]:
    task = asyncio.create_task(g.run(long, x=torch.rand(500), **TEAM, **more))
    try:
        yield task, await processes_of(g, task)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _all_is_well(g: Grid, pids: dict[str, int]) -> None:
    """Nothing of the run is left, and another one works."""
    for pid in pids.values():
        await asyncio.to_thread(process_ended, pid)
    for name in pids:
        assert await secure_runs(g, name) == []
    x = torch.randn(3)
    assert torch.allclose((await g.run(short, x=x, **TEAM)).value, 2 * x, atol=1e-3)


@pytest.mark.parametrize("victim", ["bob", "carol"])
async def test_a_process_that_is_killed_is_named(team: Folders, victim: str) -> None:
    async with grid.connect(folders=team) as g:
        async with _under_way(g) as (task, pids):
            os.kill(pids[victim], signal.SIGKILL)
            with pytest.raises(PartyFailed, match=f"{victim} in long was killed by SIGKILL"):
                await task
            await _all_is_well(g, pids)


@pytest.mark.parametrize("victim", ["alice", "carol"])
async def test_a_process_that_hangs_is_named(team: Folders, victim: str) -> None:
    async with grid.connect(folders=team) as g:
        async with _under_way(g, patience=4) as (task, pids):
            os.kill(pids[victim], signal.SIGSTOP)
            with pytest.raises(PartyFailed, match=f"{victim} has not sent") as failed:
                await task
            assert failed.value.peer == victim
            await _all_is_well(g, pids)


async def test_a_peer_that_is_killed_is_named() -> None:
    async with grid.local("alice", "bob", "carol") as g:
        async with _under_way(g) as (task, pids):
            bob = g.processes["bob"]
            os.kill(bob.pid, signal.SIGKILL)
            with pytest.raises(GridError, match="bob"):
                await task
            for name in ("alice", "carol"):
                await asyncio.to_thread(process_ended, pids[name])
                assert await secure_runs(g, name) == []


async def test_a_run_that_nobody_wants_any_more_ends_everywhere(team: Folders) -> None:
    async with grid.connect(folders=team) as g:
        async with _under_way(g) as (task, pids):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await _all_is_well(g, pids)


async def test_a_run_can_be_ended_by_its_id(team: Folders) -> None:
    async with grid.connect(folders=team) as g:
        async with _under_way(g) as (task, pids):
            (row,) = await secure_runs(g, "bob")
            assert row["name"] == "long"
            await g["bob"].request("cancel", {"id": row["id"]})
            with pytest.raises(Cancelled):
                await task
            await _all_is_well(g, pids)


# --- those who take part are told different things --------------------------------------------------------


def _agreement(g: Grid, **changes: Any) -> dict[str, Any]:
    by_hand: dict[str, Any] = {"run": fresh_id(), "session": fresh_id(), "patience": 20.0, "name": "by hand"}
    by_hand["inputs"] = [["", fresh_id(), "float32", [2], 16, b"", False]]
    return told(g.id, [g["alice"].id, g["bob"].id], g["carol"].id, **{**by_hand, **changes})


async def _asked(g: Grid, peer: str, agreement: dict[str, Any], plan: Any = lambda x: x + 1) -> Any:
    program = capture(plan, {"x": torch.ones(2)}).program.to_bytes()
    packed = msgpack.packb({**agreement, "program": program_hash(program, b"")})
    args = {"sizes": [len(packed), len(program), 0, 0], "seed": bytes(16), "opens": True}
    return await (await g[peer].outbox.flush()).request("secure", args, packed + program)


async def test_all_have_to_be_told_the_same(team: Folders) -> None:
    async with grid.connect(folders=team) as g:
        agreement = _agreement(g)
        other = {**agreement, "reveal": g["alice"].id, "receives": True}
        answers = await asyncio.gather(
            *(_asked(g, name, agreement if name != "bob" else other) for name in ("alice", "bob", "carol")),
            return_exceptions=True,
        )
        # Who deals may have dealt by then: it has nothing that tells anything.
        assert all("was told of another" in getattr(each, "message", "") for each in answers[:2]), answers
        await _all_is_well(g, dict.fromkeys(("alice", "bob", "carol"), 2**22 + 1))


async def test_all_hear_why_it_ended_from_each_other(team: Folders) -> None:
    async with grid.connect(folders=team) as g:
        agreement = _agreement(g)
        asked = [asyncio.create_task(_asked(g, name, agreement, long)) for name in ("alice", "bob", "carol")]
        pids = await processes_of(g, asyncio.gather(*asked, return_exceptions=True))
        os.kill(pids["bob"], signal.SIGKILL)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        said = [getattr(each, "message", "") for each in answers]
        killed = "the process of bob in by hand was killed by SIGKILL"
        assert said[1] == killed
        # Who hears of it from the third first says that it is hearsay; the asker has bob's own word.
        assert all(each in (killed, f"alice says: {killed}", f"carol says: {killed}") for each in said)
        await _all_is_well(g, pids)


async def test_one_who_is_not_told_is_named(team: Folders) -> None:
    async with grid.connect(folders=team) as g:
        agreement = _agreement(g, patience=0.5)
        answers = await asyncio.gather(
            *(_asked(g, name, agreement) for name in ("alice", "carol")), return_exceptions=True
        )
        assert all(isinstance(each, GridError) for each in answers)
        assert any("bob did not begin the run" in each.message for each in answers if isinstance(each, GridError))


@pytest.mark.parametrize(
    "changes",
    [
        {"asker": "a" * 52},
        {"patience": 0},
        {"patience": 1e9},
        {"parties": []},
        {"run": b"short"},
        {"inputs": [["nobody", bytes(16), "float32", [2], 16, b"", False]]},
        {"inputs": [["", bytes(16), "float32", [2], 16, b"", True]]},
        {"session": b""},
        {"provider": ""},
        {"reveal": "a" * 52},
        {"ahead": 1},
        {"outputs": [[bytes(16), True], [bytes(16), True]]},
        {"name": ""},
    ],
)
async def test_what_is_no_agreement_is_refused(team: Folders, changes: dict[str, Any]) -> None:
    async with grid.connect(folders=team) as g:
        with pytest.raises(BadRequest):
            await _asked(g, "alice", _agreement(g, **changes))
        await until(lambda: True)


# --- what a process says that has private data ------------------------------------------------------------


@pytest.mark.parametrize("who", [None, "b" * 52])
async def test_words_of_a_process_with_private_data_are_not_passed_on(who: str | None) -> None:
    session = Session(
        bytes(16),
        ("d" * 52, bytes(16)),
        (("a" * 52, "b" * 52), "c" * 52),
        ("a" * 52, "alice"),
        *(cast(Any, None) for _ in range(4)),
    )
    session.hear("b" * 52, Frame(bytes(16), HELLO, 0, 0, b""))

    async def said() -> str:
        error = PartyFailed("the value is 4711")
        return (await session.failed(Failed(error, who, is_own_word=True))).message

    assert "4711" in await said()
    session.labels = frozenset({"e" * 52})
    assert "4711" not in await said()
