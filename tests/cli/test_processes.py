"""Peers as processes: ready when they say so, gone when they must be, and their errors are the parent's."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from peer.folders import Folders
from peer.neighbours import Neighbours
from peer.peer import Settings
from peer.processes import PeerProcess, end
from protocol.errors import DataFolderInUse, NameTaken, PortInUse, SetupError
from tests.waiting import process_ended

ROOT = Path(__file__).parents[2]
SECONDS = 100.0


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders.under(tmp_path)


def start(folders: Folders, name: str = "alice", port: int = 0, **more: object) -> asyncio.Task[PeerProcess]:
    settings = Settings(name, port=port, folders=folders)
    return asyncio.ensure_future(PeerProcess.start(settings, folders.logs / f"{name}.log", **more))  # type: ignore[arg-type]


def script(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def test_a_started_peer_can_be_found_and_is_gone_after_stop(folders: Folders) -> None:
    async def scenario() -> None:
        peer = await start(folders)
        (found,) = Neighbours(folders.peers).list()
        assert (found.name, found.id, found.url, found.pid) == ("alice", peer.id, peer.url, peer.pid)
        assert peer.is_running
        await peer.stop()
        assert not peer.is_running
        assert not Neighbours(folders.peers).list()
        await peer.stop()

    asyncio.run(scenario())
    assert "alice is ready at ws://127.0.0.1:" in (folders.logs / "alice.log").read_text()


def test_what_keeps_a_peer_from_starting_is_raised_here(folders: Folders) -> None:
    async def scenario() -> None:
        peer = await start(folders)
        try:
            with pytest.raises(NameTaken, match=f"process {peer.pid}"):
                await start(folders)
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", 0))
                taken.listen()
                with pytest.raises(PortInUse, match="choose another with --port"):
                    await start(folders, "bob", taken.getsockname()[1])
            settings = Settings("bob", port=0, folders=folders, data_dir=folders.peer_data("alice"))
            with pytest.raises(DataFolderInUse):
                await PeerProcess.start(settings, folders.logs / "bob.log")
        finally:
            await peer.stop()

    asyncio.run(scenario())


def test_a_peer_that_dies_while_starting_leaves_its_last_words(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peer.processes._command", lambda *_: [sys.executable, "-c", "raise SystemExit('no disk')"])

    async def scenario() -> None:
        with pytest.raises(SetupError, match=r"alice ended while it was starting; its last words in .*\nno disk"):
            await start(folders)

    asyncio.run(scenario())


def test_a_peer_that_never_gets_ready_is_ended(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peer.processes._command", lambda *_: [sys.executable, "-c", "import time; time.sleep(600)"])

    async def scenario() -> None:
        with pytest.raises(SetupError, match=r"not ready after 0\.1 s"):
            await start(folders, timeout=0.1)

    asyncio.run(scenario())


def test_cancelling_a_start_ends_the_child(folders: Folders) -> None:
    async def scenario() -> None:
        task = start(folders)
        await asyncio.sleep(0)  # it is spawned in its first step
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert not Neighbours(folders.peers).list()


def test_a_peer_ends_with_its_parent_however_that_one_ends(folders: Folders) -> None:
    parent = script(
        f"""
import asyncio
from pathlib import Path
from peer.folders import Folders
from peer.peer import Settings
from peer.processes import PeerProcess

async def main():
    folders = Folders.under({str(folders.runtime.parent)!r})
    peer = await PeerProcess.start(Settings("alice", port=0, folders=folders), folders.logs / "alice.log")
    print(peer.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
    )
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    process_ended(pid)
    assert not Neighbours(folders.peers).list()


def test_one_that_was_let_go_outlives_its_parent_and_is_ended_by_its_number(folders: Folders) -> None:
    async def begin() -> int:
        peer = await start(folders, outlives_us=True)
        peer.let_go()
        return peer.pid

    pid = asyncio.run(begin())
    assert [neighbour.pid for neighbour in Neighbours(folders.peers).list()] == [pid]
    assert asyncio.run(end(pid))
    process_ended(pid)


def test_ending_what_is_gone_already_is_no_error() -> None:
    with script("pass") as gone:
        gone.wait(SECONDS)
    assert asyncio.run(end(gone.pid))


def test_one_that_ignores_the_signal_is_killed_after_the_grace() -> None:
    deaf = script("import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)")
    with deaf:
        assert deaf.stdout is not None and deaf.stdout.readline()
        assert not asyncio.run(end(deaf.pid, grace=0.1))
    assert deaf.returncode == -signal.SIGKILL


def test_a_second_signal_ends_a_peer_that_hangs_while_it_stops(folders: Folders) -> None:
    hanging = script(
        f"""
import asyncio
from peer import process
from peer.folders import Folders
from peer.peer import Peer, Settings

async def close(self):
    await asyncio.sleep(600)

Peer.close = close
process.log_to_stderr("info")
folders = Folders.under({str(folders.runtime.parent)!r})
process.run(Settings("alice", port=0, folders=folders), lambda peer: print("ready", flush=True))
"""
    )
    with hanging:
        assert hanging.stdout is not None and hanging.stderr is not None
        hanging.stdout.readline()
        hanging.send_signal(signal.SIGINT)
        assert "stopping" in hanging.stderr.readline()
        hanging.send_signal(signal.SIGINT)
        hanging.wait(SECONDS)
    assert hanging.returncode == -signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_peer_in_order(folders: Folders, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "peer.process", "alice", "--port", "0", "--folders"]
    command += [str(folders.config), str(folders.data), str(folders.runtime)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("alice is ready at ws://127.0.0.1:")
        process.send_signal(number)
        process.wait(SECONDS)
    assert process.returncode == 0
    assert not Neighbours(folders.peers).list()
