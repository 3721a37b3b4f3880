"""Operations whose kernels write every element of what they give.

A worker fills memory before an operation gets it (peer/worker/process.py), so that what an operation leaves out shows
nothing that was there. Of these nothing is left out, and a tenth of a training step would go into filling.
"""

from __future__ import annotations

from typing import Final

import torch

from compute.table import Entry

_WHOLE: Final = frozenset(
    f"aten.{name}"
    for name in (
        *("mm.default", "addmm.default", "bmm.default", "baddbmm.default", "mv.default", "dot.default"),
        *("convolution.default", "convolution_backward.default"),
        *("max_pool2d_with_indices.default", "max_pool2d_with_indices_backward.default"),
        *("avg_pool2d.default", "avg_pool2d_backward.default"),
        *("_log_softmax.default", "_log_softmax_backward_data.default", "_softmax.default"),
        *("_softmax_backward_data.default", "nll_loss_forward.default", "nll_loss_backward.default"),
        *("native_layer_norm.default", "native_layer_norm_backward.default"),
        *("sum.default", "sum.dim_IntList", "mean.default", "mean.dim", "amax.default", "amin.default"),
        *("argmax.default", "argmin.default", "cat.default", "clone.default", "embedding.default"),
        *("index_select.default", "ones_like.default", "zeros_like.default", "full_like.default"),
        *("ones.default", "zeros.default", "full.default"),
    )
)


def is_whole(entry: Entry) -> bool:
    """Whether its kernel writes all of what it gives, or gives views."""
    return entry.category == "view" or torch.Tag.pointwise in entry.overload.tags or entry.name in _WHOLE
