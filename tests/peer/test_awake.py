"""A loop stays awake while what it waits for is due, and only where that costs nobody anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from peer.awake import Awake, Lookout, awake
from protocol import limits

DUE = 200e-6
TURN = 2e-6


class Loop:
    """Callbacks and a clock; `others` is how long each giving way takes."""

    def __init__(self, *, processors: int = 2) -> None:
        self.now = 100.0
        self.others = 0.0
        self.ready: list[Callable[[], None]] = []
        self.given_way = 0
        self.awake = Awake(self.ready.append, lambda: self.now, self.give_way if processors > 1 else None)

    def give_way(self) -> None:
        self.given_way += 1
        self.now += self.others

    def turn(self) -> bool:
        """One turn; whether the loop would have slept instead."""
        ready, self.ready[:] = list(self.ready), []
        for callback in ready:
            callback()
        self.now += TURN
        return not ready

    def turns(self) -> int:
        """How many there are until it sleeps."""
        count = 0
        while not self.turn():
            count += 1
        return count

    def hit(self) -> int:
        """Something is expected, and comes; how often the loop turned for it."""
        self.awake.expect(DUE)
        turns = sum(not self.turn() for _ in range(5))
        self.awake.met()
        self.turns()
        return turns

    def miss(self) -> int:
        self.awake.expect(DUE)
        return self.turns()


def test_it_turns_until_what_is_due_has_come() -> None:
    loop = Loop()
    loop.awake.expect(DUE)
    assert not any(loop.turn() for _ in range(10)) and loop.given_way == 10
    loop.awake.met()
    assert loop.turns() <= 1 and loop.given_way == 10


def test_it_turns_no_longer_than_it_was_told() -> None:
    loop = Loop()
    began = loop.now
    assert loop.miss()
    assert DUE <= loop.now - began < DUE + 4 * TURN


def test_to_expect_again_is_to_have_met_what_was_expected() -> None:
    loop = Loop()
    for _ in range(100):
        loop.awake.expect(DUE)
        assert not any(loop.turn() for _ in range(5))
        assert len(loop.ready) == 1, "one callback, however often something is expected"


def test_where_nothing_comes_in_time_it_tries_less_and_less() -> None:
    loop = Loop()
    assert [bool(loop.miss()) for _ in range(2)] == [True, True]
    tried = sum(bool(loop.miss()) for _ in range(160))
    assert tried == 10


def test_what_comes_in_time_again_makes_it_try_each_time() -> None:
    loop = Loop()
    for _ in range(10):
        loop.miss()
    while not loop.hit():
        pass
    assert all(loop.hit() for _ in range(20))


def test_a_loop_that_others_want_the_processor_of_rests() -> None:
    loop = Loop()
    loop.others = 3e-3
    loop.awake.expect(DUE)
    assert loop.turns() == 1 and loop.given_way == 1
    loop.others = 0.0
    assert not loop.hit()
    loop.now += limits.AWAKE_REST
    assert loop.hit()


def test_it_rests_longer_each_time_and_recovers() -> None:
    loop = Loop()

    def rest() -> float:
        """Seconds without a try after others had the processor."""
        loop.others = 3e-3
        loop.awake.expect(DUE)
        assert loop.turns() == 1
        loop.others, began = 0.0, loop.now
        while not loop.hit():
            loop.now += limits.AWAKE_REST / 4
        return loop.now - began

    rests = [rest() for _ in range(8)]
    assert rests == sorted(rests) and rests[0] < 2 * limits.AWAKE_REST
    assert limits.AWAKE_MOST_REST <= rests[-1] < 2 * limits.AWAKE_MOST_REST
    for _ in range(1_000):
        loop.hit()
    assert rest() < 2 * limits.AWAKE_REST


def test_a_worker_of_ours_that_has_the_processor_for_a_moment_is_no_reason_to_rest() -> None:
    loop = Loop()
    loop.others = 70e-6
    assert loop.hit() and loop.hit()


def test_on_one_processor_it_sleeps() -> None:
    loop = Loop(processors=1)
    assert not loop.miss() and not loop.given_way


# --- one thing at a time ------------------------------------------------------------------------------------


class Process:
    """What comes, by the number of looks after which it does; 0: not in time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.others = 0.0
        self.looks = 0
        self.comes_at = 0
        self.lookout = Lookout(lambda: self.now, self.give_way)

    def give_way(self) -> None:
        self.now += self.others

    def look(self) -> list[str]:
        self.looks += 1
        self.now += TURN
        return ["came"] if self.looks == self.comes_at else []

    def wait(self, comes_at: int = 0) -> bool:
        """Whether it came while this was awake."""
        self.looks, self.comes_at = 0, comes_at
        return list(self.lookout.wait(self.look, DUE)) == ["came"]


def test_what_comes_in_time_is_found_awake() -> None:
    process = Process()
    assert all(process.wait(comes_at=20) and process.looks == 20 for _ in range(50))


def test_what_does_not_is_waited_for_asleep_and_less_and_less_often_awake() -> None:
    process = Process()
    began = process.now
    assert not process.wait() and DUE <= process.now - began < DUE + 2 * TURN
    assert not process.wait()
    assert sum(process.wait() or process.looks > 0 for _ in range(160)) == 10


def test_a_process_that_others_want_the_processor_of_rests() -> None:
    process = Process()
    process.others = 3e-3
    assert not process.wait(comes_at=5) and process.looks == 1
    process.others = 0.0
    assert not process.wait(comes_at=5) and not process.looks
    process.now += limits.AWAKE_REST
    assert process.wait(comes_at=5)


def test_what_cannot_give_way_sleeps() -> None:
    process = Process()
    process.lookout = Lookout(lambda: process.now)
    assert not process.wait(comes_at=1) and not process.looks


async def test_there_is_one_for_each_loop() -> None:
    first = awake()
    assert awake() is first

    async def other() -> Awake:
        return awake()

    assert await asyncio.to_thread(asyncio.run, other()) is not first
    assert awake() is first
