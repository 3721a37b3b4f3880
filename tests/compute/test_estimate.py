"""Sizes known before anything runs."""

import resource
from collections import OrderedDict
from typing import Any

import pytest
import torch

from compute import estimate
from compute.estimate import check_size, infer
from compute.operations import OPERATIONS
from compute.table import lookup
from protocol import limits
from protocol.errors import BadRequest, GridError, OperationFailed, TooLarge

X = torch.ones(3, 4)


def call(name: str, *args: Any, **kwargs: Any) -> estimate.Estimate:
    entry = lookup(name)
    return check_size(entry, *entry.bind(args, kwargs))


@pytest.fixture(autouse=True, scope="module")
def warm() -> None:
    """What torch imports at the first estimate is not to be counted as an operation's memory."""
    call("aten.cosine_similarity.default", X, X)
    call("aten.arange.default", 3)
    call("aten.one_hot.default", torch.tensor([1]), 2)
    call("aten.upsample_nearest2d.default", torch.ones(1, 1, 2, 2), [4, 4])


TERA = 1_000_000
HUGE = X[0, 0].expand(TERA, TERA)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("aten.zeros.default", [[TERA, TERA]]),
        ("aten.ones.default", [[2**31, 2**31]]),
        ("aten.full.default", [[TERA, TERA], 1.0]),
        ("aten.arange.default", [1e13]),
        ("aten.eye.default", [TERA]),
        ("aten.randperm.default", [2**31]),
        ("aten.rand.default", [[TERA, TERA]]),
        ("aten.expand.default", [X[0, 0], [TERA, TERA]]),
        ("aten.clone.default", [HUGE]),
        ("aten.add.Tensor", [HUGE, 1]),
        ("aten.repeat.default", [X, [TERA, TERA]]),
        ("aten.tile.default", [X, [TERA, TERA]]),
        ("aten.repeat_interleave.self_int", [X, 2**31]),
        ("aten.outer.default", [torch.ones(TERA), torch.ones(TERA)]),
        ("aten.kron.default", [torch.ones(1000, 1000), torch.ones(1000, 1000)]),
        ("aten.matmul.default", [torch.ones(TERA, 1), torch.ones(1, TERA)]),
        ("aten.einsum.default", ["i,j->ij", [torch.ones(TERA), torch.ones(TERA)]]),
        ("aten.constant_pad_nd.default", [X, [2**31, 2**31, 2**31, 2**31]]),
        ("aten.one_hot.default", [torch.zeros(1000, dtype=torch.int64), 2**31]),
        ("aten.cartesian_prod.default", [[torch.ones(10_000)] * 3]),
        ("aten.upsample_nearest2d.default", [torch.ones(1, 1, 2, 2), [TERA, TERA]]),
        ("aten.im2col.default", [X[0, 0].expand(1, 64, 4096, 4096), [33, 33], [1, 1], [16, 16], [1, 1]]),
        ("aten.tril_indices.default", [TERA, TERA]),
        ("aten.conv_transpose2d.input", [torch.ones(1, 1, 999, 999), torch.ones(1, 1, 1, 1), None, [999, 999]]),
        ("aten.nonzero.default", [X[0, 0].expand(TERA, 1000)]),
        ("aten.unbind.int", [torch.ones(100_000)]),
        ("aten.split.Tensor", [torch.ones(100_000), 1]),
        ("aten.tensor_split.sections", [X, 2**31]),
        ("aten.chunk.default", [torch.ones(0), 2**30]),
    ],
)
def test_what_would_need_too_much_is_refused_before_it_is_allocated(name: str, args: list[Any]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TooLarge) as caught:
        call(name, *args)
    assert caught.value.fields["size"] > caught.value.fields["allowed"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_the_refusal_names_operation_and_sizes() -> None:
    with pytest.raises(TooLarge, match=r"aten\.zeros\.default would give float32 \[100000, 100000\] of 37.3 GiB"):
        call("aten.zeros.default", [100_000, 100_000])


def test_a_composite_operation_is_refused_for_what_it_makes_on_its_way() -> None:
    # The result is 36 MB, but every pair is multiplied out first.
    x = torch.ones(3000, 1000)
    with pytest.raises(TooLarge):
        call("aten.cosine_similarity.default", x[:, None], x[None], 2)


def test_views_of_what_is_larger_than_any_result_are_free() -> None:
    with torch.no_grad():
        large = torch.empty(1, device="meta").expand(1)
    big = torch.empty((3 << 30,), device="meta")
    assert large.numel() == 1
    found = call("aten.slice.Tensor", big, 0, 0, 10)
    assert found.nbytes == 0
    assert found.results[0] is not None
    assert found.results[0].shape == (10,)
    assert call("aten.view.default", big, [3, 1 << 30]).nbytes == 0


def test_in_place_costs_nothing() -> None:
    big = torch.empty((3 << 30,), device="meta")
    assert call("aten.add_.Tensor", big, 1).nbytes == 0


def test_results_have_the_dtype_shape_and_stride_that_torch_gives() -> None:
    x, w = torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3)
    for name, args in (
        ("aten.convolution.default", [x, w, None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1]),
        ("aten.transpose.int", [x, 0, 3]),
        ("aten.mean.dim", [x, [2, 3]]),
        ("aten.add.Tensor", [x, torch.ones(8, dtype=torch.float64)]),
        ("aten.native_layer_norm.default", [x, [8], None, None, 1e-5]),
        ("aten.max.dim", [x, 1]),
        ("aten.split.Tensor", [x, 3, 2]),
        ("aten._softmax.default", [x.transpose(0, 1), 1, False]),
    ):
        entry = lookup(name)
        bound, named = entry.bind(args, {})
        given = entry.overload(*bound, **named)
        tensors = given if isinstance(given, list | tuple) else [given]
        found = infer(entry, bound, named)
        assert [(r.dtype, r.shape, r.stride) for r in found.results if r] == [
            (t.dtype, tuple(t.shape), t.stride()) for t in tensors
        ], name


