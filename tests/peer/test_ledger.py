"""Requests that take effect once: what is kept of them, for how long, and who gets it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from peer import ledger as ledger_module
from peer.calls import Answer
from peer.leases import LeaseKey
from peer.ledger import Entry, Heard, Ledger, Ledgers
from protocol import limits
from protocol.errors import BadRequest, GridError, PeerLost, TooLarge

DORA: LeaseKey = ("d" * 52, bytes(16))
ERIC: LeaseKey = ("e" * 52, bytes(16))
DONE = Answer({"results": []}, b"value")


@pytest.fixture
def ledgers() -> Ledgers:
    return Ledgers()


@pytest.fixture
def ledger(ledgers: Ledgers) -> Ledger:
    return ledgers.of(DORA)


def ask_again(ledger: Ledger, once: int) -> list[Heard]:
    """What somebody hears who comes with this number once more; it may come later."""
    heard: list[Heard] = []
    ledger.again(once, "run", heard.append)
    return heard


def begin(ledger: Ledger, once: int, seen: int | None = None) -> Entry:
    entry = ledger.begin(once, "run", seen)
    assert entry is not None, "it was begun before"
    return entry


def test_a_number_is_new_once(ledger: Ledger) -> None:
    begin(ledger, 1, 1)
    assert ledger.begin(1, "run", 1) is None
    begin(ledger, 2, 1)


def test_one_that_is_done_gets_the_same_answer(ledger: Ledger) -> None:
    ledger.answered(begin(ledger, 1), DONE)
    assert ask_again(ledger, 1) == [DONE] == ask_again(ledger, 1)


def test_one_that_failed_gets_the_same_error(ledger: Ledger) -> None:
    ledger.answered(begin(ledger, 1), BadRequest("no such thing", operation="run"))
    (error,) = ask_again(ledger, 1)
    assert isinstance(error, BadRequest) and error.message == "no such thing" and error.operation == "run"
    assert error.__traceback__ is None


def test_one_that_is_under_way_is_waited_for(ledger: Ledger) -> None:
    entry = begin(ledger, 1)
    first, second = ask_again(ledger, 1), ask_again(ledger, 1)
    assert first == second == []
    ledger.answered(entry, DONE)
    assert first == second == [DONE]


def test_an_answer_is_kept_until_the_client_has_it(ledger: Ledger) -> None:
    for number in (1, 2, 3):
        ledger.answered(begin(ledger, number), DONE)
    begin(ledger, 4, 3)
    assert len(ledger) == 2, "the third, and this one"
    assert ask_again(ledger, 3) == [DONE]
    (gone,) = ask_again(ledger, 2)
    assert isinstance(gone, PeerLost) and "not known" in gone.message


def test_a_number_that_was_given_up_is_not_begun_again(ledger: Ledger) -> None:
    ledger.give_up(begin(ledger, 5))
    assert ledger.begin(5, "run", 1) is None
    (gone,) = ask_again(ledger, 5)
    assert isinstance(gone, PeerLost)


def test_whoever_waits_for_what_is_given_up_is_told(ledger: Ledger) -> None:
    entry = begin(ledger, 1)
    heard = ask_again(ledger, 1)
    ledger.give_up(entry)
    assert [type(each) for each in heard] == [PeerLost]


def test_an_answer_that_cannot_be_kept_is_said_to_be_gone(ledger: Ledger) -> None:
    entry = begin(ledger, 1)
    waiting = ask_again(ledger, 1)
    ledger.answered(entry, None)
    assert [type(each) for each in (*waiting, *ask_again(ledger, 1))] == [PeerLost, PeerLost]


def test_answers_are_bounded_by_their_bytes(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LEDGER_BYTES", 100_000)
    for number in range(1, 101):
        ledger.answered(begin(ledger, number), Answer({}, bytes(10_000)))
    assert ledger.nbytes <= 100_000
    assert isinstance(ask_again(ledger, 1)[0], PeerLost)
    assert ask_again(ledger, 100) == [Answer({}, bytes(10_000))]


def test_long_results_count(ledger: Ledger) -> None:
    ledger.answered(begin(ledger, 1), Answer({"record": {"description": "x" * 5_000}}))
    assert ledger.nbytes > 5_000


def test_answers_are_bounded_in_number(ledger: Ledger) -> None:
    for number in range(1, 3 * limits.MAX_REQUESTS):
        ledger.answered(begin(ledger, number), DONE)
    assert len(ledger) == 2 * limits.MAX_REQUESTS


def test_what_is_under_way_is_bounded_too(ledger: Ledger) -> None:
    first, *_ = [begin(ledger, number) for number in range(1, 2 * limits.MAX_REQUESTS + 1)]
    with pytest.raises(TooLarge, match="under way"):
        begin(ledger, 2 * limits.MAX_REQUESTS + 1)
    ledger.answered(first, DONE)
    begin(ledger, 2 * limits.MAX_REQUESTS + 1)  # it was not begun


def test_all_ledgers_together_are_bounded(ledgers: Ledgers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "MAX_BYTES", 100_000)
    for number in range(30):
        each = ledgers.of(("d" * 52, number.to_bytes(16, "big")))
        each.answered(begin(each, 1), Answer({}, bytes(10_000)))
    assert ledgers.nbytes <= 100_000
    assert ask_again(ledgers.of(("d" * 52, (29).to_bytes(16, "big"))), 1) == [Answer({}, bytes(10_000))]


def test_leases_have_ledgers_of_their_own(ledgers: Ledgers, ledger: Ledger) -> None:
    begin(ledger, 1)
    assert ledgers.of(DORA) is ledger
    begin(ledgers.of(ERIC), 1, 1)


def test_a_lease_that_is_over_leaves_nothing(ledgers: Ledgers, ledger: Ledger) -> None:
    ledger.answered(begin(ledger, 1), DONE)
    begin(ledger, 2)
    ledgers.forget(DORA)
    ledgers.forget(ERIC)
    assert len(ledgers) == 0 and ledgers.nbytes == 0 and len(ledger) == 0
    begin(ledgers.of(DORA), 1, 1)


async def test_what_works_on_it_ends_with_the_lease_or_when_given_up(ledgers: Ledgers, ledger: Ledger) -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    tasks: list[asyncio.Task[Any]] = []
    entries = []
    for number in (1, 2):
        entries.append(begin(ledger, number))
        tasks.append(asyncio.create_task(forever()))
        ledger.started(entries[-1], tasks[-1])
    assert set(ledgers.tasks) == set(tasks)
    ledger.give_up(entries[0])
    await asyncio.wait([tasks[0]])
    assert not tasks[1].done()
    ledgers.forget(DORA)
    assert ledgers.tasks == [tasks[1]], "it is to be waited for until it has ended"
    await asyncio.wait([tasks[1]])
    assert ledgers.tasks == [] and all(task.cancelled() for task in tasks)


def test_an_answer_that_comes_too_late_is_not_kept(ledger: Ledger) -> None:
    entry = begin(ledger, 1)
    ledger.give_up(entry)
    ledger.answered(entry, DONE)
    assert len(ledger) == 0 and ledger.nbytes == 0
    assert isinstance(ask_again(ledger, 1)[0], GridError)


def test_what_is_under_way_stays_whatever_the_client_says_it_has(ledger: Ledger) -> None:
    entry = begin(ledger, 1)
    begin(ledger, 2, 2)
    assert len(ledger) == 2
    heard = ask_again(ledger, 1)
    ledger.answered(entry, DONE)
    assert heard == [DONE]
    begin(ledger, 3, 2)
    assert len(ledger) == 2, "the first is gone"


async def test_what_was_given_up_counts_until_it_has_ended(
    ledgers: Ledgers, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "_MAX_RUNNING", 1)
    is_over = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await is_over.wait()

    entry = begin(ledger, 1)
    task = asyncio.create_task(stubborn())
    ledger.started(entry, task)
    await asyncio.sleep(0)
    ledger.give_up(entry)
    with pytest.raises(TooLarge):
        begin(ledger, 2)
    is_over.set()
    await asyncio.wait([task])
    begin(ledger, 2)
    monkeypatch.setattr(ledger_module, "_MAX_RUNNING_OF_ONE", 1)
    with pytest.raises(TooLarge):
        begin(ledgers.of((DORA[0], bytes([1]) * 16)), 1)


async def test_what_is_in_no_entry_any_more_ends_with_the_lease_too(
    ledgers: Ledgers, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = begin(ledger, 1)
    task = asyncio.create_task(asyncio.Event().wait())
    ledger.started(entry, task)  # type: ignore[arg-type]
    ledger.answered(entry, DONE)  # its task may still have something to do
    begin(ledger, 2, 2)
    assert len(ledger) == 1, "the second"
    ledgers.forget(DORA)
    await asyncio.wait([task], timeout=60)
    assert task.cancelled() and ledgers.tasks == []
    monkeypatch.setattr(ledger_module, "_MAX_RUNNING_OF_ONE", 1)
    begin(ledgers.of(DORA), 1)  # none is under way


def test_all_leases_of_a_principal_together_are_bounded(ledgers: Ledgers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_MAX_RUNNING_OF_ONE", 3)
    entries = [begin(ledgers.of((DORA[0], bytes([number]) * 16)), 1) for number in range(3)]
    more = ledgers.of((DORA[0], bytes([9]) * 16))
    with pytest.raises(TooLarge, match="under way"):
        begin(more, 1)
    begin(ledgers.of(ERIC), 1)
    ledgers.of((DORA[0], bytes(16))).answered(entries[0], DONE)
    begin(more, 1)


def test_of_those_who_wait_for_one_answer_the_newest_get_it(ledger: Ledger) -> None:
    entry = begin(ledger, 1)
    heard = [ask_again(ledger, 1) for _ in range(1_000)]
    assert entry.waiters is not None and len(entry.waiters) <= 4
    assert isinstance(heard[0][0], PeerLost)
    ledger.answered(entry, DONE)
    assert heard[-1] == [DONE]


def test_who_leaves_waits_no_more(ledger: Ledger) -> None:
    entry = begin(ledger, 1)
    heard: list[Heard] = []
    waiter = heard.append
    ledger.again(1, "run", waiter)
    ledger.leave(entry, waiter)
    ledger.answered(entry, DONE)
    assert heard == [] and ask_again(ledger, 1) == [DONE]
