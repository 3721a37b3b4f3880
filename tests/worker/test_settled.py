"""What a worker tells of a program before its end: what it says, and what its peer takes from it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import pytest
import torch

from compute.cost import ALLOWED
from compute.program import Input, Node, Program
from compute.values import tensor_bytes
from peer.worker.framing import encode
from peer.worker.remote import Made, Worker
from peer.worker.runtime import Runtime
from protocol import limits
from protocol.errors import GridError, InternalError, TooLarge, WorkerLost
from tests.waiting import PATIENCE, until
from tests.worker.conftest import new_id
from tests.worker.test_remote import impostor

X, TOTAL, LARGE = (bytes([number]) * 16 for number in (1, 2, 3))
SIZE = 2_000
PROGRAM = Program(
    (Input("x"),),
    (
        Node("aten.sum.default", [{"node": 0}]),
        *(Node("aten.add.Tensor", [{"node": 0 if at == 0 else at + 1}, 1.0]) for at in range(limits.SETTLED_STEPS)),
    ),
    {"tuple": [{"node": 1}, {"node": 1 + limits.SETTLED_STEPS}]},
)
LOOKS = [("float32", ()), ("float32", (SIZE,))]


# --- a worker --------------------------------------------------------------------------------------------------


class World:
    """A worker that has run the program before; `heard` is called with each message as it says it."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.heard: Callable[[Any], object] = lambda message: None
        self.flushed: list[int] = []  # how much had been said then
        self.runtime = Runtime(self._send, lambda: self.flushed.append(len(self.said)))
        data = bytes(tensor_bytes(torch.ones(SIZE)))
        self.runtime.handle(["provide", X, "float32", [SIZE], 0, False, data], [])
        self.run(program=PROGRAM.to_bytes())
        self.runtime.handle(["drop", [TOTAL, LARGE]], [])
        self.said.clear()

    def _send(self, message: Any, _: Any) -> None:
        if message[0] != "held":
            self.said.append(message)
            self.heard(message)

    def run(
        self,
        outs: tuple[bytes, ...] = (TOTAL, LARGE),
        *,
        is_shown: bool = True,
        is_reported: bool = False,
        program: bytes | None = None,
    ) -> None:
        about = [bytes.fromhex(PROGRAM.id), program, [X], list(outs), is_shown, is_reported, []]
        self.runtime.handle(["program", 7, *about], [])


@pytest.fixture
def world() -> World:
    return World()


def test_it_says_what_is_settled_at_once_and_in_the_end_that_it_is_over(world: World) -> None:
    world.run()
    settled, done = world.said
    assert settled == ["settled", 7, tuple(LOOKS), [struct.pack("<f", SIZE), None]]
    assert world.flushed[-1] == 1
    assert done == ["done", 7, None, None, None]
    assert torch.equal(world.runtime._objects.tensors[LARGE], torch.ones(SIZE) + limits.SETTLED_STEPS)


@pytest.mark.parametrize(("is_shown", "is_reported"), [(False, False), (True, True), (False, True)])
def test_where_no_values_are_wanted_or_a_report_it_says_all_in_the_end(
    world: World, is_shown: bool, is_reported: bool
) -> None:
    world.run(is_shown=is_shown, is_reported=is_reported)
    assert [message[0] for message in world.said] == ["done"]


def test_it_says_all_in_the_end_while_it_has_stored_files(world: World) -> None:
    world.runtime._objects.guards = 1
    world.run()
    assert [message[0] for message in world.said] == ["done"]


def test_a_wrong_number_of_results_is_a_fault_and_nothing_else(world: World) -> None:
    world.run((TOTAL,))
    ((kind, _, fault),) = world.said
    assert kind == "fault" and "gives 2 tensors, but 1 result ids" in fault["message"]


def test_what_fails_after_that_is_what_the_results_become(world: World) -> None:
    world.heard = lambda message: ALLOWED.limit(1_000, None)
    try:
        world.run()
    finally:
        ALLOWED.limit(None, None)
    assert [message[0] for message in world.said] == ["settled", "fault"]
    for id in (TOTAL, LARGE):
        with pytest.raises(TooLarge):
            world.runtime._objects.get(id)


# --- its peer --------------------------------------------------------------------------------------------------

HEADERS = [["float32", []], ["float32", [SIZE]]]
NUMBER = struct.pack("<f", 2.5)
SETTLED = ["settled", 1, HEADERS, [NUMBER, None]]
OVER = ["done", 1, None, None, None]


