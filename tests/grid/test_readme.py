"""The README's programs run as they stand there."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import textwrap
from pathlib import Path

import pytest
import torch

import grid
from peer.folders import Folders
from tests import zygotes

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_readme_has_programs() -> None:
    assert len(BLOCKS) >= 4


async def test_the_first_program_runs_as_it_stands(peers: Folders, zygotes_at_hand: zygotes.Nursery) -> None:
    (program,) = [block for block in BLOCKS if "asyncio.run" in block]
    home = peers.config.parent
    process = await asyncio.create_subprocess_exec(
        *zygotes_at_hand.program(program),
        env={**os.environ, "PEERGRID_HOME": str(home), "PYTHONPATH": str(README.parent)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 200)
    assert process.returncode == 0, err.decode()
    assert "tensor([2., 4., 6.])" in out.decode() and "tensor([1., 2., 3.])" in out.decode()


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_every_block_is_python(number: int) -> None:
    ast.parse("async def block():\n" + textwrap.indent(BLOCKS[number], "    "))


async def test_the_other_programs_run_in_order_in_one_grid(peers: Folders) -> None:
    """They build on g, alice and bob of the first, and on the digits that its text speaks of."""
    others = [block for block in BLOCKS if "asyncio.run" not in block]
    async with grid.connect(folders=peers) as g:
        alice, bob = g["alice"], g["bob"]
        await bob.send(torch.randn(20, 64), tags="digits test images readme")
        await bob.send(torch.randint(0, 10, (20,)), tags="digits test labels readme")
        await alice.send(torch.nn.Linear(64, 10), tags="digits classifier readme")
        scope = {
            "grid": grid, "torch": torch, "g": g, "alice": alice, "bob": bob,
            "images": await bob.send(torch.randn(20, 64)), "labels": await bob.send(torch.randint(0, 10, (20,))),
        }  # fmt: skip
        for block in others:
            # Several hits are there; the README's own words for that are Ambiguous.
            source = "async def block():\n    global hits, net, r, trained\n" + textwrap.indent(block, "    ")
            exec(compile(source, "README.md", "exec"), scope)
            try:
                await scope["block"]()  # type: ignore[operator]
            except grid.Ambiguous:
                assert "hits.one()" in block
        for hit in await g.search("#readme"):
            await hit.delete()
