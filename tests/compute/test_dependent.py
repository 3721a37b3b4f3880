"""The torch-free list of operations whose shapes tell values is that of the bounds."""

from __future__ import annotations

from compute.bounds import BOUNDS
from compute.dependent import DATA_DEPENDENT, may_tell_values

# These have a bound only because they have no meta kernel; their shapes follow from shapes.
SHAPES_KNOWN = {
    "aten.multi_margin_loss_backward.default",
    "aten.multilabel_margin_loss_backward.default",
    "aten.lstm.input",
    "aten.gru.input",
    "aten.rnn_tanh.input",
    "aten.rnn_relu.input",
}


def test_every_operation_with_a_bound_is_listed_or_known_by_shapes() -> None:
    assert {name for name in BOUNDS if not may_tell_values(name)} == SHAPES_KNOWN
    assert DATA_DEPENDENT <= BOUNDS.keys()
