"""Who sees what runs, and who may end it."""

from __future__ import annotations

import pytest

from peer.runs import Progress, Run, Runs
from protocol.errors import AlreadyExists, NotFound

ALICE, BOB, OPERATOR = "alice", "bob", "operator"


class Scene:
    """Runs whose ends are noted. Those that are stopped end when `end` says so."""

    def __init__(self) -> None:
        self.runs = Runs(lambda asker: asker == OPERATOR)
        self.stopped: list[bytes] = []

    def begin(self, asker: str, number: int, progress: Progress | None = None) -> Run:
        id = bytes([number]) * 16
        run = Run(id, asker, "program", "ab" * 32, "fit", lambda: self.stopped.append(id), lambda: progress)
        self.runs.began(run)
        return run

    def seen_by(self, asker: str) -> list[Run]:
        return self.runs.seen_by(asker)


def test_a_principal_sees_its_own_and_the_operator_sees_all() -> None:
    scene = Scene()
    hers, his = scene.begin(ALICE, 1), scene.begin(BOB, 2)
    assert scene.seen_by(ALICE) == [hers] and scene.seen_by(BOB) == [his]
    assert scene.seen_by(OPERATOR) == [hers, his]
    assert scene.seen_by("somebody else") == []


def test_what_has_ended_is_not_listed() -> None:
    scene = Scene()
    run = scene.begin(ALICE, 1)
    scene.runs.ended(run)
    scene.runs.ended(run)
    assert scene.seen_by(OPERATOR) == [] and len(scene.runs) == 0


def test_it_says_how_far_it_is() -> None:
    record = Scene().begin(ALICE, 1, Progress(2, 5, 30, 100)).record()
    assert record["progress"] == [2, 5, 30, 100]
    assert (record["principal"], record["kind"], record["name"]) == (ALICE, "program", "fit")
    assert record["seconds"] >= 0


def test_who_ends_a_run_is_told_when_it_has_ended() -> None:
    scene = Scene()
    run, told = scene.begin(ALICE, 1), []
    scene.runs.stop(ALICE, run.id, lambda: told.append("first"))
    scene.runs.stop(OPERATOR, run.id, lambda: told.append("second"))
    assert scene.stopped == [run.id, run.id] and run.is_stopped and told == []
    scene.runs.ended(run)
    assert told == ["first", "second"]


def test_nobody_ends_what_is_anothers() -> None:
    scene = Scene()
    run = scene.begin(ALICE, 1)
    with pytest.raises(NotFound):
        scene.runs.stop(BOB, run.id, lambda: None)
    assert scene.stopped == [] and not run.is_stopped


def test_an_id_that_others_use_too_is_ones_own_run() -> None:
    scene = Scene()
    hers, his = scene.begin(ALICE, 1), scene.begin(BOB, 1)
    scene.runs.stop(BOB, his.id, lambda: None)
    assert his.is_stopped and not hers.is_stopped


def test_an_id_is_used_once_at_a_time() -> None:
    scene = Scene()
    run = scene.begin(ALICE, 1)
    with pytest.raises(AlreadyExists):
        scene.begin(ALICE, 1)
    scene.runs.ended(run)
    assert scene.begin(ALICE, 1) is not run
