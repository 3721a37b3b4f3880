"""A power cut, by a copy of the disk at some moment: what was acknowledged by then is on it.

The store's folder is on an ext4 file system in a file. The writer is stopped, its acknowledgements are read, and the
file is copied: it holds what the kernel has given to the disk, and nothing of what is only in memory. The copy is then
mounted, as after the cut, and looked through. Needs the right to mount, and a loop device.
"""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from protocol.errors import GridError

CUTS = int(os.environ.get("PEERGRID_POWER_CUTS", "4"))  # the full trial is 100
ROOT = Path(__file__).parents[2]
IMAGE = "96M"


@pytest.fixture
def disk(tmp_path):
    """The image of a file system that can be mounted."""
    image = tmp_path / "disk.img"
    try:
        subprocess.run(["truncate", "-s", IMAGE, image], check=True)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True, capture_output=True)
        with mounted(image, tmp_path / "try"):
            pass
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("NOT TESTED: a power cut needs mkfs.ext4, and the right to mount a file (root, a loop device)")
    return image


@contextlib.contextmanager
def mounted(image, at):
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, at], check=True, capture_output=True)
    try:
        yield at
    finally:
        for _ in range(100):  # something else may look into a new mount for a moment
            if subprocess.run(["umount", at], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)


@contextlib.contextmanager
def writer(folder, kit, said, *flags):
    """A process that writes and says so into the file `said`."""
    command = [sys.executable, str(Path(__file__).with_name("process_to_kill.py")), str(folder), kit.PEER, *flags]
    with said.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_words(process, said, more_than):
    """Until the writer has said so much: then it is at work, however slow the machine."""
    deadline = time.monotonic() + 60
    while said.stat().st_size <= more_than:
        assert process.poll() is None, "the process ended by itself"
        assert time.monotonic() < deadline, "the process says nothing"
        time.sleep(0.005)


def cut(process, said, image, copy, after):
    """Let it write for so long and ten words more, then copy the disk as it is; what had been said by then."""
    wait_for_words(process, said, said.stat().st_size + 400)
    time.sleep(after)
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)  # until it has stopped
    words = said.read_bytes()
    subprocess.run(["cp", "--sparse=always", image, copy], check=True)
    process.send_signal(signal.SIGCONT)
    return words


async def look(folder, kit, words):
    async with kit.opened(folder) as store:
        await kit.check_kept(store, words)
        await kit.check_consistent(store, folder)
        assert (await store.statistics()).missing == 0
        assert (await store.verify_all()).is_whole


def loss_on(image, at, kit, words):
    """What the disk in `image` lacks of what was said to be on it, in words; None if nothing."""
    with mounted(image, at):
        try:
            asyncio.run(look(at / "alice", kit, words))
        except (AssertionError, GridError) as error:
            return f"{type(error).__name__}: {error}"
    return None


def cuts(disk, tmp_path, kit, count, *flags):
    """For each of so many cuts: what was lost, and how much had been acknowledged."""
    chance = random.Random(count)
    said, copy = tmp_path / "said", tmp_path / "copy.img"
    with mounted(disk, tmp_path / "disk"), writer(tmp_path / "disk" / "alice", kit, said, *flags) as process:
        for _ in range(count):
            words = kit.words_of(cut(process, said, disk, copy, chance.uniform(0, 0.3)))
            yield loss_on(copy, tmp_path / "after", kit, words), len(words["put"])
            copy.unlink()


@pytest.mark.timeout(300 + 10 * CUTS)
def test_a_power_cut_loses_nothing_that_was_acknowledged(disk, tmp_path, kit):
    results = list(cuts(disk, tmp_path, kit, CUTS))
    assert [loss for loss, _ in results] == [None] * CUTS
    assert results[-1][1] > 3 * CUTS  # it was at work


@pytest.mark.timeout(300)
def test_without_syncing_the_same_test_fails(disk, tmp_path, kit):
    for loss, acknowledged in cuts(disk, tmp_path, kit, 10, "unsynced"):
        if loss and acknowledged:
            return
    pytest.fail("a store that syncs nothing passes: this test shows nothing")
