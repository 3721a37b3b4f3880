"""What a process may have: the machine's memory, its own limit, and that of the groups around it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from peer import machine
from peer.buffers import BufferPool
from protocol import limits


def test_without_a_bound_it_is_the_machine_s() -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < machine.memory() <= physical


def test_a_limited_address_space_counts() -> None:
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, ({512 * limits.MIB}, resource.RLIM_INFINITY))
from peer import machine
print(machine.memory())"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ended.stdout) <= 512 * limits.MIB


@pytest.mark.parametrize(
    ("own", "file"),
    [
        ("0::/a/b", "a/b/memory.max"),
        ("0::/a/b", "a/memory.max"),
        ("3:cpu:/x\n2:memory:/a/b", "memory/a/b/memory.limit_in_bytes"),
        ("2:cpu,memory:/a", "memory/memory.limit_in_bytes"),
    ],
)
def test_the_groups_around_it_count(tmp_path: Path, own: str, file: str) -> None:
    (tmp_path / "cgroup").write_text(own)
    root = tmp_path / "groups"
    (root / file).parent.mkdir(parents=True)
    (root / file).write_text("1048576\n")
    assert list(machine._of_control_groups(tmp_path / "cgroup", root)) == [1_048_576]
    (root / file).write_text("max\n")
    assert list(machine._of_control_groups(tmp_path / "cgroup", root)) == []


@pytest.mark.skipif(sys.platform != "linux", reason="memory files are Linux's")
def test_memory_files_that_a_process_made_are_its_own() -> None:
    fd = os.memfd_create("test")
    try:
        again = os.dup(fd)
        before = machine._memory_files(os.getpid())
        os.write(fd, bytes(3 * limits.MIB))
        assert machine._memory_files(os.getpid()) - before == 3 * limits.MIB
        assert (machine.own_memory(os.getpid()) or 0) > 3 * limits.MIB
        os.close(again)
    finally:
        os.close(fd)


def test_no_groups_are_no_bound(tmp_path: Path) -> None:
    assert list(machine._of_control_groups(tmp_path / "none")) == []


def test_the_warm_buffers_are_a_small_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory", lambda: 8 * limits.BUFFER_SHARE * limits.MIB)
    pool = BufferPool()
    kept = [pool.take(4 * limits.MIB) for _ in range(3)]
    for buffer in kept:
        buffer.append(bytes(4 * limits.MIB))
        buffer.release()
    assert pool.statistics().warm_bytes == 8 * limits.MIB
    pool.close()
