"""The page that teaches plans runs as it stands there, and prints what it says."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

import pytest

import grid
from peer.folders import Folders
from tests.grid.test_tutorials import run

PAGE = Path(__file__).parents[2] / "docs" / "plans.md"


async def test_the_page_on_plans_runs(peers: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERGRID_HOME", str(peers.config.parent))
    async with grid.connect() as g:
        for peer in g:
            await peer.clear()
    scope: dict[str, Any] = {"__name__": "__main__"}
    printed, compared = "", 0
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        if kind == "python":
            assert printed == "", f"this is not said to be printed: {printed}"
            printed = await run(block, PAGE.name, scope)
        else:
            assert doctest.OutputChecker().check_output(block, printed, flags), f"{block}\nnot\n{printed}"
            printed, compared = "", compared + 1
    assert printed == "" and compared >= 6
