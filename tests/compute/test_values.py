"""Tensors and bytes, arguments and wire values."""

from typing import Any

import msgpack
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compute.dtypes import DTYPE_OF
from compute.values import (
    constant_tensor,
    decode,
    encode,
    encode_call,
    header_of,
    inline_tensor,
    tensor_bytes,
    tensor_from,
)
from protocol.errors import BadRequest, BadTensor, TooLarge
from protocol.tensors import ITEMSIZE, TensorHeader


def filled(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if dtype is torch.bool:
        return torch.rand(shape) > 0.5
    raw = torch.randint(0, 100, (*shape, dtype.itemsize), dtype=torch.uint8)
    return raw.reshape(-1).view(dtype).reshape(shape)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype is b.dtype and a.shape == b.shape and bytes(tensor_bytes(a)) == bytes(tensor_bytes(b))


def test_torch_has_every_dtype_that_can_travel() -> None:
    assert set(DTYPE_OF) == set(ITEMSIZE)
    assert all(dtype.itemsize == ITEMSIZE[name] for name, dtype in DTYPE_OF.items())


@pytest.mark.parametrize("name", ITEMSIZE)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4)])
def test_every_dtype_and_shape_survives_the_round_trip(name: str, shape: tuple[int, ...]) -> None:
    tensor = filled(DTYPE_OF[name], shape)
    header = header_of(tensor)
    data = tensor_bytes(tensor)
    assert (header.dtype, header.shape, header.nbytes) == (name, shape, data.nbytes)
    assert same(tensor_from(header, bytearray(data)), tensor)
    assert same(tensor_from(header, bytes(data)), tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24.0).reshape(2, 3, 4).transpose(0, 2),
        torch.arange(24.0)[::5],
        torch.arange(24.0)[3:],
        torch.ones(1).expand(4, 3),
        torch.ones(3).sum().expand(1),
        torch.arange(6.0).as_strided((1, 1), (0, 0), 3),
        torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(4, dtype=torch.complex64).conj(),
        torch.randn(4, dtype=torch.complex64).conj().imag,
        torch.ones(3, requires_grad=True),
        torch.nn.Parameter(torch.ones(3)),
        torch.nn.Buffer(torch.ones(3)),
    ],
)
def test_views_travel_as_their_values(tensor: torch.Tensor) -> None:
    there = tensor_from(header_of(tensor), bytes(tensor_bytes(tensor)))
    assert torch.equal(there, tensor.detach())
    assert not there.requires_grad


def test_a_contiguous_tensor_is_not_copied() -> None:
    tensor = torch.zeros(4)
    data = tensor_bytes(tensor)
    tensor[0] = 1.0
    assert bytes(data[:4]) == b"\x00\x00\x80\x3f"


def test_a_slice_gives_its_own_bytes_alone() -> None:
    secret = torch.arange(1000, dtype=torch.uint8)
    assert bytes(tensor_bytes(secret[:1])) == b"\x00"


def test_a_writable_aligned_buffer_is_shared() -> None:
    buffer = bytearray(16)
    tensor = tensor_from(TensorHeader("float32", (4,)), buffer)
    tensor[0] = 1.0
    assert buffer[:4] == b"\x00\x00\x80\x3f"


def test_a_read_only_or_misaligned_buffer_is_copied() -> None:
    source = bytearray(b"\0" + b"\x00\x00\x80\x3f" * 4)
    misaligned = tensor_from(TensorHeader("float32", (4,)), memoryview(source)[1:])
    assert misaligned.tolist() == [1.0] * 4
    assert misaligned.data_ptr() % 4 == 0
    fixed = bytes(16)
    tensor_from(TensorHeader("float32", (4,)), fixed).fill_(7)
    assert fixed == bytes(16)


@pytest.mark.parametrize("length", [0, 15, 17, 160])
def test_a_buffer_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(BadTensor, match="16 bytes"):
        tensor_from(TensorHeader("float32", (4,)), bytearray(length))


def test_a_bool_that_is_neither_0_nor_1_is_refused() -> None:
    with pytest.raises(BadTensor, match="bool"):
        tensor_from(TensorHeader("bool", (3,)), b"\0\1\2")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: torch.eye(3).to_sparse(), "to_dense"),
        (lambda: torch.eye(3).to_sparse_csr(), "to_dense"),
        (lambda: torch.empty(3, device="meta"), "meta"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "pad"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8), "dequantize"),
        (lambda: torch.ones(3).as_subclass(type("Odd", (torch.Tensor,), {})), "subclass"),
        (lambda: [1.0], "tensor was wanted"),
    ],
)
def test_what_cannot_travel_is_refused_with_what_to_do(make: Any, word: str) -> None:
    tensor = make()
    for function in (header_of, tensor_bytes):
        with pytest.raises(BadTensor, match=word):
            function(tensor)


