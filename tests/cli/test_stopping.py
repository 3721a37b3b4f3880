"""Ctrl-C: the first one ends a command tidily, the second one at once; neither with a traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grid.commands import stopping

Grid = Callable[..., Any]
ROOT = Path(__file__).parents[2]
SECONDS = 60.0

TIDIES_UP_FOR_LONG = """
import asyncio
from grid.commands.stopping import leaving, run

async def main():
    with leaving(lambda: "tidy now", lambda: "half of \\x1b[2J it may be left"):
        try:
            print("at work", flush=True)
            await asyncio.sleep(600)
        finally:
            print("tidying up", flush=True)
            {then}

try:
    run(main())
except KeyboardInterrupt:
    print("interrupted")
"""

HANGS = """
import asyncio, sys, cli
from grid import putting, saving
from grid.mesh import Mesh

def hanging(word):
    async def hang(*_):
        print(word, flush=True)
        await asyncio.sleep(600)
    return hang

putting.upload = saving.save = hanging("under way")
Mesh.close = hanging("closing")
sys.exit(cli.main())
"""


def started(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def read_until(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    while (read := process.stdout.readline()) != f"{line}\n":
        assert read, process.communicate()


def test_the_first_lets_it_tidy_up_and_says_what_came_of_it() -> None:
    with started(TIDIES_UP_FOR_LONG.format(then="await asyncio.sleep(0)")) as process:
        read_until(process, "at work")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)
    assert (out, err, process.returncode) == ("tidying up\ninterrupted\n", "stopped: tidy now\n", 0)


@pytest.mark.parametrize("then", ["await asyncio.sleep(600)", "import time; time.sleep(600)"], ids=["waits", "blocks"])
def test_the_second_ends_it_at_once_and_says_what_may_be_left(then: str) -> None:
    with started(TIDIES_UP_FOR_LONG.format(then=then)) as process:
        read_until(process, "at work")
        process.send_signal(signal.SIGINT)
        read_until(process, "tidying up")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)
    assert (out, err) == ("", "ended at once: half of \\x1b[2J it may be left\n")
    assert process.returncode == 130


def test_what_never_lets_the_loop_go_can_be_ended_too() -> None:
    code = "import time\nfrom grid.commands.stopping import run\nasync def main():\n"
    code += "    print('at work', flush=True)\n    while True: time.sleep(0.01)\nrun(main())"
    with started(code) as process:
        read_until(process, "at work")
        deadline = time.monotonic() + SECONDS
        while process.poll() is None and time.monotonic() < deadline:  # two that come at once are one
            process.send_signal(signal.SIGINT)
            time.sleep(0.01)
        _, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (130, "")


def test_before_there_is_a_loop_it_ends_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> None:
        raise AssertionError

    monkeypatch.setattr(stopping, "_run_loop", lambda _: signal.raise_signal(signal.SIGINT))
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            stopping.run(never())  # that nobody awaited it would be a warning
    finally:
        signal.signal(signal.SIGINT, kept)


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN], ids=["heard", "ignored"])
def test_afterwards_the_signal_is_what_it_was(before: Any) -> None:
    async def look() -> Any:
        return signal.getsignal(signal.SIGINT)

    kept = signal.signal(signal.SIGINT, before)
    try:
        meanwhile = stopping.run(look())
        assert (signal.getsignal(signal.SIGINT), meanwhile == before) == (before, before == signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGINT, kept)


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (["put", "{file}", "--to", "alice", "--tag", "#b"], "alice throws away what it has of big within a minute, or"),
        (["get", "#a", "-o", "{folder}/x.npy"], "nothing was written to {folder}/x.npy, but {folder}/.x.npy."),
    ],
    ids=["put", "get"],
)
def test_a_second_during_a_transfer_is_one_line(grid: Grid, tmp_path: Path, arguments: list[str], left: str) -> None:
    np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.uint8, (1 << 20,))
    grid("up", "alice")
    assert grid("put", str(tmp_path / "big.npy"), "--to", "alice", "--tag", "#a").code == 0
    names = {"file": str(tmp_path / "big.npy"), "folder": str(tmp_path)}
    with started(HANGS, *(argument.format(**names) for argument in arguments)) as process:
        for line in ("under way", "closing"):
            read_until(process, line)
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    stopped, at_once = err.splitlines()
    assert stopped.startswith("stopped: ")
    assert at_once.startswith("ended at once: " + left.format(**names))
