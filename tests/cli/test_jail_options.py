"""Whose jails a peer runs, as its owner says it."""

from __future__ import annotations

import pytest

from peer.jail_rules import JailRules
from peer.keys import Identity
from tests.cli.test_budgets import Grid, started_with


def test_without_a_word_there_are_none(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    assert started_with(grid, monkeypatch).jails == JailRules()
    assert not JailRules().has_any


def test_everybodys_or_those_of_some(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    assert started_with(grid, monkeypatch, "--jails").jails == JailRules(for_all=True)


def test_of_some_with_their_limits(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    some = (Identity.generate().id, Identity.generate().id)
    options = [f"--jails-for={id}" for id in some] + ["--jail-seconds=5", "--jail-memory=1GB"]
    assert started_with(grid, monkeypatch, *options).jails == JailRules(False, some, 5.0, 1_000_000_000)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--jails-for=bob",), "no principal's id"),
        (("--jails", "--jail-seconds=0"), "positive number of seconds"),
        (("--jails", "--jail-memory=1KB"), "bytes of memory or more"),
        (("--jails", "--unsafe-no-sandbox"), "behind the sandbox's walls or not at all"),
    ],
)
def test_what_makes_no_sense_is_refused(grid: Grid, options: tuple[str, ...], said: str) -> None:
    ended = grid("start", "alice", *options)
    assert ended.code == 2
    assert said in " ".join(ended.err.replace("│", " ").split())
