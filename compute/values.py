"""Python values and tensors to wire values and bytes, and back. Strict both ways; used by clients and workers alike.

What the peer decides (device, layout, pinned memory) is dropped on the way out; a generator cannot travel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch

from compute.dtypes import DTYPE_OF, MEMORY_FORMAT_NAME, MEMORY_FORMAT_OF, NAME_OF
from compute.wire import MAX_TEXT, MAX_VALUE_DEPTH, Malformed, check_constant, shown
from protocol import limits
from protocol.errors import BadRequest, BadTensor
from protocol.tensors import TensorHeader

Buffer = bytes | bytearray | memoryview

REFERENCE_BYTES: Final = 16  # an object id
_DROPPED: Final = frozenset({"device", "layout", "pin_memory"})


# --- tensors and bytes ------------------------------------------------------------------------------------


def header_of(tensor: torch.Tensor) -> TensorHeader:
    """dtype and shape of a dense tensor.

    Raises:
        BadTensor: a tensor that cannot travel; the message says what to do.
    """
    _check_dense(tensor)
    return TensorHeader(NAME_OF[tensor.dtype], tuple(tensor.shape))


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The elements of a dense tensor, row-major, little-endian: exactly header_of(tensor).nbytes bytes.

    A view of the tensor's own memory where that is contiguous on the CPU (do not write the tensor while it is in use),
    a copy otherwise. Conjugated and negated views give their values; gradients are left behind.

    Raises:
        BadTensor: sparse, quantised, nested, meta, a tensor subclass, or a dtype that cannot travel.
    """
    quick = _quick_bytes(tensor)
    if quick is not None:
        return quick
    _check_dense(tensor)
    if tensor.numel() == 0:
        return memoryview(b"")
    dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    # Not reshape(-1): of a single element with stride 0 it keeps the stride. As bytes: numpy knows no bfloat16.
    array: Any = dense.as_strided((dense.numel(),), (1,)).view(torch.uint8).numpy()
    return memoryview(array)


def _quick_bytes(tensor: torch.Tensor) -> memoryview | None:
    """The common case at a tenth of the cost; None for any other. numpy refuses what is not dense."""
    if type(tensor) is not torch.Tensor or tensor.dtype not in _NUMPY_HAS or tensor.requires_grad:
        return None
    try:
        array: Any = tensor.numpy()
    except (RuntimeError, TypeError):
        return None
    return memoryview(array).cast("B") if array.flags.c_contiguous and array.size else None


def tensor_from(header: TensorHeader, buffer: Buffer) -> torch.Tensor:
    """The tensor of these bytes. Shares memory with a writable buffer whose address fits the dtype; copies otherwise.

    Raises:
        BadTensor: the buffer is not exactly as long as the header says, or a bool is neither 0 nor 1.
    """
    view = memoryview(buffer)
    header.check_payload(view.nbytes)
    dtype = DTYPE_OF.get(header.dtype)
    if dtype is None:
        raise BadTensor(f"torch {torch.__version__}, which runs here, has no dtype {header.dtype}")
    if header.nbytes == 0:  # as a view: torch.zeros warns of complex32
        return torch.zeros(0, dtype=torch.uint8).view(dtype).reshape(header.shape)
    data = bytearray(view) if view.readonly else view
    if dtype in _NUMPY_HAS:  # the common case: no bytes to look at, and torch.frombuffer checks nothing that we did not
        tensor = torch.frombuffer(data, dtype=dtype)
        if tensor.data_ptr() % dtype.itemsize:
            tensor = tensor.clone()
        return tensor if len(header.shape) == 1 else tensor.view(header.shape)
    raw = torch.frombuffer(data, dtype=torch.uint8)
    if raw.data_ptr() % header.itemsize:
        raw = raw.clone()
    if dtype is torch.bool and int(raw.max()) > 1:
        # Kernels take a bool to be 0 or 1; other bytes make them disagree with each other.
        raise BadTensor("a bool tensor holds a byte that is neither 0 nor 1")
    return raw.view(dtype).reshape(header.shape)


def inline_tensor(tensor: torch.Tensor) -> dict[str, Any]:
    """A small tensor written out as a wire value {"tensor": ...}; BadTensor where it is larger than MAX_CONSTANT."""
    header = header_of(tensor)
    if header.nbytes > limits.MAX_CONSTANT:
        raise BadTensor(f"a tensor of {header.nbytes} bytes; at most {limits.MAX_CONSTANT} are written into a message")
    return {"tensor": {**header.to_wire(), "data": bytes(tensor_bytes(tensor))}}


def constant_tensor(constant: object) -> torch.Tensor:
    """The tensor of the map that stands behind "tensor"; a new one each time. BadRequest for anything else."""
    try:
        header = check_constant(constant)
    except (Malformed, BadTensor) as error:
        raise BadRequest(f"an inline tensor that does not check: {error.args[0]}") from None
    assert isinstance(constant, Mapping)
    return tensor_from(header, bytearray(constant["data"]))


def _check_dense(tensor: torch.Tensor) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise BadTensor(f"a tensor was wanted, not {type(tensor).__name__}")
    if tensor.is_nested:
        raise BadTensor("a nested tensor cannot travel; pad it first: torch.nested.to_padded_tensor(x, 0.0)")
    if tensor.layout != torch.strided:
        raise BadTensor(f"a tensor of layout {tensor.layout} cannot travel; make it dense first: x.to_dense()")
    if tensor.is_quantized:
        raise BadTensor("a quantised tensor cannot travel; send x.dequantize()")
    if tensor.dtype not in NAME_OF:
        raise BadTensor(f"dtype {tensor.dtype} cannot travel; convert it first, for example x.to(torch.float32)")
    if tensor.device.type == "meta":
        raise BadTensor("a meta tensor has no values to send")
    if type(tensor) not in _DENSE and not isinstance(tensor, torch.nn.Parameter | torch.nn.Buffer):
        raise BadTensor(f"{type(tensor).__name__} is a tensor subclass whose values are not here; get its value first")
    if type(tensor.data) is not torch.Tensor:
        raise BadTensor(f"{type(tensor.data).__name__} is a tensor subclass whose values are not here")


