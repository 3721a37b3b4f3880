"""What an owner says that others may take of the machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from grid.commands import peers as commands
from peer.peer import Settings
from peer.pool_settings import PoolSettings

Grid = Callable[..., Any]


def started_with(grid: Grid, monkeypatch: pytest.MonkeyPatch, *options: str) -> PoolSettings:
    seen: list[Settings] = []
    monkeypatch.setattr(commands, "start", lambda settings, log_level: seen.append(settings))
    ended = grid("start", "alice", *options)
    assert ended.code == 0, ended.err
    return seen[0].workers


def test_budgets_reach_the_workers(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--worker-memory=1.5GB", "--worker-seconds=30", "--worker-cpu=0.5", "--worker-burst=10")
    workers = started_with(grid, monkeypatch, *options)
    assert workers.worker.memory == 1_500_000_000
    assert workers.worker.seconds == 30
    assert workers.cpu == 0.5
    assert workers.burst == 10


def test_without_options_everything_is_as_it_is_meant_to_be(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    assert started_with(grid, monkeypatch) == PoolSettings()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--worker-memory=lots", "is not a size"),
        ("--worker-memory=1KB", "64 MiB of memory or more, not 1000 bytes"),
        ("--worker-seconds=0", "positive number of seconds"),
        ("--worker-cpu=-1", "positive numbers, not -1 and 60"),
        ("--worker-burst=0", "positive numbers"),
    ],
)
def test_what_makes_no_sense_is_refused(grid: Grid, option: str, said: str) -> None:
    ended = grid("start", "alice", option)
    assert ended.code == 2
    assert said in " ".join(ended.err.split())


def test_peers_in_the_background_have_them_too_and_say_who_takes_what(grid: Grid) -> None:
    assert grid("up", "alice", "--worker-memory=1GB", "--worker-seconds=5").code == 0
    assert grid("status", "alice", "--json").json["principals"] == []
    shown = grid("status", "alice")
    assert "nobody computes here" in shown.out
