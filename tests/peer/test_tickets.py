"""The leave to collect one object: for one peer, for a while after the last use, until it is spent."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from peer.store.journal import Offered
from peer.tickets import Ticket, Tickets
from protocol import limits
from protocol.errors import Denied, NotFound, TooLarge

OBJECT, ASKER, BOB, CAROL = bytes(16), "a" * 52, "b" * 52, "c" * 52


def counting() -> Callable[[], bytes]:
    numbers = itertools.count()
    return lambda: next(numbers).to_bytes(32, "big")


@pytest.fixture
def gone() -> list[Ticket]:
    return []


@pytest.fixture
def tickets(gone: list[Ticket]) -> Tickets:
    return Tickets(counting(), gone.append, lifetime=60)


def issue(tickets: Tickets, now: float = 0, **more: bool) -> Ticket:
    return tickets.issue(OBJECT, ASKER, BOB, True, now, **more)


def test_the_target_presents_the_ticket(tickets: Tickets) -> None:
    ticket = issue(tickets)
    assert tickets.check(tickets.find(ticket.token), BOB, now=1) is ticket
    assert (ticket.object, ticket.asker, ticket.target, ticket.is_move) == (OBJECT, ASKER, BOB, True)


def test_another_peer_may_not_use_it(tickets: Tickets) -> None:
    ticket = issue(tickets)
    for thief in (CAROL, ASKER, "", BOB + "x"):
        with pytest.raises(Denied, match="another peer"):
            tickets.check(ticket, thief, now=1)
    assert tickets.check(ticket, BOB, now=1)


@pytest.mark.parametrize("token", [b"", bytes(31), b"\xff" * 32])
def test_an_unknown_ticket_is_not_found(tickets: Tickets, token: bytes) -> None:
    issue(tickets)
    with pytest.raises(NotFound):
        tickets.check(tickets.find(token), BOB, now=1)


def test_a_ticket_is_stale_after_its_lifetime(tickets: Tickets) -> None:
    ticket = issue(tickets)
    assert tickets.check(ticket, BOB, now=60)
    with pytest.raises(NotFound, match="stale"):
        tickets.check(ticket, BOB, now=60.1)


def test_a_lifetime_counts_from_the_last_use(tickets: Tickets, gone: list[Ticket]) -> None:
    ticket = issue(tickets)
    for now in range(50, 500, 50):
        tickets.used(ticket, now)
        tickets.sweep(now + 59)
        assert tickets.check(tickets.find(ticket.token), BOB, now + 59) is ticket
    tickets.sweep(600)
    assert tickets.find(ticket.token) is None and gone == [ticket]


def test_a_ticket_does_not_lapse_while_the_value_is_on_its_way(tickets: Tickets) -> None:
    ticket = issue(tickets)
    ticket.takers = 1
    tickets.sweep(10_000)
    assert tickets.check(tickets.find(ticket.token), BOB, now=10_000) is ticket
    ticket.takers = 0
    tickets.sweep(10_000)
    assert tickets.find(ticket.token) is None


def test_a_broken_transfer_can_be_collected_again_until_the_ticket_is_spent(
    tickets: Tickets, gone: list[Ticket]
) -> None:
    ticket = issue(tickets)
    assert tickets.check(ticket, BOB, now=1) is tickets.check(ticket, BOB, now=2)
    tickets.spend(ticket.token)
    tickets.spend(ticket.token)
    assert tickets.find(ticket.token) is None and gone == [ticket]


def test_that_an_object_was_given_up_is_remembered_for_a_while(tickets: Tickets, gone: list[Ticket]) -> None:
    ticket = issue(tickets)
    tickets.given_up(ticket, now=30)
    assert gone == [ticket]  # what was kept for it is not needed any more
    assert tickets.check(tickets.find(ticket.token), BOB, now=90).is_given_up
    tickets.sweep(90.1)
    assert tickets.find(ticket.token) is None and gone == [ticket]


def test_a_ticket_comes_back_from_the_store(tickets: Tickets) -> None:
    offered = Offered(OBJECT, ASKER, BOB, until=1e9, is_done=False)
    ticket = tickets.restore(b"t" * 32, offered, now=1000)
    assert tickets.check(tickets.find(b"t" * 32), BOB, now=1060) is ticket
    assert ticket.is_move and ticket.is_durable and not ticket.is_given_up
    assert tickets.restore(b"s" * 32, replace(offered, is_refused=True), now=1000).is_refused
    over = tickets.restore(b"u" * 32, replace(offered, is_done=True), now=1000)
    assert tickets.check(tickets.find(b"u" * 32), BOB, now=1000) is over and over.is_given_up


def test_every_offer_has_its_own_ticket(tickets: Tickets) -> None:
    made = [issue(tickets) for _ in range(10)]
    tickets.spend(made[0].token)
    assert len({ticket.token for ticket in made}) == 10
    assert all(tickets.check(tickets.find(ticket.token), BOB, now=1) for ticket in made[1:])


def test_offers_that_nobody_collects_do_not_pile_up(
    tickets: Tickets, gone: list[Ticket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_TICKETS", 5)
    for _ in range(5):
        issue(tickets)
    with pytest.raises(TooLarge) as caught:
        issue(tickets, now=1)
    assert caught.value.fields == {"limit": "MAX_TICKETS", "size": 6, "allowed": 5}
    assert issue(tickets, now=61) and len(gone) == 5


def test_who_has_the_most_tickets_makes_room_for_the_others(
    tickets: Tickets, gone: list[Ticket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_TICKETS", 6)

    def issue_to(asker: str) -> Ticket:
        return tickets.issue(OBJECT, asker, BOB, True, 0)

    hog = [issue_to(CAROL) for _ in range(6)]
    hog[0].takers = 1  # its value is on its way
    hog[1].was_collected = True
    mine = [issue_to(ASKER) for _ in range(3)]
    assert gone == hog[2:5]  # the oldest that nobody used
    assert all(tickets.find(ticket.token) is ticket for ticket in (*mine, *hog[:2], hog[5]))
    for asker in (ASKER, CAROL):  # as many as the other has: it is refused alone
        with pytest.raises(TooLarge):
            issue_to(asker)
    assert issue_to(BOB) and len(gone) == 4


def test_a_ticket_in_use_is_not_let_go_for_others(tickets: Tickets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_TICKETS", 3)
    for ticket in [issue(tickets) for _ in range(3)]:
        ticket.takers = 1
    with pytest.raises(TooLarge):
        tickets.issue(OBJECT, CAROL, BOB, True, 0)


def test_what_was_given_up_takes_no_room_from_new_offers(tickets: Tickets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_TICKETS", 5)
    made = []
    for _ in range(20):
        made.append(issue(tickets))
        tickets.given_up(made[-1], now=1)
    assert [tickets.find(ticket.token) is ticket for ticket in made] == [False] * 15 + [True] * 5


def test_closing_lets_all_go(tickets: Tickets, gone: list[Ticket]) -> None:
    made = [issue(tickets) for _ in range(3)]
    tickets.close()
    assert gone == made
