"""Which requests go the way without waiting: those on what one worker has, as long as nothing more is to be decided."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from peer.at_once import AtHand, at_hand, use_at_hand
from peer.leases import Leases
from peer.objects import Objects, Temporary
from peer.stretch import Stretch
from protocol.errors import BadRequest

ASKER, LEASE = "somebody", ("somebody", bytes(16))
X, Y, Z = (bytes(15) + bytes([number]) for number in (1, 2, 3))
ADD = ["aten.add.Tensor", [X, X], {}, [Z]]
ADD_IN_PLACE = ["aten.add_.Tensor", [X, X], {}, []]


class Scene:
    """A peer where `X` was made in the worker without labels, and `Y` was provided to it."""

    def __init__(self) -> None:
        nowhere: Any = None
        self.objects = Objects(nowhere, Leases(), "alice")
        self.worker: Any = SimpleNamespace(
            is_ready=True, holds=lambda id: id in (X, Y), has_made=lambda id: id == X, key=None
        )
        self.x = self.add(X)
        self.add(Y)

    def add(self, id: bytes, owner: str = ASKER) -> Temporary:
        made = Temporary(id, owner, LEASE, frozenset(), time.time(), worker=self.worker)
        self.objects.add(made)
        return made

    def decide(self, *operations: Any, wanted: bytes | None = None) -> AtHand | None:
        workers: Any = SimpleNamespace(find=lambda asker, labels: self.worker)
        return at_hand(self.objects, workers, ASKER, operations, wanted)


def test_operations_on_what_the_worker_has() -> None:
    scene = Scene()
    found = scene.decide(ADD, ["aten.neg.default", [Z], {}, [bytes(16)]])
    assert found == AtHand(scene.worker, {Z: None, bytes(16): None}, is_writing=False)


def test_one_that_changes_its_input_says_so() -> None:
    found = Scene().decide(ADD_IN_PLACE)
    assert found is not None and found.is_writing


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
    use = stretch.use({"given": b"".join(given), "outs": b"".join(out for each in operations for out in each[3])})
    workers: Any = SimpleNamespace(find=lambda asker, labels: scene.worker)
    return use_at_hand(scene.objects, workers, ASKER, use, wanted)


def test_a_stretch_on_what_the_worker_has() -> None:
    scene = Scene()
    assert _use(scene, ADD) == AtHand(scene.worker, {Z: None}, is_writing=False)
    assert _use(scene, ADD, wanted=X) is not None and _use(scene, ADD, wanted=Z) is not None
    assert _use(scene, ADD, wanted=Y) is None
    found = _use(scene, ADD_IN_PLACE)
    assert found is not None and found.is_writing


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


def test_what_is_no_operation_is_refused() -> None:
    with pytest.raises(BadRequest):
        Scene().decide(["aten.add.Tensor", [X]])
