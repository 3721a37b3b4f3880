"""What other peers, and the processes here, say of a run: who has said it, and what of it goes on."""

from __future__ import annotations

import asyncio
import struct
from types import SimpleNamespace
from typing import Any, cast

import msgpack
import pytest
import torch

from grid.secure_asking import _all_or_none, _name_peers
from peer.agreement import Agreement
from peer.calls import Call
from peer.keys import Identity
from peer.leases import LeaseKey
from peer.secure import SecureRuns, _while_there
from peer.secure_lines import Frame
from peer.secure_session import END, Session
from peer.worker.seat import Done, Failed
from peer.worker.secure.results import received
from protocol import limits
from protocol.errors import BadRequest, GridError, OperationFailed, PartyFailed
from tests.secure.agreements import told

ASKER, BOB, CAROL = (Identity.generate().id for _ in range(3))
LEASE: LeaseKey = (ASKER, b"one lease's name")


def _agreed(runs: SecureRuns, **more: Any) -> bytes:
    return bytes(msgpack.packb(told(ASKER, [runs._id, BOB], CAROL, **more)))


def _session(runs: SecureRuns) -> Session:
    return runs._session(Agreement.of(_agreed(runs)), LEASE, opens=True)


def _end(error: GridError) -> Frame:
    piece = msgpack.packb(error.to_fault())
    return Frame(bytes(16), END, 0, len(piece), piece)


# --- of other peers ---------------------------------------------------------------------------------------


def test_the_end_of_a_session_is_who_says_it(runs: SecureRuns) -> None:
    """It may blame another: that is its word, and no more. It cannot have the asker try again and see nothing."""
    session = _session(runs)
    session.hear(BOB, _end(PartyFailed("carol has sent nonsense", peer="carol", session="over")))
    error = session.failure
    assert isinstance(error, PartyFailed) and error.peer == BOB[:12]
    assert error.message == f"{BOB[:12]} says: carol has sent nonsense" and error.fields == {"accused": "carol"}


def test_an_end_beyond_all_size_gives_no_reason(runs: SecureRuns) -> None:
    session = _session(runs)
    session.hear(BOB, _end(PartyFailed("x" * (1 << 20))))
    assert session.failure is not None and "no reason that makes sense" in session.failure.message


async def test_the_asker_waits_for_who_says_it_first_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(after: float, error: GridError) -> Any:
        await asyncio.sleep(after)
        raise error

    alice, bob, dave = (cast(Any, type("Peer", (), {"name": name})()) for name in ("alice", "bob", "dave"))
    hearsay = PartyFailed("bob says: carol is late", peer="bob", accused="carol")
    own = PartyFailed("carol is late", peer="carol")
    with pytest.raises(PartyFailed, match=r"^carol is late"):
        await _all_or_none({alice: fails(0, hearsay), bob: fails(0.2, own)})
    with monkeypatch.context() as patched, pytest.raises(PartyFailed, match=r"^bob says"):
        patched.setattr(limits, "SECURE_LAST_WORDS", 0.2)
        await _all_or_none({alice: fails(0, hearsay), bob: fails(3_600, own)})
    monkeypatch.setattr(limits, "SECURE_LAST_WORDS", 3_600)  # for nobody else, who has nothing to do with it
    with pytest.raises(PartyFailed, match=r"^bob says"):
        await _all_or_none({alice: fails(0, hearsay), dave: fails(3_600, own), bob: fails(0, hearsay)})


# --- of processes -----------------------------------------------------------------------------------------


def test_what_a_process_says_between_runs_quotes_no_private_data(runs: SecureRuns) -> None:
    session = _session(runs)
    session.labels = frozenset({ASKER, "somebody"})
    runs._seat_over(session, Failed(OperationFailed("the value is 42"), is_own_word=True))
    assert isinstance(session.failure, OperationFailed)
    assert "42" not in session.failure.message + runs._ended[session.id].message


