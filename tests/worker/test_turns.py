"""Who computes without a pause stands back while others compute."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import pytest

from peer import machine
from peer.apart import _ALL, _LAST, Cores
from peer.worker.turns import Stretch, Times, Turns
from protocol import limits
from tests.waiting import until
from tests.worker.conftest import Asker, Workplace, new_id

_IS_WEIGHED = Path("/proc/sys/kernel/sched_autogroup_enabled")


class Clock:
    """Looks at two workers, "a" of ann and "b" of bob, in steps of 0.1 s."""

    def __init__(self) -> None:
        self.turns: Turns[str] = Turns()
        self.now = 100.0
        self.look(0.0, 0.0)

    def look(self, a: float, b: float | None, ran: float | None = None) -> dict[str, bool]:
        """Who was at work how long of the last 0.1 s, and ran (else for as long); None: there is no such worker."""
        self.now += 0.1
        times = {"a": Times("ann", a if ran is None else ran, a)} | ({} if b is None else {"b": Times("bob", b, b)})
        return self.turns.look(times, 0.1, self.now)

    def rest(self, seconds: float) -> list[dict[str, bool]]:
        return [self.look(0.0, 0.0) for _ in range(round(seconds / 0.1))]


def test_who_has_no_pauses_stands_back_for_who_computes() -> None:
    clock = Clock()
    assert clock.look(0.09, 0.001) == {}, "once may be chance"
    assert clock.look(0.09, 0.001) == {"a": True}
    assert clock.look(0.1, 0.0) == {}


def test_who_has_none_only_now_and_then_does_not_stand_back() -> None:
    clock = Clock()
    assert all(clock.look(0.1 if at % 2 else 0.0, 0.01) == {} for at in range(50))


def test_nobody_stands_back_for_who_does_nothing() -> None:
    clock = Clock()
    assert clock.look(0.1, 0.0) == {}
    assert clock.look(0.1, None) == {}
    assert clock.look(0.1, 0.01) == {"a": True}


def test_two_that_have_no_pauses_share() -> None:
    clock = Clock()
    clock.look(0.1, 0.1)
    assert clock.look(0.1, 0.1) == {"a": True, "b": True}


def test_who_has_pauses_does_not_stand_back() -> None:
    clock = Clock()
    assert all(clock.look(0.02, 0.02) == {} for _ in range(50))


def test_who_is_kept_waiting_does_not_stand_back_for_who_keeps_it() -> None:
    clock = Clock()
    assert not any(clock.look(0.1, 0.02, ran=0.005) for _ in range(5))
    clock.look(0.1, 0.02, ran=0.02)
    assert clock.look(0.1, 0.02, ran=0.02) == {"a": True}


def test_who_has_paused_for_a_while_is_back() -> None:
    clock = Clock()
    clock.look(0.1, 0.01)
    assert clock.look(0.1, 0.01) == {"a": True}
    told = clock.rest(limits.TURN_REST + 0.2)
    assert [each for each in told if each] == [{"a": False}]
    assert not told[0]


def test_when_the_others_are_silent_nobody_stands_back() -> None:
    clock = Clock()
    clock.look(0.1, 0.01)
    assert clock.look(0.1, 0.01) == {"a": True}
    told = [clock.look(0.1, 0.0) for _ in range(round(limits.TURN_OTHERS / 0.1) + 2)]
    assert [each for each in told if each] == [{"a": False}]


def test_another_worker_of_the_same_principal_is_not_somebody_else() -> None:
    turns: Turns[str] = Turns()
    assert turns.look({"a": Times("ann", 0.1, 0.1), "b": Times("ann", 0.01, 0.0)}, 0.1, 1.1) == {}


def test_who_stands_back_alone_is_known_while_somebody_with_pauses_computes() -> None:
    clock = Clock()
    clock.look(0.1, 0.01)
    assert clock.turns.alone(clock.now) is None
    clock.look(0.1, 0.01)
    assert clock.turns.alone(clock.now) == "a"
    clock.look(0.1, 0.0)
    assert clock.turns.alone(clock.now) == "a"
    assert clock.turns.alone(clock.now + limits.TURN_REST) is None, "nobody else wants anything"
    clock.look(0.1, 0.1)
    clock.look(0.1, 0.1)
    assert clock.turns.alone(clock.now) is None, "one core is not enough for two who compute"


def test_one_that_ended_is_forgotten() -> None:
    clock = Clock()
    clock.look(0.1, 0.01)
    clock.look(0.1, 0.01)
    clock.turns.ended("a")
    assert clock.look(0.1, 0.01) == {}  # as another worker would be that is the same to us


def test_only_stretches_that_are_long_count() -> None:
    stretch = Stretch()
    stretch.starts(0.5)
    for start in (1.0, 1.01, 1.02):
        stretch.began = start
        stretch.ends(start + 0.9 * limits.TURN_STRETCH)
    assert stretch.taken(1.1, is_busy=False) == 0.0
    stretch.began = 1.2
    stretch.ends(1.25)
    stretch.ends(1.28)  # something more was heard of it
    assert stretch.taken(1.3, is_busy=False) == pytest.approx(0.05)
    assert stretch.taken(1.4, is_busy=False) == 0.0


def test_one_that_goes_on_counts_until_now_and_once() -> None:
    stretch = Stretch()
    stretch.starts(1.0)
    assert stretch.taken(1.1, is_busy=True) == pytest.approx(0.1)
    assert stretch.taken(1.15, is_busy=True) == pytest.approx(0.05)
    stretch.ends(1.17)
    assert stretch.taken(1.3, is_busy=False) == pytest.approx(0.02)


def test_a_start_is_nobodys_work() -> None:
    stretch = Stretch()
    stretch.began = 1.0
    assert stretch.taken(1.1, is_busy=True) == 0.0
    stretch.starts(1.15)
    assert stretch.taken(1.2, is_busy=True) == pytest.approx(0.05)
    stretch.ends(1.3)
    assert stretch.taken(1.4, is_busy=False) == pytest.approx(0.1)


# --- of this machine --------------------------------------------------------------------------------------


@pytest.fixture
def waiting() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own that does nothing."""
    code = "import sys; sys.stdout.write('x'); sys.stdout.flush(); sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        yield process
        process.communicate()


