"""A peer killed with -9 while it writes: what it acknowledged is there, and nothing half."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLS = int(os.environ.get("PEERGRID_KILLS", "15"))  # the full trial is 1000
ROOT = Path(__file__).parents[2]


def write_and_kill(folder, kit, words, after):
    """Let a process write until it has said so many words, and `after` seconds more; its words by their kind."""
    command = [sys.executable, str(Path(__file__).with_name("process_to_kill.py")), str(folder), kit.PEER]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    with process.stdout as output:
        said = b"".join(output.readline() for _ in range(words))
        assert said.count(b"\n") == words, "the process ended by itself"
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        said += output.read()
    process.wait()
    return kit.words_of(said)


async def check(folder, kit, words):
    """All that was acknowledged is there or deleted, as was said; how long the start took."""
    begun = time.monotonic()
    async with kit.opened(folder) as store:
        start = time.monotonic() - begun
        await kit.check_kept(store, words)
        # Emptied for the next turn; each object that is there is whole, acknowledged or not.
        for uid in await kit.check_consistent(store, folder):
            await store.delete(uid)
        assert (await store.statistics()).missing == 0
        assert kit.blobs_in(folder) == []
    return start


@pytest.mark.timeout(300 + 3 * KILLS)
def test_kill_9_loses_nothing_that_was_acknowledged(quick_path, kit):
    chance = random.Random(1)
    folder = quick_path / "alice"
    acknowledged, starts = 0, []
    for _ in range(KILLS):
        words = write_and_kill(folder, kit, chance.randrange(1, 60), chance.uniform(0, 0.003))
        acknowledged += len(words["put"])
        starts.append(asyncio.run(check(folder, kit, words)))
    assert acknowledged > 10 * KILLS
    if KILLS >= 1000:  # the full trial: it has a machine for itself
        assert max(starts) < 2
