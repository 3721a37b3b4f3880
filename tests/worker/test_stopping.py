"""What is to end learns of it at its turn, in memory that the worker cannot write to."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from peer.worker import memory
from peer.worker.stopping import Stopping, StopSign, never, reader
from protocol import limits


@pytest.fixture
def sign() -> Iterator[StopSign]:
    made = StopSign()
    yield made
    os.close(made.fd)


class Scene:
    """A worker that is at what stands first in `pending`."""

    def __init__(self, sign: StopSign, *pending: int) -> None:
        self.pending = list(pending)
        self.is_there = True
        self.kills = 0
        self.is_stopped = reader(sign.fd)
        self.stopping = Stopping(sign, lambda: next(iter(self.pending), None), lambda: self.is_there, self.kill)

    def kill(self) -> None:
        self.kills += 1
        self.pending.clear()

    def answer(self) -> None:
        self.stopping.answered(self.pending.pop(0))


async def lasting(seconds: float) -> None:
    """So long, and whatever was due by then has happened."""
    await asyncio.sleep(seconds)
    await asyncio.sleep(0)


def test_a_worker_sees_which_request_is_to_end(sign: StopSign) -> None:
    is_stopped = reader(sign.fd)
    assert not is_stopped(7)
    sign.show(7)
    assert is_stopped(7) and not is_stopped(8)
    sign.show(8)
    assert is_stopped(8) and not is_stopped(7)


def test_without_a_sign_nothing_is_to_end() -> None:
    assert not never(1)


@pytest.mark.skipif(not memory.HAS_SEALS, reason="files are sealed on Linux")
def test_a_worker_cannot_write_there(sign: StopSign) -> None:
    with pytest.raises(PermissionError):
        os.pwrite(sign.fd, bytes(8), 0)
    with pytest.raises(PermissionError):
        os.ftruncate(sign.fd, 0)


def test_the_sign_stays_when_its_descriptor_is_closed() -> None:
    sign = StopSign()
    is_stopped = reader(sign.fd)
    os.close(sign.fd)
    sign.show(3)
    assert is_stopped(3)


async def test_it_is_told_at_its_turn(sign: StopSign) -> None:
    scene = Scene(sign, 1, 2, 3)
    scene.stopping.stop(2)
    assert not scene.is_stopped(2)
    scene.answer()
    assert scene.is_stopped(2)


async def test_what_ends_in_time_costs_nobody_a_worker(sign: StopSign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STOP_WAIT", 0.01)
    scene = Scene(sign, 1, 2)
    scene.stopping.stop(1)
    assert scene.is_stopped(1)
    scene.answer()
    await lasting(0.05)
    assert scene.kills == 0


async def test_what_does_not_end_in_time_is_killed_once(sign: StopSign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STOP_WAIT", 0.01)
    scene = Scene(sign, 1)
    scene.stopping.stop(1)
    scene.stopping.stop(1)
    await lasting(0.05)
    assert scene.kills == 1


async def test_the_time_counts_from_its_turn(sign: StopSign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STOP_WAIT", 0.01)
    scene = Scene(sign, 1, 2)
    scene.stopping.stop(2)
    await lasting(0.05)
    assert scene.kills == 0
    scene.answer()
    await lasting(0.05)
    assert scene.kills == 1


async def test_a_process_that_is_not_there_yet_is_not_too_slow(sign: StopSign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STOP_WAIT", 0.01)
    scene = Scene(sign, 1)
    scene.is_there = False
    scene.stopping.stop(1)
    await lasting(0.05)
    assert scene.kills == 0
    scene.is_there = True
    await lasting(0.05)
    assert scene.kills == 1
