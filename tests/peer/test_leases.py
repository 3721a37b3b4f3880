"""Whose temporaries live, and until when."""

from __future__ import annotations

import pytest

from peer.leases import LeaseKey, Leases

DORA: LeaseKey = ("d" * 52, bytes(16))
ERIC: LeaseKey = ("e" * 52, bytes(16))
A, B, C = (bytes([n]) * 16 for n in range(3))


@pytest.fixture
def leases() -> Leases:
    return Leases(grace=60)


def test_temporaries_live_while_a_connection_is_open(leases: Leases) -> None:
    leases.connected(DORA)
    leases.add(DORA, A)
    assert leases.expire(1e9) == set()


def test_temporaries_live_on_for_the_grace_and_no_longer(leases: Leases) -> None:
    leases.connected(DORA)
    leases.add(DORA, A)
    leases.add(DORA, B)
    leases.disconnected(DORA, now=100)
    assert leases.expire(159.9) == set()
    assert leases.expire(160) == {A, B}
    assert leases.expire(1e9) == set()


def test_a_client_that_comes_back_in_time_finds_its_temporaries(leases: Leases) -> None:
    leases.connected(DORA)
    leases.add(DORA, A)
    leases.disconnected(DORA, now=100)
    leases.connected(DORA)
    assert leases.expire(1e9) == set()
    leases.disconnected(DORA, now=500)
    assert leases.expire(560) == {A}


def test_the_last_connection_counts(leases: Leases) -> None:
    leases.connected(DORA)
    leases.connected(DORA)
    leases.add(DORA, A)
    leases.disconnected(DORA, now=100)
    assert leases.expire(1e9) == set()
    leases.disconnected(DORA, now=200)
    assert leases.expire(260) == {A}


def test_leases_of_others_are_their_own(leases: Leases) -> None:
    leases.connected(DORA)
    leases.connected(ERIC)
    leases.add(DORA, A)
    leases.add(ERIC, B)
    leases.disconnected(DORA, now=0)
    assert leases.expire(1e9) == {A}


def test_the_same_sixteen_bytes_are_another_lease_for_another_principal(leases: Leases) -> None:
    assert DORA[1] == ERIC[1]
    leases.connected(DORA)
    leases.add(DORA, A)
    leases.disconnected(DORA, now=0)
    leases.connected(ERIC)
    assert leases.expire(60) == {A}


def test_what_was_released_does_not_expire(leases: Leases) -> None:
    leases.connected(DORA)
    leases.add(DORA, A)
    leases.add(DORA, B)
    leases.remove(DORA, A)
    leases.remove(DORA, C)
    leases.remove(ERIC, A)
    leases.disconnected(DORA, now=0)
    assert leases.expire(60) == {B}


def test_a_result_that_comes_after_the_connection_closed_has_the_grace(leases: Leases) -> None:
    leases.connected(DORA)
    leases.disconnected(DORA, now=0)
    leases.add(DORA, A)
    assert leases.expire(59) == set()
    assert leases.expire(60) == {A}


def test_a_result_that_comes_after_the_lease_is_over_does_not_stay(leases: Leases) -> None:
    leases.connected(DORA)
    leases.disconnected(DORA, now=0)
    leases.expire(60)
    leases.add(DORA, A)
    assert leases.expire(61) == {A}


def test_a_late_result_lives_if_the_client_comes_back_first(leases: Leases) -> None:
    leases.add(DORA, A)
    leases.connected(DORA)
    assert leases.expire(1e9) == set()


def test_nothing_is_kept_of_leases_that_are_over(leases: Leases) -> None:
    for number in range(100):
        key = ("d" * 52, number.to_bytes(16, "big"))
        leases.connected(key)
        leases.disconnected(key, now=number)
    assert leases.expire(1e9) == set()
    assert not leases._leases


def test_a_lease_has_the_same_memory_until_it_is_over(leases: Leases) -> None:
    memory = leases.memory(DORA, now=0)
    leases.connected(DORA)
    assert leases.memory(DORA, now=1) == memory
    leases.disconnected(DORA, now=2)
    assert leases.memory(DORA, now=61) == memory, "somebody is on the way to it: it gets the grace anew"
    assert leases.expire(120.9) == set() and leases.memory(DORA, now=120.9) == memory
    leases.expire(1e9)
    assert leases.memory(DORA, now=1e9) != memory


def test_leases_have_memories_of_their_own(leases: Leases) -> None:
    assert leases.memory(DORA, now=0) != leases.memory(ERIC, now=0)


def test_a_handshake_that_came_to_nothing_leaves_nothing(leases: Leases) -> None:
    leases.memory(DORA, now=0)
    leases.expire(60)
    assert not leases._leases


def test_an_open_connection_keeps_its_lease_while_another_shakes_hands(leases: Leases) -> None:
    leases.connected(DORA)
    leases.add(DORA, A)
    leases.memory(DORA, now=0)
    assert leases.expire(1e9) == set()


def test_somebody_hears_of_each_lease_that_is_over() -> None:
    over: list[LeaseKey] = []
    leases = Leases(60, over.append)
    for key in (DORA, ERIC):
        leases.connected(key)
    leases.disconnected(DORA, now=0)
    leases.expire(60)
    leases.expire(1e9)
    assert over == [DORA]
