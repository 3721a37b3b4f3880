"""Random calls of the whole table through its checks: nothing kills the process, nothing reads past a tensor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("random_calls.py")
SHARES, CALLS = 4, 12


@pytest.mark.parametrize("share", range(SHARES))
def test_no_call_that_passes_the_checks_kills_the_process(share: int) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(share), str(SHARES), str(CALLS)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1"},
    )
    last = done.stdout.splitlines()[-1] if done.stdout else "nothing"
    assert done.returncode == 0, f"died of {done.returncode} at {last}; {done.stderr[-500:]}"
    word, passed = last.split()
    assert word == "passed"
    assert int(passed) > 300
