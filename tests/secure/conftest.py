"""Real peers for secure runs, shared by the tests of this folder that one test process runs."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from grid.local_grid import Processes
from peer.folders import Folders
from peer.keys import Identity
from peer.secure import SecureRuns


@pytest.fixture(scope="session")
def team() -> Iterator[Folders]:
    """alice, bob, carol and dave run; connect with `grid.connect(folders=team)`."""
    with tempfile.TemporaryDirectory(prefix="grid-tests-") as folder:
        folders = Folders.under(Path(folder))
        with asyncio.Runner() as runner:
            processes = Processes(folders)
            runner.run(processes.start("alice", "bob", "carol", "dave"))
            yield folders
            runner.run(processes.close())


@pytest.fixture
def runs() -> SecureRuns:
    """The secure runs of a peer that has nothing else."""
    nothing = cast(Any, None)
    return SecureRuns(Identity.generate(), "alice", nothing, nothing, nothing, nothing, lambda _: None)
