"""Honest calls of composite operations, which torch's samples never show: they fall apart before anybody can look."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

Made = tuple[str, list[Any], dict[str, Any]]


def calls() -> Iterator[Made]:
    """Operation without "aten.", arguments, keyword arguments."""
    yield from _pools()
    yield from _norms()
    yield from _losses()
    yield from _recurrent()
    yield from _shapes()
    yield from _random()


def _x(*shape: int) -> torch.Tensor:
    return torch.rand(shape)


def _i(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def _pools() -> Iterator[Made]:
    for n in (1, 2, 3):
        image, window = _x(1, 2, *[6] * n), [2] * n
        for name in ("max_pool", "avg_pool"):
            yield f"{name}{n}d.default", [image, window, window, [0] * n], {}
        yield f"max_pool{n}d_with_indices.default", [image, window, window, [0] * n, [1] * n, True], {}
        yield f"max_pool{n}d.default", [image, window, [1] * n, [1] * n, [2] * n, True], {}
        yield f"adaptive_max_pool{n}d.default", [image, [3] * n], {}
        yield f"adaptive_avg_pool{n}d.default", [image, [5] * n], {}
        yield f"conv{n}d.padding", [image, _x(4, 2, *[3] * n), _x(4), [1] * n, "same"], {}
        yield f"upsample_nearest{n}d.vec", [image, [7] * n, None], {}
        yield f"upsample_nearest{n}d.vec", [image, None, [1.5] * n], {}
        yield f"_upsample_nearest_exact{n}d.default", [image, [9] * n], {}
    for name, n in (("linear1", 1), ("bilinear2", 2), ("bicubic2", 2), ("trilinear3", 3)):
        yield f"upsample_{name}d.vec", [_x(1, 2, *[4] * n), None, False, [2.0] * n], {}
    yield "grid_sampler.default", [_x(2, 3, 4, 5), _x(2, 6, 6, 2), 0, 1, False], {}
    yield "grid_sampler.default", [_x(2, 3, 4, 4, 4), _x(2, 3, 3, 3, 3), 0, 2, True], {}
    yield "native_channel_shuffle.default", [_x(2, 6, 3, 3), 3], {}


def _norms() -> Iterator[Made]:
    image = _x(4, 3, 5)
    weights = [_x(3) for _ in range(4)]
    yield "batch_norm.default", [image, *weights, True, 0.1, 1e-5, False], {}
    yield "batch_norm.default", [image, *weights, False, 0.1, 1e-5, False], {}
    yield "instance_norm.default", [image, *weights, True, 0.1, 1e-5, False], {}
    yield "_native_batch_norm_legit_no_training.default", [image, *weights, 0.1, 1e-5], {}
    yield "special_softmax.default", [image, 1, torch.float64], {}
    yield "special_log_softmax.default", [image, -1, None], {}
    query = _x(2, 4, 5, 8)
    yield "_scaled_dot_product_attention_math.default", [query, query, query, None, 0.0, True], {}
    yield "_scaled_dot_product_attention_math.default", [query, _x(2, 2, 5, 8), _x(2, 2, 5, 8)], {"enable_gqa": True}


def _losses() -> Iterator[Made]:
    scores, target = _x(4, 3), _i(0, 1, 2, 2)
    for name in ("nll_loss", "nll_loss_nd", "cross_entropy_loss"):
        yield f"{name}.default", [scores, target, _x(3), 1, -100], {}
    yield "nll_loss2d.default", [_x(2, 3, 2, 2), torch.randint(0, 3, (2, 2, 2)), _x(3), 0, 1], {}
    yield "cross_entropy_loss.default", [scores, _x(4, 3), None, 1, -100, 0.1], {}
    yield "kl_div.default", [scores, _x(4, 3), 1], {"log_target": True}
    yield "poisson_nll_loss.default", [scores, _x(4, 3), True, True, 1e-8, 1], {}
    yield "margin_ranking_loss.default", [_x(4), _x(4), torch.ones(4), 0.5, 0], {}
    yield "cosine_embedding_loss.default", [scores, _x(4, 3), torch.ones(4), 0.5, 1], {}
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*[_x(1, 2, 4, 8)] * 3)
    kept = [_x(1, 2, 4, 8)] * 4 + [out, lse, 0.0, False]
    yield "_scaled_dot_product_flash_attention_for_cpu_backward.default", kept, {}
    yield "embedding_backward.default", [_x(3, 4), _i(0, 2, 2), 5, -1, True, False], {}
    yield "value_selecting_reduction_backward.default", [_x(4), 1, torch.randint(0, 3, (4,)), [4, 3], False], {}
    yield "cumprod_backward.default", [_x(3, 4), _x(3, 4), 1, _x(3, 4)], {}
    yield "cummaxmin_backward.default", [_x(3, 4), _x(3, 4), torch.randint(0, 4, (3, 4)), 1], {}
    yield "trace_backward.default", [_x(), [3, 4]], {}


def _recurrent() -> Iterator[Made]:
    flags = [True, 1, 0.0, False, False, False]
    for name, gates in (("lstm", 4), ("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1)):
        weights = [_x(gates * 6, 4), _x(gates * 6, 6), _x(gates * 6), _x(gates * 6)]
        state: Any = [_x(1, 3, 6), _x(1, 3, 6)] if gates == 4 else _x(1, 3, 6)
        yield f"{name}.input", [_x(5, 3, 4), state, weights, *flags], {}
        both: Any = [_x(2, 3, 6), _x(2, 3, 6)] if gates == 4 else _x(2, 3, 6)
        yield f"{name}.input", [_x(3, 5, 4), both, weights * 2, True, 1, 0.0, False, True, True], {}
        cell: Any = [_x(3, 6), _x(3, 6)] if gates == 4 else _x(3, 6)
        yield f"{name}_cell.default", [_x(3, 4), cell, *weights], {}


def _shapes() -> Iterator[Made]:
    x = _x(3, 4)
    yield "tensordot.default", [x, _x(4, 5), [1], [0]], {}
    yield "einsum.default", ["ij,jk->ik", [x, _x(4, 5)]], {}
    yield "cdist.default", [x, _x(5, 4), 2.0, None], {}
    yield "chain_matmul.default", [[x, _x(4, 5), _x(5, 2)]], {}
    yield "linalg_pinv.default", [x, 1e-15, False], {}
    yield "broadcast_tensors.default", [[x, _x(4)]], {}
    yield "cartesian_prod.default", [[_x(2), _x(3)]], {}
    yield "meshgrid.default", [[_x(2), _x(3)]], {}
    yield "pad_sequence.default", [[_x(2, 3), _x(4, 3)], True, 0.0, "left"], {}
    yield "slice_scatter.default", [x, _x(2, 4), 0, 0, 2, 1], {}
    yield "scatter.value_reduce", [x, 1, torch.randint(0, 4, (3, 2)), 2.0], {"reduce": "add"}
    yield "_unsafe_index.Tensor", [x, [_i(0, 2), None]], {}
    yield "_unsafe_index_put.default", [x, [_i(0, 2)], _x(2, 4), True], {}
    yield "unique_dim.default", [x, 0, True, True, True], {}
    yield "searchsorted.Scalar", [_x(5).sort().values, 0.5], {"side": "right"}
    yield "bucketize.Scalar", [0.5, _x(5).sort().values], {}
    yield "quantile.default", [x, _x(2), 1, True], {"interpolation": "linear"}
    yield "nanquantile.default", [x, _x(2), 0, False], {"interpolation": "nearest"}
    yield "movedim.int", [x, 0, 1], {}
    yield "unsafe_split_with_sizes.default", [x, [1, 2], 0], {}
    yield "select_copy.int", [x, 0, 1], {}
    yield "slice_copy.Tensor", [x, 0, 0, 2, 1], {}
    yield "split_copy.Tensor", [x, 2, 0], {}
    yield "squeeze_copy.dims", [_x(1, 3, 1), [0, 2]], {}
    yield "fill_diagonal_.default", [x, 2.0, True], {}
    yield "where.ScalarOther", [x > 0.5, x, 1.0], {}
    yield "to.other", [x, _i(1)], {}
    yield "type_as.default", [x, _i(1)], {}
    yield "repeat_interleave.self_Tensor", [x, _i(1, 2, 0), 0], {"output_size": 3}
    yield "isin.Tensor_Scalar", [_i(1, 2), 1], {}
    yield "norm.ScalarOpt_dim_dtype", [x, 2.0, [0], True], {"dtype": torch.float64}


def _random() -> Iterator[Made]:
    x = _x(3, 4)
    yield "bernoulli.p", [x, 0.5], {}
    yield "bernoulli.Tensor", [x, x], {}
    yield "bernoulli_.Tensor", [x, _x(4)], {}
    yield "poisson.default", [x], {}
    yield "_standard_gamma.default", [x], {}
    yield "_standard_gamma_grad.default", [x, x], {}
    yield "_sample_dirichlet.default", [x], {}
    yield "_dirichlet_grad.default", [x, x, x], {}
    yield "binomial.default", [x.new_full((3, 4), 7.0), x], {}
    yield "randperm.default", [7], {}
    yield "native_dropout.default", [x, 0.5, True], {}
    for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "dropout_"):
        yield f"{name}.default", [x, 0.5, True], {}
    yield "random_.from", [x, 0, 10], {}
    yield "random_.to", [_i(1, 2), 10], {}
