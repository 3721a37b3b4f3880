"""What runs, from the shell: listed, watched, ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import grid as library
from compute.program import Body, Input, Node, Program
from grid.executing import Executor
from protocol.errors import GridError

Grid = Callable[..., Any]
ROOT = Path(__file__).parents[2]
LONG = 1_000_000  # iterations that nobody waits for


def loop() -> Program:
    step = Body((Input("i"), Input("x")), (Node("aten.add.Tensor", [{"node": 1}, 1]),), [{"node": 2}])
    node = Node("flow.repeat", [{"body": 0}, LONG, [{"node": 0}], []])
    return Program((Input("x"),), (node,), {"node": 1, "item": 0}, (), (step,))


@contextmanager
def counting(name: str) -> Iterator[list[GridError]]:
    """Somebody has a long loop run at alice meanwhile; what it failed with is in the list at the end."""
    failed: list[GridError] = []

    async def run() -> None:
        async with library.connect() as g:
            x = await g["alice"].send(torch.zeros(4))
            try:
                await Executor().run(g["alice"], loop(), [x._handle.id], name=name)
            except GridError as error:
                failed.append(error)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    yield failed
    thread.join()


def listed(grid: Grid) -> Any:
    """What runs, once something does that says how far it is."""
    while True:
        answer = grid("ps", "--json").json
        if answer["runs"] and answer["runs"][0]["progress"]:
            return answer


def test_what_runs_is_listed_and_ended(grid: Grid) -> None:
    grid("up", "alice", "bob")
    assert grid("ps", "--json").json == {"runs": [], "unreachable": {}}
    assert grid("ps", "bob").out == "nothing runs\n"
    with counting("fit") as failed:
        (run,) = listed(grid)["runs"]
        assert (run["name"], run["kind"], run["peer"], run["what"]) == ("fit", "program", "alice", loop().id)
        assert run["progress"]["of"] == LONG and 0 < run["progress"]["fraction"] < 1
        table = grid("ps", "alice").out
        assert run["id"][:12] in table and "fit" in table and "you" in table and f"of {LONG}" in table
        assert grid("ps", "bob", "--json").json["runs"] == []
        wrong = grid("kill", "0" * 32)
        assert wrong.code == 3 and "grid ps" in wrong.err
        assert grid("kill", run["id"][:8]).out == f"ended at alice: program fit, run {run['id'][:12]}\n"
    assert [error.code for error in failed] == ["cancelled"]
    assert grid("kill", run["id"]).code == 3


def test_watching_goes_on_until_it_is_stopped(grid: Grid) -> None:
    grid("up", "alice")
    code = "import sys, cli; sys.exit(cli.main())"
    watching = [sys.executable, "-c", code, "ps", "--watch", "--json"]
    with (
        counting("fit"),
        subprocess.Popen(watching, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ) as seen,
    ):
        assert seen.stdout is not None
        dones: list[int] = []
        while len(set(dones)) < 3:
            for run in json.loads(seen.stdout.readline())["runs"]:
                if run["progress"]:
                    dones.append(run["progress"]["done"])
        assert dones == sorted(dones)
        seen.send_signal(signal.SIGINT)
        assert seen.wait() == 130
        (run,) = listed(grid)["runs"]
        assert grid("kill", run["id"], "--json").json == [{"id": run["id"], "peer": "alice"}]


def test_a_jail_tells_what_it_printed_and_where_it_failed(grid: Grid, tmp_path: Path) -> None:
    grid("up", "alice", "--jails")
    values, file = tmp_path / "values.npy", tmp_path / "looks.py"
    np.save(values, np.arange(10.0))
    file.write_text("import grid\n\n@grid.jail\ndef look(x, at):\n    print('sum', x.sum().item())\n    return x[at]\n")
    grid("put", str(values), "--to", "alice", "--tag", "#values")
    ended = grid("run", str(file), "x=#values", "at=3")
    assert (ended.code, ended.out.strip(), ended.err) == (0, "3.0", "sum 45.0\n")
    ended = grid("run", str(file), "x=#values peer:alice", "at=3", "--map")
    assert (ended.code, ended.err) == (0, "alice:\nsum 45.0\n")
    ended = grid("run", str(file), "x=#values", "at=99")
    assert ended.code == 9 and ended.err.startswith("error: IndexError: index 99")
    assert "look had printed:\nsum 45.0\n" in ended.err and f'File "{file}", line 6, in look' in ended.err