def test_recurrent_layers_have_the_shapes_that_torch_gives() -> None:
    x, state = torch.ones(2, 7, 8), torch.zeros(1, 2, 5)
    weights = [torch.ones(20, 8), torch.ones(20, 5), torch.ones(20), torch.ones(20)]
    entry = lookup("aten.lstm.input")
    args, kwargs = entry.bind([x, [state, state], weights, True, 1, 0.0, False, False, True], {})
    shapes = [result.shape for result in infer(entry, args, kwargs).results if result]
    assert shapes == [tuple(tensor.shape) for tensor in entry.overload(*args, **kwargs)]


def test_a_gradient_not_asked_for_is_none() -> None:
    x, w = torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3)
    found = call(
        "aten.convolution_backward.default",
        *(torch.ones(2, 4, 6, 6), x, w, [4], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, True]),
    )
    assert found.results[0] is None
    assert found.results[1] is not None


@pytest.mark.parametrize("mask", [[True, False], [False, True], [True, True]])
def test_a_gradient_that_comes_unasked_is_counted(mask: list[bool]) -> None:
    x = torch.ones(1, 2, 3, 3)
    entry = lookup("aten.grid_sampler_2d_backward.default")
    bound, named = entry.bind([x, x, torch.zeros(1, 3, 3, 2), 0, 0, False, mask], {})
    given: Any = entry.overload(*bound, **named)
    assert [each is None for each in infer(entry, bound, named).results] == [each is None for each in given]


