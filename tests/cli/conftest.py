from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cli


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user of this machine who never ran a peer. Whatever runs there at the end is ended."""
    monkeypatch.setenv("PEERGRID_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "home"
    assert cli.main(["down"]) == 0


@pytest.fixture
def grid(home: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The `grid` command, run in this process as it would be run there. A search waits for peers on a busy machine."""

    def run(*arguments: str) -> Ended:
        capfd.readouterr()
        patience = ["--timeout", "60"] if "search" in arguments and "--timeout" not in arguments else []
        code = cli.main([*arguments, *patience])
        printed = capfd.readouterr()
        return Ended(code, printed.out, printed.err)

    return run


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Ten thousand labels, as MNIST is shipped."""
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    values = (np.arange(10_000) % 10).astype(np.uint8)
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 1]) + struct.pack(">I", len(values)) + values.tobytes()))
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A few megabytes, so that they travel as a stream."""
    path = tmp_path / "images.npy"
    np.save(path, np.arange(3_000_000, dtype=np.float32).reshape(3_000, 1_000))
    return path
