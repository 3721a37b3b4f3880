"""Which requests go the way without waiting: those on what one worker has, as long as nothing more is to be decided."""

from __future__ import annotations

import asyncio
import gc
import time
from types import SimpleNamespace
from typing import Any

import pytest

from peer.at_once import AtHand, Hearing, at_hand, use_at_hand
from peer.batches import Results
from peer.execution import Execution
from peer.leases import Leases
from peer.objects import Objects, Temporary
from peer.run_requests import RunRequests
from peer.stretch import Stretch, Use
from protocol import limits
from protocol.errors import BadRequest
from protocol.tensors import TensorHeader

ASKER, LEASE = "somebody", ("somebody", bytes(16))
X, Y, Z = (bytes(15) + bytes([number]) for number in (1, 2, 3))
ADD = ["aten.add.Tensor", [X, X], {}, [Z]]
NOWHERE: Any = None
ADD_IN_PLACE = ["aten.add_.Tensor", [X, X], {}, []]


class Scene:
    """A peer where `X` was made in the worker without labels, and `Y` was provided to it."""

    def __init__(self) -> None:
        self.objects = Objects(NOWHERE, Leases(), "alice")
        self.worker: Any = SimpleNamespace(holds=lambda id: id in (X, Y), has_made=lambda id: id == X, key=None)
        self.x = self.add(X)
        self.add(Y)

    def add(self, id: bytes, owner: str = ASKER) -> Temporary:
        made = Temporary(id, owner, LEASE, frozenset(), time.time(), worker=self.worker)
        self.objects.add(made)
        return made

    def decide(self, *operations: Any, wanted: bytes | None = None) -> AtHand | None:
        return at_hand(self.objects, self.worker, ASKER, operations, wanted)


def test_operations_on_what_the_worker_has() -> None:
    scene = Scene()
    found = scene.decide(ADD, ["aten.neg.default", [Z], {}, [bytes(16)]])
    assert found == ({Z: None, bytes(16): None}, False)


def test_one_that_changes_its_input_says_so() -> None:
    assert Scene().decide(ADD_IN_PLACE) == ({}, True)


def test_not_one_that_would_change_what_is_being_published() -> None:
    scene = Scene()
    scene.x.is_being_published = True
    assert scene.decide(ADD_IN_PLACE) is None
    assert scene.decide(ADD) is not None


def test_not_one_that_names_what_it_changes() -> None:
    assert Scene().decide(["aten.add_.Tensor", [], {"self": X, "other": X}, []]) is None


def test_the_value_of_what_was_made_before_or_is_made_now() -> None:
    scene = Scene()
    assert scene.decide(ADD, wanted=X) is not None
    assert scene.decide(ADD, wanted=Z) is not None


def test_not_the_value_of_what_was_provided() -> None:
    assert Scene().decide(ADD, wanted=Y) is None


def test_nothing_of_others() -> None:
    scene = Scene()
    scene.objects.remove(X)
    scene.add(X, owner="another")
    assert scene.decide(ADD) is None
    assert scene.decide(["aten.neg.default", [Y], {}, [Z]], wanted=X) is None


@pytest.mark.parametrize("change", [{"labels": frozenset({"owner"})}, {"worker": None}])
def test_nothing_that_is_elsewhere_or_private(change: dict[str, Any]) -> None:
    scene = Scene()
    for name, value in change.items():
        setattr(scene.x, name, value)
    assert scene.decide(ADD) is None


def test_not_the_same_id_twice() -> None:
    assert Scene().decide(ADD, ADD) is None


def test_not_a_seed_which_concerns_workers_that_are_not_there_yet() -> None:
    assert Scene().decide(["grid.manual_seed", [5], {}, []]) is None


# --- a stretch that comes again -----------------------------------------------------------------------------


def _use(scene: Scene, *operations: Any, wanted: bytes | None = None) -> AtHand | None:
    stretch = Stretch.of(operations)
    assert stretch is not None
    given = [X if any(X in args for _, args, _, _ in operations) else Y]
    outs = b"".join(out for each in operations for out in each[3])
    use = Use(stretch, {"given": b"".join(given), "outs": outs})
    return use_at_hand(scene.objects, scene.worker, ASKER, use, wanted)


def test_a_stretch_on_what_the_worker_has() -> None:
    scene = Scene()
    assert _use(scene, ADD) == ({Z: None}, False)
    assert _use(scene, ADD, wanted=X) is not None and _use(scene, ADD, wanted=Z) is not None
    assert _use(scene, ADD, wanted=Y) is None
    assert _use(scene, ADD_IN_PLACE) == ({}, True)


