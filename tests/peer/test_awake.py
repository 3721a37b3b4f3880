"""A loop stays awake while what it waits for is due, and only where that costs nobody anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from peer.awake import Awake, Due, Lookout, awake
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
        self.due = Due(self.awake, DUE)

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

    def comes_after(self, seconds: float) -> int:
        """Something is expected, and comes then; how often the loop turned for it."""
        comes, turns = self.now + seconds, 0
        self.due.expect()
        while self.now < comes:
            if self.turn():
                self.now = comes  # asleep
            else:
                turns += 1
        self.due.met()
        self.turns()
        return turns

    def hit(self) -> int:
        return self.comes_after(5 * TURN)


def test_it_turns_until_what_is_due_has_come() -> None:
    loop = Loop()
    assert loop.due.expect()
    assert not any(loop.turn() for _ in range(10)) and loop.given_way == 10
    loop.due.met()
    assert loop.turns() <= 1 and loop.given_way == 10


def test_it_turns_no_longer_than_it_was_told() -> None:
    loop = Loop()
    began = loop.now
    assert loop.due.expect() and loop.turns()
    assert DUE <= loop.now - began < DUE + 4 * TURN


def test_to_expect_again_is_to_have_met_what_was_expected() -> None:
    loop = Loop()
    for _ in range(100):
        assert loop.due.expect()
        assert not any(loop.turn() for _ in range(5))
        assert len(loop.ready) == 1, "one callback, however often something is expected"


def test_what_took_long_is_waited_for_asleep_next_time() -> None:
    loop = Loop()
    assert loop.comes_after(10e-3)
    assert not any(loop.comes_after(10e-3) for _ in range(100))


def test_what_would_have_come_in_time_awake_is_waited_for_awake_again() -> None:
    loop = Loop()
    loop.comes_after(10e-3)
    assert not loop.comes_after(2 * DUE), "asleep, by what it took before"
    assert all(loop.comes_after(2 * DUE) for _ in range(10)), "where all sleep things take longer"


def test_each_kind_of_thing_is_judged_by_itself() -> None:
    loop = Loop()
    slow = Due(loop.awake, DUE)
    slow.expect()
    loop.now += 1.0
    slow.met()
    assert not slow.expect() and loop.due.expect()


def test_of_two_that_are_due_the_later_is_waited_for() -> None:
    loop = Loop()
    other = Due(loop.awake, DUE)
    assert loop.due.expect() and other.expect()
    loop.due.met()
    assert not any(loop.turn() for _ in range(5)), "the other has not come"
    other.met()
    assert loop.turns() <= 1


def test_a_loop_that_others_want_the_processor_of_rests() -> None:
    loop = Loop()
    loop.others = 3e-3
    loop.due.expect()
    assert loop.turns() == 1 and loop.given_way == 1
    loop.due.met()
    loop.hit()  # 3 ms were long
    loop.others = 0.0
    assert not loop.hit()
    loop.now += limits.AWAKE_REST
    assert loop.hit()


def test_it_rests_longer_each_time_and_recovers() -> None:
    loop = Loop()

    def rest() -> float:
        """Seconds without a try after others had the processor."""
        loop.others = 3e-3
        loop.due.expect()
        assert loop.turns() == 1
        loop.others, began = 0.0, loop.now
        loop.due.met()
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
    assert not loop.due.expect() and not loop.turns() and not loop.given_way


# --- one thing at a time ------------------------------------------------------------------------------------


class Process:
    """What comes after so many seconds, whether it is looked for or slept for."""

    def __init__(self) -> None:
        self.now = 100.0
        self.others = 0.0
        self.looks = 0
        self.comes = 0.0
        self.lookout = Lookout(DUE, lambda: self.now, self.give_way)

    def give_way(self) -> None:
        self.now += self.others

    def look(self) -> list[str]:
        self.looks += 1
        self.now += TURN
        return ["came"] if self.now >= self.comes else []

    def sleep(self) -> list[str]:
        self.now = max(self.now, self.comes)
        return ["slept"]

    def wait(self, seconds: float = 5 * TURN) -> bool:
        """Whether it came while this was awake."""
        self.looks, self.comes = 0, self.now + seconds
        return self.lookout.wait(self.look, self.sleep) == ["came"]


def test_what_comes_in_time_is_found_awake() -> None:
    process = Process()
    assert all(process.wait(20 * TURN) and process.looks in (20, 21) for _ in range(50))


def test_what_does_not_is_waited_for_asleep_and_the_next_one_as_well() -> None:
    process = Process()
    began = process.now
    assert not process.wait(10e-3) and process.looks * TURN < DUE + 2 * TURN
    assert process.now >= began + 10e-3
    assert not process.wait(10e-3) and not process.looks
    assert not process.wait(2 * DUE) and not process.looks, "by what the one before took"
    assert not process.wait(2 * DUE) and process.looks, "that would have come in time if nobody had slept"


def test_a_process_that_others_want_the_processor_of_rests() -> None:
    process = Process()
    process.others = 300e-6 + limits.AWAKE_LOST
    assert not process.wait() and process.looks == 1
    process.others = 0.0
    process.wait()
    assert not process.wait() and not process.looks
    process.now += limits.AWAKE_REST
    assert process.wait()


def test_what_cannot_give_way_sleeps() -> None:
    process = Process()
    process.lookout = Lookout(DUE, lambda: process.now)
    assert not process.wait() and not process.looks


async def test_there_is_one_for_each_loop() -> None:
    first = awake()
    assert awake() is first

    async def other() -> Awake:
        return awake()

    assert await asyncio.to_thread(asyncio.run, other()) is not first
    assert awake() is first