class Hears:
    """Who asked: everything that it is told, in order."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def done(self) -> bool:
        return False

    def exception(self) -> None:
        return None

    def set_result(self, result: Any) -> None:
        self.told.append(result)

    set_exception = set_result


def ask(worker: Worker, *, is_shown: bool = True) -> Hears:
    hears = Hears()
    told = hears.told.append if is_shown else None
    worker.run_program(hears, new_id() * 2, b"", [], [new_id(), new_id()], told=told)
    return hears


async def test_who_asked_is_told_before_the_end() -> None:
    async with impostor() as (worker, theirs):
        hears = ask(worker)
        theirs.sendall(encode(SETTLED))
        await until(lambda: hears.told)
        (made,) = hears.told
        assert isinstance(made, Made) and made.values == (NUMBER, None)
        assert [(header.dtype, header.shape) for header in made.headers] == LOOKS
        assert worker.is_busy
        theirs.sendall(encode(OVER))
        await until(lambda: not worker.is_busy)
        assert hears.told[1:] == [None] and not worker.is_lost


async def test_what_goes_wrong_after_that_is_told() -> None:
    async with impostor() as (worker, theirs):
        hears = ask(worker)
        theirs.sendall(encode(SETTLED) + encode(["fault", 1, {"code": "too_large", "message": "of memory"}]))
        await until(lambda: len(hears.told) == 2)
        assert isinstance(hears.told[1], TooLarge) and not worker.is_lost


async def test_a_worker_that_dies_after_that_is_told() -> None:
    async with impostor() as (worker, theirs):
        hears = ask(worker)
        theirs.sendall(encode(SETTLED))
        await until(lambda: hears.told)
        worker.kill()
        assert isinstance(hears.told[1], WorkerLost)


@pytest.mark.parametrize(
    "answers",
    [
        [["settled", 1, HEADERS[:1], [NUMBER]]],
        [["settled", 1, HEADERS, [NUMBER]]],
        [["settled", 1, HEADERS, [b"1", None]]],
        [["settled", 1, HEADERS, None, None, None]],
        [["settled", 1, [["os", [1]], ["float32", [-1]]], [None, None]]],
        [["settled", 1, 7, 7]],
        [["settled", 1]],
        [["settled", 2, HEADERS, [NUMBER, None]]],
        [SETTLED, SETTLED],
        [SETTLED, ["done", 1, HEADERS, [NUMBER, None], None]],
        [SETTLED, ["done", 1, None]],
        [SETTLED, OVER, SETTLED],
        [OVER],
    ],
    ids=range(13),
)
async def test_nonsense_ends_the_worker_and_nobody_waits(answers: list[Any]) -> None:
    async with impostor() as (worker, theirs):
        hears = ask(worker)
        theirs.sendall(b"".join(map(encode, answers)))
        await asyncio.wait_for(worker.lost, PATIENCE)
        errors = [each for each in hears.told if isinstance(each, GridError)]
        assert OVER in answers[1:] or isinstance(errors[0], InternalError | WorkerLost)


async def test_who_did_not_ask_for_it_is_not_told_before_the_end() -> None:
    async with impostor() as (worker, theirs):
        hears = ask(worker, is_shown=False)
        theirs.sendall(encode(SETTLED))
        await asyncio.wait_for(worker.lost, PATIENCE)
        assert [type(each) for each in hears.told] == [WorkerLost]


async def test_other_requests_have_nothing_to_tell_before_their_end() -> None:
    async with impostor() as (worker, theirs):
        asked = worker.export(new_id())
        theirs.sendall(encode(["settled", 1, [["float32", []]], [NUMBER]]))
        with pytest.raises(WorkerLost):
            await asyncio.wait_for(asked, PATIENCE)


async def test_one_whose_turn_has_not_come_has_settled_nothing() -> None:
    async with impostor() as (worker, theirs):
        ask(worker)
        ask(worker)
        theirs.sendall(encode(["settled", 2, HEADERS, [NUMBER, None]]))
        await asyncio.wait_for(worker.lost, PATIENCE)


async def test_who_gave_it_up_before_its_turn_hears_nothing_more() -> None:
    async with impostor() as (worker, theirs):
        first, second = ask(worker), ask(worker)
        worker.stop(2)
        await until(lambda: second.told)
        theirs.sendall(encode(SETTLED) + encode(OVER) + encode(["settled", 2, *SETTLED[2:]]))
        theirs.sendall(encode(["done", 2, None, None, None]))
        await until(lambda: not worker.is_busy)
        assert len(first.told) == 2 and len(second.told) == 1 and not worker.is_lost
