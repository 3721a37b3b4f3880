"""Commands in processes of their own, and what they leave in a peer's folder."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import zygotes

Grid = Callable[..., Any]
ROOT = Path(__file__).parents[2]
SECONDS = 200.0


def ids(answer: dict[str, Any]) -> list[str]:
    return [record["id"] for record in answer["objects"]]


def command(*arguments: str, nursery: zygotes.Nursery | None = None) -> subprocess.CompletedProcess[str]:
    """A process of its own, as in a shell. The peers that it starts have zygotes from the nursery, if there is one."""
    code = "import sys, cli; sys.exit(cli.main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments] if nursery is None else nursery.program(code, *arguments),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        cwd=ROOT,
    )


def blobs(home: Path, peer: str = "alice") -> list[Path]:
    return [path for path in (home / "data" / peer / "blobs").rglob("*") if path.is_file()]


def wait_until(is_so: Callable[[], object]) -> None:
    """Of what another process does in its own time."""
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "it did not become so in time"
        time.sleep(0.01)
