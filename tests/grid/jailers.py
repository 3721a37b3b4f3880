"""Peers that run jails, each those of others."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from grid.local_grid import Processes
from peer.folders import Folders
from peer.jail_rules import JailRules
from peer.pool_settings import PoolSettings


@contextlib.contextmanager
def jailing(**rules: JailRules) -> Iterator[Folders]:
    """A peer of each of these names, which runs jails by these rules."""
    with tempfile.TemporaryDirectory(prefix="grid-jails-") as folder, asyncio.Runner() as runner:
        folders = Folders.under(Path(folder))
        running = {name: Processes(folders, PoolSettings(jails=each)) for name, each in rules.items()}
        for name, processes in running.items():
            runner.run(processes.start(name))
        yield folders
        for processes in running.values():
            runner.run(processes.close())
