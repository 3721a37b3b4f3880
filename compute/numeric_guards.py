"""Checks for transforms, matrix factors, distances, histograms, fractional pooling and special functions: what their
kernels read goes by dimensions, pivots and degrees that torch trusts (compute/shape_guards.py says why).

SHAPES look at metadata alone, VALUES read data; both are part of the tables of shape_guards and value_guards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import torch

from compute.checks import Call, Guard, has, require, too_large
from protocol import limits

_REAL: Final = (torch.float32, torch.float64)
_COMPLEX: Final = (torch.complex64, torch.complex128)
_INDEX: Final = (torch.int32, torch.int64)


_INTEGERS: Final = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _within(values: torch.Tensor, low: int, high: int, name: str) -> None:
    """All values of an integer tensor lie in low..high."""
    require(values.dtype in _INTEGERS, f"{name} must be integers")
    if values.numel():
        least, most = torch.aminmax(values.detach())
        require(low <= int(least) and int(most) <= high, f"{name} must lie in {low}..{high}")


# --- Fourier transforms -----------------------------------------------------------------------------------


def _transform(call: Call) -> None:
    given, dims = call["self"], call["dim"]
    dims = [dims] if isinstance(dims, int) else dims
    require(given.dtype in (_REAL if "onesided" in call else _COMPLEX), f"no such transform of {given.dtype}")
    require(0 <= call["normalization"] <= 2, "normalization is 0, 1 or 2")
    wraps = [dim % given.dim() for dim in dims if -given.dim() <= dim < given.dim()]
    require(len(set(wraps)) == len(dims), "the dimensions must be different ones of the tensor's")
    require(bool(dims) or "forward" in call, "a dimension is missing")
    last = call.get("last_dim_size")
    for dim in wraps:
        require(given.shape[dim] > 0, "a transform over nothing")
    if last is not None:
        fits = last >= 1 and given.shape[wraps[-1]] == last // 2 + 1
        require(fits, f"{last} elements come from {max(last, 0) // 2 + 1}, not from {given.shape[wraps[-1]]}")


# --- matrices ---------------------------------------------------------------------------------------------


def _unpacked(call: Call) -> None:
    factors, pivots = call["LU_data"], call["LU_pivots"]
    require(factors.dim() >= 2 and pivots.dtype is torch.int32, "LU_data is a matrix and LU_pivots are int32")
    want = [*factors.shape[:-2], min(factors.shape[-2:])]
    require(list(pivots.shape) == want, f"LU_pivots must have the shape {want}")


def _row_pivots(call: Call) -> None:
    if call["unpack_pivots"]:
        _within(call["LU_pivots"], 1, int(call["LU_data"].shape[-2]), "LU_pivots")


def _reflectors(call: Call) -> None:
    vectors, tau = (call[name] for name in (("input", "tau") if "tau" in call else ("self", "input2")))
    require(vectors.dim() >= 2 and tau.dim() == vectors.dim() - 1, "reflectors are a matrix, and tau has one for each")
    require(tau.dtype is vectors.dtype and tau.shape[-1] <= min(vectors.shape[-2:]), "tau does not fit the reflectors")


def _blocks(call: Call) -> None:
    """Pivots of an LDL factorisation: of blocks of one row, or negative ones, of blocks of two."""
    pivots, count = call["pivots"].detach(), int(call["LD"].shape[-1])
    _within(pivots, -count, count, "pivots")
    require(bool((pivots != 0).all()), "pivots count from 1")
    for row in pivots.reshape(-1, pivots.shape[-1]).tolist() if pivots.numel() else ():
        at = 0
        while at < len(row):
            fits = row[at] > 0 or (at + 1 < len(row) and row[at + 1] < 0)
            require(fits, "negative pivots come in pairs")
            at += 1 if row[at] > 0 else 2


def _factored(call: Call) -> None:
    factors, pivots = call["LD"], call["pivots"]
    require(factors.dim() >= 2 and factors.shape[-1] == factors.shape[-2], "LD holds square matrices")
    require(pivots.dtype is torch.int32 and pivots.shape == factors.shape[:-1], "pivots must be one int32 for each row")


def _finite(name: str) -> Guard:
    def guard(call: Call) -> None:
        require(bool(torch.isfinite(call[name].detach()).all()), f"{name} holds a number that is not finite")

    return guard


# --- distances --------------------------------------------------------------------------------------------


def _pairs(call: Call) -> None:
    given = call["self"]
    require(given.dim() == 2 and given.dtype in _REAL, "distances are taken between the rows of a matrix")
    require(call["p"] >= 0, "p is negative")
    count = given.shape[0] * (given.shape[0] - 1) // 2
    for name in ("grad", "pdist"):
        has(call.get(name), count, name)
        require(name not in call or call[name].dtype is given.dtype, f"{name} must be {given.dtype}")
        require(name not in call or call[name].is_contiguous() or name == "grad", f"{name} must be contiguous")
    require("grad" not in call or given.shape[0] > 0, "a gradient for no rows")


# --- alignments -------------------------------------------------------------------------------------------


def _alignment(call: Call) -> None:
    scores, targets = call["log_probs"], call["targets"]
    require(
        scores.dim() == 3 and scores.dtype in _REAL and 0 not in scores.shape, "log_probs are (time, batch, classes)"
    )
    require(targets.dtype in _INDEX and targets.dim() in (1, 2), "targets are integers, (batch, length) or one list")
    batch = scores.shape[1]
    for name in ("input_lengths", "target_lengths"):
        lengths = call[name]
        if isinstance(lengths, torch.Tensor):
            require(lengths.dim() == 1 and lengths.dtype in _INTEGERS, f"{name} are integers")
        count = len(lengths)
        require(count == batch, f"{name} must be {batch}")
        if not isinstance(lengths, torch.Tensor):
            require(not lengths or min(lengths) >= 0, f"{name} must not be negative")
    require(targets.dim() == 1 or targets.shape[0] == batch, "targets must have a row for each of the batch")
    require(0 <= call["blank"] < scores.shape[2], "blank must be one of the classes")
    if "grad" in call:
        has(call["grad"], batch, "grad")
        has(call["neg_log_likelihood"], batch, "neg_log_likelihood")
        alphas = call["log_alpha"]
        require(alphas.dim() == 3 and list(alphas.shape[:2]) == [batch, scores.shape[0]], "log_alpha does not fit")
        for name in ("grad", "neg_log_likelihood", "log_alpha"):
            require(call[name].dtype is scores.dtype, f"{name} must be {scores.dtype}")


def _alignment_values(call: Call) -> None:
    scores, targets = call["log_probs"], call["targets"].detach()
    steps, classes = int(scores.shape[0]), int(scores.shape[2])
    given, wanted = (torch.as_tensor(call[name], dtype=torch.int64) for name in ("input_lengths", "target_lengths"))
    _within(given, 0, steps, "input_lengths")
    _within(wanted, 0, targets.numel() if targets.dim() == 1 else int(targets.shape[1]), "target_lengths")
    if targets.dim() == 1:
        require(int(wanted.sum()) <= targets.numel(), "target_lengths add up to more than there are targets")
    else:  # what lies behind a target's length is padding, and may be anything
        targets = targets[torch.arange(targets.shape[1]) < wanted[:, None]]
    _within(targets, 0, classes - 1, "targets")
    if "grad" in call:
        most = 2 * int(wanted.max()) + 1 if wanted.numel() else 1
        require(call["log_alpha"].shape[2] >= most, f"log_alpha must have {most} states")


# --- special functions, histograms ------------------------------------------------------------------------


def _degree(call: Call) -> None:
    # They are computed term by term, for each element.
    degree = call["n"]
    if isinstance(degree, torch.Tensor):
        degree = float(degree.detach().double().amax()) if degree.numel() else 0.0
    require(degree <= limits.MAX_DEGREE, f"the degree n goes up to {limits.MAX_DEGREE}")


def _multivariate(call: Call) -> None:
    # A sum of p terms, which are all made before they are added up.
    given, terms = call["self"], call["p"]
    require(terms <= limits.MAX_DEGREE, f"p goes up to {limits.MAX_DEGREE}")
    too_large(given.numel() * max(0, terms) * given.element_size())


def _zeta(call: Call) -> None:
    # Below zero it goes up one by one.
    second = call["other"]
    if isinstance(second, torch.Tensor):
        second = float(second.detach().double().amin()) if second.numel() else 0.0
    require(not second < -limits.MAX_DEGREE, f"the second argument goes down to -{limits.MAX_DEGREE}")


def _check_bins(bins: Any, dtype: torch.dtype) -> None:
    """Edges, or how many there are of equal width."""
    if isinstance(bins, torch.Tensor):
        require(bins.dim() == 1 and bins.numel() > 1 and bins.dtype is dtype, "bins are at least two edges")
    else:
        require(bins > 0, "bins must be positive")


def _histogram(call: Call) -> None:
    given, weight, bins = call["self"], call["weight"], call["bins"]
    require(given.dtype in _REAL, "histograms are of float32 or float64")
    if weight is not None:
        require(weight.shape == given.shape and weight.dtype is given.dtype, "weight must be like the tensor")
    _check_bins(bins, given.dtype)
    ends = call.get("range")
    if ends is not None:
        fits = len(ends) == 2 and all(math.isfinite(end) for end in ends) and ends[0] <= ends[1]
        require(fits, "range is two numbers that go up")


def _histograms(call: Call) -> None:
    given, weight, bins = call["self"], call["weight"], call["bins"]
    require(given.dtype in _REAL and given.dim() >= 2, "histograms are of rows of float32 or float64")
    axes = given.shape[-1]
    require(0 < axes == len(bins) <= limits.MAX_NDIM, f"bins must be {axes}, and at most {limits.MAX_NDIM}")
    if weight is not None:
        fits = weight.shape == given.shape[:-1] and weight.dtype is given.dtype
        require(fits, "weight must have one number for each row")
    for each in bins:
        _check_bins(each, given.dtype)
    ends = call.get("range")
    if ends is not None:
        fits = len(ends) == 2 * axes and all(math.isfinite(end) for end in ends)
        require(fits and all(low <= high for low, high in zip(ends[::2], ends[1::2], strict=True)), "range goes up")


def _chunks(call: Call) -> None:
    require(0 < call["num_chunks"] <= limits.MAX_PARTS and 0 < len(call["tensors"]), "num_chunks must be positive")


def _factory_ends(call: Call) -> None:
    for name in ("start", "end"):
        require(not isinstance(call[name], torch.Tensor) or call[name].dim() == 0, f"{name} has no dimensions")


def _renormed(call: Call) -> None:
    require(call["self"].dim() == 2 and call["indices"].dtype in _INDEX, "embeddings are a matrix, indices integers")


def _renormed_values(call: Call) -> None:
    _within(call["indices"], 0, int(call["self"].shape[0]) - 1, "indices")


# --- fractional pooling -----------------------------------------------------------------------------------


def _fractional(spatial: int) -> Guard:
    def guard(call: Call) -> None:
        given = call["self"]
        require(given.dim() in (spatial + 1, spatial + 2), f"self has {spatial + 1} or {spatial + 2} dimensions")
        require(0 not in given.shape[-spatial - 1 :], "pooling over nothing")
        kernel, out = (_each(call[name], spatial) for name in ("kernel_size", "output_size"))
        for size, window, count in zip(given.shape[-spatial:], kernel, out, strict=True):
            fits = window > 0 and count > 0 and count + window - 1 <= size
            require(fits, f"{count} windows of {window} do not fit into {size}")
        if "random_samples" in call:
            batch = [given.shape[0] if given.dim() == spatial + 2 else 1, given.shape[-spatial - 1], spatial]
            drawn = call["random_samples"]
            require(list(drawn.shape) == batch and drawn.dtype is given.dtype, f"random_samples must be {batch}")
        else:
            want = [*given.shape[:-spatial], *out]
            for name in ("grad_output", "indices"):
                require(list(call[name].shape) == want, f"{name} must have the shape {want}")
            require(call["indices"].dtype is torch.int64, "indices are int64")
            require(call["indices"].is_contiguous(), "indices must be contiguous: use .contiguous()")
            require(call["grad_output"].dtype is given.dtype, f"grad_output must be {given.dtype}")

    return guard


def _each(sizes: Any, count: int) -> list[int]:
    sizes = [sizes] if isinstance(sizes, int) else list(sizes)
    return [*sizes] * count if len(sizes) == 1 else [*sizes]


def _drawn(call: Call) -> None:
    drawn = call["random_samples"].detach()
    require(bool(((drawn >= 0) & (drawn < 1)).all()), "random_samples lie in 0 <= x < 1")


def _places(spatial: int) -> Guard:
    def guard(call: Call) -> None:
        _within(call["indices"], 0, math.prod(call["self"].shape[-spatial:]) - 1, "indices")

    return guard


_POLYNOMIALS: Final = (
    *(f"{shifted}chebyshev_polynomial_{kind}" for shifted in ("", "shifted_") for kind in "tuvw"),
    *("hermite_polynomial_h", "hermite_polynomial_he", "laguerre_polynomial_l", "legendre_polynomial_p"),
)


def _full(guards: Mapping[str, Guard]) -> dict[str, Guard]:
    return {f"aten.{name if '.' in name else name + '.default'}": guard for name, guard in guards.items()}


SHAPES: Final[dict[str, Guard]] = _full(
    {
        **dict.fromkeys(("_fft_r2c", "_fft_c2r", "_fft_c2c"), _transform),
        "lu_unpack": _unpacked,
        "linalg_ldl_solve": _factored,
        "linalg_householder_product": _reflectors,
        "ormqr": _reflectors,
        **dict.fromkeys(("_pdist_forward", "_pdist_backward"), _pairs),
        **dict.fromkeys(
            ("_ctc_loss", "_ctc_loss.Tensor", "_ctc_loss_backward", "_ctc_loss_backward.Tensor"), _alignment
        ),
        **dict.fromkeys(("histogram.bin_ct", "histogram.bins_tensor"), _histogram),
        **{
            f"{kind}.{form}": _factory_ends
            for kind in ("linspace", "logspace")
            for form in ("Tensor_Tensor", "Tensor_Scalar", "Scalar_Tensor")
        },
        **dict.fromkeys(
            ("_histogramdd_bin_edges", "_histogramdd_from_bin_cts", "_histogramdd_from_bin_tensors"), _histograms
        ),
        "_chunk_cat": _chunks,
        **dict.fromkeys(("mvlgamma", "mvlgamma_", "special_multigammaln"), _multivariate),
        "embedding_renorm_": _renormed,
        **{f"fractional_max_pool{n}d{form}": _fractional(n) for n in (2, 3) for form in ("", "_backward")},
    }
)

VALUES: Final[dict[str, Guard]] = _full(
    {
        "lu_unpack": _row_pivots,
        "linalg_ldl_solve": _blocks,
        "linalg_lstsq": _finite("self"),
        "binomial": _finite("count"),  # it would draw without end
        **dict.fromkeys(("linalg_eigvals", "_linalg_eigvals"), _finite("self")),
        **dict.fromkeys(
            ("_ctc_loss", "_ctc_loss.Tensor", "_ctc_loss_backward", "_ctc_loss_backward.Tensor"),
            _alignment_values,
        ),
        **{f"special_{name}{form}": _degree for name in _POLYNOMIALS for form in ("", ".n_scalar", ".x_scalar")},
        **{f"special_zeta{form}": _zeta for form in ("", ".other_scalar", ".self_scalar")},
        "embedding_renorm_": _renormed_values,
        **{f"fractional_max_pool{n}d": _drawn for n in (2, 3)},
        **{f"fractional_max_pool{n}d_backward": _places(n) for n in (2, 3)},
    }
)
