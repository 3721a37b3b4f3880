"""Sessions stand between runs: processes, shares and what was dealt ahead are there for the next run."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from typing import Any

import pytest
import torch
from torch import nn

import grid
from grid.client import Grid
from grid.remote import pointer_to
from grid.secure import Team, team
from grid.secure_sessions import KeptShares, reveal
from peer.folders import Folders
from peer.keys import Identity
from protocol import limits
from protocol.errors import BadRequest, Denied, NotFound, PartyFailed, TooLarge
from tests.secure.teams import CLOSE, NAMES, TEAM, joined, lowered, processes_of, scores, short
from tests.waiting import process_ended


@grid.plan
def long(x: Any) -> Any:
    for _ in range(16):
        x = (x * 0.9).relu()
    return x


async def _run_of(g: Grid) -> dict[str, int]:
    """The process of each of the team. A run that is over before all were seen is followed by another: they stand."""
    pids: dict[str, int] = {}
    while len(pids) < len(NAMES):
        task = asyncio.create_task(g.run(long, x=torch.rand(200), **TEAM))
        pids |= await processes_of(g, task)
        await task
    return pids


def _team(g: Grid) -> Team:
    return team(g, ["alice", "bob"], "carol")


# --- processes --------------------------------------------------------------------------------------------


async def test_the_next_run_finds_the_processes_and_they_end_when_the_asker_leaves(team: Folders) -> None:
    async with grid.connect(folders=team) as g:
        pids = await _run_of(g)
        assert await _run_of(g) == pids
    for pid in pids.values():
        await asyncio.to_thread(process_ended, pid)


async def test_runs_at_the_same_time_have_sessions_of_their_own(team: Folders) -> None:
    async with grid.connect(folders=team) as g:
        xs = [torch.randn(4) for _ in range(3)]
        results = await asyncio.gather(*(g.run(short, x=x, **TEAM) for x in xs))
        for x, result in zip(xs, results, strict=True):
            assert torch.allclose(result.value, 2 * x, atol=CLOSE)
        assert len(g.sessions.of(_team(g))) == 3


@pytest.mark.parametrize("victim", ["alice", "carol"])
async def test_who_dies_between_runs_ends_the_session_and_the_next_run_has_another(team: Folders, victim: str) -> None:
    async with grid.connect(folders=team) as g:
        pids = await _run_of(g)
        os.kill(pids[victim], signal.SIGKILL)
        for pid in pids.values():  # the others' end as well
            await asyncio.to_thread(process_ended, pid)
        fresh = await _run_of(g)
        assert not set(fresh.values()) & set(pids.values())


async def test_a_failure_ends_the_session_and_what_it_kept(team: Folders) -> None:
    async with grid.connect(folders=team) as g:
        x = torch.randn(3)
        (kept,) = (await g.sessions.run(lowered(lambda x: x + 1, x), [x], _team(g), keep=True)).outputs
        with pytest.raises(NotFound):
            gone = KeptShares(kept.session, bytes(16), torch.float32, (3,), 16)
            await reveal(g.sessions, [gone])
        with pytest.raises(PartyFailed, match="shares are gone"):
            await reveal(g.sessions, [kept])
        assert torch.allclose((await g.run(short, x=x, **TEAM)).value, 2 * x, atol=CLOSE)


# --- shares that stay -------------------------------------------------------------------------------------


async def test_kept_shares_are_used_in_later_runs_and_let_go(team: Folders) -> None:
    async with grid.connect(folders=team) as g:
        x, y = torch.randn(2, 3), torch.randn(2, 3)
        ran = await g.sessions.run(lowered(lambda x, y: (x + y, x * y), x, y), [x, y], _team(g), keep=[True, False])
        total, product = ran.outputs
        assert isinstance(total, KeptShares) and torch.allclose(product, x * y, atol=CLOSE)
        again = await g.sessions.run(lowered(lambda t, x: t * x, x, x), [total, x], _team(g), keep=True)
        (value,) = (await reveal(g.sessions, again.outputs)).outputs
        assert torch.allclose(value, (x + y) * x, atol=CLOSE)
        session, id = total.session, total.id
        del total, ran
        await asyncio.gather(*g.sessions._tasks)
        await asyncio.sleep(0)
        await asyncio.gather(*g.sessions._tasks)
        with pytest.raises(NotFound):
            await reveal(g.sessions, [KeptShares(session, id, torch.float32, (2, 3), 16)])


async def test_whose_private_data_shares_derive_from_decides_when_they_are_revealed(team: Folders) -> None:
    async with joined(team, Identity.generate()) as owner, joined(team, Identity.generate()) as g:
        x = torch.randn(3)
        await owner["dave"].send(x, tags=["#hidden"], private=True)
        await owner["dave"].send(x, tags=["#shown"], private=True, reveal=[g.id])
        hidden, shown = [(await g.search(tag)).one() for tag in ("#hidden", "#shown")]
        double = lowered(lambda x: x * 2, x)
        (kept,) = (await g.sessions.run(double, [shown], _team(g), keep=True)).outputs
        (value,) = (await reveal(g.sessions, [kept])).outputs
        assert torch.allclose(value, 2 * x, atol=CLOSE)
        both = lowered(lambda a, b: a + b, x, x)
        (kept,) = (await g.sessions.run(both, [shown, hidden], _team(g), keep=True)).outputs
        (more,) = (await g.sessions.run(double, [kept], _team(g), keep=True)).outputs
        with pytest.raises(Denied, match="reveals what it computes"):
            await reveal(g.sessions, [more])
        assert more.session.failure is None  # nothing has begun, so that nothing is lost
        assert torch.allclose((await g.run(short, x=x, **TEAM)).value, 2 * x, atol=CLOSE)
        assert len(g.sessions.of(_team(g))) == 2  # what is kept stays out of the way of other runs


# --- to whom it is revealed -------------------------------------------------------------------------------


async def test_a_result_can_go_to_a_peer_which_alone_may_take_it(team: Folders) -> None:
    key = team.key_file("bob")
    async with joined(team, Identity.generate()) as owner, joined(team, Identity.generate()) as g:
        x = torch.randn(4)
        told = {"x": "#secret", **TEAM}
        sent = await owner["dave"].send(x, tags=["#secret"], private=True, reveal=[g.id])
        with pytest.raises(Denied):
            await g.run(short, reveal_to="bob", **told)
        await sent.delete()
        await owner["dave"].send(x, tags=["#secret"], private=True, reveal=[g["bob"].id, g["dave"].id])
        for name in ("bob", "dave"):  # a party, and none
            result = await g.run(short, reveal_to=name, **told)
            pointer = result.value
            assert pointer.location.name == name
            with pytest.raises(Denied):
                await pointer.fetch()
        with pytest.raises(Denied):
            await g.run(short, **told)
        result = await g.run(short, reveal_to="bob", **told)
        async with grid.connect(folders=team, identity=Identity.load(key)) as bob:
            record = await bob["bob"].describe_object(result.value._handle.id)
            assert torch.allclose(await pointer_to(bob["bob"], record).fetch(), 2 * x, atol=CLOSE)
        with pytest.raises(NotFound):
            await owner["bob"].describe_object(result.value._handle.id)


# --- fixed weights, and dealing ahead ---------------------------------------------------------------------


async def test_weights_are_shared_and_opened_once(team: Folders) -> None:
    async with joined(team) as g:
        model, images = nn.Linear(30, 4), torch.rand(2, 30)
        await g["alice"].send(model, tags=["#w"])
        costs = []
        for _ in range(3):
            result = await g.run(scores, images=images, model="#w", **TEAM)
            assert torch.allclose(result.value, model(images), atol=CLOSE)
            costs.append(result.cost.online)
        assert costs[0].rounds == costs[1].rounds + 1 == costs[2].rounds + 1
        assert costs[0].nbytes - costs[1].nbytes == 2 * 8 * 30 * 4


async def test_what_is_dealt_ahead_is_used_once_each(team: Folders) -> None:
    async with joined(team) as g:
        model, images = nn.Linear(30, 4), torch.rand(2, 30)
        await g["alice"].send(model, tags=["#p"])
        told: dict[str, Any] = {"images": images, "model": "#p", **TEAM}
        prepared = await g.prepare(scores, runs=2, **told)
        assert prepared.left() == 2 and prepared.cost.offline.nbytes > 0
        for left in (1, 0):
            foreseen = await g.explain(scores, **told)
            result = await g.run(scores, **told)
            assert torch.allclose(result.value, model(images), atol=CLOSE)
            assert (result.cost.offline.nbytes, foreseen.prepared) == (0, left + 1)
            assert (foreseen.rounds, foreseen.nbytes) == (result.cost.online.rounds, result.cost.online.nbytes)
            assert prepared.left() == left
        assert (await g.run(scores, **told)).cost.offline.nbytes > 0  # dealt in the run, as ever
        (session,) = g.sessions.of(_team(g))
        ((key, stock),) = session.stock.items()
        prepared = await g.prepare(scores, runs=1, **told)
        again = stock[0]
        await g.run(scores, **told)
        session.stock[key].append(again)
        with pytest.raises(BadRequest, match="masks are used once"):
            await g.run(scores, **told)


async def test_no_more_is_dealt_ahead_than_a_party_keeps(team: Folders) -> None:
    async with grid.connect(folders=team) as g:
        with pytest.raises(TooLarge) as refused:
            await g.prepare(long, x=torch.rand(2_000), runs=1_000, **TEAM)
        assert refused.value.fields["limit"] == "SECURE_STOCK"


# --- what a run is asked with -----------------------------------------------------------------------------


async def test_three_parties_do_without_a_provider(team: Folders) -> None:
    async with joined(team) as g:
        x, model = torch.randn(2, 5), nn.Sequential(nn.Linear(5, 3), nn.ReLU())
        await g["dave"].send(model, tags=["#t"])
        told: dict[str, Any] = {"images": x, "model": "#t", "parties": ["alice", "bob", "dave"]}
        for _ in range(2):  # the second time the masked weights are open
            foreseen = await g.explain(scores, **told)
            result = await g.run(scores, **told)
            assert torch.allclose(result.value, model(x), atol=CLOSE)
            assert (foreseen.rounds, foreseen.nbytes) == (result.cost.online.rounds, result.cost.online.nbytes)
            assert foreseen.dealt == result.cost.offline.nbytes


async def test_more_fractional_bits_give_more_digits(team: Folders) -> None:
    async with grid.connect(folders=team) as g:
        x = torch.rand(50, dtype=torch.float64)
        errors = [
            float(((await g.run(lambda x: x * x, x=x, precision=bits, **TEAM)).value - x * x).abs().max())
            for bits in (12, 20)
        ]
        assert errors[1] < 2**-18 < 2**-14 < errors[0]


async def test_teams_that_are_used_no_more_make_room_for_others(team: Folders) -> None:
    async with joined(team) as g:
        x = await g["alice"].send(torch.tensor([1.0, -2.0]), tags=["#room"])
        teams: list[Any] = [(*parties, None) for parties in itertools.permutations(["alice", "bob", "carol"])]
        teams += [(*parties[:2], parties[2]) for parties in itertools.permutations(["alice", "bob", "carol"])]
        assert len(teams) > limits.SECURE_AT_ONCE
        for *parties, provider in teams:
            result = await g.run(short, "#room", parties=parties, provider=provider)
            assert torch.allclose(result.value, torch.tensor([2.0, -4.0]), atol=CLOSE)
        await x.delete()


async def test_more_runs_at_once_than_a_peer_has_sessions_wait_for_each_other(
    team: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SECURE_AT_ONCE", 2)  # as the asker counts; its peers would take more
    async with joined(team) as g:
        values = [torch.full((2,), float(number)) for number in range(6)]
        results = await asyncio.gather(*(g.run(short, x=x, **TEAM) for x in values))
        for x, result in zip(values, results, strict=True):
            assert torch.allclose(result.value, 2 * x, atol=CLOSE)
        assert len(g.sessions.of(_team(g))) <= 2
