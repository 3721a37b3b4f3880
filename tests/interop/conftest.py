"""A real peer in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from peer.folders import Folders
from peer.neighbours import Neighbour, Neighbours

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT = 100.0
STOP_TIMEOUT = 60.0


@contextlib.contextmanager
def start_peer(home: Path, name: str = "alice") -> Iterator[Neighbour]:
    """A peer that was started from the command line, with everything it keeps below `home`; stopped at the end."""
    log = home / f"{name}.log"
    environment = {**os.environ, "PEERGRID_HOME": str(home)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "start", name, "--port", "0"],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield _wait_until_it_runs(process, Neighbours(Folders.under(home).peers), log)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the peer did not stop:\n{log.read_text()}") from None


def _wait_until_it_runs(process: subprocess.Popen[bytes], neighbours: Neighbours, log: Path) -> Neighbour:
    deadline = time.monotonic() + START_TIMEOUT
    while not (running := neighbours.list()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"the peer did not start:\n{log.read_text()}")
        time.sleep(0.02)
    return running[0]


@pytest.fixture
def alice(tmp_path: Path) -> Iterator[Neighbour]:
    with start_peer(tmp_path) as running:
        yield running
