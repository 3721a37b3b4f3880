"""What a process may have: the machine's memory, its own limit, and that of the groups around it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from peer import machine
from peer.buffers import BufferPool
from peer.worker import memory
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


@contextlib.contextmanager
def _running(code: str) -> Iterator[int]:
    """A process that did this and waits; its pid."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(flush=True)\nsys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline()
        yield process.pid
        process.stdin.close()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="Linux shows them to root alone")
def test_memory_files_that_a_process_has_mapped_and_closed_are_its_own() -> None:
    code = f"""
import os
from peer.worker import memory
fd = os.memfd_create("hidden")
os.write(fd, bytes({3 * limits.MIB}))
held = memory.map_private(fd, 0, {3 * limits.MIB}, is_read_only=True)
os.close(fd)"""
    with _running(code) as pid:
        assert machine._memory_files(pid) == 0
        assert machine._memory_files(pid, has_room=True) == 3 * limits.MIB


@pytest.mark.skipif(sys.platform != "linux", reason="memory files are Linux's")
@pytest.mark.parametrize("is_open", [True, False], ids=["open", "mapped alone"])
def test_memory_files_that_are_ours_as_well_are_not_its_own(is_open: bool) -> None:
    fd = os.memfd_create("given")
    try:
        os.write(fd, bytes(3 * limits.MIB))
        ours = None if is_open else memory.map_shared(fd, 3 * limits.MIB, is_writable=False)
        code = f"""
import os
from peer.worker import memory
held = memory.map_private(os.open("/proc/{os.getpid()}/fd/{fd}", os.O_RDONLY), 0, {3 * limits.MIB}, is_read_only=True)
os.closerange(3, 100)"""
        with _running(code) as pid:
            if ours is not None:
                os.close(fd)
                fd = os.open(os.devnull, os.O_RDONLY)
            assert machine._memory_files(pid, has_room=True) == 0
            del ours
            assert is_open or machine._memory_files(pid, has_room=True) == 3 * limits.MIB
    finally:
        os.close(fd)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux says it")
def test_what_the_system_keeps_to_find_a_processs_pages_is_its_own() -> None:
    code = f"""
import mmap
pages = mmap.mmap(-1, {16 << 30}, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, mmap.PROT_READ)
"""
    with _running(code) as pid:
        before = machine.own_memory(pid)
    with _running(
        code + f"[pages[at] for at in range(0, {16 << 30}, {2 << 20})]  # a page of its tables for each"
    ) as pid:
        after = machine.own_memory(pid)
    assert before is not None and after is not None and after - before > 16 * limits.MIB


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
