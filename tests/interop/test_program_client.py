"""A client that knows nothing but PROGRAM.md and SPEC.md builds programs and has a real peer run them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from peer.neighbours import Neighbour

CLIENT = Path(__file__).with_name("program_client.py")


def test_programs_built_from_the_document_alone(alice: Neighbour, tmp_path: Path) -> None:
    """One run, and all that it saw: starting a peer takes longer than every check."""
    done = subprocess.run(
        [sys.executable, "-P", str(CLIENT), alice.url, alice.id],
        cwd=tmp_path,  # nothing of ours is found from there
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["example id"] == "a4f557ba3ecc255dbcc40f4c497d9674510f7606154442bb97be406883be6fff"
    assert [each["values"] for each in seen["example"]] == [[0, 1, 2], [2] * 6]
    assert [(each["dtype"], each["shape"], each["values"]) for each in seen["power"]] == [
        ("float32", [], [3.875]),  # 21, and three times (c + i) / 2
        ("int64", [], [3]),
        ("int64", [], [6]),
    ]
    assert [each["values"] for each in seen["running"]] == [[9, 12], [9, 12, 8, 10, 5, 6]]
    assert seen["nested"][0]["values"] == [127]  # 3, 7, 15, ...: doubled, and one more where it was odd
    assert seen["bound"][0]["values"] == [20_000]
    assert seen["plans"]["truncated"] is False
    assert seen["refused"] == {
        **dict.fromkeys(("itself", "later body", "types", "carried", "unknown key"), "bad_program"),
        **dict.fromkeys(("a longer list", "a shorter float", "a longer integer", "another order"), "bad_program"),
        **dict.fromkeys(("a key twice", "more behind", "another's hash"), "bad_program"),
        "unknown operation": "operation_not_allowed",
        "absurd": "too_large",
    }
