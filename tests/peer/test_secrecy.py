"""What is told of a computation on others' private data that failed."""

from __future__ import annotations

from peer.secrecy import told
from protocol.errors import OperationFailed, WorkerLost


def test_an_error_about_private_data_keeps_its_kind_and_no_word_of_the_workers() -> None:
    error = OperationFailed("the 7th row is 42", operation="the 7th row is 42", peer="the 7th row is 42", type="42")
    shown = told(error, {"bob"})
    assert type(shown) is OperationFailed
    assert "42" not in str(shown.to_fault())


def test_the_operation_that_failed_is_named_where_the_table_has_it() -> None:
    assert told(OperationFailed("no", operation="aten.mm.default"), {"bob"}).operation == "aten.mm.default"


def test_of_ones_own_data_and_of_a_lost_worker_everything_is_told() -> None:
    own, lost = OperationFailed("the 7th row is 42", operation="x"), WorkerLost("it died")
    assert told(own, ()) is own
    assert told(lost, {"bob"}) is lost
