"""The pages of docs/examples run as they stand there, and print what they say; and what the one who asks receives."""

from __future__ import annotations

import contextlib
import copy
import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from grid import mesh
from grid.pointer import Pointer
from peer.connection import Connection
from peer.folders import Folders
from peer.keys import Identity
from protocol.session import Reply
from tests.grid.test_tutorials import run
from tests.secure.teams import TEAM, joined, labels

FOLDER = Path(__file__).parents[2] / "docs" / "examples"
PAGES = sorted(page.name for page in FOLDER.glob("*.md") if page.name != "README.md")


def test_every_page_is_in_the_list() -> None:
    assert sorted(re.findall(r"^\d\. .*\]\((\S+\.md)\)", (FOLDER / "README.md").read_text(), re.MULTILINE)) == PAGES
    assert len(PAGES) >= 4


@pytest.mark.parametrize("name", PAGES)
async def test_a_page_runs(name: str, team: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERGRID_HOME", str(team.config.parent))
    scope: dict[str, Any] = {"__name__": "__main__"}
    flags, printed = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, ""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", (FOLDER / name).read_text(), re.MULTILINE | re.DOTALL)
    assert {kind for kind, _ in blocks} == {"python", "text"}
    for kind, block in blocks:
        if kind == "python":
            assert printed == "", f"this is not said to be printed: {printed}"
            printed = await run(block, name, scope)
        else:
            assert doctest.OutputChecker().check_output(block, printed, flags), f"{block}\nnot\n{printed}"
            printed = ""
    assert printed == ""


# --- what a plan changes ------------------------------------------------------------------------------------


def _stepped(model: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    functional.mse_loss(model(x), y).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return model


@pytest.mark.parametrize("is_sent", [False, True])
async def test_a_module_is_changed_where_it_is_and_may_be_returned(team: Folders, is_sent: bool) -> None:
    x, y, model = torch.randn(6, 3), torch.randn(6, 2), nn.Linear(3, 2)
    wanted = _stepped(copy.deepcopy(model), x, y)
    async with joined(team) as g:
        there = await g["alice"].send(model) if is_sent else model
        returned = await (await g.run(_stepped, there, await g["bob"].send(x), y, **TEAM)).get()
        assert isinstance(there.weight, Pointer) is is_sent
        got: Any = await there.weight.fetch() if is_sent else there.weight
        assert torch.allclose(got, wanted.weight, atol=1e-3)
        assert torch.allclose(returned.weight, wanted.weight, atol=1e-3)
        assert not torch.allclose(model.weight, wanted.weight, atol=1e-3) or not is_sent


# --- what the one who asks receives -------------------------------------------------------------------------


@contextlib.contextmanager
def _listening() -> Iterator[list[Any]]:
    """All that comes to this process on any connection."""
    came: list[Any] = []
    usual = Connection._on_events

    def on_events(self: Connection, events: list[Any]) -> None:
        came.extend(events)
        usual(self, events)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Connection, "_on_events", on_events)
        yield came


def _without_times(told: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if not isinstance(value, float)}


async def test_the_one_who_asks_can_account_for_every_byte(team: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes is the same for whatever model and images, but for times, and shares of the labels, 8 bytes each."""
    monkeypatch.setattr(mesh, "_REFRESH_SECONDS", 600.0)  # who else is there is asked now and then
    seen = []
    for seed in range(2):
        async with joined(team, Identity.generate()) as owner, joined(team, Identity.generate()) as g:
            torch.manual_seed(seed)
            images, model = torch.randn(12, 16), nn.Linear(16, 4)
            await owner["bob"].send(images, tags=["#b", "#images"], private=True, reveal=[g.id])
            await owner["alice"].send(model, tags=["#b", "#model"], private=True, reveal=[g.id])
            found = (await g.search("#b #images")).one(), (await g.search("#b #model")).one()
            await g.explain(labels, *found, **TEAM)  # the model's form comes now
            with _listening() as came:
                result = await g.run(labels, *found, **TEAM)
            assert torch.equal(result.value, model(images).argmax(1))
            assert all(type(event) is Reply for event in came)
            answers = [each for each in came if each.result]
            assert all(len(each.payload) == 0 and each.stream is None for each in came if not each.result)
            assert sorted(len(each.payload) for each in answers) == [0, 8 * 12, 8 * 12]
            seen.append(sorted((_without_times(each.result) for each in answers), key=str))
    assert seen[0] == seen[1]
