"""A value that is there already is given before its turn, and is always the one that it would be in its turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from compute.values import tensor_bytes
from peer.stretch import Stretch
from peer.worker.framing import Message
from peer.worker.runtime import Runtime
from protocol import limits
from protocol.errors import ProtocolError

X, Y, Z, W = (number.to_bytes(16, "big") for number in (1 << 70, 1 << 71, 1 << 72, 1 << 73))
FRESH = [number.to_bytes(16, "big") for number in range(1 << 80, (1 << 80) + 40)]
WISH = 99

Operations = list[list[Any]]


class World:
    """A worker that is sent a wish for the value of X while it is at something else."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self._coming: list[list[Any]] = []
        self.runtime = Runtime(lambda message, _: self.said.append(message), receive=self._receive)
        self.provide(Y, torch.full((2, 2), 5.0))
        self.run([["aten.mul.Tensor", [Y, 2.0], {}, [X]], ["aten.add.Tensor", [Y, 1.0], {}, [Z]]])
        self.run([["aten.view.default", [X, [4]], {}, [W]]])
        self.said.clear()

    def provide(self, id: bytes, value: torch.Tensor) -> None:
        data = bytes(tensor_bytes(value))
        self.runtime.handle(["provide", id, "float32", list(value.shape), 0, False, data], [])

    def run(self, operations: Operations) -> None:
        self.runtime.handle(["run", 1, operations, None, []], [])

    def _receive(self) -> list[Message]:
        coming, self._coming = self._coming, []
        return [(message, []) for message in coming]

    def work(self, message: list[Any], *between: list[Any], then: list[Any] | None = None) -> list[Any]:
        """Handles a message; those between, and the wish, come while it is at it. Who was answered, in order."""
        self._coming = [*between, ["run", WISH, [], X, []] if then is None else then]
        self.runtime.handle(message, [])
        while waiting := self.runtime.ahead.messages:
            self.runtime.handle(*waiting.popleft())
        self.runtime.let_go()
        return [message[1] for message in self.said if message[0] in ("done", "fault")]

    @property
    def value(self) -> Any:
        (answer,) = [message for message in self.said if message[:2] == ["done", WISH]]
        (_, _, results, value) = answer
        assert results == []
        if isinstance(value, dict) or value[2] is None:  # a fault, or what the peer has itself
            return value
        return torch.frombuffer(bytearray(value[2]), dtype=torch.float32).tolist()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(limits, "LOOK_AHEAD", -1.0)
    return World()


def many(first: int = 0) -> Operations:
    """Operations that have nothing to do with X."""
    return [["aten.add.Tensor", [Z, Z], {}, [id]] for id in FRESH[first : first + 4]]


def run(seq: int, operations: Operations, dropped: tuple[bytes, ...] = ()) -> list[Any]:
    return ["run", seq, operations, None, list(dropped)]


def test_what_is_there_does_not_wait(world: World) -> None:
    assert world.work(run(1, many())) == [WISH, 1]
    assert world.value == [10.0] * 4


def test_it_does_not_wait_for_other_requests_either(world: World) -> None:
    assert world.work(run(1, many()), run(2, many(4)), ["drop", [FRESH[0]]], run(3, many(8))) == [WISH, 1, 2, 3]
    assert world.value == [10.0] * 4


def test_what_is_made_meanwhile_is_given_as_soon_as_it_is_there(world: World) -> None:
    made = ["aten.mul.Tensor", [Y, 3.0], {}, [FRESH[30]]]
    wish = ["run", WISH, [], FRESH[30], []]
    assert world.work(run(1, [*many(), made, *many(4)]), then=wish) == [WISH, 1]
    assert world.value == [15.0] * 4


def test_what_it_came_to_let_go_of_it_lets_go_of_in_its_turn(world: World) -> None:
    uses = ["aten.add.Tensor", [X, X], {}, [FRESH[20]]]
    assert world.work(run(1, [*many(), uses]), then=["run", WISH, [], X, [X]]) == [WISH, 1]
    assert world.value == [10.0] * 4
    assert FRESH[20] in world.runtime._objects.tensors
    assert X not in world.runtime._objects.tensors


IN_PLACE = ["aten.add_.Scalar", [X, 1], {}, []]
BY_VIEW = ["aten.add_.Scalar", [W, 1], {}, []]
BY_NEW_VIEW = [["aten.view.default", [X, [4]], {}, [FRESH[30]]], ["aten.add_.Scalar", [FRESH[30], 1], {}, []]]


@pytest.mark.parametrize("change", [[IN_PLACE], [BY_VIEW], BY_NEW_VIEW], ids=["itself", "a view", "a new view"])
@pytest.mark.parametrize("where", ["in the same request", "in one between"])
def test_what_may_still_change_waits(world: World, change: Operations, where: str) -> None:
    if where == "in the same request":
        world.work(run(1, [*many(), *change]))
    else:
        world.work(run(1, many()), run(2, [*many(4), *change]))
    assert world.value == [11.0] * 4


