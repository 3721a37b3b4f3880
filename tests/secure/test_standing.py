"""When a peer ends sessions of itself: who asked is gone, nothing was asked for long, room is needed."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgpack
import pytest

from peer.leases import LeaseKey
from peer.secure import SecureRuns
from peer.secure_lines import Frame
from peer.secure_rules import Rule
from peer.secure_session import END, Session, check_room
from protocol import limits
from protocol.errors import AlreadyExists, Cancelled, PartyFailed, TooLarge
from tests.waiting import until

ASKER, OTHER = "a" * 52, "b" * 52
LEASE: LeaseKey = (ASKER, b"one lease's name")


def _session(runs: SecureRuns, number: int, lease: LeaseKey = LEASE, own: str = OTHER) -> Session:
    session = Session(
        bytes([number]) * 16,
        lease,
        ((OTHER, "c" * 52), "d" * 52),
        (own, "alice"),
        runs._lines,
        runs._joins,
        lambda _: None,
        runs._over,
    )
    runs._sessions[session.id] = session
    return session


def test_sessions_end_with_the_lease_of_who_asked(runs: SecureRuns) -> None:
    own, others = _session(runs, 1), _session(runs, 2, (ASKER, b"another lease..."))
    runs.lease_over(LEASE)
    assert isinstance(own.failure, Cancelled) and others.failure is None
    assert list(runs._sessions.values()) == [others]


def test_what_nobody_uses_ends_and_what_keeps_something_stays(runs: SecureRuns) -> None:
    used, idle, keeps, stocked = (_session(runs, number) for number in range(4))
    for each in (idle, keeps, stocked):
        each.used -= limits.SECURE_IDLE + 1
    keeps.kept[bytes(16)] = frozenset({Rule(OTHER, frozenset({OTHER}), ())})
    stocked.has_stock = True
    runs.sweep()
    assert [each.failure is not None for each in (used, idle, keeps, stocked)] == [False, True, False, False]


def test_a_session_that_is_over_says_why(runs: SecureRuns) -> None:
    session = _session(runs, 1)
    session.fail(PartyFailed("bob is gone", peer="bob"))
    agreement = cast(Any, type("Named", (), {"session": session.id, "parties": (), "provider": ""}))
    with pytest.raises(PartyFailed, match="over at alice: bob is gone") as failed:
        runs._session(agreement, LEASE, opens=True)
    assert failed.value.fields["session"] == "over" and failed.value.peer == "bob"


def test_an_id_of_kept_shares_is_used_once(runs: SecureRuns) -> None:
    """Else shares might stand under the rules of others."""
    session = _session(runs, 1)
    session.kept[bytes(16)] = frozenset({Rule(OTHER, frozenset({OTHER}), ())})
    agreement = cast(Any, type("Keeps", (), {"parties": (OTHER,), "new_ids": [bytes(16)], "inputs": ()}))
    with pytest.raises(AlreadyExists):
        session.check_reveal(agreement)


def test_what_the_parties_keep_is_known_to_those_who_keep_nothing(runs: SecureRuns) -> None:
    """A provider does not make room by ending a session of which the parties have shares."""
    session = _session(runs, 1, own="d" * 52)
    keeps = cast(Any, type("Keeps", (), {"parties": (OTHER,), "new_ids": [bytes(16)], "ahead": 0}))
    session.ran(keeps)
    assert not session.is_idle
    session.drop([bytes(16)])
    assert session.is_idle


def test_a_holder_that_is_not_asked_again_does_not_end_the_session_of_others(runs: SecureRuns) -> None:
    holder, party = _session(runs, 1, own="e" * 52), _session(runs, 2)
    for each in (holder, party):
        each.used -= limits.SECURE_IDLE + 1
    runs.sweep()
    assert holder.failure is None and party.failure is not None


async def test_room_is_made_only_for_what_was_checked(runs: SecureRuns) -> None:
    """A request that comes to nothing has ended no other session."""
    sessions = [_session(runs, number) for number in range(limits.SECURE_AT_ONCE)]
    for each in sessions:
        each.seat = cast(Any, Seat())
    agreement = cast(Any, type("New", (), {"session": bytes([99]) * 16, "parties": (), "provider": ""}))
    session = runs._session(agreement, LEASE, opens=True)
    assert all(each.failure is None for each in sessions)
    runs._workers = cast(Any, type("Pool", (), {"seat": lambda *_: Seat()}))
    agreement.name = "new"
    runs._seat(session, agreement)
    runs._seat(session, agreement)  # it has one now
    assert [each.failure is not None for each in sessions] == [True] + [False] * (limits.SECURE_AT_ONCE - 1)


class Seat:
    """Of a process that does nothing."""

    def __init__(self) -> None:
        self.over: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.name = ""

    def end(self, _: Any) -> None:
        pass


def test_the_same_askers_sessions_make_room_first(runs: SecureRuns) -> None:
    askers = [f"{number % 8:052}" for number in range(limits.SECURE_SESSIONS)]
    sessions = [_session(runs, number, (asker, bytes(16))) for number, asker in enumerate(askers)]
    for age, each in enumerate(sessions):
        each.used += age
    assert check_room(sessions, askers[3]) == [sessions[3]]
    assert check_room(sessions, ASKER) == [sessions[0]]


def test_room_is_made_by_the_one_that_was_used_first(runs: SecureRuns) -> None:
    sessions = [_session(runs, number) for number in range(limits.SECURE_AT_ONCE)]
    for age, each in enumerate(sessions):
        each.used += age
    sessions[0].has_stock = True
    assert check_room(sessions, ASKER) == [sessions[1]]
    assert check_room(sessions, OTHER) == []
    for each in sessions:
        each.agreement = cast(Any, object())
    with pytest.raises(TooLarge) as refused:
        check_room(sessions, ASKER)
    assert refused.value.fields["limit"] == "SECURE_AT_ONCE"


async def test_a_peer_that_others_say_has_lost_its_process_says_so_itself(
    runs: SecureRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows how the process died; only where it never says so their word counts."""

    def told(number: int) -> Session:
        session = _session(runs, number)
        over: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        session.seat = cast(Any, type("Seat", (), {"over": over, "end": lambda self, error: None})())
        fault = msgpack.packb(PartyFailed("alice is gone", peer="alice").to_fault())
        session.hear("d" * 52, Frame(session.id, END, 0, len(fault), fault))
        return session

    killed = told(1)
    assert killed.failure is None
    killed.fail(PartyFailed("the process of alice was killed", peer="alice"))
    assert killed.failure is not None and "killed" in killed.failure.message
    monkeypatch.setattr(limits, "SECURE_OWN_WORD", 0.0)
    silent = told(2)
    await until(lambda: silent.failure is not None)
    assert silent.failure is not None and "alice is gone" in silent.failure.message
