"""The peers of this machine, found by their records: a record lives exactly as long as its peer."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from peer import neighbours as neighbours_module
from peer.keys import Identity
from peer.neighbours import Neighbour, Neighbours
from protocol.errors import NameTaken

ID = Identity.generate().id


def neighbour(name: str = "alice", id: str = ID) -> Neighbour:
    return Neighbour(name, id, "ws://127.0.0.1:7700", os.getpid())


def started(folder: Path, name: str = "alice") -> Neighbours:
    made = Neighbours(folder)
    made.reserve(name)
    made.announce(neighbour(name))
    return made


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours_module, "_PATIENCE", 0.05)


def test_a_running_peer_is_found_by_others_and_by_itself(tmp_path: Path) -> None:
    alice = started(tmp_path)
    assert alice.list() == Neighbours(tmp_path).list() == [neighbour()]
    alice.withdraw()


def test_peers_are_listed_by_name(tmp_path: Path) -> None:
    running = [started(tmp_path, name) for name in ("carol", "alice", "bob")]
    assert [each.name for each in Neighbours(tmp_path).list()] == ["alice", "bob", "carol"]
    for each in running:
        each.withdraw()


def test_there_are_none_where_there_is_no_folder(tmp_path: Path) -> None:
    assert Neighbours(tmp_path / "nowhere").list() == []


def test_a_peer_that_stopped_is_gone(tmp_path: Path) -> None:
    alice = started(tmp_path)
    alice.withdraw()
    alice.withdraw()
    assert Neighbours(tmp_path).list() == [] and os.listdir(tmp_path) == []


def test_a_peer_that_is_still_starting_is_not_listed(tmp_path: Path) -> None:
    alice = Neighbours(tmp_path)
    alice.reserve("alice")
    assert Neighbours(tmp_path).list() == []
    alice.withdraw()


def test_a_name_is_taken_while_its_peer_runs(tmp_path: Path) -> None:
    alice = started(tmp_path)
    with pytest.raises(NameTaken, match=f"process {os.getpid()}, ws://127.0.0.1:7700"):
        Neighbours(tmp_path).reserve("alice")
    assert Neighbours(tmp_path).list() == [neighbour()]
    alice.withdraw()
    again = started(tmp_path)
    again.withdraw()


def test_a_name_is_taken_while_its_peer_starts(tmp_path: Path) -> None:
    alice = Neighbours(tmp_path)
    alice.reserve("alice")
    with pytest.raises(NameTaken, match="runs on this machine already"):
        Neighbours(tmp_path).reserve("alice")
    alice.withdraw()


def test_a_reader_does_not_stand_in_the_way_of_a_starting_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours_module, "_PATIENCE", 10.0)
    path = tmp_path / "alice.json"
    path.write_text("")
    reader = os.open(path, os.O_RDONLY)
    fcntl.flock(reader, fcntl.LOCK_SH)
    threading.Timer(0.02, os.close, [reader]).start()
    started(tmp_path).withdraw()


PEER = """
import sys, time
from pathlib import Path
from peer.neighbours import Neighbour, Neighbours
made = Neighbours(Path(sys.argv[1]))
made.reserve("alice")
made.announce(Neighbour("alice", sys.argv[2], "ws://127.0.0.1:7700", 1))
print("ready", flush=True)
time.sleep(60)
"""


def test_a_peer_that_was_killed_is_gone_and_its_name_is_free(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", PEER, str(tmp_path), ID], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        assert [each.name for each in Neighbours(tmp_path).list()] == ["alice"]
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert os.listdir(tmp_path) == ["alice.json"]
    assert Neighbours(tmp_path).list() == [] and os.listdir(tmp_path) == []
    started(tmp_path).withdraw()


def test_the_record_of_a_dead_peer_gives_way_to_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "alice.json").write_text(json.dumps({"name": "old", "id": ID, "url": "ws://127.0.0.1:1", "pid": 1}))
    alice = started(tmp_path)
    assert Neighbours(tmp_path).list() == [neighbour()]
    alice.withdraw()


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'{"name": "alice", "id": "short", "url": "ws://127.0.0.1:1", "pid": 1}',
        json.dumps({"name": ["a"], "id": ID, "url": "ws://127.0.0.1:1", "pid": 1}).encode(),
        json.dumps({"name": "alice", "id": ID, "url": None, "pid": 1}).encode(),
        json.dumps({"name": "alice", "id": ID, "url": "ws://127.0.0.1:1", "pid": "1"}).encode(),
        b"\xff\xfe" * 3_000,
    ],
)
def test_a_record_that_makes_no_sense_is_left_out(tmp_path: Path, record: bytes) -> None:
    path = tmp_path / "alice.json"
    path.write_bytes(record)
    holder = os.open(path, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    assert Neighbours(tmp_path).list() == []
    os.close(holder)


def test_a_late_reader_does_not_remove_the_record_of_a_new_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two readers meet a dead record: one removes it, a new peer starts, and only then the other goes on."""
    path = tmp_path / "alice.json"
    path.write_text("{}")
    running: list[Neighbours] = []
    flock = fcntl.flock

    def with_a_pause(descriptor: int, operation: int) -> None:
        flock(descriptor, operation)
        if operation & fcntl.LOCK_SH and not running:
            running.append(Neighbours(tmp_path))
            path.unlink()
            running[0].reserve("alice")
            running[0].announce(neighbour())

    monkeypatch.setattr(neighbours_module.fcntl, "flock", with_a_pause)
    Neighbours(tmp_path).list()
    assert Neighbours(tmp_path).list() == [neighbour()]
    running[0].withdraw()


def test_many_peers_start_and_stop_and_nobody_loses_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours_module, "_PATIENCE", 10.0)
    stop = threading.Event()
    missing: list[str] = []

    def watch() -> None:
        while not stop.is_set():
            Neighbours(tmp_path).list()

    def live(name: str) -> None:
        for _ in range(30):
            mine = started(tmp_path, name)
            if name not in [each.name for each in Neighbours(tmp_path).list()]:
                missing.append(name)
            mine.withdraw()

    watchers = [threading.Thread(target=watch) for _ in range(2)]
    peers = [threading.Thread(target=live, args=[name]) for name in ("alice", "bob")]
    for thread in [*watchers, *peers]:
        thread.start()
    for thread in peers:
        thread.join()
    stop.set()
    for thread in watchers:
        thread.join()
    assert not missing
