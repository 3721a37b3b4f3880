"""The fuzz of the table finds nothing, and finds what there is: 8 calls of each operation, with PEERGRID_FULL 600."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from compute.operations import OPERATIONS
from tests.attacks.calls import load
from tests.full import FULL, minutes_long

ROOT = Path(__file__).parents[2]
PARTS = 8 if FULL else 2


def fuzzed(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.attacks.fuzz", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("part", range(PARTS))
def test_hostile_calls_of_the_whole_table(part: int) -> None:
    """No signal, no hang, no foreign error, nothing uninitialised, nothing written that is not said."""
    done = fuzzed("--calls", "600" if FULL else "8", "--seed", "3", "--part", f"{part}/{PARTS}")
    assert done.returncode == 0, f"{done.stdout[-4_000:]}\n{done.stderr[-2_000:]}"
    entries, calls, passed = (int(word) for word in done.stdout.split() if word.isdigit())
    assert entries > len(OPERATIONS) // PARTS - 20  # some releases of torch lack a few
    assert passed > calls / 4


@pytest.mark.timeout(3_600)
@minutes_long
@pytest.mark.parametrize("part", range(PARTS))
def test_no_call_writes_beyond_a_result(part: int) -> None:
    done = fuzzed("--calls", "200", "--seed", "5", "--part", f"{part}/{PARTS}", "--heap-checks")
    assert done.returncode == 0, f"{done.stdout[-4_000:]}\n{done.stderr[-2_000:]}"


def test_what_a_fuzz_is_there_for_is_found() -> None:
    """The same, of operations that do each of these things."""
    done = subprocess.run([sys.executable, "-m", "tests.attacks.faulty_operations"],
                          cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2_000:]
    assert done.stdout.split() == ["signal", "signal", "hang", "foreign", "undetermined", "undetermined", "written"]


def test_most_operations_have_an_honest_call_to_be_made_dishonest() -> None:
    """Those of new operations are collected by `python -m tests.attacks.calls`."""
    assert len(set(load()) & set(OPERATIONS)) > 0.8 * len(OPERATIONS)
