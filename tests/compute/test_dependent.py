"""The torch-free list of operations whose shapes tell values is that of the bounds."""

from __future__ import annotations

from compute.bounds import BOUNDS
from compute.dependent import DATA_DEPENDENT, may_tell_values

# These have a bound only because they have no meta kernel, or one that is wrong; their shapes follow from shapes.
SHAPES_KNOWN = {
    "aten.multi_margin_loss_backward.default",
    "aten.multilabel_margin_loss_backward.default",
    *("aten.multilabel_margin_loss.default", "aten.multilabel_margin_loss_forward.default"),
    "aten.lstm.input",
    "aten.gru.input",
    "aten.rnn_tanh.input",
    "aten.rnn_relu.input",
    *(f"aten.{kind}.{ends}" for kind in ("linspace", "logspace") for ends in ("Tensor_Tensor", "Tensor_Scalar")),
    *(f"aten.{kind}.Scalar_Tensor" for kind in ("linspace", "logspace")),
    *("aten.histogram.bin_ct", "aten.histogram.bins_tensor", "aten._histogramdd_bin_edges.default"),
    *("aten._histogramdd_from_bin_cts.default", "aten._histogramdd_from_bin_tensors.default"),
    *("aten.native_layer_norm.default", "aten.native_batch_norm.default", "aten._native_batch_norm_legit.default"),
    "aten._batch_norm_with_update.default",
    *("aten.geqrf.default", "aten.linalg_lstsq.default", "aten.fractional_max_pool3d_backward.default"),
    *("aten.binomial.default", "aten._sample_dirichlet.default", "aten._dirichlet_grad.default"),
    *("aten._standard_gamma_grad.default",),
    *("aten._ctc_loss.default", "aten._ctc_loss_backward.default", "aten._ctc_loss_backward.Tensor"),
}


def test_every_operation_with_a_bound_is_listed_or_known_by_shapes() -> None:
    assert {name for name in BOUNDS if not may_tell_values(name)} == SHAPES_KNOWN
    assert DATA_DEPENDENT <= BOUNDS.keys()