def test_what_was_changed_already_does_not_wait(world: World) -> None:
    assert world.work(run(1, [IN_PLACE, *many()])) == [WISH, 1]
    assert world.value == [11.0] * 4


def test_an_id_that_is_given_to_another_object_waits(world: World) -> None:
    anew = ["aten.add.Tensor", [Z, 1.0], {}, [X]]
    world.work(run(1, many(), (X,)), run(2, [anew]))
    assert world.value == [7.0] * 4


@pytest.mark.parametrize("between", [["drop", [X]], run(2, many(4), (X,))])
def test_an_id_that_is_let_go_of_in_between_waits(world: World, between: list[Any]) -> None:
    anew = ["aten.add.Tensor", [Z, 1.0], {}, [X]]
    world.work(run(1, many()), between, run(3, [anew]))
    assert world.value == [7.0] * 4


def test_behind_what_is_not_known_it_waits(world: World) -> None:
    data = bytes(tensor_bytes(torch.zeros(2, 2)))
    provides = ["provide", X, "float32", [2, 2], 0, False, data]
    assert world.work(run(1, many()), provides) == [1, WISH]
    assert world.value[2] is None


def test_what_a_check_may_spoil_waits(world: World) -> None:
    """An inverse is not good before it was looked whether there is one."""
    inverse = ["aten.linalg_inv_ex.default", [Y], {}, [FRESH[30], FRESH[31]]]
    check = ["aten._linalg_check_errors.default", [FRESH[31], "linalg.inv"], {"is_matrix": True}, []]
    assert world.work(run(1, [inverse, *many(), check]), then=["run", WISH, [], FRESH[30], []]) == [1, WISH]
    assert isinstance(world.value, dict)


def test_what_failed_is_told_in_its_turn(world: World) -> None:
    fails = ["aten.mm.default", [W, W], {}, [FRESH[30]]]
    assert world.work(run(1, [fails, *many()]), then=["run", WISH, [], FRESH[30], []]) == [1, WISH]
    assert world.value["code"] == "operation_failed"


def test_what_is_no_message_is_said_in_its_turn(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise ProtocolError("nonsense")

    monkeypatch.setattr(world.runtime.ahead, "_receive", broken)
    world.runtime.handle(run(1, many()), [])
    assert world.said[-1][:2] == ["done", 1]
    assert all(isinstance(result, list) for result in world.said[-1][2])
    assert isinstance(world.runtime.ahead.broken, ProtocolError)


def test_no_more_is_read_behind_what_may_be_large(world: World) -> None:
    def coming() -> list[Message]:
        reads.append(None)
        return [(["forget", bytes(32)], [])]

    reads: list[None] = []
    world.runtime.ahead._receive = coming
    world.runtime.handle(run(1, many()), [])
    assert len(reads) == 1


def learned(world: World, operations: Callable[[list[bytes]], Operations]) -> tuple[Any, Callable[[int], list[Any]]]:
    """A stretch that the worker knows, and a message that uses it with fresh ids."""
    stretch = Stretch.of(operations(FRESH))
    assert stretch is not None
    world.runtime.handle(["stretch", 7, stretch.numbered(), None], [])

    def use(seq: int) -> list[Any]:
        fresh = [bytes([seq]) * 15 + bytes([at]) for at in range(stretch.made)]
        given = []
        for operation in operations(fresh):
            for value in operation[1]:
                if type(value) is bytes and value not in fresh and value not in given:
                    given.append(value)
        return ["again", seq, 7, b"".join(given), b"".join(fresh), [], None, []]

    for seq in (10, 11, 12):
        world.runtime.handle(use(seq), [])
    world.said.clear()
    return stretch, use


@pytest.mark.parametrize("is_between", [False, True])
def test_of_a_stretch_it_is_known_what_it_writes(world: World, is_between: bool) -> None:
    def harmless(fresh: list[bytes]) -> Operations:
        return [["aten.add.Tensor", [Z, Z], {}, [id]] for id in fresh[:4]] + [["aten.add_.Scalar", [Y, 1], {}, []]]

    _, use = learned(world, harmless)
    if is_between:
        assert world.work(run(1, many()), use(20)) == [WISH, 1, 20]
    else:
        assert world.work(use(20)) == [WISH, 20]
    assert world.value == [10.0] * 4


@pytest.mark.parametrize("is_between", [False, True])
def test_a_stretch_that_changes_it_comes_first(world: World, is_between: bool) -> None:
    def harmful(fresh: list[bytes]) -> Operations:
        return [["aten.add.Tensor", [Z, Z], {}, [id]] for id in fresh[:4]] + [["aten.add_.Scalar", [W, 1], {}, []]]

    _, use = learned(world, harmful)
    if is_between:
        world.work(run(1, many()), use(20))
    else:
        world.work(use(20))
    assert world.value == [14.0] * 4  # 10, and once for each use
