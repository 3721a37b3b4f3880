"""The tutorials run as they stand there, and print what they say."""

from __future__ import annotations

import ast
import contextlib
import doctest
import inspect
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import grid
from peer.folders import Folders

FOLDER = Path(__file__).parents[2] / "docs" / "tutorials"
PAGES = sorted(FOLDER.glob("[0-9]*.md"), key=lambda page: int(page.name.partition("-")[0]))
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = {page.name: _FENCE.findall(page.read_text()) for page in PAGES}


@pytest.fixture(autouse=True)
def unhooked() -> Iterator[None]:
    yield
    grid.unhook()


def test_every_page_is_in_the_list_and_every_block_is_run_or_compared() -> None:
    listed = re.findall(r"\]\((\d+-[\w-]+\.md)\)", (FOLDER / "README.md").read_text())
    assert listed == [page.name for page in PAGES] and len(listed) >= 7
    for name, blocks in BLOCKS.items():
        kinds = [kind for kind, _ in blocks]
        assert set(kinds) == {"python", "text"} and "text text" not in " ".join(kinds), name


@pytest.mark.parametrize("name", [page.name for page in PAGES])
async def test_a_tutorial_runs(name: str, peers: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERGRID_HOME", str(peers.config.parent))
    async with grid.connect() as g:
        for peer in g:
            await peer.clear()
    scope: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for kind, block in BLOCKS[name]:
        if kind == "python":
            assert printed == "", f"this is not said to be printed: {printed}"
            printed = await run(block, name, scope)
        else:
            assert doctest.OutputChecker().check_output(block, printed, doctest.ELLIPSIS), f"{block}\nnot\n{printed}"
            printed = ""
    assert printed == ""


async def run(block: str, name: str, scope: dict[str, Any]) -> str:
    """What it prints. `await` may stand anywhere, as in a notebook."""
    code = compile(block, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        result = eval(code, scope)
        if inspect.isawaitable(result):
            await result
    return out.getvalue()
