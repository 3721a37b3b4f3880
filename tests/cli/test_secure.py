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


def test_a_result_goes_to_a_peer_which_finds_it_by_tag(grid: Grid, tmp_path: Path) -> None:
    assert grid("up", "alice", "bob", "carol").code == 0
    np.save(tmp_path / "x.npy", np.ones((2, 3), dtype=np.float32))
    (tmp_path / "plans.py").write_text(PLAN)
    assert grid("put", "x.npy", "--to", "bob", "--tag", "#x").code == 0
    run = ("run", "plans.py:total", "images=#x", "--parties", "alice,bob", "--provider", "carol", "--precision", "20")
    there = (*run, "--reveal-to", "alice")
    explained = grid(*there, "--tag", "#theirs", "--explain")
    assert "revealed to alice" in explained.out, explained.err
    ended = grid(*there, "--tag", "#theirs", "--patience", "20", "--json")
    assert (ended.json[0]["tags"], ended.json[0]["shape"]) == (["#theirs"], [2]), ended.err
    assert "online" in ended.err
    assert "alice has" in grid(*there, "--tag", "#once-more").out
    (found,) = grid("search", "#once-more", "--json").json["objects"]
    assert found["peer"] == "alice"
    refused = grid("get", "#once-more", "-o", "y.npy")
    assert refused.code == 4 and not (tmp_path / "y.npy").exists()  # it is alice's to take
    for wrong in (there, (*run, "--tag", "#theirs"), (*there, "--tag", "#theirs", "-o", "y.npy")):
        assert grid(*wrong).code == 2
