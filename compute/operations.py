"""The ATen table's names: which operations a peer runs, by category. Data only; imports nothing.

What is not listed here is refused by name. Three levels of ATen stand side by side, because three kinds of callers
send them: what `__torch_dispatch__` of a tensor subclass sees (mm, native_layer_norm, their backward forms), what
`make_fx` leaves in a captured plan, and the composite operations that `torch.export` leaves in a model (linear, conv2d,
cross_entropy_loss).

Left out on purpose, whatever the category: everything that reads or writes files, loads code, or takes a storage,
device, generator or layout; results in uninitialised memory (`empty*`, `new_empty*`, `resize_`, `set_`: see
SUBSTITUTES); plain Python values made from data (`item`, `equal`, `is_nonzero`); `out=` forms; sparse, quantised,
nested and mkldnn layouts; and operations whose CPU kernels read out of bounds and are not checked from outside
(segment_reduce, _weight_norm*). Many others would read out of bounds, but for their guards
(numeric_guards.py, shape_guards.py, value_guards.py).

In the lists below a name without an overload means the overload "default".
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

_CATEGORIES: Final[dict[str, str]] = {
    "elementwise": """
        abs absolute neg negative positive sign sgn signbit square sqrt rsqrt reciprocal exp exp2 expm1 log log2 log10
        log1p sin cos tan asin acos atan arcsin arccos arctan sinh cosh tanh asinh acosh atanh sinc atan2 arctan2 hypot
        erf erfc erfinv lgamma digamma logit sigmoid ceil floor round round.decimals trunc fix frac
        angle conj_physical _conj_physical real imag complex polar deg2rad rad2deg nan_to_num i0 special_i0e
        special_i1 special_i1e special_entr special_erfcx special_ndtr special_ndtri special_log_ndtr special_expit
        special_xlog1py special_logit special_log1p special_expm1 xlogy.Tensor xlogy.Scalar_Self xlogy.Scalar_Other
        add.Tensor add.Scalar sub.Tensor sub.Scalar subtract.Tensor rsub.Tensor rsub.Scalar mul.Tensor mul.Scalar
        multiply.Tensor div.Tensor div.Scalar div.Tensor_mode div.Scalar_mode divide.Tensor divide.Scalar
        divide.Tensor_mode divide.Scalar_mode true_divide.Tensor true_divide.Scalar floor_divide floor_divide.Scalar
        remainder.Tensor remainder.Scalar remainder.Scalar_Tensor fmod.Tensor fmod.Scalar pow.Tensor_Tensor
        pow.Tensor_Scalar pow.Scalar float_power.Tensor_Tensor float_power.Tensor_Scalar maximum minimum max.other
        min.other fmax fmin clamp clamp.Tensor clamp_min clamp_min.Tensor clamp_max clamp_max.Tensor clip clip.Tensor
        lerp.Scalar lerp.Tensor addcmul addcdiv copysign.Tensor copysign.Scalar heaviside nextafter logaddexp
        logaddexp2 ldexp.Tensor gcd lcm frexp.Tensor igamma igammac polygamma
        bitwise_and.Tensor bitwise_and.Scalar bitwise_and.Scalar_Tensor bitwise_or.Tensor bitwise_or.Scalar
        bitwise_or.Scalar_Tensor bitwise_xor.Tensor bitwise_xor.Scalar bitwise_xor.Scalar_Tensor bitwise_not
        bitwise_left_shift.Tensor bitwise_left_shift.Tensor_Scalar bitwise_left_shift.Scalar_Tensor
        bitwise_right_shift.Tensor bitwise_right_shift.Tensor_Scalar bitwise_right_shift.Scalar_Tensor
        __and__.Tensor __and__.Scalar __or__.Tensor __or__.Scalar __xor__.Tensor __xor__.Scalar __lshift__.Tensor
        __lshift__.Scalar __rshift__.Tensor __rshift__.Scalar
    """,
    "special": """
        special_airy_ai special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1
        special_modified_bessel_i0 special_modified_bessel_i1 special_modified_bessel_k0 special_modified_bessel_k1
        special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1 special_spherical_bessel_j0 special_zeta
        special_zeta.other_scalar special_zeta.self_scalar special_xlog1py.other_scalar special_xlog1py.self_scalar
        mvlgamma special_multigammaln special_chebyshev_polynomial_t special_chebyshev_polynomial_t.n_scalar
        special_chebyshev_polynomial_t.x_scalar special_chebyshev_polynomial_u special_chebyshev_polynomial_u.n_scalar
        special_chebyshev_polynomial_u.x_scalar special_chebyshev_polynomial_v special_chebyshev_polynomial_v.n_scalar
        special_chebyshev_polynomial_v.x_scalar special_chebyshev_polynomial_w special_chebyshev_polynomial_w.n_scalar
        special_chebyshev_polynomial_w.x_scalar special_shifted_chebyshev_polynomial_t
        special_shifted_chebyshev_polynomial_t.n_scalar special_shifted_chebyshev_polynomial_t.x_scalar
        special_shifted_chebyshev_polynomial_u special_shifted_chebyshev_polynomial_u.n_scalar
        special_shifted_chebyshev_polynomial_u.x_scalar special_shifted_chebyshev_polynomial_v
        special_shifted_chebyshev_polynomial_v.n_scalar special_shifted_chebyshev_polynomial_v.x_scalar
        special_shifted_chebyshev_polynomial_w special_shifted_chebyshev_polynomial_w.n_scalar
        special_shifted_chebyshev_polynomial_w.x_scalar special_hermite_polynomial_h
        special_hermite_polynomial_h.n_scalar special_hermite_polynomial_h.x_scalar special_hermite_polynomial_he
        special_hermite_polynomial_he.n_scalar special_hermite_polynomial_he.x_scalar special_laguerre_polynomial_l
        special_laguerre_polynomial_l.n_scalar special_laguerre_polynomial_l.x_scalar special_legendre_polynomial_p
        special_legendre_polynomial_p.n_scalar special_legendre_polynomial_p.x_scalar
    """,
    "comparison": """
        eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar le.Tensor le.Scalar gt.Tensor gt.Scalar ge.Tensor
        ge.Scalar not_equal.Tensor not_equal.Scalar less.Tensor less.Scalar less_equal.Tensor less_equal.Scalar
        greater.Tensor greater.Scalar greater_equal.Tensor greater_equal.Scalar isclose isnan isinf isfinite isneginf
        isposinf isreal isin.Tensor_Tensor isin.Tensor_Scalar logical_and logical_or logical_xor logical_not
    """,
    "reduction": """
        sum sum.dim_IntList nansum mean mean.dim nanmean prod prod.dim_int max max.dim min min.dim amax amin aminmax
        argmax argmin any any.dim any.dims all all.dim all.dims var var.dim var.correction var_mean var_mean.dim
        var_mean.correction std std.dim std.correction std_mean std_mean.dim std_mean.correction logsumexp
        median median.dim nanmedian nanmedian.dim mode kthvalue count_nonzero count_nonzero.dim_IntList norm.Scalar
        norm.ScalarOpt_dim norm.ScalarOpt_dtype norm.ScalarOpt_dim_dtype linalg_vector_norm linalg_matrix_norm
        linalg_norm frobenius_norm.dim dist cumsum cumprod cummax cummin logcumsumexp trace
        histc histogram.bin_ct histogram.bins_tensor hash_tensor bincount
        _histogramdd_bin_edges _histogramdd_from_bin_cts _histogramdd_from_bin_tensors
        quantile quantile.scalar nanquantile nanquantile.scalar sum_to_size
        trapezoid.x trapezoid.dx cumulative_trapezoid.x cumulative_trapezoid.dx renorm
    """,
    "matmul": """
        mm bmm mv dot vdot inner outer ger matmul addmm addmv addbmm baddbmm addr linear bilinear _trilinear
        linalg_matmul linalg_multi_dot chain_matmul linalg_vecdot tensordot einsum kron cross linalg_cross
        cosine_similarity pairwise_distance cdist _cdist_forward _pdist_forward
    """,
    "linalg": """
        linalg_inv_ex linalg_inv inverse linalg_cholesky_ex linalg_cholesky cholesky_solve cholesky_inverse
        _linalg_solve_ex linalg_solve_ex linalg_solve linalg_solve_triangular _linalg_det linalg_det det _linalg_slogdet
        linalg_slogdet slogdet logdet _linalg_eigh linalg_eigh linalg_eigvalsh _linalg_svd linalg_svd linalg_svdvals
        linalg_qr linalg_lu_factor_ex linalg_lu_factor linalg_lu linalg_lu_solve linalg_matrix_power matrix_power
        linalg_matrix_exp linalg_pinv linalg_pinv.atol_rtol_float linalg_pinv.atol_rtol_tensor linalg_diagonal
        _linalg_check_errors linalg_eig linalg_eigvals _linalg_eigvals linalg_householder_product geqrf ormqr lu_unpack
        linalg_ldl_factor_ex linalg_ldl_solve linalg_lstsq triangular_solve cholesky
    """,
    "transform": """
        _fft_r2c _fft_c2r _fft_c2c
    """,
    "view": """
        alias detach view view.dtype _unsafe_view reshape reshape_as view_as expand expand_as
        broadcast_to broadcast_tensors permute transpose.int t numpy_T mT mH adjoint matrix_H swapaxes swapdims
        movedim.int movedim.intlist moveaxis.int moveaxis.intlist squeeze squeeze.dim squeeze.dims unsqueeze
        flatten.using_ints unflatten.int ravel slice.Tensor select.int narrow diagonal unfold as_strided
        split.Tensor split.sizes split_with_sizes chunk unbind.int tensor_split.sections tensor_split.indices
        unsafe_split.Tensor unsafe_split_with_sizes unsafe_chunk hsplit.int vsplit.int dsplit.int atleast_1d atleast_2d
        atleast_3d view_as_real view_as_complex conj _conj _neg_view resolve_conj resolve_neg contiguous
        lift_fresh lift_fresh_copy
    """,
    "copying": """
        clone copy alias_copy view_copy expand_copy permute_copy squeeze_copy squeeze_copy.dim squeeze_copy.dims
        unsqueeze_copy transpose_copy.int t_copy diagonal_copy select_copy.int slice_copy.Tensor unbind_copy.int
        split_copy.Tensor split_with_sizes_copy unfold_copy as_strided_copy narrow_copy detach_copy
        cat _chunk_cat concat concatenate stack hstack vstack dstack column_stack row_stack block_diag repeat tile
        repeat_interleave.self_int repeat_interleave.self_Tensor repeat_interleave.Tensor roll flip fliplr flipud rot90
        tril triu diag diag_embed diagflat meshgrid meshgrid.indexing cartesian_prod vander diff
        constant_pad_nd pad reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
        replication_pad3d pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle im2col col2im
        pad_sequence slice_scatter select_scatter diagonal_scatter as_strided_scatter
    """,
    "index": """
        index.Tensor index_put index_select index_add index_copy index_fill.int_Scalar index_fill.int_Tensor
        index_reduce gather scatter.src scatter.value scatter.reduce scatter.value_reduce scatter_add
        scatter_reduce.two masked_fill.Scalar masked_fill.Tensor masked_select masked_scatter where.self
        where.ScalarSelf where.ScalarOther where.Scalar where nonzero argwhere take put take_along_dim
        _unsafe_index.Tensor _unsafe_index_put _unsafe_masked_index _unsafe_masked_index_put_accumulate
        topk sort sort.stable argsort argsort.stable msort unique_consecutive _unique2 unique_dim searchsorted.Tensor
        searchsorted.Scalar bucketize.Tensor bucketize.Scalar one_hot embedding nonzero_static
    """,
    "conv": """
        convolution conv1d conv1d.padding conv2d conv2d.padding conv3d conv3d.padding
        conv_transpose1d conv_transpose2d.input conv_transpose3d.input
    """,
    "pool": """
        max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices
        avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
        _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
        max_unpool2d max_unpool3d fractional_max_pool2d fractional_max_pool3d
        upsample_nearest1d upsample_nearest1d.vec upsample_nearest2d upsample_nearest2d.vec upsample_nearest3d
        upsample_nearest3d.vec _upsample_nearest_exact1d _upsample_nearest_exact2d upsample_linear1d
        upsample_linear1d.vec upsample_bilinear2d upsample_bilinear2d.vec upsample_bicubic2d upsample_bicubic2d.vec
        _upsample_nearest_exact3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
        upsample_trilinear3d upsample_trilinear3d.vec grid_sampler grid_sampler_2d grid_sampler_3d
    """,
    "norm": """
        layer_norm native_layer_norm group_norm native_group_norm batch_norm native_batch_norm
        _native_batch_norm_legit _native_batch_norm_legit.no_stats _native_batch_norm_legit_no_training
        _batch_norm_with_update instance_norm rms_norm
    """,
    "activation": """
        relu relu6 elu celu selu gelu silu mish leaky_relu prelu _prelu_kernel hardtanh hardsigmoid hardswish
        hardshrink softshrink softplus log_sigmoid log_sigmoid_forward threshold glu rrelu_with_noise
        softmax.int _softmax _safe_softmax log_softmax.int _log_softmax special_softmax special_log_softmax
        scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu
        _scaled_dot_product_attention_math
    """,
    "loss": """
        nll_loss nll_loss_nd nll_loss2d nll_loss_forward nll_loss2d_forward cross_entropy_loss mse_loss l1_loss
        smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits kl_div poisson_nll_loss
        soft_margin_loss multi_margin_loss multilabel_margin_loss multilabel_margin_loss_forward
        hinge_embedding_loss margin_ranking_loss cosine_embedding_loss triplet_margin_loss _ctc_loss _ctc_loss.Tensor
    """,
    "rnn": """
        lstm.input gru.input rnn_tanh.input rnn_relu.input lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
    """,
    "factory": """
        zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full scalar_tensor arange arange.start
        arange.start_step linspace linspace.Tensor_Tensor linspace.Tensor_Scalar
        linspace.Scalar_Tensor logspace logspace.Tensor_Tensor logspace.Tensor_Scalar logspace.Scalar_Tensor
        eye eye.m tril_indices triu_indices fill.Scalar
        fill.Tensor zero     """,
    "cast": """
        _to_copy to.dtype to.dtype_layout to.other type_as
    """,
    "random": """
        rand randn randint randint.low randperm rand_like randn_like randint_like randint_like.low_dtype bernoulli
        bernoulli.p bernoulli.Tensor multinomial normal.Tensor_float normal.float_Tensor normal.Tensor_Tensor poisson
        native_dropout dropout feature_dropout alpha_dropout feature_alpha_dropout normal_ uniform_ bernoulli_.float
        bernoulli_.Tensor exponential_ log_normal_ cauchy_ geometric_ random_ random_.to random_.from dropout_
        _standard_gamma _sample_dirichlet binomial
    """,
    "inplace": """
        abs_ absolute_ neg_ negative_ sign_ sgn_ square_ sqrt_ rsqrt_ reciprocal_ exp_ exp2_ expm1_ log_ log2_ log10_
        log1p_ sin_ cos_ tan_ asin_ acos_ atan_ sinh_ cosh_ tanh_ asinh_ acosh_ atanh_ sinc_ atan2_ hypot_ erf_ erfc_
        erfinv_ lgamma_ digamma_ logit_ sigmoid_ ceil_ floor_ round_ round_.decimals trunc_ fix_ frac_ conj_physical_
        deg2rad_ rad2deg_ nan_to_num_ i0_ xlogy_.Tensor xlogy_.Scalar_Other
        add_.Tensor add_.Scalar sub_.Tensor sub_.Scalar subtract_.Tensor mul_.Tensor mul_.Scalar multiply_.Tensor
        div_.Tensor div_.Scalar div_.Tensor_mode div_.Scalar_mode divide_.Tensor divide_.Scalar true_divide_.Tensor
        true_divide_.Scalar floor_divide_.Tensor floor_divide_.Scalar remainder_.Tensor remainder_.Scalar fmod_.Tensor
        fmod_.Scalar pow_.Tensor pow_.Scalar float_power_.Tensor float_power_.Scalar clamp_ clamp_.Tensor clamp_min_
        clamp_min_.Tensor clamp_max_ clamp_max_.Tensor clip_ clip_.Tensor copysign_.Tensor copysign_.Scalar heaviside_
        nextafter_ ldexp_ gcd_ lcm_
        bitwise_and_.Tensor bitwise_and_.Scalar bitwise_or_.Tensor bitwise_or_.Scalar bitwise_xor_.Tensor
        bitwise_xor_.Scalar bitwise_not_ bitwise_left_shift_.Tensor bitwise_left_shift_.Tensor_Scalar
        bitwise_right_shift_.Tensor bitwise_right_shift_.Tensor_Scalar __iand__.Tensor __iand__.Scalar __ior__.Tensor
        __ior__.Scalar __ixor__.Tensor __ixor__.Scalar __ilshift__.Tensor __ilshift__.Scalar __irshift__.Tensor
        __irshift__.Scalar
        eq_.Tensor eq_.Scalar ne_.Tensor ne_.Scalar lt_.Tensor lt_.Scalar le_.Tensor le_.Scalar gt_.Tensor gt_.Scalar
        ge_.Tensor ge_.Scalar logical_and_ logical_or_ logical_xor_ logical_not_
        relu_ relu6_ elu_ celu_ selu_ silu_ mish_ leaky_relu_ hardtanh_ hardsigmoid_ hardswish_ threshold_
        cumsum_ cumprod_ renorm_ tril_ triu_ fill_diagonal_ addmm_ addmv_ addbmm_ baddbmm_ addr_
        igamma_ igammac_ polygamma_ mvlgamma_ rrelu_with_noise_ embedding_renorm_
        copy_ fill_.Scalar fill_.Tensor zero_ masked_fill_.Scalar masked_fill_.Tensor masked_scatter_ index_put_
        index_add_ index_copy_ index_fill_.int_Scalar index_fill_.int_Tensor index_reduce_ scatter_.src scatter_.value
        scatter_.reduce scatter_.value_reduce scatter_add_ scatter_reduce_.two put_
        squeeze_ squeeze_.dim squeeze_.dims unsqueeze_ transpose_ t_ swapaxes_ swapdims_ detach_
    """,
    "optimiser": """
        addcmul_ addcdiv_ lerp_.Scalar lerp_.Tensor
    """,
    "backward": """
        sigmoid_backward tanh_backward logit_backward threshold_backward elu_backward gelu_backward silu_backward
        mish_backward leaky_relu_backward hardtanh_backward hardsigmoid_backward hardswish_backward
        hardshrink_backward softshrink_backward softplus_backward log_sigmoid_backward glu_backward
        _prelu_kernel_backward rrelu_with_noise_backward _softmax_backward_data _log_softmax_backward_data
        mse_loss_backward smooth_l1_loss_backward huber_loss_backward binary_cross_entropy_backward
        soft_margin_loss_backward nll_loss_backward nll_loss2d_backward multi_margin_loss_backward
        multilabel_margin_loss_backward
        native_layer_norm_backward native_group_norm_backward native_batch_norm_backward batch_norm_backward
        native_dropout_backward embedding_dense_backward embedding_backward convolution_backward
        max_pool2d_with_indices_backward max_pool3d_with_indices_backward avg_pool2d_backward avg_pool3d_backward
        _adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward adaptive_max_pool2d_backward
        adaptive_max_pool3d_backward
        reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward replication_pad1d_backward
        replication_pad2d_backward replication_pad3d_backward
        upsample_nearest1d_backward upsample_nearest2d_backward upsample_nearest3d_backward upsample_linear1d_backward
        upsample_bilinear2d_backward upsample_bicubic2d_backward upsample_trilinear3d_backward
        _upsample_nearest_exact1d_backward _upsample_nearest_exact2d_backward grid_sampler_2d_backward
        grid_sampler_3d_backward
        _pdist_backward _ctc_loss_backward _ctc_loss_backward.Tensor
        fractional_max_pool2d_backward fractional_max_pool3d_backward _upsample_nearest_exact3d_backward
        _upsample_bilinear2d_aa_backward _upsample_bicubic2d_aa_backward
        select_backward slice_backward diagonal_backward unfold_backward masked_scatter_backward
        value_selecting_reduction_backward cumprod_backward cummaxmin_backward trace_backward
        _standard_gamma_grad _dirichlet_grad
        _scaled_dot_product_flash_attention_for_cpu_backward     """,
    "size": """
        sym_size.int sym_numel sym_stride.int
    """,
}

_PREFIX: Final = "aten."


def _full(short: str) -> str:
    return _PREFIX + (short if "." in short else short + ".default")


OPERATIONS: Final[Mapping[str, str]] = MappingProxyType(
    {_full(short): category for category, text in _CATEGORIES.items() for short in text.split()}
)
"""Every allowed operation, "aten.add.Tensor" style, and its category."""

CATEGORIES: Final[tuple[str, ...]] = tuple(_CATEGORIES)

OPTIONAL: Final[frozenset[str]] = frozenset(
    _full(short)
    for short in """
        rms_norm _batch_norm_with_update
        batch_norm_backward _safe_softmax _scaled_dot_product_flash_attention_for_cpu
        _scaled_dot_product_flash_attention_for_cpu_backward _unsafe_masked_index
        _unsafe_masked_index_put_accumulate slice_backward
    """.split()
)
"""Operations that some releases of torch lack: refused there, never an error at start-up."""

NUMBERS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "int.add": 2,
        "int.sub": 2,
        "int.mul": 2,
        "int.floordiv": 2,
        "int.mod": 2,
        "int.neg": 1,
        "int.min": 2,
        "int.max": 2,
        "float.div": 2,
        "float.sqrt": 1,
        "float.from_int": 1,
        "int.from_float": 1,
    }
)
"""Arithmetic on plain numbers inside a program (sizes, mostly), and how many arguments each takes."""


# Callers inside torch ask for uninitialised memory and fill it (dropout does); the same call on zeros gives the same
# result and tells nobody what lay there before. The number is the position of a `stride` or `physical_layout`
# argument that zeros has no use for.
_SUBSTITUTES: Final[dict[str, tuple[str, int | None]]] = {
    "aten.empty.memory_format": ("aten.zeros.default", None),
    "aten.empty_strided.default": ("aten.zeros.default", 1),
    "aten.empty_permuted.default": ("aten.zeros.default", 1),
    "aten.empty_like.default": ("aten.zeros_like.default", None),
    "aten.new_empty.default": ("aten.new_zeros.default", None),
    "aten.new_empty_strided.default": ("aten.new_zeros.default", 2),
    "aten._efficientzerotensor.default": ("aten.zeros.default", None),
}

_OUT_FORMS: Final = {
    "aten.maximum.out": "aten.clamp_min_.Tensor",
    "aten.minimum.out": "aten.clamp_max_.Tensor",
}

SUBSTITUTES: Final[Mapping[str, str]] = MappingProxyType({name: other for name, (other, _) in _SUBSTITUTES.items()})
"""Operations that callers rewrite before they send them, and what they become (see `substitute`)."""


def substitute(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[str, Sequence[Any], Mapping[str, Any]]:
    """The same call by an operation of the table: on zeros for one of SUBSTITUTES, in place for maximum(a, b, out=a),
    which optimisers use; any other call as it is."""
    if name in _OUT_FORMS and len(args) == 2 and kwargs.get("out") is args[0]:
        return _OUT_FORMS[name], args, {}
    found = _SUBSTITUTES.get(name)
    if found is None:
        return name, args, kwargs
    other, dropped = found
    if dropped is not None:
        args = [value for position, value in enumerate(args) if position != dropped]
        kwargs = {key: value for key, value in kwargs.items() if key not in ("stride", "physical_layout")}
    if other != "aten.zeros_like.default":
        kwargs = {key: value for key, value in kwargs.items() if key != "memory_format"}
    return other, args, kwargs


def suggestions(name: str) -> list[str]:
    """Allowed names that look like `name`, best first, at most three."""
    base = _base(name)
    alike = [base] if base in _BASES else difflib.get_close_matches(base[:40], _BASES, n=3, cutoff=0.8)
    return [full for close in alike for full in _BASES[close]][:3]


def _base(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else name


_BASES: Final[dict[str, list[str]]] = {}
for _name in OPERATIONS:
    _BASES.setdefault(_base(_name), []).append(_name)
