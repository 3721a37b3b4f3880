"""Entries of the table and their checks of arguments."""

from typing import Any

import pytest
import torch

from compute.operations import OPERATIONS, OPTIONAL
from compute.table import lookup
from protocol import limits
from protocol.errors import BadRequest, OperationNotAllowed, TooLarge

X = torch.ones(3, 4)


def test_every_operation_has_an_entry() -> None:
    for name in set(OPERATIONS) - OPTIONAL:
        entry = lookup(name)
        assert entry.name == name
        assert entry.category == OPERATIONS[name]
        assert entry.overload.name().replace("::", ".") in (name, name.removesuffix(".default"))


def test_an_entry_is_found_once() -> None:
    assert lookup("aten.add.Tensor") is lookup("aten.add.Tensor")


@pytest.mark.parametrize(
    "name",
    [
        *("aten.from_file.default", "torch.os.system", "ops.load_library", "aten._stack.default", "__class__", ""),
        *("aten.add", "add", "aten.add.Tensor.x", "aten..", "aten.empty.memory_format", "aten.set_.default"),
        *("aten.resize_.default", "aten._local_scalar_dense.default", "aten.add.out", "prims.add.default"),
        *("c10d.send.default", "aten.__class__.__init__", "int.add", "aten.ctc_loss.Tensor", "x" * 100_000),
    ],
)
def test_names_outside_the_table_are_refused_by_name(name: str) -> None:
    with pytest.raises(OperationNotAllowed) as caught:
        lookup(name)
    assert name[:70] in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", [None, 7, b"aten.add.Tensor", ["aten.add.Tensor"], {"a": 1}])
def test_names_that_are_no_text_are_refused(name: Any) -> None:
    with pytest.raises(OperationNotAllowed, match="named by text"):
        lookup(name)


def test_a_refusal_suggests_near_names() -> None:
    with pytest.raises(OperationNotAllowed, match=r"did you mean aten\.add\.Tensor"):
        lookup("aten.add.tensor")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("aten._sparse_addmm.default", "to_dense"),
        ("aten.quantize_per_tensor.default", "round"),
        ("aten._nested_tensor_from_tensor_list.default", "pad_sequence"),
    ],
)
def test_a_refusal_of_a_layout_says_what_to_write(name: str, advice: str) -> None:
    with pytest.raises(OperationNotAllowed, match=advice):
        lookup(name)


def test_writes_are_those_of_the_schema() -> None:
    assert lookup("aten.add_.Tensor").writes == (0,)
    assert lookup("aten.add_.Tensor").is_inplace
    assert lookup("aten.add.Tensor").writes == ()
    assert lookup("aten.rrelu_with_noise.default").writes == (1,)


def test_batch_norm_writes_its_statistics_only_where_it_trains() -> None:
    entry = lookup("aten.native_batch_norm.default")
    assert entry.writes == (3, 4)
    assert not entry.is_inplace
    common = [X, None, None, X[0], X[0]]
    assert entry.written([*common, True, 0.1, 1e-5], {}) == (3, 4)
    assert entry.written([*common, False, 0.1, 1e-5], {}) == ()


def test_aliases_say_which_results_are_views() -> None:
    assert lookup("aten.view.default").aliases == (0,)
    assert lookup("aten.split.Tensor").aliases == (0,)
    assert lookup("aten.split.Tensor").gives_list
    assert lookup("aten.add.Tensor").aliases == (None,)
    assert lookup("aten.max.dim").n_results == 2


def test_bind_gives_what_the_overload_takes() -> None:
    entry = lookup("aten.sum.dim_IntList")
    args, kwargs = entry.bind([X, (1,)], {"keepdim": True, "dtype": torch.float64})
    assert entry.overload(*args, **kwargs).shape == (3, 1)


def test_a_plain_number_may_stand_for_a_tensor() -> None:
    entry = lookup("aten.mul.Tensor")
    args, kwargs = entry.bind([X, 2], {})
    assert torch.equal(entry.overload(*args, **kwargs), X * 2)


def test_what_is_written_is_never_a_number() -> None:
    with pytest.raises(BadRequest, match="is a tensor"):
        lookup("aten.add_.Tensor").bind([2, X], {})


def test_named_fills_in_defaults() -> None:
    entry = lookup("aten.add.Tensor")
    assert entry.named([X, X], {})["alpha"] == 1


