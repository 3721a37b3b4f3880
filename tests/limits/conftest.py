"""Peers with less memory than the objects that they hold."""

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
from peer.neighbours import Neighbours

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
SECONDS = 100.0


class MemoryGroup:
    """A control group whose processes have so much memory together, the page cache of their files included."""

    def __init__(self, nbytes: int) -> None:
        self._path = _our_group() / f"peergrid-test-{os.getpid()}-{time.monotonic_ns()}"
        self._path.mkdir()
        limit = "memory.limit_in_bytes" if (self._path / "memory.limit_in_bytes").exists() else "memory.max"
        (self._path / limit).write_text(str(nbytes))
        swap = self._path / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")

    @property
    def members(self) -> Path:
        return self._path / "cgroup.procs"

    @property
    def kills(self) -> int:
        """How many of its processes the kernel has ended for want of memory."""
        for name in ("memory.oom_control", "memory.events"):
            with contextlib.suppress(FileNotFoundError):
                lines = dict(line.split() for line in (self._path / name).read_text().splitlines())
                return int(lines.get("oom_kill", 0))
        return 0

    def close(self) -> None:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                self._path.rmdir()
                return
            except OSError:  # a process of it is still ending
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


def _our_group() -> Path:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return Path("/sys/fs/cgroup/memory") / path.lstrip("/")
        if number == "0" and (Path("/sys/fs/cgroup") / path.lstrip("/") / "memory.max").exists():
            return Path("/sys/fs/cgroup") / path.lstrip("/")
    return Path("/sys/fs/cgroup/memory")


@pytest.fixture
def memory_groups() -> Iterator[tuple[MemoryGroup, MemoryGroup]]:
    """Two, of 512 MiB each. Skipped where control groups cannot be made: that takes root on most machines."""
    try:
        groups = MemoryGroup(512 * MIB), MemoryGroup(512 * MIB)
    except OSError as error:
        pytest.skip(f"SKIPPED, NOT TESTED: no memory control group can be made here: {error}")
    yield groups
    for group in groups:
        group.close()


class LimitedPeer:
    """A peer process started by `command`, a shell's line that ends in `exec "$@"`."""

    def __init__(self, name: str, home: Path, command: str) -> None:
        self._log = (home.parent / f"{name}.log").open("wb")
        arguments = [sys.executable, str(ROOT / "cli.py"), "start", name, "--port", "0"]
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", command, "sh", *arguments],
            env={**os.environ, "PEERGRID_HOME": str(home)},
            stdout=self._log,
            stderr=self._log,
            cwd=ROOT,
        )
        self._name, self._folders = name, Folders.under(home)
        self._wait_found()

    def _wait_found(self) -> None:
        deadline = time.monotonic() + SECONDS
        while self._name not in {found.name for found in Neighbours(self._folders.peers).list()}:
            assert self.process.poll() is None, f"{self._name} ended: {Path(self._log.name).read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"{self._name} did not start"
            time.sleep(0.05)

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()