@pytest.mark.parametrize("shape", [(), (5,), (2, 5)])
def test_the_loss_of_one_sample_has_no_dimensions(shape: tuple[int, ...]) -> None:
    scores, labels = torch.ones(shape), torch.zeros(shape, dtype=torch.int64)
    for name in ("aten.multilabel_margin_loss_forward.default", "aten.multilabel_margin_loss.default"):
        entry = lookup(name)
        given: Any = entry.overload(scores, labels, 0)
        tensors = given if isinstance(given, tuple) else (given,)
        assert [each.shape for each in call(name, scores, labels, 0).results if each] == [
            each.shape for each in tensors
        ]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("aten.nonzero.default", [X]),
        ("aten.masked_select.default", [X, X > 0]),
        ("aten._unique2.default", [X]),
        ("aten.index.Tensor", [X, [X > 0]]),
        ("aten.index.Tensor", [X, [None, torch.tensor([True, False, True, True])]]),
        ("aten.index.Tensor", [X, [torch.tensor([[0], [1]]), torch.tensor([True, False, True, True])]]),
        ("aten.argwhere.default", [X]),
    ],
)
def test_results_that_depend_on_data_are_bounded_by_their_inputs(name: str, args: list[Any]) -> None:
    entry = lookup(name)
    bound, named = entry.bind(args, {})
    found = infer(entry, bound, named)
    assert not found.is_exact
    given = entry.overload(*bound, **named)
    real = sum(t.nbytes for t in (given if isinstance(given, tuple) else [given]))
    assert real <= found.nbytes <= 16 * real + 512


def test_what_torch_refuses_is_refused_with_its_reason() -> None:
    with pytest.raises(OperationFailed, match="reduction dim") as caught:
        call("aten.mm.default", X, X)
    assert caught.value.operation == "aten.mm.default"
    assert caught.value.fields["type"] == "RuntimeError"


def test_a_call_seen_before_is_not_estimated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = call("aten.add.Tensor", X, X, alpha=0.5)

    def fail(*_: Any) -> Any:
        raise AssertionError("estimated again")

    monkeypatch.setattr(estimate, "_estimate", fail)
    assert call("aten.add.Tensor", X, torch.zeros(3, 4), alpha=0.25) is first  # values are no part of the signature


def test_numbers_that_are_equal_but_of_other_types_are_told_apart() -> None:
    whole = torch.ones(3, dtype=torch.int64)
    dtypes = []
    for value in (1, 1.0, True):
        found = call("aten.mul.Tensor", whole, value)
        assert found.results[0] is not None
        dtypes.append(found.results[0].dtype)
    assert dtypes == [torch.int64, torch.float32, torch.int64]


def test_a_factory_is_told_apart_by_its_floats() -> None:
    shapes = [r.shape for end in (3.0, 5.0) for r in call("aten.arange.default", end).results if r]
    assert shapes == [(3,), (5,)]


def test_the_memory_of_estimates_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_ESTIMATES", 10)
    monkeypatch.setattr(estimate, "_seen", OrderedDict())
    for size in range(1, 40):
        call("aten.relu.default", torch.ones(size))
    assert len(estimate._seen) == 10
    call("aten.relu.default", torch.ones(39))
    assert len(estimate._seen) == 10


def test_tensor_subclasses_and_active_modes_do_not_matter() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.ones(3, 4)
        found = call("aten.add.Tensor", fake, fake)
    assert found.results[0] is not None
    assert found.results[0].shape == (3, 4)


def test_more_than_sixteen_dimensions_are_refused() -> None:
    with pytest.raises((TooLarge, GridError)):
        call("aten.view.default", X, [1] * 20 + [12])


def test_floats_that_a_guard_or_a_size_hangs_on_are_no_call_seen_before() -> None:
    image = torch.ones(1, 1, 4, 4)
    call("aten._upsample_bicubic2d_aa.default", image, [8, 8], False, 2.0, 2.0)
    for scale in (0.3, -1.0, float("nan")):
        with pytest.raises(BadRequest, match="does not lead from 4 to 8"):
            call("aten._upsample_bicubic2d_aa.default", image, [8, 8], False, scale, scale)
    call("aten.upsample_nearest2d.vec", image, None, [2.0, 2.0])
    grown = call("aten.upsample_nearest2d.vec", image, None, [3.0, 3.0])
    assert grown.results[0] is not None and grown.results[0].shape == (1, 1, 12, 12)
    with pytest.raises(TooLarge):
        call("aten.upsample_nearest2d.vec", image, None, [2e4, 2e4])


