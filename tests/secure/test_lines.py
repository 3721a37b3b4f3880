"""Lines of secure runs that come in, or come to nothing: who has them, how many, how long, what is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest
from websockets.exceptions import ConnectionClosed

import grid
from peer import secure_joins
from peer.folders import Folders
from peer.keys import Identity
from peer.membership import Member
from peer.opening import PARTY, ROUNDS, shaken_hands
from peer.secure import SecureRuns
from peer.secure_joins import Joins
from peer.secure_lines import Lines
from peer.secure_session import Session, _Counterpart
from peer.transport import dial
from protocol import limits
from protocol.handshake import Introduction
from tests.waiting import until

SMALL, OWN, LARGE = "a" * 52, "c" * 52, "e" * 52


class End:
    """One end of a line as peers see it: a WebSocket of which only the transport and one message are looked at."""

    def __init__(self, message: bytes = b"") -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.other = socket.create_connection(server.getsockname())
            self.pipe, _ = server.accept()
        self.transport = self
        self.message = message
        self.is_aborted = False

    async def recv(self) -> bytes:
        if not self.message:
            await asyncio.Event().wait()
        return self.message

    async def send(self, _: bytes) -> None:
        await asyncio.Event().wait()

    def get_extra_info(self, _: str) -> socket.socket:
        return self.pipe

    def pause_reading(self) -> None:
        pass

    def abort(self) -> None:
        self.is_aborted = True


@pytest.fixture
def ends() -> Iterator[list[End]]:
    """Those that a test makes."""
    made: list[End] = []
    yield made
    for end in made:
        end.pipe.close()
        end.other.close()


async def _came(joins: Joins, ends: list[End], id: str, message: bytes | None = None) -> End:
    end = End(os.urandom(16) if message is None else message)
    ends.append(end)
    joins.arrived(cast(Any, end), cast(Any, _Remote(id)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return end


class _Remote:
    role, name = ROUNDS, "x"

    def __init__(self, id: str) -> None:
        self.id = id


def _joins() -> Joins:
    return Joins(Identity.generate(), "carol")


# --- who, how many, how long ------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [PARTY, ROUNDS])
async def test_who_is_no_member_has_no_line(team: Folders, role: str) -> None:
    async with grid.connect(folders=team) as g:
        alice = g["alice"]
        stranger, (url, *_) = Identity.generate(), alice.member.urls
        line = await dial(url)
        try:
            await shaken_hands(line, Introduction(role, "x", alice.id), stranger, os.urandom(32), dialer=True)
            if role == ROUNDS:
                with contextlib.suppress(ConnectionClosed):
                    await line.send(os.urandom(16))
            await asyncio.wait_for(line.wait_closed(), 10)
        finally:
            line.transport.abort()


async def test_one_peer_leaves_room_for_the_lines_of_others(ends: list[End]) -> None:
    joins = _joins()
    honest = await _came(joins, ends, SMALL)
    many = [await _came(joins, ends, LARGE) for _ in range(limits.SECURE_WAITING_EACH + 3)]
    assert [end.is_aborted for end in many] == [True] * 3 + [False] * limits.SECURE_WAITING_EACH
    assert not honest.is_aborted
    await joins.close()
    assert all(end.is_aborted for end in ends)


async def test_all_together_have_bounded_room_and_who_has_most_gives_way(ends: list[End]) -> None:
    joins = _joins()
    greedy = [await _came(joins, ends, LARGE) for _ in range(limits.SECURE_WAITING_EACH)]
    for number in range(limits.SECURE_WAITING - limits.SECURE_WAITING_EACH + 1):
        await _came(joins, ends, f"{number:052}")
    assert [end.is_aborted for end in ends] == [True] + [False] * limits.SECURE_WAITING
    assert greedy[0].is_aborted
    await joins.close()


async def test_who_says_nothing_is_counted_as_well(ends: list[End]) -> None:
    joins = _joins()
    silent = [await _came(joins, ends, LARGE, b"") for _ in range(limits.SECURE_WAITING_EACH + 1)]
    assert [end.is_aborted for end in silent] == [False] * limits.SECURE_WAITING_EACH + [True]
    await joins.close()
    await until(lambda: all(end.is_aborted for end in silent))


async def test_what_waits_in_vain_is_closed_and_what_has_ended_at_once(ends: list[End]) -> None:
    joins = _joins()
    ended, waits = await _came(joins, ends, SMALL), await _came(joins, ends, LARGE)
    ended.other.close()
    joins.sweep(time.monotonic())
    assert ended.is_aborted and not waits.is_aborted
    joins.sweep(time.monotonic() + limits.SECURE_PATIENCE + 1)
    assert waits.is_aborted


async def test_lines_between_peers_are_bounded_and_what_a_session_needs_stays() -> None:
    needed = f"{0:052}"
    lines = Lines(Identity.generate(), "carol", lambda *_: None, lambda *_: None, lambda id: id == needed)
    open = {f"{number:052}": _Open() for number in range(limits.SECURE_LINES)}
    lines._lines.update(cast(Any, open))
    assert lines.has_room() and [line.is_closed for line in open.values()] == [False, True] + [False] * (len(open) - 2)
    lines._is_needed = lambda _: True
    lines._lines.update(cast(Any, open))
    assert not lines.has_room()


class _Open:
    is_closed = False

    def end(self, _: str) -> None:
        self.is_closed = True


# --- what comes to nothing leaves no socket ---------------------------------------------------------------


def _session(runs: Any, own: str) -> Session:
    return Session(
        bytes(16), (LARGE, bytes(16)), ((SMALL, OWN), LARGE), (own, "carol"), runs, runs, lambda _: None, lambda _: None
    )


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_a_line_that_came_is_closed_where_there_is_none_between_the_peers(ends: list[End], how: str) -> None:
    end = End()
    ends.append(end)

    class Parts:
        async def arrived_for(self, *_: Any) -> End:
            return end

        async def to(self, *_: Any) -> Any:
            if how == "fails":
                raise RuntimeError("no line")
            await asyncio.Event().wait()

    session = _session(Parts(), OWN)
    other = session._others[SMALL] = _Counterpart("alice")
    joining = asyncio.create_task(session._join(SMALL, Member(SMALL, "alice", ("ws://127.0.0.1:1",)), other, 1.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    joining.cancel()
    await asyncio.gather(joining, return_exceptions=True)
    assert end.is_aborted


async def test_who_gives_up_while_it_says_which_session_closes_the_line(
    ends: list[End], monkeypatch: pytest.MonkeyPatch
) -> None:
    end = End()
    ends.append(end)

    async def dialled(*_: Any, **__: Any) -> Any:
        return end

    monkeypatch.setattr(secure_joins, "dial", dialled)
    monkeypatch.setattr(secure_joins, "shaken_hands", dialled)
    asked = asyncio.create_task(_joins().dialled(Member(SMALL, "alice", ("ws://127.0.0.1:1",)), bytes(16)))
    for _ in range(5):
        await asyncio.sleep(0)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert end.is_aborted


async def test_who_gives_up_just_when_the_line_came_closes_it(ends: list[End]) -> None:
    joins = _joins()
    asked = asyncio.create_task(joins.arrived_for(SMALL, bytes(16)))
    await asyncio.sleep(0)
    end = End(bytes(16))
    ends.append(end)
    await joins._take(cast(Any, end), SMALL)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert end.is_aborted


# --- another line takes the place of one ------------------------------------------------------------------


async def test_sessions_on_a_line_whose_place_another_took_end_and_those_on_that_one_stand() -> None:
    nothing = cast(Any, None)
    runs = SecureRuns(Identity.generate(), "carol", nothing, nothing, nothing, nothing, lambda _: None)
    before, on_before = _standing(runs, 1)
    on_before._others[SMALL].line = cast(Any, before)
    runs._lines._add(cast(Any, before))
    after, on_after = _standing(runs, 2)
    on_after._others[SMALL].line = cast(Any, after)
    runs._lines._add(cast(Any, after))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert on_before.failure is not None and on_after.failure is None
    assert runs._lines._lines[SMALL] is cast(Any, after)


class _FakeLine:
    def __init__(self) -> None:
        self.remote = _Remote(SMALL)
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def is_closed(self) -> bool:
        return self.closed.done()

    def send(self, _: Any) -> None:
        pass

    def end(self, why: str) -> None:
        self.closed.set_result(why)


def _standing(runs: SecureRuns, number: int) -> tuple[_FakeLine, Session]:
    session = Session(
        bytes([number]) * 16,
        (LARGE, bytes(16)),
        ((SMALL, OWN), LARGE),
        (OWN, "carol"),
        runs._lines,
        runs._joins,
        lambda _: None,
        runs._over,
    )
    session._others[SMALL] = _Counterpart("alice")
    runs._sessions[session.id] = session
    return _FakeLine(), session
