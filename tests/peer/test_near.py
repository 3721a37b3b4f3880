"""The short way between two processes of one machine: taken where it is there and ours, and nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import threading
import time
from typing import Any

import pytest

from peer import closing, near, transport
from peer.folders import Folders
from peer.keys import Identity
from peer.liveness import Liveness
from peer.opening import open_as_dialer
from peer.peer import Peer, Settings
from protocol import limits
from protocol.errors import BadRequest, PeerLost
from tests.peer.ends import DORA, Connected
from tests.waiting import PATIENCE, no_descriptors_left, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there are no abstract names of Unix sockets here")


@pytest.fixture
def port() -> int:
    """One that is free, so that the name beside it is, too."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _family(connection: Any) -> int:
    return int(connection._socket.transport.get_extra_info("socket").family)


async def test_a_peer_is_reached_by_it_where_it_is_there(acceptor: Any) -> None:
    for is_near in (True, False):
        async with acceptor(is_near=is_near) as made:
            line = await open_as_dialer(made.url, DORA, Identity.generate())
            assert (_family(line) == socket.AF_UNIX) is is_near
            assert (await line.request("add", {"a": 1})).result == {"op": "add", "a": 1}
            await line.close()


async def test_another_name_of_the_same_machine_is_a_way_of_tcp(acceptor: Any) -> None:
    """Who it leads to is for the system's resolver to say, which may know of another peer."""
    async with acceptor(is_near=True) as made:
        line = await open_as_dialer(f"ws://localhost:{made.port}", DORA, Identity.generate())
        assert _family(line) == socket.AF_INET
        await line.close()


