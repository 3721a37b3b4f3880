"""The leave to collect one object: for one peer, for a while, until it is spent."""

from __future__ import annotations

import itertools

import pytest

from peer.tickets import Ticket, Tickets
from protocol import limits
from protocol.errors import Denied, NotFound, TooLarge

OBJECT, ASKER, BOB, CAROL = bytes(16), "a" * 52, "b" * 52, "c" * 52


@pytest.fixture
def tickets() -> Tickets:
    numbers = itertools.count()
    return Tickets(lambda: next(numbers).to_bytes(32, "big"), lifetime=60)


def test_the_target_presents_the_ticket(tickets: Tickets) -> None:
    token = tickets.issue(OBJECT, ASKER, BOB, True, now=0)
    assert tickets.check(token, BOB, now=1) == Ticket(OBJECT, ASKER, BOB, True, 60)


def test_another_peer_may_not_use_it(tickets: Tickets) -> None:
    token = tickets.issue(OBJECT, ASKER, BOB, False, now=0)
    for thief in (CAROL, ASKER, "", BOB + "x"):
        with pytest.raises(Denied, match="another peer"):
            tickets.check(token, thief, now=1)
    assert tickets.check(token, BOB, now=1)


@pytest.mark.parametrize("token", [b"", bytes(31), b"\xff" * 32])
def test_an_unknown_ticket_is_not_found(tickets: Tickets, token: bytes) -> None:
    tickets.issue(OBJECT, ASKER, BOB, False, now=0)
    with pytest.raises(NotFound):
        tickets.check(token, BOB, now=1)


def test_a_ticket_is_stale_after_its_lifetime(tickets: Tickets) -> None:
    token = tickets.issue(OBJECT, ASKER, BOB, False, now=0)
    assert tickets.check(token, BOB, now=60)
    with pytest.raises(NotFound, match="stale"):
        tickets.check(token, BOB, now=60.1)


def test_a_broken_transfer_can_be_collected_again_until_it_is_spent(tickets: Tickets) -> None:
    token = tickets.issue(OBJECT, ASKER, BOB, True, now=0)
    assert tickets.check(token, BOB, now=1) == tickets.check(token, BOB, now=2)
    tickets.spend(token)
    tickets.spend(token)
    with pytest.raises(NotFound):
        tickets.check(token, BOB, now=3)


def test_every_offer_has_its_own_ticket(tickets: Tickets) -> None:
    tokens = [tickets.issue(OBJECT, ASKER, BOB, False, now=0) for _ in range(10)]
    tickets.spend(tokens[0])
    assert len(set(tokens)) == 10 and all(tickets.check(token, BOB, now=1) for token in tokens[1:])


def test_offers_that_nobody_collects_do_not_pile_up(tickets: Tickets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_TICKETS", 5)
    for _ in range(5):
        tickets.issue(OBJECT, ASKER, BOB, False, now=0)
    with pytest.raises(TooLarge) as caught:
        tickets.issue(OBJECT, ASKER, BOB, False, now=1)
    assert caught.value.fields == {"limit": "MAX_TICKETS", "size": 6, "allowed": 5}
    assert tickets.issue(OBJECT, ASKER, BOB, False, now=61)
    assert len(tickets._tickets) == 1