def test_no_stretch_that_would_change_what_is_being_published() -> None:
    scene = Scene()
    scene.x.is_being_published = True
    assert _use(scene, ADD_IN_PLACE) is None
    assert _use(scene, ADD) is not None


@pytest.mark.parametrize("change", [{"labels": frozenset({"owner"})}, {"worker": None}, {"owner": "another"}])
def test_no_stretch_on_what_is_elsewhere_or_private_or_of_others(change: dict[str, Any]) -> None:
    scene = Scene()
    for name, value in change.items():
        setattr(scene.x, name, value)
    assert _use(scene, ADD) is None


def test_who_hears_gives_each_operation_what_is_said_of_it() -> None:
    scene, header, told = Scene(), TensorHeader("float32", (2,)), list[Any]()
    operations = [["aten.sort.default", [X], {}, [Y, Z]], ["aten.neg.default", [X], {}, [bytes(16)]]]
    hearing = Hearing(
        Results(scene.objects), scene.worker, operations, None, NOWHERE, lambda faults, value: faults, told.append
    )
    hearing.made = [Temporary(id, ASKER, LEASE, frozenset(), 0.0) for id in (Y, Z, bytes(16))]
    assert not hearing.done()
    hearing.set_result(([[], [header]], None))  # of the first only what the peer may not know is there
    assert told == [[None, None]]
    assert [each.header for each in hearing.made] == [None, None, header]


# --- who comes behind whom, and what is kept for whom ---------------------------------------------------------


async def test_a_principal_is_at_work_as_long_as_somebody_is_in_its_lane_or_waits() -> None:
    execution, order = Execution(NOWHERE, NOWHERE, NOWHERE), list[int]()

    async def go(number: int) -> None:
        async with execution.lane("ann"):
            order.append(number)
            await asyncio.sleep(0)

    assert not execution.is_at_work("ann")
    async with execution.lane("ann"):
        tasks = [asyncio.create_task(go(number)) for number in range(3)]
        await asyncio.sleep(0)
        assert execution.is_at_work("ann") and not execution.is_at_work("bob") and not order
    while not all(task.done() for task in tasks):
        assert execution.is_at_work("ann")
        await asyncio.sleep(0)
    assert order == [0, 1, 2] and not execution.is_at_work("ann")


class Line:
    """A connection, as far as it matters here."""

    remote = SimpleNamespace(id=ASKER)


def test_a_stretch_is_kept_for_the_connection_over_which_it_came_and_goes_with_it() -> None:
    asked: list[Any] = []

    def run_at_once(asker: str, lease_of: Any, what: Any, *_: Any) -> bool:
        asked.append(what)
        return True

    execution: Any = SimpleNamespace(run_at_once=run_at_once)
    requests = RunRequests(execution, "alice", lambda call: LEASE)

    def ask(line: Line, args: dict[str, Any]) -> bool:
        call: Any = SimpleNamespace(connection=line, args=args)
        return requests.at_once(call, lambda answer: None)

    one, other = Line(), Line()
    again = {"again": 3, "given": X, "outs": Z}
    assert not ask(one, again), "it was not kept yet"
    assert ask(one, {"operations": [ADD], "keep": 3}) and ask(one, again)
    assert asked[0] == [ADD] and asked[1].operations == [ADD]
    assert not ask(other, again)
    del one
    gc.collect()
    assert not requests._kept


def test_what_is_kept_for_one_principal_has_one_bound_over_all_its_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    stretch = Stretch.of([ADD])
    assert stretch is not None
    monkeypatch.setattr(limits, "STRETCH_MEMORY", 3 * stretch.nbytes)
    execution: Any = SimpleNamespace(run_at_once=lambda *_: True)
    requests = RunRequests(execution, "alice", lambda call: LEASE)

    def is_kept(line: Line, number: int) -> bool:
        call: Any = SimpleNamespace(connection=line, args={"operations": [ADD], "keep": number})
        assert requests.at_once(call, lambda answer: None), "the operations run in any case"
        return requests._keep(call)

    one, other, another = Line(), Line(), Line()
    another.remote = SimpleNamespace(id="another principal")
    assert is_kept(one, 0) and is_kept(one, 1) and is_kept(other, 0) and not is_kept(other, 1)
    assert is_kept(another, 0)
    del one
    gc.collect()
    assert is_kept(other, 1)


def test_what_is_no_operation_is_refused() -> None:
    with pytest.raises(BadRequest):
        Scene().decide(["aten.add.Tensor", [X]])
