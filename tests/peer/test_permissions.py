"""One set of rules, and every refusal says why."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest

from peer import permissions
from protocol.errors import Denied

ALICE, BOB, CAROL = ("a" * 52, "b" * 52, "c" * 52)


@dataclass(frozen=True)
class Thing:
    owner: str
    labels: frozenset[str] = frozenset()
    is_published: bool = True
    reveal: tuple[str, ...] = ()


def temporary(owner: str, *labels: str) -> Thing:
    return Thing(owner, frozenset(labels), is_published=False)


def published(owner: str, *labels: str) -> Thing:
    return Thing(owner, frozenset(labels))


def may_take(asker: str, thing: Thing) -> bool:
    try:
        permissions.check_take(asker, thing, "it")
    except Denied:
        return False
    return True


def may_edit(asker: str, thing: Thing) -> bool:
    try:
        permissions.check_edit(asker, thing, "it")
    except Denied:
        return False
    return True


def test_a_published_object_is_found_by_everyone() -> None:
    assert permissions.can_find(BOB, published(ALICE)) and permissions.can_find(BOB, published(ALICE, ALICE))


def test_a_temporary_is_found_by_its_maker_alone() -> None:
    assert permissions.can_find(ALICE, temporary(ALICE)) and not permissions.can_find(BOB, temporary(ALICE))


def test_a_value_without_labels_may_be_taken_by_whoever_finds_it() -> None:
    assert may_take(BOB, published(ALICE))


def test_a_private_value_may_be_taken_by_its_owner_alone() -> None:
    private = published(ALICE, ALICE)
    assert may_take(ALICE, private) and not may_take(BOB, private)


def test_what_was_made_of_two_owners_data_may_be_taken_by_neither() -> None:
    made = temporary(ALICE, ALICE, BOB)
    assert [may_take(asker, made) for asker in (ALICE, BOB, CAROL)] == [False, False, False]


def test_who_made_a_result_of_private_data_may_not_take_it() -> None:
    assert not may_take(BOB, temporary(BOB, ALICE))


def test_only_the_owner_edits() -> None:
    assert may_edit(ALICE, published(ALICE)) and not may_edit(BOB, published(ALICE))
    assert not may_edit(BOB, published(ALICE, BOB))  # a label is no ownership


def test_a_refusal_says_whose_leave_is_missing() -> None:
    with pytest.raises(Denied) as caught:
        permissions.check_take(ALICE, temporary(ALICE, ALICE, BOB, CAROL), "object 0123")
    assert caught.value.fields == {"owners": [BOB, CAROL]}
    assert "object 0123" in caught.value.message and BOB[:12] in caught.value.message
    with pytest.raises(Denied) as caught:
        permissions.check_edit(BOB, published(ALICE), "object 0123")
    assert caught.value.fields == {"owners": [ALICE]}
    assert f"belongs to {ALICE[:12]}, and you are {BOB[:12]}" in caught.value.message


def test_labels_follow_the_data() -> None:
    assert permissions.derived([]) == frozenset()
    assert permissions.derived([published(ALICE), temporary(BOB)]) == frozenset()
    assert permissions.derived([published(ALICE, ALICE), temporary(BOB, BOB, CAROL)]) == {ALICE, BOB, CAROL}


def test_no_computation_gives_more_leave_than_its_inputs() -> None:
    people = (ALICE, BOB, CAROL)
    sets = [frozenset(some) for count in range(4) for some in itertools.combinations(people, count)]
    for left, right, asker in itertools.product(sets, sets, people):
        inputs = [Thing(ALICE, left), Thing(BOB, right)]
        result = Thing(asker, permissions.derived(inputs), is_published=False)
        assert may_take(asker, result) == all(may_take(asker, each) for each in inputs)