def test_other_floats_are_left_out_so_that_a_rate_which_changes_does_not_miss() -> None:
    hanging = {name for name in OPERATIONS if OPERATIONS[name] != "factory" and estimate.hangs_on_floats(name)}
    assert hanging >= {"aten.upsample_linear1d.vec", "aten.upsample_trilinear3d_backward.default"}
    assert not hanging & {"aten.add.Tensor", "aten.add_.Tensor", "aten.mul.Scalar", "aten.addcdiv_.default", "none"}


def _calls_laid_out_otherwise() -> dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Calls of which meta kernels tell other strides than their results have."""
    square, wide, tall = torch.randn(3, 3), torch.randn(2, 3, 5), torch.randn(2, 5, 3)
    turned, statistics = torch.randn(2, 4, 3).mT, (torch.zeros(3), torch.ones(3))
    last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    return {
        "svd": ("aten._linalg_svd.default", (wide, True), {}),
        "svd, reduced": ("aten.linalg_svd.default", (tall, False), {}),
        "eig": ("aten.linalg_eig.default", (torch.randn(2, 4, 4),), {}),
        "eig of complex": ("aten.linalg_eig.default", (square.to(torch.complex64),), {}),
        "nonzero_static": ("aten.nonzero_static.default", (square,), {"size": 5}),
        "index_fill": ("aten.index_fill.int_Scalar", (wide.mT[:, :, ::2], 1, torch.tensor([1]), 2.0), {}),
        "batch_norm": ("aten.native_batch_norm.default", (turned, None, None, None, None, True, 0.1, 1e-5), {}),
        "batch_norm, used": (
            "aten.native_batch_norm.default",
            (turned.transpose(0, 2).transpose(1, 2), None, None, torch.zeros(2), torch.ones(2), False, 0.1, 1e-5),
            {},
        ),
        "batch_norm, last": ("aten.batch_norm.default", (last, None, None, None, None, True, 0.1, 1e-5, False), {}),
        "batch_norm, exported": (
            "aten._native_batch_norm_legit_no_training.default",
            (turned, None, None, *statistics, 0.1, 1e-5),
            {},
        ),
    }


@pytest.mark.parametrize("case", _calls_laid_out_otherwise())
def test_results_have_the_strides_that_torch_gives_them(case: str) -> None:
    name, args, kwargs = _calls_laid_out_otherwise()[case]
    entry = lookup(name)
    value = entry.overload(*args, **kwargs)
    made = value if isinstance(value, list | tuple) else (value,)
    said = call(name, *args, **kwargs).results
    for tensor, result in zip(made, said, strict=True):
        assert result is not None and tensor.shape == result.shape
        assert not tensor.numel() or _strides_that_matter(tensor.stride(), tensor) == _strides_that_matter(
            result.stride, tensor
        )


def _strides_that_matter(strides: tuple[int, ...], tensor: torch.Tensor) -> list[int]:
    return [stride for size, stride in zip(tensor.shape, strides, strict=True) if size > 1]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.uint8])
@pytest.mark.parametrize("power", [torch.float16, torch.bfloat16, torch.float32])
def test_a_whole_number_times_a_power_is_of_the_dtype_that_torch_gives(dtype: torch.dtype, power: torch.dtype) -> None:
    for args in (
        (torch.ones(2, 3, dtype=dtype).t(), torch.tensor(2, dtype=power)),
        (torch.ones(2).to(dtype), X[0, :2]),
    ):
        value, (said,) = torch.ldexp(*args), call("aten.ldexp.Tensor", *args).results
        assert said is not None and (said.dtype, said.shape, said.stride) == (value.dtype, value.shape, value.stride())


def test_a_conjugated_view_is_no_call_seen_before() -> None:
    given = torch.ones(2, 2, dtype=torch.complex64)
    for _ in range(2):
        assert call("aten.view_as_real.default", given).results[0] is not None
        with pytest.raises(OperationFailed, match="unresolved conjugated"):
            call("aten.view_as_real.default", given.conj())
        plain, conjugate = (call("aten.select.int", each, 0, 0).results[0] for each in (given, given.conj()))
        assert plain is not None and conjugate is not None and plain.bits != conjugate.bits
