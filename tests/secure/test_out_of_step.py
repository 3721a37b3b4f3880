"""Peers of different versions: who deals for another program than a party runs is noticed before anything is shared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import grid
from protocol.errors import PartyFailed
from tests import zygotes
from tests.secure.elsewise import changed

# A version in which truncation takes one correlation more: all are behind from there on.
OLD = """
def old(module):
    usual = module.truncate

    def truncate(party, x, shift):
        party.take(module.Mask(1))
        return (yield from usual(party, x, shift))

    module.truncate = truncate
"""


@grid.plan
def cubed(x: Any) -> Any:
    return x * x * x


@pytest.fixture(scope="module")
def versions() -> Iterator[str]:
    with changed(OLD, {"mpc.comparison": "old"}) as folder:
        yield folder


@pytest.mark.parametrize("old", ["carol", "bob"])
async def test_who_is_of_another_version_computes_with_nobody_else(
    old: str, versions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with grid.local("alice", "dave", *{"bob", "carol"} - {old}) as g:
        with monkeypatch.context() as patched, zygotes.real():
            patched.syspath_prepend(versions)
            await g.start_peer(old)
        x = torch.tensor([0.5, -2.0])
        there = await g["alice"].send(x)
        team: dict[str, Any] = {"parties": ["alice", "bob"], "provider": "carol"}
        who = "(alice|bob)" if old == "carol" else "bob"
        with pytest.raises(PartyFailed, match=f"carol deals for another program than {who} runs.*same version"):
            await g.run(cubed, there, **team)
        with pytest.raises(PartyFailed, match="same version"):
            await g.prepare(cubed, there, **team, runs=2)
        others: dict[str, Any] = {"parties": ["alice", "dave"], "provider": ({"bob", "carol"} - {old}).pop()}
        result = await g.run(cubed, there, **others)
        assert torch.allclose(result.value, x**3, atol=2e-3)
