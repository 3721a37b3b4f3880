"""What becomes of the results of operations, however their ids are used meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from peer.batches import Batch, Results
from peer.leases import Leases
from peer.objects import Objects
from protocol.errors import NotFound, OperationFailed
from protocol.tensors import TensorHeader

ID, LEASE = bytes(16), ("somebody", bytes(16))
WORKER: Any = SimpleNamespace(key=SimpleNamespace(labels=frozenset({"owner"})))


def _results() -> tuple[Objects, Results]:
    nowhere: Any = None
    objects = Objects(nowhere, Leases(), "alice")
    return objects, Results(objects)


def test_an_answer_for_an_id_that_was_used_again_is_the_first_ones_alone() -> None:
    objects, results = _results()
    first = results.register("somebody", LEASE, [ID], frozenset(), WORKER)
    objects.remove(ID)
    (second,) = results.register("somebody", LEASE, [ID], frozenset(), WORKER)
    results.settle(first, [TensorHeader("int64", (2,))], WORKER)
    assert second.header is None and first[0].header is not None
    results.settle(first, OperationFailed("no"), WORKER)
    assert second.failure is None and objects.temporary(ID) is second


def test_a_failure_on_others_private_data_quotes_nothing() -> None:
    _, results = _results()
    made = results.register("somebody", LEASE, [ID], frozenset({"owner"}), WORKER)
    fault = results.settle(made, OperationFailed("index 5 is out of bounds", type="IndexError"), WORKER)
    assert fault is not None and "5" not in fault["message"] and fault["fields"] == {}
    assert made[0].failure is not None and "5" not in made[0].failure.message


def test_what_an_operation_without_a_worker_was_to_change_is_spoiled_where_it_is_and_in_its_turn() -> None:
    asked: list[Any] = []
    worker: Any = SimpleNamespace(
        run=lambda operations: asked.append(operations),
        drop=lambda ids: None,
        spoil=lambda ids, error: asked.append((ids, error.code, error.operation)),
    )
    _, results = _results()
    results.register("somebody", LEASE, [ID], frozenset(), worker)
    before, change = ["aten.neg.default", [ID], {}, []], ["aten.add_.Tensor", [ID, b"gone"], {}, []]
    batch = Batch([before, change])
    batch.append(0, worker)
    results.not_placed("somebody", LEASE, batch, 1, NotFound("gone"))
    assert asked == [[before], ([ID], "not_found", "aten.add_.Tensor")]
    assert batch.faults[0] is None and batch.faults[1] is not None


def test_what_is_others_is_not_spoiled() -> None:
    objects, results = _results()
    (theirs,) = results.register("the owner", LEASE, [ID], frozenset(), WORKER)
    results.not_placed("somebody", LEASE, Batch([["aten.add_.Scalar", [ID, 1], {}, []]]), 0, NotFound("gone"))
    assert theirs.failure is None and objects.temporary(ID) is theirs
