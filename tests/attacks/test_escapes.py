"""Code of a stranger's that runs in a worker gets nowhere: not to files, not to the network, not to other processes.

The scripts are in escapes.py. Each runs as Python in a process that the real zygote has forked and the real
`sandbox.enter` has confined: nothing but what such a process does is made for the test.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peer.worker import kernel
from peer.worker.sandbox import Settings
from tests.attacks.den import Den, Worker
from tests.attacks.escapes import ALL

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are confined on Linux")

ROOM = 300 << 20


@pytest.fixture(scope="module")
def den() -> Iterator[Den]:
    with Den.with_secret(Settings(memory=ROOM)) as made:
        yield made


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("name", ALL)
def test_a_script_comes_to_its_verdict(name: str, den: Den, neighbour: Worker, port: int, tmp_path: Path) -> None:
    source, verdict = ALL[name]
    if kernel.MACHINE != "x86_64" and ("call(" in source or "machine_code(" in source):
        pytest.skip("the numbers and instructions are those of x86_64")
    tmp_path.chmod(0o777)
    canary, key = tmp_path / "canary", tmp_path / "key"
    key.write_text("secret")
    has_others = "process namespace" in (den.refused or {})
    facts: dict[str, Any] = {"PEER": os.getpid(), "PORT": port, "NEIGHBOUR": neighbour.inside, "PIDS": has_others}
    came = den.run(source, CANARY=str(canary), KEY=str(key), **facts)
    assert came.removeprefix("raised ") in verdict.split("|")
    assert not canary.exists() and not Path("/dev/shm/canary").exists()
    assert neighbour.run("import builtins; got = builtins.kept.tolist()") == "ran [0, 1, 2, 3]"
    assert den.process.poll() is None
