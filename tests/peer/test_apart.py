"""Where cores are few a peer stays off that of its asker, for a while."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator

import pytest

from peer.apart import _ALL, _LAST, _LOOKS, Apart, Cores
from peer.awake import awake
from peer.buffers import BufferPool
from peer.worker.framing import encode
from peer.worker.remote import Worker, WorkerKey
from tests.peer.ends import Connected

pytestmark = pytest.mark.skipif(len(_ALL) < 2, reason="needs two processors, and Linux")


@pytest.fixture
def here() -> Iterator[int]:
    """The core that this thread is kept on until it is moved."""
    core = min(_ALL)
    os.sched_setaffinity(0, {core})
    yield core
    os.sched_setaffinity(0, _ALL)


class Later:
    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def __call__(self, seconds: float, call: Callable[[], None]) -> None:
        self.calls.append(call)


def look_often(apart: Apart, *, is_waiting: bool = True) -> None:
    for _ in range(4 * _LOOKS):
        apart.look(is_waiting=is_waiting)


def test_it_leaves_its_askers_core_for_a_while(here: int) -> None:
    later = Later()
    look_often(Apart(lambda: here, later))
    assert os.sched_getaffinity(0) == _ALL - {here}
    (free,) = later.calls
    free()
    assert os.sched_getaffinity(0) == _ALL


def test_where_all_are_as_they_should_be_nothing_is_moved(here: int) -> None:
    later, there = Later(), max(_ALL)
    look_often(Apart(lambda: there, later))
    look_often(Apart(lambda: here, later), is_waiting=False)
    assert os.sched_getaffinity(0) == {here} and not later.calls


def test_while_the_asker_queues_more_it_is_on_the_askers_core(here: int) -> None:
    later, there = Later(), max(_ALL)
    apart = Apart(lambda: there, later)
    look_often(apart, is_waiting=False)
    assert os.sched_getaffinity(0) == {there}
    look_often(apart)
    assert os.sched_getaffinity(0) == _ALL - {there}
    (free,) = later.calls
    free()
    assert os.sched_getaffinity(0) == _ALL


def test_an_asker_on_a_core_that_is_not_ours_changes_nothing(here: int) -> None:
    later = Later()
    look_often(Apart(lambda: max(_ALL) + 1, later), is_waiting=False)
    assert os.sched_getaffinity(0) == {here} and not later.calls


def test_cores_that_are_anothers_now_are_left_alone(here: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[object] = []

    def refuse(who: int, where: object) -> None:
        tries.append(where)
        raise OSError("another group's")

    later = Later()
    apart = Apart(lambda: here, later)
    with monkeypatch.context() as patch:
        patch.setattr("os.sched_setaffinity", refuse)
        look_often(apart)
        for free in later.calls:
            free()
        look_often(apart)
    assert tries == [_ALL - {here}, _ALL]


def test_who_computes_has_a_core_for_itself_and_the_loop_keeps_off_it(here: int) -> None:
    bound: list[tuple[int, object]] = []
    cores = Cores(lambda pid, where: bound.append((pid, where)) or True)  # type: ignore[func-returns-value]
    rest, later = _ALL - _LAST, Later()
    cores.divide(None, [2, 3])
    assert bound == [] and os.sched_getaffinity(0) == {here}
    cores.divide(1, [2, 3])
    assert dict(bound) == {1: _LAST, 2: rest, 3: rest} and os.sched_getaffinity(0) == rest
    bound.clear()
    look_often(Apart(lambda: min(rest), later))
    assert os.sched_getaffinity(0) == rest and not later.calls, "it is not for the asker to say meanwhile"
    cores.divide(1, [3, 4])
    assert dict(bound) == {2: _ALL, 4: rest}
    bound.clear()
    cores.divide(None)
    assert dict(bound) == dict.fromkeys((1, 3, 4), _ALL) and os.sched_getaffinity(0) == _ALL


def test_where_who_computes_cannot_be_bound_nothing_is_divided(here: int) -> None:
    later = Later()
    cores = Cores(lambda pid, where: pid != 1)
    cores.divide(1, [2, 3])
    assert os.sched_getaffinity(0) == {here}
    look_often(Apart(lambda: here, later))
    assert os.sched_getaffinity(0) == _ALL - {here}
    cores.divide(2, [1])
    assert os.sched_getaffinity(0) == _ALL - _LAST
    cores.divide(1, [2])
    assert os.sched_getaffinity(0) == _ALL


def test_what_was_to_be_let_go_meanwhile_is_not(here: int) -> None:
    later, cores = Later(), Cores(lambda pid, where: True)
    look_often(Apart(lambda: here, later))
    cores.divide(1)
    (free,) = later.calls
    free()
    assert os.sched_getaffinity(0) == _ALL - _LAST
    cores.divide(None)
    assert os.sched_getaffinity(0) == _ALL


@pytest.mark.parametrize("is_crowded", [True, False])
async def test_a_peer_looks_where_cores_are_few(
    is_crowded: bool, connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peer.serving.is_crowded", lambda: is_crowded)
    async with connected() as line:
        await line.near.request("echo", {})
        assert (awake().apart is not None) is is_crowded


async def test_while_single_operations_follow_each_other_it_is_kept_off(here: int) -> None:
    later = Later()
    awake().apart = Apart(lambda: here, later)
    ours, theirs = socket.socketpair()
    worker = Worker(WorkerKey("somebody", frozenset()), ours, BufferPool(), lambda worker: None)
    with theirs:
        theirs.sendall(encode(["up"]))
        for number in range(1, 4 * _LOOKS):
            asked = worker.run([])
            theirs.sendall(encode(["done", number, []]))
            await asked
    worker.kill()
    assert os.sched_getaffinity(0) == _ALL - {here} and len(later.calls) == 1