_NUMPY_HAS: Final = frozenset({torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.int16})
_DENSE: Final = frozenset({torch.Tensor, torch.nn.Parameter})


# --- arguments --------------------------------------------------------------------------------------------


def encode(value: object, ref: Callable[[torch.Tensor], Any], other: Callable[[object], Any] | None = None) -> Any:
    """The wire value of an argument; `ref` gives that of a tensor (an object id, a node, `inline_tensor`), `other` that
    of a type that is none of those that travel.

    Raises:
        BadRequest: a value that cannot travel.
    """
    if value is None or type(value) in _AS_THEY_ARE:
        return value
    if isinstance(value, torch.Tensor):
        return ref(value)
    if isinstance(value, list | tuple):
        return [encode(item, ref, other) for item in value]
    if isinstance(value, torch.dtype):
        return {"dtype": _name(NAME_OF, value)}
    if isinstance(value, torch.memory_format):
        return {"memory_format": _name(MEMORY_FORMAT_NAME, value)}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, torch.device) or value is torch.strided:
        return None
    for plain in (bool, int, float, str):
        if isinstance(value, plain):  # subclasses: numpy.float64, an IntEnum
            return plain(value)
    if other is not None:
        return other(value)
    raise BadRequest(f"{type(value).__name__} is no argument of an operation at a peer")


def encode_call(
    args: Sequence[object], kwargs: Mapping[str, object], ref: Callable[[torch.Tensor], Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of one operation as wire values, without those that the peer decides.

    Raises:
        BadRequest: a generator, pinned memory, a sparse layout, or a value that cannot travel.
    """
    named: dict[str, Any] = {}
    for name, value in kwargs.items():
        if name in _DROPPED:
            if value not in (None, False, torch.strided) and not isinstance(value, torch.device | str):
                raise BadRequest(f"{name}={shown(value)} cannot be asked of a peer; leave it out")
        elif name == "generator":
            if value is not None:
                raise BadRequest("a random generator cannot travel; leave it out")
        else:
            named[name] = encode(value, ref)
    return [encode(value, ref) for value in args], named


_AS_THEY_ARE: Final = frozenset({bool, int, float, str})


def decode(
    value: object,
    tensor: Callable[[bytes], torch.Tensor],
    node: Callable[[Mapping[str, Any]], Any] | None = None,
    depth: int = 0,
) -> Any:
    """The argument of a wire value; `tensor` gives the tensor of an object id, `node` the value that a program's
    {"node": ...} or {"constant": ...} refers to (refused where it is None).

    Raises:
        BadRequest: anything that is no wire value.
    """
    kind = type(value)
    if kind in _PLAIN:
        if kind is str and len(value) > MAX_TEXT:  # type: ignore[arg-type]  # kind says that it is text
            raise BadRequest(f"text of {len(value)} characters in an argument")  # type: ignore[arg-type]
        return value
    if kind is bytes:
        if len(value) != REFERENCE_BYTES:  # type: ignore[arg-type]
            raise BadRequest("a reference to a tensor is 16 bytes")
        return tensor(value)  # type: ignore[arg-type]
    if kind is list:
        if depth >= MAX_VALUE_DEPTH:
            raise BadRequest(f"lists nest more than {MAX_VALUE_DEPTH} deep in an argument")
        return [decode(item, tensor, node, depth + 1) for item in value]  # type: ignore[attr-defined]
    if isinstance(value, Mapping):
        return _decode_map(value, node)
    raise BadRequest(f"{kind.__name__} is no argument of an operation")


def decode_argument(value: object, node: Callable[[Mapping[str, Any]], Any]) -> Any:
    """`decode` in a program, where there are no objects."""
    return decode(value, _no_object, node)


def decode_output(value: Any, node: Callable[[Mapping[str, Any]], Any]) -> Any:
    """An output of a program, nested as it is written; for `node` see `decode`."""
    if isinstance(value, list):
        return [decode_output(item, node) for item in value]
    if isinstance(value, Mapping) and "tuple" in value:
        return tuple(decode_output(item, node) for item in value["tuple"])
    if isinstance(value, Mapping) and "map" in value:
        return {key: decode_output(item, node) for key, item in value["map"].items()}
    return decode_argument(value, node)


def _no_object(reference: bytes) -> torch.Tensor:
    raise BadRequest("a program refers to its inputs, never to objects")


_PLAIN: Final = frozenset({type(None), bool, int, float, str})


def _decode_map(value: Mapping[str, Any], node: Callable[[Mapping[str, Any]], Any] | None) -> Any:
    if node is not None and ("node" in value or "constant" in value):
        return node(value)
    if len(value) == 1:
        ((key, inner),) = value.items()
        if key == "dtype" and isinstance(inner, str) and inner in DTYPE_OF:
            return DTYPE_OF[inner]
        if key == "memory_format" and isinstance(inner, str) and inner in MEMORY_FORMAT_OF:
            return MEMORY_FORMAT_OF[inner]
        if key == "complex" and isinstance(inner, list) and [type(part) for part in inner] == [float, float]:
            return complex(*inner)
        if key == "tensor":
            return constant_tensor(inner)
    raise BadRequest(f"{shown(dict(value))} is no argument of an operation")


def _name(names: Mapping[Any, str], value: object) -> str:
    name = names.get(value)
    if name is None:
        raise BadRequest(f"{value} cannot travel")
    return name
