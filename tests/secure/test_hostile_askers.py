"""An asker that makes its own requests learns nothing that the owners of private data have not allowed."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
import torch

import grid
from compute.capture import capture
from grid.client import Grid
from grid.secure import team as team_of
from grid.secure_asking import Asking
from grid.secure_forecast import program_key
from grid.secure_results import values
from grid.secure_sessions import KeptShares, SecureSession, reveal
from mpc.lowering import Lowered, lower
from peer.agreement import Agreement
from peer.folders import Folders
from peer.keys import Identity
from protocol.errors import BadRequest, Cancelled, Denied

X = torch.tensor([1.25, -7.5, 42.0])


def _lowered(function: Callable[..., Any], *inputs: torch.Tensor) -> Lowered:
    named = dict(zip(inspect.signature(function).parameters, inputs, strict=True))
    return lower(capture(function, named).program, inputs, [True] * len(inputs))


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
        lowered = _lowered(lambda x: x + 0, X)
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


async def test_a_checked_run_that_another_is_to_receive_is_refused(team: Folders) -> None:
    """Its outputs would go to the asker, whatever the agreement says of a receiver."""
    async with (
        grid.connect(folders=team, identity=Identity.generate()) as owner,
        grid.connect(folders=team, identity=Identity.generate()) as g,
    ):
        await owner["alice"].send(X, tags=["#bobs"], private=True, reveal=[g["bob"].id])
        pointer = (await g.search("#bobs")).one()
        lowered = _lowered(lambda x: x * x, X)
        session = g.sessions._opened(team_of(g, ["alice", "bob"], "carol"))
        asking = _asking(g, session, lowered, pointer, keep=False, checked=True)
        told = msgpack.unpackb(asking._agreement) | {"receives": True, "reveal": g["bob"].id}
        asking._agreement = msgpack.packb(told)
        order = sorted(asking.everybody, key=lambda each: each.name != "carol")
        came: list[Any] = await asyncio.gather(*map(asking._ask, order), return_exceptions=True)
        for each in came:
            if not isinstance(each, BaseException) and each[1]:
                pytest.fail(f"a party told the asker {values([each], 1, masked=asking._masked)}")
        assert all(isinstance(each, BadRequest) for each in came), came
        session.end(Cancelled("the test is over"))
        await owner["alice"].clear()


def _told(**more: Any) -> bytes:
    parties = [Identity.generate().id for _ in range(3)]  # the last deals, and asks
    told: dict[str, Any] = {
        "run": bytes(16),
        "session": bytes(16),
        "asker": parties[2],
        "parties": parties[:2],
        "provider": parties[2],
        "inputs": [],
        "public": [],
        "program": "x",
        "reveal": parties[2],
        "receives": False,
        "outputs": [],
        "batch": b"",
        "item": 0,
        "ahead": 0,
        "precision": 16,
        "patience": 8,
        "name": "x",
    }
    return bytes(msgpack.packb(told | more))


@pytest.mark.parametrize(
    "more",
    [
        {"ahead": 1, "batch": bytes(16), "outputs": [[bytes(16), True]]},
        {"ahead": 100_001, "batch": bytes(16)},
        {"inputs": [["parties", bytes(16), "float32", [3], 16, bytes([1] * 16), False]]},
        {"outputs": [[bytes(16), False], [bytes(16), False]]},
        {"outputs": [[bytes(16), True], [bytes(16), False]]},
        {"checked": True, "receives": True},
    ],
)
def test_an_agreement_that_contradicts_itself_is_refused(more: dict[str, Any]) -> None:
    assert Agreement.of(_told()).name == "x"
    with pytest.raises(BadRequest):
        Agreement.of(_told(**more))
