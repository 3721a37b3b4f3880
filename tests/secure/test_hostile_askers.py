"""An asker that makes its own requests learns nothing that the owners of private data have not allowed."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import msgpack
import pytest
import torch

import grid
from grid.client import Grid
from grid.secure import team as team_of
from grid.secure_asking import Asking
from grid.secure_forecast import program_key
from grid.secure_results import values
from grid.secure_sessions import KeptShares, SecureSession, reveal
from mpc.lowering import Lowered
from peer.agreement import Agreement
from peer.folders import Folders
from peer.keys import Identity
from protocol.errors import BadRequest, Cancelled, Denied
from tests.secure import agreements, teams

X = torch.tensor([1.25, -7.5, 42.0])


def _asking(g: Grid, session: SecureSession, lowered: Lowered, given: Any, *, keep: bool, checked: bool) -> Asking:
    return Asking(g, session, lowered, program_key(lowered), [given], [keep], None, 8.0, "hostile", 0, checked)


async def test_shares_that_are_dropped_in_a_run_leave_their_rules(team: Folders) -> None:
    """The parties wait for their dealer meanwhile."""
    async with (
        grid.connect(folders=team, identity=Identity.generate()) as owner,
        grid.connect(folders=team, identity=Identity.generate()) as g,
    ):
        await owner["alice"].send(X, tags=["#dropped"], private=True)
        pointer = (await g.search("#dropped")).one()
        lowered = teams.lowered(lambda x: x + 0, X)
        (kept,) = (await g.sessions.run(lowered, [pointer], team_of(g, ["alice", "bob"], "carol"), keep=True)).outputs
        with pytest.raises(Denied):
            await reveal(g.sessions, [kept])
        session = kept.session
        asking = _asking(g, session, lowered, kept, keep=True, checked=False)
        by_name = {each.name: each for each in asking.everybody}
        asked = [asyncio.ensure_future(asking._ask(by_name[name])) for name in ("alice", "bob")]
        await asyncio.sleep(0.5)
        for name in ("alice", "bob"):
            await by_name[name].request("secure_drop", {"session": session.id, "ids": [kept.id]})
        await asyncio.gather(asking._ask(by_name["carol"]), *asked)
        made = KeptShares(session, asking._outputs[0][0], torch.float32, (3,), lowered.precision)
        with pytest.raises(Denied):
            await reveal(g.sessions, [made])
        await owner["alice"].clear()


async def test_the_result_of_a_checked_run_is_told_only_whom_the_agreement_names(team: Folders) -> None:
    """The parties tell it who receives it, under masks of its seed; the asker, who may not learn it, is told none."""
    async with (
        grid.connect(folders=team, identity=Identity.generate()) as owner,
        grid.connect(folders=team, identity=Identity.generate()) as g,
    ):
        await owner["alice"].send(X, tags=["#bobs"], private=True, reveal=[g["bob"].id])
        pointer = (await g.search("#bobs")).one()
        lowered = teams.lowered(lambda x: x * x, X)
        session = g.sessions._opened(team_of(g, ["alice", "bob"], "carol"))
        asking = _asking(g, session, lowered, pointer, keep=False, checked=True)
        told = msgpack.unpackb(asking._agreement) | {"receives": True, "reveal": g["bob"].id}
        told["outputs"] = [[os.urandom(16), False]]
        asking._agreement = msgpack.packb(told)
        order = sorted(asking.everybody, key=lambda each: each.name != "carol")
        came: list[Any] = await asyncio.gather(*map(asking._ask, order), return_exceptions=True)
        for each in came:
            if isinstance(each, BaseException):
                raise each
            if each[1]:
                pytest.fail(f"a party told the asker {values([each], 1, masked=asking._masked)}")
        session.end(Cancelled("the test is over"))
        await owner["alice"].clear()


def _told(**more: Any) -> bytes:
    alice, bob, carol = (Identity.generate().id for _ in range(3))  # the last deals, and asks
    return bytes(msgpack.packb(agreements.told(carol, [alice, bob], carol, **more)))


@pytest.mark.parametrize(
    "more",
    [
        {"ahead": 1, "batch": bytes(16), "outputs": [[bytes(16), True]]},
        {"ahead": 100_001, "batch": bytes(16)},
        {"inputs": [["parties", bytes(16), "float32", [3], 16, bytes([1] * 16), False]]},
        {"outputs": [[bytes(16), False], [bytes(16), False]]},
        {"outputs": [[bytes(16), True], [bytes(16), False]]},
        {"checked": True, "outputs": [[bytes(16), True]]},
    ],
)
def test_an_agreement_that_contradicts_itself_is_refused(more: dict[str, Any]) -> None:
    assert Agreement.of(_told()).name == "x"
    with pytest.raises(BadRequest):
        Agreement.of(_told(**more))
