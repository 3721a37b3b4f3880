"""`grid run ... --parties a,b --provider c`: a plan on secret shares from the shell."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Grid = Callable[..., Any]

PLAN = """
import grid

@grid.plan
def total(images):
    return (images * 2).sum(1)
"""


def test_a_plan_runs_on_shares_from_the_shell(grid: Grid, tmp_path: Path) -> None:
    assert grid("up", "alice", "bob", "carol").code == 0
    values = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "x.npy", values)
    (tmp_path / "plans.py").write_text(PLAN)
    put = grid("put", "x.npy", "--to", "bob", "--tag", "#x", "--private", "--reveal", "*", "--json")
    assert put.json[0]["reveal"] == ["*"]
    run = ("run", "plans.py:total", "images=#x", "--parties", "alice,bob", "--provider", "carol")
    ended = grid(*run, "--json")
    assert np.allclose(ended.json["value"], 2 * values.sum(1), atol=1e-3), ended.out
    assert "online" in ended.err and "rounds" in ended.err
    assert re.search(r"\d rounds, \d+ bytes between", grid(*run, "--explain").out)
    assert "without --map" in grid(*run, "--map").err
    refused = grid("run", "plans.py:total", "images=#x", "--parties", "alice,bob")
    assert refused.code != 0 and "provider" in refused.err