def test_fake_tensors_are_refused() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), pytest.raises(BadTensor, match="subclass"):
        tensor_bytes(torch.ones(3))


# --- arguments --------------------------------------------------------------------------------------------

ID = b"0123456789abcdef"
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=20)
others = (
    st.sampled_from([torch.float32, torch.bool, torch.complex64, torch.bfloat16])
    | st.sampled_from([torch.channels_last, torch.contiguous_format])
    | st.complex_numbers(allow_nan=False)
)
arguments = st.recursive(plain | others, lambda inner: st.lists(inner, max_size=4), max_leaves=20)


def no_tensor(value: Any) -> Any:
    raise AssertionError(f"no tensor was meant: {value}")


@settings(max_examples=300, deadline=None)
@given(arguments)
def test_arguments_survive_the_round_trip(value: Any) -> None:
    wire = msgpack.unpackb(msgpack.packb(encode(value, no_tensor)))
    assert decode(wire, no_tensor) == value


def test_tensors_go_through_the_references() -> None:
    x = torch.ones(3)
    assert encode([x, (x, None)], lambda tensor: ID) == [ID, [ID, None]]
    assert decode([ID, [ID, None]], lambda reference: x) == [x, [x, None]]


def test_small_tensors_may_be_written_out() -> None:
    for x in (torch.tensor(2.5), torch.arange(5), torch.ones(2, 0), torch.tensor([True, False])):
        assert same(decode(encode(x, inline_tensor), no_tensor), x)
    with pytest.raises(BadTensor, match="at most 4096"):
        inline_tensor(torch.ones(1025))


def test_each_decoding_gives_a_new_tensor() -> None:
    wire = inline_tensor(torch.zeros(2))
    constant_tensor(wire["tensor"]).fill_(7)
    assert constant_tensor(wire["tensor"]).tolist() == [0, 0]


def test_what_the_peer_decides_is_dropped() -> None:
    args, kwargs = encode_call(
        [torch.ones(1), torch.device("cpu"), torch.strided],
        {"device": torch.device("cpu"), "layout": torch.strided, "pin_memory": False, "dtype": torch.int8},
        lambda tensor: ID,
    )
    assert args == [ID, None, None]
    assert kwargs == {"dtype": {"dtype": "int8"}}


@pytest.mark.parametrize(
    "kwargs",
    [{"generator": torch.Generator()}, {"pin_memory": True}, {"layout": torch.sparse_coo}, {"x": object()}],
)
def test_what_cannot_be_asked_of_a_peer_is_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        encode_call([], kwargs, inline_tensor)


@pytest.mark.parametrize("value", [object(), {1}, b"x", torch.qint8, torch.Generator(), {"a": 1}, print])
def test_what_is_no_argument_cannot_be_encoded(value: Any) -> None:
    with pytest.raises(BadRequest):
        encode(value, inline_tensor)


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "wire",
    [
        b"short",
        b"x" * 17,
        {},
        {"dtype": "os"},
        {"dtype": "load"},
        {"dtype": 7},
        {"dtype": ["float32"]},
        {"dtype": "float32", "x": 1},
        {"memory_format": "__class__"},
        {"memory_format": {}},
        {"complex": [1, 2]},
        {"complex": [1.0]},
        {"complex": "1+2j"},
        {"node": 0},
        {"constant": 0},
        {"device": "cpu"},
        {"layout": "sparse_coo"},
        {"tensor": None},
        {"tensor": {"dtype": "float32", "shape": [1], "data": b"123"}},
        {"tensor": {"dtype": "float32", "shape": [-1], "data": b""}},
        {"tensor": {"dtype": "float32", "shape": [2**32, 2**32], "data": b""}},
        {"tensor": {"dtype": "float32", "shape": [True], "data": b"1234"}},
        {"tensor": {"dtype": "qint8", "shape": [1], "data": b"1"}},
        {"tensor": {"dtype": "uint8", "shape": [5000], "data": b"1" * 5000}},
        {"tensor": {"dtype": "uint8", "shape": [1], "data": b"1", "x": 1}},
        {"tensor": {"dtype": "uint8", "shape": [1], "data": "1"}},
        {"tensor": {"dtype": "bool", "shape": [1], "data": b"\7"}},
        msgpack.Timestamp(0),
        msgpack.ExtType(1, b""),
        "x" * 10_000,
        deep(40),
        [1, [2, {"x": 1}]],
    ],
)
def test_hostile_wire_values_are_refused(wire: Any) -> None:
    with pytest.raises((BadRequest, BadTensor, TooLarge)) as caught:
        decode(wire, lambda reference: torch.ones(1))
    assert len(str(caught.value)) < 300


def test_deep_lists_do_not_overflow_the_stack() -> None:
    with pytest.raises(BadRequest, match="nest"):
        decode(deep(900), no_tensor)