def test_who_is_no_party_answers_with_costs_alone(runs: SecureRuns) -> None:
    session = _session(runs)
    done = Done({"dealt": 5, "offline": 0.5, "rounds": "42", "outputs": [42], "more": 42}, b"42")
    other = Agreement.of(_agreed(runs, parties=[BOB, ASKER]))
    answer = runs._answer(session, other, done)
    assert answer.result == {"dealt": 5, "offline": 0.5} and not answer.payload
    answer = runs._answer(session, Agreement.of(_agreed(runs)), done)
    assert answer.result == {"dealt": 5, "offline": 0.5, "outputs": [42]} and answer.payload == b"42"


def test_of_what_a_peer_receives_what_is_no_tensor_stays_out(runs: SecureRuns) -> None:
    listed: list[list[Any]] = [["plain", 7, []], [0, "int64", [2]], [None, "float32", [1]]]
    came = [msgpack.packb(listed), struct.pack("<2qf", 1, 2, 0.5)]
    mail = cast(Any, SimpleNamespace(take_all=lambda _: came))
    outputs = ((b"1" * 16, False), (b"2" * 16, False), (b"3" * 16, True))
    part = cast(Any, SimpleNamespace(parties=2, index=0, outputs=outputs))
    own = [torch.tensor([10, 20]), torch.tensor([0.5])]
    headers, tensors = received(part, mail, (listed, own))
    assert headers == [None, ["int64", [2]]] and [each.tolist() for each in tensors] == [[11, 22]]

    runs._objects = cast(Any, SimpleNamespace(check_new=lambda asker, ids: None))
    agreement = Agreement.of(_agreed(runs, receives=True, reveal=BOB, outputs=[[b"1" * 16, False]]))
    runs._receive(_session(runs), agreement, [None], b"")
    with pytest.raises(BadRequest, match="not as large"):
        runs._receive(_session(runs), agreement, [None], b"more")


async def test_a_request_that_is_given_up_while_last_words_are_awaited_ends_its_session(
    runs: SecureRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_lost = asyncio.Event()

    async def lost(*_: Any) -> Any:
        is_lost.set()
        raise Failed(PartyFailed("bob is gone"), BOB, is_lost=True)

    monkeypatch.setattr(runs, "_run", lost)
    payload = _agreed(runs)
    args = {"sizes": [len(payload), 0, 0, 0], "opens": True}
    call = cast(Call, type("Asked", (), {"args": args, "nbytes": len(payload), "payload": payload, "stream": None}))
    serving = asyncio.create_task(runs.serve(call, LEASE))
    await is_lost.wait()
    (session,) = runs._sessions.values()
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    assert session.failure is not None and not runs._sessions


async def test_a_process_that_ends_while_rules_are_awaited_ends_the_wait() -> None:
    over: asyncio.Future[Failed] = asyncio.get_running_loop().create_future()
    seat = cast(Any, type("Sits", (), {"over": over}))
    asyncio.get_running_loop().call_later(0.05, over.set_result, Failed(PartyFailed("killed")))
    with pytest.raises(Failed, match="killed"):
        await asyncio.wait_for(_while_there(seat, asyncio.sleep(60)), 5)
    with pytest.raises(Failed, match="killed"):  # and before it
        await _while_there(seat, asyncio.sleep(0))


async def test_who_was_named_by_others_that_are_not_asked_has_a_moment_to_say_it() -> None:
    """A provider has no part in runs that were dealt for, and tells the parties what it hears all the same."""
    alice, bob = (cast(Any, type("Peer", (), {"name": name})()) for name in ("alice", "bob"))
    hearsay = PartyFailed("carol says: bob is gone", peer="carol", accused="bob")
    own = PartyFailed("the process of bob was killed", peer="bob")

    async def fails(after: float, error: PartyFailed) -> Any:
        await asyncio.sleep(after)
        raise error

    with pytest.raises(PartyFailed, match="the process of bob was killed"):
        await _all_or_none({alice: fails(0, hearsay), bob: fails(0.05, own)})


def test_who_is_in_the_grid_no_more_is_named_as_the_asker_knows_it() -> None:
    bob = cast(Any, SimpleNamespace(name="bob", id="b" * 52))
    error = PartyFailed(f"alice finds no peer {bob.id[:12]} in the grid now", peer=bob.id[:12])
    _name_peers(error, [bob])
    assert (error.peer, error.message) == ("bob", "alice finds no peer bob in the grid now")
