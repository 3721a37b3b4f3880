"""The short way between two processes of one machine: taken where it is there and ours, and nowhere else."""

from __future__ import annotations

import os
import socket
import sys
import threading
from typing import Any

import pytest

from peer import near, transport
from peer.keys import Identity
from peer.opening import open_as_dialer
from protocol import limits
from protocol.errors import BadRequest
from tests.peer.ends import DORA, Connected
from tests.waiting import PATIENCE, no_descriptors_left

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there are no abstract names of Unix sockets here")


@pytest.fixture
def port() -> int:
    """One that is free, so that the name beside it is, too."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _family(connection: Any) -> int:
    return int(connection._socket.transport.get_extra_info("socket").family)


async def test_a_peer_is_reached_by_it_where_it_is_there(acceptor: Any) -> None:
    for has_near in (True, False):
        async with acceptor(has_near=has_near) as made:
            line = await open_as_dialer(made.url, DORA, Identity.generate())
            assert (_family(line) == socket.AF_UNIX) is has_near
            assert (await line.request("add", {"a": 1})).result == {"op": "add", "a": 1}
            await line.close()


async def test_another_name_of_the_same_machine_is_a_way_of_tcp(acceptor: Any) -> None:
    """Who it leads to is for the system's resolver to say, which may know of another peer."""
    async with acceptor(has_near=True) as made:
        line = await open_as_dialer(f"ws://localhost:{made.port}", DORA, Identity.generate())
        assert _family(line) == socket.AF_INET
        await line.close()


async def test_what_another_user_listens_at_is_not_taken(acceptor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may bind a name that is free, before the peer does."""
    async with acceptor(has_near=True) as made:
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
    async with acceptor(has_near=True) as made:
        with no_descriptors_left(), pytest.raises(BadRequest, match="address of a peer"):
            await transport.dial(f"{made.url}/#part")


async def test_who_has_proved_its_key_is_held_more_for(connected: Connected) -> None:
    """A stranger is not."""
    async with connected() as line:
        for end in (line.near, line.far):
            pipe = end._socket.transport.get_extra_info("socket")
            if near.is_near(pipe):
                assert pipe.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= limits.NEAR_BUFFER


async def test_logs_say_which_process_it_was(connected: Connected) -> None:
    async with connected() as line:
        said = transport.origin(line.far._socket)
        assert said == f"process {os.getpid()} of this machine" or said.startswith("127.0.0.1:")


def test_it_is_known_which_core_who_dialled_is_on(port: int) -> None:
    listening = near.listening("127.0.0.1", port)
    assert listening is not None
    listening.listen()
    ends: list[socket.socket | None] = []
    may_end = threading.Event()
    core = min(os.sched_getaffinity(0))

    def dial() -> None:
        os.sched_setaffinity(0, {core})  # this thread, and no other of the process
        ends.append(near.connected("127.0.0.1", port))
        may_end.wait(PATIENCE)

    thread = threading.Thread(target=dial)
    thread.start()
    pipe, name = listening.accept()
    look = near.core_of(pipe, name)
    assert look is not None and near.process_of(pipe) == os.getpid()
    assert look() == core
    may_end.set()
    thread.join()
    assert look() == -1
    for each in (listening, pipe, *ends):
        assert each is not None
        each.close()


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