async def test_what_another_user_listens_at_is_not_taken(acceptor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may bind a name that is free, before the peer does."""
    async with acceptor(is_near=True) as made:
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
        with no_descriptors_left():
            assert near.connected("127.0.0.1", made.port) is None
        line = await open_as_dialer(made.url, DORA, Identity.generate())
        assert _family(line) == socket.AF_INET
        await line.close()


async def test_where_the_name_is_taken_there_is_tcp(port: int) -> None:
    with no_descriptors_left():
        first = near.listening("127.0.0.1", port)
        assert first is not None and near.listening("127.0.0.1", port) is None
        first.close()


@pytest.mark.parametrize(
    ("host", "dialled", "is_there"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.2", "127.0.0.2", True),
        ("::1", "::1", True),
        ("127.0.0.1", "::1", False),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "localhost", False),
        ("192.0.2.1", "192.0.2.1", False),
        ("0.0.0.0", "0.0.0.0", False),
        ("127.0.0.1", "", False),
    ],
)
def test_it_leads_where_the_address_does(port: int, host: str, dialled: str, is_there: bool) -> None:
    with no_descriptors_left():
        listening = near.listening(host, port)
        if listening is not None:
            listening.listen()
        pipe = near.connected(dialled, port)
        assert (pipe is not None) is is_there
        for each in (listening, pipe):
            if each is not None:
                each.close()


def test_where_nobody_accepts_there_is_tcp_to_wait_for(port: int) -> None:
    with no_descriptors_left():
        listening = near.listening("127.0.0.1", port)
        assert listening is not None
        assert near.connected("127.0.0.1", port) is None, "it does not listen yet"
        listening.listen(0)
        first = near.connected("127.0.0.1", port)
        assert first is not None and near.connected("127.0.0.1", port) is None
        first.close()
        listening.close()


async def test_an_address_that_is_none_leaves_nothing_open(acceptor: Any) -> None:
    async with acceptor(is_near=True) as made:
        with no_descriptors_left(), pytest.raises(BadRequest, match="address of a peer"):
            await transport.dial(f"{made.url}/#part")


async def test_a_user_that_has_no_number_here_is_nobodys_equal(acceptor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a user namespace without a map all are 65534, who listens at the name too."""
    async with acceptor(is_near=True) as made:
        monkeypatch.setattr(near, "_nobody", os.geteuid)
        assert near.connected("127.0.0.1", made.port) is None


async def test_who_has_proved_its_key_is_held_more_for_and_a_stranger_is_not(acceptor: Any) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        usual = ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        near.widen(ours)  # as far as this system lets anybody
        wide = ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    async with acceptor(is_near=True) as made:
        stranger = await transport.dial(made.url)
        line = await open_as_dialer(made.url, DORA, Identity.generate())
        for each, size in ((stranger, usual), (line._socket, wide)):
            pipe = each.transport.get_extra_info("socket")
            assert near.is_near(pipe) and pipe.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == size
        stranger.transport.abort()
        await line.close()


async def test_what_was_answered_is_heard_though_the_line_broke_meanwhile(connected: Connected) -> None:
    """By the short way the next request fails before the answer that waits is read."""
    async with connected() as line:
        transport_of, before = line.near._socket.transport, line.far.statistics().sent_messages
        transport_of.pause_reading()
        asked = line.near.post("first", {"n": 1})
        line.near.send_now()
        await until(lambda: line.far.statistics().sent_messages > before)
        pipe = line.far._socket.transport.get_extra_info("socket")
        await line.far.close()
        await until(lambda: pipe.fileno() < 0)
        transport_of.resume_reading()
        late = line.near.post("second", {"n": 2})
        line.near.send_now()
        assert (await asyncio.wait_for(asked, PATIENCE)).result == {"op": "first", "n": 1}
        with pytest.raises(PeerLost):
            await asyncio.wait_for(late, PATIENCE)


async def test_who_comes_to_nothing_is_in_the_log(caplog: pytest.LogCaptureFixture, folders: Folders) -> None:
    """Though nobody can be asked any more, by then, who it was."""
    caplog.set_level("INFO")
    peer = await Peer.start(Settings("alice", port=0, folders=folders))
    try:
        stranger = await transport.dial(peer.url)
        assert near.is_near(stranger.transport.get_extra_info("socket"))
        await stranger.send(b"no frame")
        await stranger.wait_closed()
        await until(lambda: f"process {os.getpid()} of this machine came to nothing" in caplog.text)
    finally:
        await peer.close()


def test_it_is_known_which_core_who_dialled_is_on(port: int) -> None:
    ends: list[socket.socket | None] = []
    may_end = threading.Event()
    core = min(os.sched_getaffinity(0))

    def dial() -> None:
        os.sched_setaffinity(0, {core})  # this thread, and no other of the process
        ends.append(near.connected("127.0.0.1", port))
        may_end.wait(PATIENCE)

    with contextlib.ExitStack() as opened:
        listening = near.listening("127.0.0.1", port)
        assert listening is not None
        opened.enter_context(listening).listen()
        thread = threading.Thread(target=dial)
        thread.start()
        pipe, name = listening.accept()
        opened.enter_context(pipe)
        try:
            look = near.core_of(pipe, name)
            assert look is not None and near.process_of(pipe) == os.getpid()
            assert look() == core
        finally:
            may_end.set()
            thread.join()
            assert ends[0] is not None
            opened.enter_context(ends[0])
        ended = time.monotonic() + PATIENCE
        while look() != -1:  # the system's thread outlives ours by a moment
            assert time.monotonic() < ended


@pytest.mark.parametrize("name", [b"", b"\0peergrid.1/", b"\0peergrid.1/x/y", b"\0\xff\xff", "", None, b"\0" * 108])
def test_who_does_not_say_its_thread_has_no_core_that_is_known(name: Any) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert near.core_of(ours, name) is None


@pytest.mark.parametrize("thread", ["1", "999999999", "9" * 80])
def test_a_thread_of_another_process_is_none_of_its(thread: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        look = near.core_of(ours, f"\0peergrid.1/{thread}/0".encode())
        assert look is not None and look() == -1


async def test_who_reads_slowly_and_says_nothing_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PING_INTERVAL", 0.1)
    monkeypatch.setattr(limits, "PING_TIMEOUT", 0.5)
    dead: list[str] = []
    is_over = asyncio.Event()

    async def send(ws: transport.GuardedServerConnection) -> None:
        while True:
            await ws.send(bytes(limits.CHUNK))

    async def give(ws: transport.GuardedServerConnection) -> None:
        transport.let_in(ws)
        watched = Liveness(ws, dead.append)
        sending = asyncio.create_task(send(ws))
        await is_over.wait()
        watched.stop()
        await closing.stop(sending)
        ws.transport.abort()

    with socket.create_server(("127.0.0.1", 0)) as port:
        address = near.listening(*port.getsockname())
        assert address is not None
        server = await transport.listen_at(address, give)
        line = await transport.dial(f"ws://127.0.0.1:{port.getsockname()[1]}")
        try:
            line.transport.pause_reading()
            with socket.socket(fileno=os.dup(line.transport.get_extra_info("socket").fileno())) as pipe:
                for _ in range(15):
                    await asyncio.sleep(0.1)
                    with contextlib.suppress(BlockingIOError):
                        pipe.recv(64 * limits.KIB, socket.MSG_DONTWAIT)
                assert not dead
                await until(lambda: dead)  # it reads no more
        finally:
            is_over.set()
            line.transport.abort()
            await transport.stop_listening(server)
            await server.wait_closed()
