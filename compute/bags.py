"""Bags of embeddings: sums, means or maxima of rows, without the kernels that trust their offsets."""

from __future__ import annotations

from typing import Any, Final

import torch

_SUM: Final = 0
_MEAN: Final = 1
_MAX: Final = 2
_HALVES: Final = (torch.bfloat16, torch.float16)


def embedding_bag(
    weight: Any,
    indices: Any,
    offsets: Any,
    scale_grad_by_freq: bool = False,
    mode: int = _SUM,
    sparse: bool = False,
    per_sample_weights: Any = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Any, Any, Any, Any]:
    """`_embedding_bag`: the bags; which bag each index is in; how many count in each; the rows of the maxima."""
    count = offsets.shape[0] - include_last_offset
    places = indices.new_ones(indices.shape).cumsum(0).sub(1).to(offsets.dtype)
    bag_of = torch.bucketize(places, offsets[:count], right=True) - 1
    counts = _counting(indices, padding_idx)
    size = indices.new_zeros(count).index_add(0, bag_of, counts.to(indices.dtype))
    rows = weight.index_select(0, indices)
    if mode != _MAX and weight.dtype in _HALVES:
        rows = rows.float()  # as torch's kernels add them up
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(1)
    empty = rows.new_zeros(count, weight.shape[1])
    if mode == _MAX:
        rows = rows.masked_fill(~counts.unsqueeze(1), float("-inf"))
        out = empty.index_reduce(0, bag_of, rows, "amax", include_self=False)
        out = out.masked_fill((size == 0).unsqueeze(1), 0)
        is_most = (rows == out.index_select(0, bag_of)) & counts.unsqueeze(1)
        named = torch.where(is_most, indices.unsqueeze(1), weight.shape[0])
        none = indices.new_full((count, weight.shape[1]), weight.shape[0])
        most = none.index_reduce(0, bag_of, named, "amin").clamp_max(weight.shape[0] - 1)
        return out, bag_of, size, most
    out = empty.index_add(0, bag_of, rows * counts.unsqueeze(1))
    if mode == _MEAN:
        out = out / size.clamp_min(1).unsqueeze(1)
    return out.to(weight.dtype), bag_of, size, indices.new_zeros(0)


def bag_backward(
    grad: Any,
    indices: Any,
    offsets: Any,
    offset2bag: Any,
    bag_size: Any,
    maximum_indices: Any,
    num_weights: int,
    scale_grad_by_freq: bool,
    mode: int,
    sparse: bool,
    per_sample_weights: Any,
    padding_idx: int = -1,
) -> Any:
    """`_embedding_bag_backward`. Where a sparse gradient is asked for, a dense one of the same values."""
    given = (grad, indices, offset2bag, bag_size, maximum_indices, num_weights, scale_grad_by_freq, mode)
    return weight_backward(*given, per_sample_weights, padding_idx)


def weight_backward(
    grad: Any,
    indices: Any,
    offset2bag: Any,
    bag_size: Any,
    maximum_indices: Any,
    num_weights: int,
    scale_grad_by_freq: bool,
    mode: int,
    per_sample_weights: Any,
    padding_idx: int = -1,
) -> Any:
    """`_embedding_bag_dense_backward`: the gradient of the table."""
    none = grad.new_zeros(num_weights, grad.shape[1])
    if mode == _MAX:
        return none.scatter_add(0, maximum_indices, grad * (bag_size > 0).unsqueeze(1))
    each = grad.index_select(0, offset2bag) * _counting(indices, padding_idx).unsqueeze(1)
    if mode == _MEAN:
        each = each / bag_size.index_select(0, offset2bag).clamp_min(1).unsqueeze(1)
    if per_sample_weights is not None:
        each = each * per_sample_weights.unsqueeze(1)
    if scale_grad_by_freq:
        often = indices.new_zeros(num_weights).index_add(0, indices, torch.ones_like(indices))
        each = each / often.index_select(0, indices).unsqueeze(1)
    return none.index_add(0, indices, each)


def sample_weights_backward(
    grad: Any, weight: Any, indices: Any, offsets: Any, offset2bag: Any, mode: int, padding_idx: int = -1
) -> Any:
    """`_embedding_bag_per_sample_weights_backward`."""
    each = (grad.index_select(0, offset2bag) * weight.index_select(0, indices)).sum(1)
    return each * _counting(indices, padding_idx)


def _counting(indices: Any, padding_idx: int) -> Any:
    """Which of them count: all but the padding."""
    return indices != padding_idx if padding_idx >= 0 else torch.ones_like(indices, dtype=torch.bool)
