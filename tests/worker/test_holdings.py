"""What the peer knows a worker to have: told by what was sent, with a list in and a list out."""

from __future__ import annotations

import pytest

from peer.worker.holdings import Holdings
from protocol import limits
from protocol.tensors import TensorHeader

A, B, C = (letter * 16 for letter in (b"a", b"b", b"c"))
HEADER = TensorHeader("uint8", (8,))


def test_what_was_provided_or_promised_is_there_until_it_is_forgotten() -> None:
    held = Holdings()
    held.provided(A, HEADER, again=True)
    held.promised([B, C])
    assert A in held and C in held and sorted(held) == [A, B, C]
    assert held.forget([C, A, b"unknown"]) == [C, A]
    assert len(held) == 1 and A not in held and held.given(A, False).header is None


def test_results_are_what_cannot_be_provided_again() -> None:
    held = Holdings()
    held.provided(A, HEADER, again=True)
    assert held.can_again(A) and not held.has_results
    held.provided(B, HEADER, again=False)
    assert not held.can_again(B) and held.has_results
    held.forget([B])
    assert not held.has_results
    held.forget([A])
    assert not held.can_again(A) and not held.has_results


def test_the_number_of_a_file_goes_with_its_value_and_is_not_used_again() -> None:
    held = Holdings()
    held.provided(A, HEADER, again=True)
    first = held.numbered(A, 8, "one")
    assert held.made.sources[first].origin == "one" and held.given(B, True).sources is held.made.sources
    held.forget([A])
    assert not held.made.sources
    held.provided(A, HEADER, again=True)
    assert held.numbered(A, 8, "other") != first


def test_of_too_many_programs_the_one_unused_for_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WORKER_PROGRAMS", 2)
    held = Holdings()
    assert [held.ran(each) for each in (A, B, A, C, B)] == [None, None, None, B, A]
    assert held.has_program(C) and not held.has_program(A)