@pytest.mark.skipif(not _IS_WEIGHED.exists(), reason="this system does not weigh sessions")
def test_to_stand_back_is_to_weigh_little(waiting: subprocess.Popen[bytes]) -> None:
    weight = Path(f"/proc/{waiting.pid}/autogroup")
    assert weight.read_text().endswith("nice 0\n")
    machine.stand_back(waiting.pid, is_back=True)
    assert weight.read_text().endswith(f"nice {limits.TURN_NICE}\n")


def test_a_process_that_is_gone_cannot_stand_back() -> None:
    machine.stand_back(2**22 + 1, is_back=True)
    assert not machine.bind(2**22 + 1, {0})


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds nobody")
def test_a_process_is_bound_with_all_its_threads(waiting: subprocess.Popen[bytes]) -> None:
    core = max(os.sched_getaffinity(0))
    assert machine.bind(waiting.pid, {core}) and os.sched_getaffinity(waiting.pid) == {core}


def test_a_worker_is_in_a_session_of_its_own(asker: Asker) -> None:
    """Else what weight one is given would be that of all."""
    assert os.getsid(asker.pid) == asker.pid


def test_a_worker_that_computes_stands_back_while_another_principal_computes(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, bool]] = []
    monkeypatch.setattr(machine, "stand_back", lambda pid, *, is_back: told.append((pid, is_back)))
    bound: dict[int, Set[int]] = {}
    monkeypatch.setattr(workplace.pool._watching, "_cores", Cores(lambda pid, on: bound.update({pid: on}) or True))  # type: ignore[func-returns-value]
    hog, other = workplace.asker(), workplace.asker()
    matrix = hog.op("aten.rand.default", [400, 400])

    async def together() -> None:
        busy: list[asyncio.Future[Any]] = []
        while (hog_pid, True) not in told or (len(_ALL) > 1 and bound.get(hog_pid) != _LAST):
            if len(busy) < 4:
                busy.append(hog.worker.run([["aten.linalg_eig.default", [matrix], {}, [new_id(), new_id()]]]))
            await other.worker.run([["aten.zeros.default", [[10]], {}, [new_id()]]])
            await asyncio.sleep(0.03)  # so that it takes little, however long it is kept waiting
            busy = [each for each in busy if not each.done()]
        for each in busy:
            await each
        await until(lambda: (hog_pid, False) in told, lambda: told)
        await until(lambda: bound.get(hog_pid) == _ALL, lambda: bound)

    try:
        hog_pid = hog.pid
        hog.do(together())
        assert other.pid not in {pid for pid, _ in told} and bound.get(other.pid, _ALL) == _ALL
    finally:
        hog.end()
        other.end()
