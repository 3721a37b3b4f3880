"""Real peers, shared by the tests of this folder that one test process runs; each test cleans up what it made."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from grid.client import Grid
from grid.local_grid import Processes
from grid.mesh import Mesh
from peer.folders import Folders
from protocol import limits
from tests.waiting import PATIENCE


@pytest.fixture(autouse=True)
def patient_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search waits for peers that a busy machine keeps from answering."""
    monkeypatch.setattr(limits, "SEARCH_TIMEOUT", PATIENCE)
    for search in (Grid.search, Grid.stream, Mesh.find_records):
        assert search.__defaults__ is not None and len(search.__defaults__) == 1
        monkeypatch.setattr(search, "__defaults__", (PATIENCE,))


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
