"""What becomes of the results of operations, however their ids are used meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from peer.batches import Results
from peer.leases import Leases
from peer.objects import Objects
from protocol.errors import OperationFailed
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
