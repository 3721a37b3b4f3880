"""Checked runs at real peers: right results, and whoever lies in whatever it says, nobody has any."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import grid
from grid.remote import pointer_to
from peer.folders import Folders
from peer.keys import Identity
from protocol.errors import BadRequest, Denied, OperationNotAllowed, PartyFailed
from tests import zygotes
from tests.secure import teams
from tests.secure.elsewise import changed
from tests.secure.teams import joined

TEAM: dict[str, Any] = {**teams.TEAM, "checked": True}


@grid.plan
def squares(x: Any, model: Any) -> Any:
    made = model(x)
    return {"sum": (made * made).sum(1), "all": [made, 7]}


def _agree(got: Any, x: torch.Tensor, model: nn.Module) -> bool:
    want = squares(x, model)
    pairs = [(got["sum"], want["sum"]), (got["all"][0], want["all"][0])]
    return got["all"][1] == 7 and all(torch.allclose(one, other, atol=5e-3) for one, other in pairs)


@pytest.mark.parametrize("parties", [["alice", "bob"], ["bob", "dave", "alice"]])
async def test_it_gives_what_the_plan_gives(team: Folders, parties: list[str]) -> None:
    """Inputs are at a party, at one that is none, at the provider and here."""
    told: dict[str, Any] = {**TEAM, "parties": parties}
    async with joined(team, Identity.generate()) as owner, joined(team, Identity.generate()) as g:
        x, model = torch.randn(5, 4), nn.Linear(4, 3)
        await owner["alice"].send(x, tags=["#c", "#x"], private=True, reveal=[g.id])
        await owner["dave"].send(model, tags=["#c", "#model"], private=True, reveal=[g.id])
        result = await g.run(squares, "#c #x", "#c #model", **told)
        assert _agree(result.value, x, model)
        foreseen = await g.explain(squares, "#c #x", "#c #model", **told)
        assert (foreseen.rounds, foreseen.nbytes) == (result.cost.online.rounds, result.cost.online.nbytes)
        assert foreseen.dealt == result.cost.offline.nbytes
        held = await g["carol"].send(x)
        assert _agree((await g.run(squares, held, model, **told)).value, x, model)


async def test_owners_rules_hold(team: Folders) -> None:
    async with joined(team, Identity.generate()) as owner, joined(team, Identity.generate()) as g:
        await owner["alice"].send(torch.ones(2), tags=["#d"], private=True)
        with pytest.raises(Denied):
            await g.run(lambda x: x * 2, "#d", **TEAM)


async def test_what_has_no_form_with_macs_is_said_before_anything_is_shared(team: Folders) -> None:
    async with joined(team) as g:
        with pytest.raises(OperationNotAllowed, match=r"relu.* malicious"):
            await g.run(lambda x: x.relu(), torch.ones(2), **TEAM)
        for wrong in ({"provider": None, "parties": ["alice", "bob", "dave"]}, {"keep": True}, {"parties": None}):
            with pytest.raises(BadRequest):
                await g.run(lambda x: x * 2, torch.ones(2), **{**TEAM, **wrong})


@pytest.mark.parametrize("name", ["bob", "dave", "carol"])
async def test_its_result_can_go_to_a_peer_which_alone_may_take_it(team: Folders, name: str) -> None:
    """A party, one that has nothing else to do with it, and the provider."""
    async with joined(team, Identity.generate()) as owner, joined(team, Identity.generate()) as g:
        x, model = torch.randn(5, 4), nn.Linear(4, 3)
        sent = await owner["alice"].send(x, tags=["#e"], private=True, reveal=[g.id])
        told = {"x": "#e", "model": model, "reveal_to": name, **TEAM}
        with pytest.raises(Denied):
            await g.run(squares, **told)
        await sent.delete()
        await owner["alice"].send(x, tags=["#e"], private=True, reveal=[g[name].id])
        value = (await g.run(squares, **told)).value
        pointers = [value["sum"], value["all"][0]]
        for pointer in pointers:
            with pytest.raises(Denied):
                await pointer.fetch()
        async with grid.connect(folders=team, identity=Identity.load(team.key_file(name))) as theirs:
            records = [await theirs[name].describe_object(each._handle.id) for each in pointers]
            sums, made = [await pointer_to(theirs[name], each).fetch() for each in records]
        assert _agree({"sum": sums, "all": [made, value["all"][1]]}, x, model)


# --- lies -------------------------------------------------------------------------------------------------

# In bob's processes: in the round that the thousandths of a run's patience say he flips a bit of all that he sends;
# behind the last one, of what he tells the asker.
LIAR = """
import torch

def flipped(each):
    each = each.clone(memory_format=torch.contiguous_format)
    each.view(-1)[-1] ^= 1 << (20 if each.element_size() == 8 else 3)
    return each

def lie(module):
    usual = module.Rounds._round

    def lying(self, asked):
        if round(self._part.patience % 1 * 1000) == self.number + 1:
            asked = type(asked)(list(map(flipped, asked.sums)), list(map(flipped, asked.xors)))
        return usual(self, asked)

    module.Rounds._round = lying

def lie_at_the_end(module):
    usual = module.kept_and_told

    def lying(part, *rest):
        listed, tensors = usual(part, *rest)
        return listed, list(map(flipped, tensors)) if round(part.patience % 1 * 1000) == 999 else tensors

    module.kept_and_told = lying
"""


@pytest.fixture
def liars() -> Iterator[str]:
    """A folder: peers that find their modules there first lie."""
    changes = {"peer.worker.secure.rounds": "lie", "peer.worker.secure.results": "lie_at_the_end"}
    with changed(LIAR, changes) as folder:
        yield folder


async def test_whatever_a_party_lies_about_nobody_has_a_result(liars: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with grid.local("alice", "carol") as g:
        with monkeypatch.context() as patched, zygotes.real():
            patched.syspath_prepend(liars)
            await g.start_peer("bob")
        x, model = torch.randn(3, 4), nn.Linear(4, 2)
        there = await g["alice"].send(x)
        result = await g.run(squares, there, model, **TEAM, patience=30)
        assert _agree(result.value, x, model)
        rounds = result.cost.online.rounds
        for at in (1, 3, rounds // 2, rounds - 2, rounds, 999):  # of all others tests/mpc/test_checked.py has
            with pytest.raises(PartyFailed, match="without a result"):
                await g.run(squares, there, model, **TEAM, patience=30 + at / 1000)
        for receiver in ("alice", "carol"):
            with pytest.raises(PartyFailed, match="without a result"):
                await g.run(squares, there, model, **TEAM, patience=30.999, reveal_to=receiver)
        assert [each["id"] for each in await g["alice"].objects()] == [there._handle.id]
        unnoticed = await g.run(squares, there, model, **{**TEAM, "checked": False}, patience=30.001)
        assert not _agree(unnoticed.value, x, model)  # he does lie
        assert _agree((await g.run(squares, there, model, **TEAM, patience=30)).value, x, model)
