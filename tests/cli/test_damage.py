"""Commands that are stopped in the middle leave nothing half; what is damaged is named, mended and deleted."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.cli.shell import ROOT, SECONDS, Grid, blobs, ids, wait_until
from tests.faults import faulty

SLOW = 20_000_000  # bytes a second: what is to be stopped is under way for as long as any machine needs to do so


# --- stopped in the middle --------------------------------------------------------------------------------


def spoil(blob: Path) -> None:
    """Change a byte of it."""
    blob.chmod(0o600)
    with blob.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        (last,) = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


@contextmanager
def slowly_to(url: str) -> Iterator[tuple[str, str]]:
    """Arguments that lead a command to the peer there over a line of so many bytes a second."""
    with faulty(url) as proxy:
        proxy.up.rate = proxy.down.rate = SLOW
        yield "--via", proxy.url


def stop_when(is_begun: Callable[[], object], *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, which gets Ctrl-C as soon as that is so."""
    code = "import sys, cli; sys.exit(cli.main())"
    command = [sys.executable, "-c", code, *arguments]

    def has_begun() -> object:
        assert process.poll() is None, process.communicate()
        return is_begun()

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        wait_until(has_begun)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def test_ctrl_c_leaves_nothing_half_at_the_peer(grid: Grid, home: Path, labels: Path, tmp_path: Path) -> None:
    np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.uint8, (1 << 29,))
    (alice,) = grid("up", "alice", "--json").json
    arguments = ("put", str(labels), str(tmp_path / "big.npy"), "--to", "alice", "--tag", "#a")
    with slowly_to(alice["url"]) as via:
        ended = stop_when(lambda: blobs(home), *via, *arguments)
    assert ended.returncode == 130
    assert ended.stderr == "stopped: big is not at alice; what was put before it is there (1 of them)\n"
    assert "t10k-labels" in ended.stdout
    assert [record["name"] for record in grid("search", "", "--json").json["objects"]] == ["t10k-labels"]
    wait_until(lambda: not blobs(home))  # the peer hears of it, and removes what had come


def test_ctrl_c_leaves_nothing_half_in_the_folder(grid: Grid, tmp_path: Path) -> None:
    np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.uint8, (1 << 28,))
    target = tmp_path / "there"
    target.mkdir()
    (alice,) = grid("up", "alice", "--json").json
    assert grid("put", str(tmp_path / "big.npy"), "--to", "alice", "--tag", "#a").code == 0
    with slowly_to(alice["url"]) as via:
        ended = stop_when(lambda: os.listdir(target), *via, "get", "#a", "-o", str(target / "x.npy"))
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr == f"stopped: nothing was written to {target / 'x.npy'}\n"
    assert os.listdir(target) == []


# --- upkeep -----------------------------------------------------------------------------------------------


def test_verify_names_what_is_damaged_and_ends_with_1(grid: Grid, home: Path, images: Path) -> None:
    grid("up", "alice", "bob")
    (put,) = grid("put", str(images), "--to", "alice", "--tag", "#kept", "--json").json
    assert grid("verify").out.splitlines() == [
        "alice: 1 object in 1 file, 12.0 MB: all whole",
        "bob: 0 objects in 0 files, 0 B: all whole",
    ]
    spoil(*blobs(home))
    ended = grid("verify", "alice")
    assert ended.code == 1
    assert "1 damaged" in ended.out and put["id"][:12] in ended.out
    ended = grid("verify", "--json")
    assert ended.code == 1
    alice, bob = json.loads(ended.out)
    assert [one["id"] for one in alice["damaged"]] == [put["id"]]
    assert bob["damaged"] == []
    assert grid("down").code == 0
    assert grid("verify", "bob").code == 0
    assert grid("verify", "alice").code == 1


@pytest.mark.parametrize(
    "damage",
    ["UPDATE objects SET shape = '['", "UPDATE contents SET extra = x'00'", None],
    ids=["row", "contents", "blob"],
)
def test_what_verify_says_to_do_mends_it(grid: Grid, home: Path, tmp_path: Path, damage: str | None) -> None:
    np.save(tmp_path / "x.npy", np.arange(100_000 if damage is None else 10))
    grid("up", "alice")
    (put,) = grid("put", str(tmp_path / "x.npy"), "--to", "alice", "--tag", "#x", "--json").json
    grid("down")
    if damage is None:
        spoil(*blobs(home))
    else:
        with contextlib.closing(sqlite3.connect(home / "data" / "alice" / "objects.sqlite")) as db, db:
            assert db.execute(damage).rowcount == 1
    grid("up", "alice")
    ended = grid("verify", "alice")
    assert ended.code == 1
    assert "Put the same contents at alice again ('grid put FILE --to alice --tag ...')" in ended.out
    (advice,) = [line.split() for line in ended.out.splitlines() if line.startswith("  grid ")]
    assert advice == ["grid", "rm", f"alice:{put['id']}"]
    (again,) = grid("put", str(tmp_path / "x.npy"), "--to", "alice", "--tag", "#x", "--json").json
    assert grid(*advice[1:], "--json").json == [{"id": put["id"], "peer": "alice"}]
    assert grid("verify", "alice").code == 0
    assert ids(grid("search", "#x", "--json").json) == [again["id"]]
    assert grid("get", "#x", "-o", "back.npy").code == 0
    assert Path("back.npy").read_bytes() == (tmp_path / "x.npy").read_bytes()
    assert grid(*advice[1:]).code == 3


def test_what_is_damaged_is_deleted_by_its_owner_alone(
    grid: Grid, home: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid("up", "alice")
    (put,) = grid("put", str(labels), "--to", "alice", "--tag", "#x", "--json").json
    grid("down")
    with contextlib.closing(sqlite3.connect(home / "data" / "alice" / "objects.sqlite")) as db, db:
        db.execute("UPDATE objects SET shape = '['")
    (peer,) = grid("up", "alice", "--json").json
    with monkeypatch.context() as other:
        other.setenv("PEERGRID_HOME", str(home.with_name("other")))
        assert grid("--via", peer["url"], "rm", f"alice:{put['id']}").code == 4
    assert grid("rm", f"alice:{put['id']}").code == 0


def test_compact_says_what_it_freed(grid: Grid, home: Path, images: Path) -> None:
    grid("up", "alice")
    grid("put", str(images), "--to", "alice", "--tag", "#kept")
    (home / "data" / "alice" / "blobs" / ("0" * 64)).write_bytes(bytes(5_000))
    assert grid("compact").out.startswith("alice: freed 1 file that nothing needs, 5.0 kB; database smaller by ")
    assert grid("compact", "alice", "--json").json[0]["files"] == 0
    assert grid("get", "#kept", "-o", "back.npy").code == 0
