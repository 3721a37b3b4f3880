"""Tensor headers: every lie of threats T11 is found before anything is allocated."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.errors import BadTensor, GridError, TooLarge
from protocol.tensors import ITEMSIZE, TensorHeader


@pytest.mark.parametrize(
    ("dtype", "shape", "nbytes"),
    [
        ("float32", [2, 3], 24),
        ("float64", [], 8),
        ("bool", [5], 5),
        ("bfloat16", [3], 6),
        ("complex128", [2], 32),
        ("float8_e8m0fnu", [7], 7),
        ("int64", [0], 0),
        ("int64", [4, 0, 9], 0),
        ("uint8", [1] * limits.MAX_NDIM, 1),
        ("uint8", [limits.MAX_DIM - 1], limits.MAX_DIM - 1),
    ],
)
def test_the_bytes_of_a_tensor_follow_from_its_header(dtype: str, shape: list[int], nbytes: int) -> None:
    header = TensorHeader.from_wire({"dtype": dtype, "shape": shape})
    assert header.nbytes == nbytes
    header.check_payload(nbytes)


@pytest.mark.parametrize("dtype", ITEMSIZE)
def test_every_dtype_comes_back_from_the_wire(dtype: str) -> None:
    header = TensorHeader(dtype, (2, 3))
    assert TensorHeader.from_wire(header.to_wire()) == header
    assert header.nbytes == 6 * header.itemsize


@pytest.mark.parametrize(
    "shape",
    [
        [-1],
        [-4],
        [2, -1],
        [4.0],
        [float("nan")],
        [True],
        [False],
        [None],
        ["4"],
        [[4]],
        [b"\x04"],
        [2**64],
        [2**63],
        [limits.MAX_DIM],
        [0, limits.MAX_DIM],
        [1] * 17,
        [0] * 17,
        None,
        4,
        "4",
        b"\x04",
        {"0": 4},
    ],
    ids=repr,
)
def test_a_shape_that_no_tensor_has_is_refused(shape: Any) -> None:
    with pytest.raises(BadTensor):
        TensorHeader.from_wire({"dtype": "float32", "shape": shape})


@pytest.mark.parametrize(
    "shape", [[2**32, 2**32], [0, 2**39, 8], [2**39], [2**20, 2**19], [2**39] * 16, [0, 2**39, 2**39]], ids=repr
)
def test_a_shape_beyond_all_memory_is_too_large(shape: list[int]) -> None:
    with pytest.raises(TooLarge) as caught:
        TensorHeader.from_wire({"dtype": "float32", "shape": shape})
    assert caught.value.fields["limit"] == "MAX_TENSOR"
    assert caught.value.fields["size"] <= limits.MAX_ID


def test_a_product_that_wraps_around_in_64_bits_is_not_empty() -> None:
    with pytest.raises(TooLarge):  # 2^32 * 2^32 is 0 modulo 2^64
        TensorHeader("uint8", (2**32, 2**32)).check_payload(0)


@pytest.mark.parametrize(
    "dtype",
    [
        "load",
        "os",
        "sparse_coo",
        "Tensor",
        "torch.float32",
        "FLOAT32",
        "",
        "quint8",
        "float32\0",
        7,
        None,
        True,
        b"int8",
    ],
    ids=repr,
)
def test_a_dtype_is_a_name_of_the_table(dtype: Any) -> None:
    with pytest.raises(BadTensor):
        TensorHeader.from_wire({"dtype": dtype, "shape": [2]})
    with pytest.raises(BadTensor):
        TensorHeader(dtype, (2,))


@pytest.mark.parametrize("value", [None, [], "float32", {}, {"dtype": "float32"}, {"shape": [2]}], ids=repr)
def test_what_is_no_header_is_refused(value: Any) -> None:
    with pytest.raises(BadTensor):
        TensorHeader.from_wire(value)


@pytest.mark.parametrize("nbytes", [0, 15, 17, 32, 2**63])
def test_a_payload_of_another_size_is_refused(nbytes: int) -> None:
    with pytest.raises(BadTensor, match="16 bytes"):
        TensorHeader("float32", (4,)).check_payload(nbytes)


@pytest.mark.parametrize("shape", [[4], "4", 4])
def test_a_shape_is_a_tuple(shape: Any) -> None:
    with pytest.raises(BadTensor):
        TensorHeader("float32", shape)


def test_a_lie_of_any_length_is_shown_in_short() -> None:
    with pytest.raises(BadTensor) as caught:
        TensorHeader.from_wire({"dtype": "x" * 60_000, "shape": []})
    assert len(caught.value.message) < 1_000


def test_a_lie_allocates_nothing() -> None:
    tracemalloc.start()
    with pytest.raises(GridError):
        TensorHeader.from_wire({"dtype": "complex128", "shape": [2**39, 2**39]})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * limits.KIB


numbers = st.integers(-(2**70), 2**70) | st.integers(0, 9) | st.floats() | st.booleans() | st.text(max_size=3)


@settings(max_examples=300, deadline=None)
@given(
    dtype=st.sampled_from([*ITEMSIZE, "load", 7, None]),
    shape=st.lists(numbers, max_size=18) | numbers | st.none(),
)
def test_only_the_two_errors_come_out_of_any_header(dtype: Any, shape: Any) -> None:
    try:
        header = TensorHeader.from_wire({"dtype": dtype, "shape": shape})
    except (BadTensor, TooLarge):
        return
    assert all(type(dim) is int and 0 <= dim < limits.MAX_DIM for dim in header.shape)
    assert 0 <= header.nbytes <= limits.MAX_TENSOR
