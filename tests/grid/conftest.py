"""Real peers, shared by the tests of this folder that one test process runs; each test cleans up what it made."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from grid.local_grid import Processes
from peer.folders import Folders


@pytest.fixture(scope="session")
def peers() -> Iterator[Folders]:
    """alice, bob and carol run; connect with `grid.connect(folders=peers)`."""
    with tempfile.TemporaryDirectory(prefix="grid-tests-") as folder:
        folders = Folders.under(Path(folder))
        with asyncio.Runner() as runner:
            processes = Processes(folders)
            runner.run(processes.start("alice", "bob", "carol"))
            yield folders
            runner.run(processes.close())
