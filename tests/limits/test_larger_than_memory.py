"""Objects larger than the memory of the peers that hold them: put, found, sliced, fetched to a file, moved."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

import grid
from peer import machine
from peer.folders import Folders
from tests.limits.conftest import MIB, ROOT, LimitedPeer, MemoryGroup

SIZE_MIB = int(os.environ.get("PEERGRID_LARGE_MIB", "544"))  # the full trial is 4096
ROWS = SIZE_MIB  # of a mebibyte each
COLUMNS = MIB // 4
OVER_IDLE = 64 * MIB


def write_rows(path: Path) -> str:
    """A .npy file of distinct int32 numbers, written in pieces; the SHA-256 of its values."""
    digest = hashlib.sha256()
    values = np.lib.format.open_memmap(path, mode="w+", dtype=np.int32, shape=(ROWS, COLUMNS))
    for row in range(ROWS):
        piece = np.arange(row * COLUMNS, (row + 1) * COLUMNS, dtype=np.int32)
        values[row] = piece
        digest.update(piece.tobytes())
    values.flush()
    return digest.hexdigest()


def hash_of_values(path: Path) -> str:
    digest = hashlib.sha256()
    for row in np.load(path, mmap_mode="r"):
        digest.update(row.tobytes())
    return digest.hexdigest()


def run_grid(home: Path, *arguments: str) -> tuple[str, int]:
    """A command in a process of its own: what it printed, and the most private memory that it had, in bytes."""
    command = [sys.executable, "-c", _RUNNER, str(ROOT / "cli.py"), *arguments]
    environment = {**os.environ, "PEERGRID_HOME": str(home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=home.parent)
    assert done.returncode == 0, done.stderr
    *printed, peak = done.stdout.splitlines()
    return "\n".join(printed), int(peak)


# Runs the command, then prints the most memory that was its own alone: ru_maxrss would count files too.
_RUNNER = """
import re, runpy, sys, threading
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
peak, over = 0, threading.Event()
def watch():
    global peak
    while not over.wait(0.01):
        peak = max(peak, anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as ended:
    code = ended.code
finally:
    over.set()
    watcher.join()
print(peak)
sys.exit(code)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def peers(home: Path, memory_groups: tuple[MemoryGroup, MemoryGroup]) -> Iterator[list[LimitedPeer]]:
    """alice and bob, who have 512 MiB each for all their processes."""
    with ExitStack() as undo:
        started = []
        for name, group in zip(("alice", "bob"), memory_groups, strict=True):
            started.append(LimitedPeer(name, home, f'echo $$ > "{group.members}"; exec "$@"'))
            undo.callback(started[-1].close)
        yield started


def test_in_half_a_gibibyte_a_larger_tensor_is_put_sliced_fetched_and_moved(
    tmp_path: Path, home: Path, peers: list[LimitedPeer], memory_groups: tuple[MemoryGroup, MemoryGroup]
) -> None:
    source, back = tmp_path / "rows.npy", tmp_path / "back.npy"
    expected = write_rows(source)
    _, idle = run_grid(home, "peers")
    _, peak = run_grid(home, "put", str(source), "--to", "alice", "--tag", "#rows")
    assert peak < idle + OVER_IDLE
    _check_slices(home)
    _, peak = run_grid(home, "get", "#rows", "-o", str(back))
    assert hash_of_values(back) == expected
    back.unlink()
    run_grid(home, "move", "#rows", "bob")
    _check_slices(home, "bob")
    run_grid(home, "get", "#rows", "-o", str(back))
    assert hash_of_values(back) == expected
    assert [group.kills for group in memory_groups] == [0, 0]
    assert all(peer.is_running for peer in peers)


def _check_slices(home: Path, name: str = "alice") -> None:
    async def look() -> None:
        async with grid.connect(folders=Folders.under(home)) as g:
            rows = (await g.search("#rows")).one()
            assert rows.location.name == name
            first = ROWS // 2
            part = await rows[first : first + 3, 5:10].fetch()
            wanted = (torch.arange(first, first + 3).reshape(3, 1) * COLUMNS + torch.arange(5, 10)).to(torch.int32)
            assert torch.equal(part, wanted)
            total = await rows[ROWS - 2 :].to(torch.int64).sum().fetch()
            count = 2 * COLUMNS
            assert int(total) == count * ((ROWS - 2) * COLUMNS) + count * (count - 1) // 2

    asyncio.run(look())


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is room for a few times what is put: a disk may be slow, and is not the point."""
    if not _has_room_in_memory():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="grid-test-") as folder:
        yield Path(folder)


def _has_room_in_memory() -> bool:
    try:
        room = os.statvfs("/dev/shm")
    except OSError:
        return False
    return min(room.f_bavail * room.f_frsize, machine.memory() // 2) > 8 * SIZE_MIB * MIB


def test_with_half_a_gibibyte_of_addresses_a_peer_takes_and_gives_what_is_larger(quick_path: Path) -> None:
    """`ulimit -v` bounds even what is only mapped: torch does not start there, and what needs none of it works."""
    home = quick_path / "home"
    alice = LimitedPeer("alice", home, 'ulimit -v 524288; exec "$@"')
    try:
        source, back = quick_path / "rows.npy", quick_path / "back.npy"
        expected = write_rows(source)
        run_grid(home, "put", str(source), "--to", "alice", "--tag", "#rows")
        run_grid(home, "get", "#rows", "-o", str(back))
        assert hash_of_values(back) == expected
        assert alice.is_running
    finally:
        alice.close()