BIG = limits.MAX_INT + 1


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("aten.view.default", [X, [BIG]]),
        ("aten.select.int", [X, 0, BIG]),
        ("aten.zeros.default", [[10**12]]),
        ("aten.zeros.default", [[2**64 - 1]]),
    ],
)
def test_sizes_beyond_all_bounds_are_too_large(name: str, args: list[Any]) -> None:
    with pytest.raises(TooLarge) as caught:
        lookup(name).bind(args, {})
    assert caught.value.operation == name
    assert caught.value.fields["allowed"] == limits.MAX_INT


@pytest.mark.parametrize(
    ("name", "args", "kwargs"),
    [
        ("aten.add.Tensor", [X], {}),  # missing
        ("aten.add.Tensor", [X, X, X], {}),  # too many: alpha goes by name
        ("aten.add.Tensor", [X, X], {"beta": 1}),  # unknown
        ("aten.add.Tensor", [X, X], {"self": X}),  # twice
        ("aten.add.Tensor", [X, "x"], {}),
        ("aten.add.Tensor", [X, None], {}),
        ("aten.add.Tensor", [X, [X]], {}),
        ("aten.add.Tensor", [X, X], {"alpha": "1"}),
        ("aten.add.Tensor", [X, X], {"alpha": X}),
        ("aten.add.Tensor", [X, 1 << 64], {}),
        ("aten.view.default", [X, [-BIG]], {}),
        ("aten.view.default", [X, [True, 12]], {}),
        ("aten.view.default", [X, [3.0, 4]], {}),
        ("aten.view.default", [X, "34"], {}),
        ("aten.view.default", [X, {"3": 4}], {}),
        ("aten.view.default", [X, [1] * (limits.MAX_ARRAY + 1)], {}),
        ("aten.select.int", [X, True, 0], {}),
        ("aten.slice.Tensor", [X, 0, 0, 1 << 63], {}),
        ("aten.zeros.default", [[3]], {"device": "cpu"}),
        ("aten.zeros.default", [[3]], {"device": torch.device("cuda")}),
        ("aten.zeros.default", [[3]], {"layout": torch.sparse_coo}),
        ("aten.zeros.default", [[3]], {"dtype": 6}),
        ("aten.zeros.default", [[3]], {"dtype": "float32"}),
        ("aten.zeros.default", [[3]], {"dtype": torch.qint8}),
        ("aten.to.dtype", [X, 1000], {}),
        ("aten.softmax.int", [X, 0, -5], {}),
        ("aten.bernoulli.default", [X], {"generator": torch.Generator()}),
        ("aten.div.Tensor_mode", [X, X], {"rounding_mode": "round"}),
        ("aten.div.Tensor_mode", [X, X], {"rounding_mode": 1}),
        ("aten.gelu.default", [X], {"approximate": "none\0"}),
        ("aten.scatter_reduce.two", [X, 0, X, X, "__class__"], {}),
        ("aten.einsum.default", ["ij->ji; import os", [X]], {}),
        ("aten.einsum.default", ["i" * 300, [X]], {}),
        ("aten.cat.default", [[X, 1]], {}),
        ("aten.cat.default", [X], {}),
        ("aten.index.Tensor", [X, [1]], {}),
        ("aten.dropout.default", [X, 0.5, 1], {}),
        ("aten.dropout.default", [X, "0.5", False], {}),
        ("aten.dropout.default", [X, True, False], {}),
        ("aten.native_layer_norm_backward.default", [X, X, [4], X, X, None, None, [1, 1, 1]], {}),
        ("aten.contiguous.default", [X], {"memory_format": "channels_last"}),
    ],
)
def test_hostile_arguments_are_refused_before_torch_sees_them(
    name: str, args: list[Any], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(BadRequest) as caught:
        lookup(name).bind(args, kwargs)
    assert caught.value.operation == name
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("aten.slice.Tensor", [X, 0, 0, (1 << 63) - 1]),
        ("aten.masked_fill.Scalar", [X, X > 0, float("-inf")]),
        ("aten.sum.dim_IntList", [X, 1]),
        ("aten.sum.dim_IntList", [X, None]),
        ("aten.index.Tensor", [X, [None, torch.tensor([0])]]),
        ("aten.full_like.default", [X, (1 << 63) - 1]),
        ("aten.view.default", [X, [-1]]),
    ],
)
def test_honest_extremes_pass(name: str, args: list[Any]) -> None:
    lookup(name).bind(args, {})
