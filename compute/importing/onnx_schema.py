"""The parts of ONNX's messages that are read, and its tensors. https://github.com/onnx/onnx/blob/main/onnx/onnx.proto"""

from __future__ import annotations

import math
from typing import Any, Final

import torch

from compute.dtypes import DTYPE_OF
from compute.importing.protobuf import Field, Message, Parser, Table
from protocol import limits
from protocol.errors import BadFile
from protocol.sizes import check_limit

_DIMENSION: Final[Table] = {1: Field("value", "int"), 2: Field("parameter", "text")}
_SHAPE: Final[Table] = {1: Field("dims", _DIMENSION, True)}
_TENSOR_TYPE: Final[Table] = {1: Field("dtype", "int"), 2: Field("shape", _SHAPE)}
_TYPE: Final[Table] = {1: Field("tensor", _TENSOR_TYPE)}
_VALUE: Final[Table] = {1: Field("name", "text"), 2: Field("type", _TYPE)}
_TENSOR: Final[Table] = {
    1: Field("dims", "int", True),
    2: Field("dtype", "int"),
    3: Field("segment", "bytes"),
    4: Field("floats", "float", True),
    5: Field("int32s", "int", True),
    6: Field("texts", "bytes", True),
    7: Field("int64s", "int", True),
    8: Field("name", "text"),
    9: Field("raw", "bytes"),
    10: Field("doubles", "double", True),
    11: Field("uint64s", "int", True),
    13: Field("external", "bytes", True),
    14: Field("location", "int"),
}
_GRAPH: Final[dict[int, Field]] = {}
_ATTRIBUTE: Final[Table] = {
    1: Field("name", "text"),
    2: Field("f", "float"),
    3: Field("i", "int"),
    4: Field("s", "bytes"),
    5: Field("t", _TENSOR),
    6: Field("g", _GRAPH),
    7: Field("floats", "float", True),
    8: Field("ints", "int", True),
    9: Field("strings", "bytes", True),
    20: Field("type", "int"),
    21: Field("reference", "text"),
}
_NODE: Final[Table] = {
    1: Field("inputs", "text", True),
    2: Field("outputs", "text", True),
    3: Field("name", "text"),
    4: Field("op", "text"),
    5: Field("attributes", _ATTRIBUTE, True),
    7: Field("domain", "text"),
}
_GRAPH.update(
    {
        1: Field("nodes", _NODE, True),
        5: Field("initializers", _TENSOR, True),
        11: Field("inputs", _VALUE, True),
        12: Field("outputs", _VALUE, True),
        15: Field("sparse", "bytes", True),
    }
)
_VERSION: Final[Table] = {1: Field("domain", "text"), 2: Field("version", "int")}
_FUNCTION: Final[Table] = {
    1: Field("name", "text"),
    4: Field("inputs", "text", True),
    5: Field("outputs", "text", True),
    7: Field("nodes", _NODE, True),
    9: Field("versions", _VERSION, True),
    10: Field("domain", "text"),
    11: Field("defaults", _ATTRIBUTE, True),
}
_MODEL: Final[Table] = {
    1: Field("ir_version", "int"),
    7: Field("graph", _GRAPH),
    8: Field("versions", _VERSION, True),
    25: Field("functions", _FUNCTION, True),
}

DTYPES: Final = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
}  # fmt: skip
_AS_INT32: Final = frozenset({"int32", "int16", "int8", "uint16", "uint8", "bool", "float16", "bfloat16"})
_EXTERNAL: Final = (
    "keeps its tensors in other files, which are not opened: put all into one with "
    "onnx.save(onnx.load(path), path, save_as_external_data=False)"
)
ATTRIBUTE_KINDS: Final = {1: "f", 2: "i", 3: "s", 4: "t", 5: "g", 6: "floats", 7: "ints", 8: "strings"}


def parse(data: memoryview) -> Message:
    """The model's message; BadFile where it is none."""
    try:
        model = Parser().read(data, _MODEL)
    except BadFile as error:
        raise BadFile(f"it is not an ONNX model: {error.message}") from None
    if "graph" not in model or "ir_version" not in model:
        raise BadFile("it is not an ONNX model: it has no graph")
    return model


def dtype_of(number: object) -> torch.dtype:
    name = DTYPES.get(number) if type(number) is int else None
    if name is None or name not in DTYPE_OF:
        raise BadFile(f"a tensor in it has ONNX's type number {str(number)[:20]}, which cannot travel")
    return DTYPE_OF[name]


def tensor_of(message: Message) -> torch.Tensor:
    """A tensor of the model, a view of the file where it is raw there.

    Raises:
        BadFile: its bytes are elsewhere, or are not as many as its shape says. TooLarge.
    """
    name = message.get("name", "")[:80]
    if message["external"] or message.get("location"):
        raise BadFile(f"its tensor {name!r} {_EXTERNAL}")
    dtype, shape = dtype_of(message.get("dtype")), message["dims"]
    if len(shape) > limits.MAX_NDIM or any(not 0 <= dim < limits.MAX_DIM for dim in shape):
        raise BadFile(f"its tensor {name!r} has a shape that no tensor can have")
    count = math.prod(shape)
    sentence = "its tensor {name!r} would have {size} bytes; at most {allowed} are read"
    check_limit("MAX_MEMORY_TENSOR", count * dtype.itemsize, sentence, name=name)
    raw = message.get("raw")
    if raw is not None:
        if len(raw) != count * dtype.itemsize:
            raise BadFile(f"its tensor {name!r} has {len(raw)} bytes, not {count * dtype.itemsize}")
        flat = torch.frombuffer(raw, dtype=dtype) if count else torch.empty(0, dtype=dtype)
        if dtype is torch.bool:
            flat = flat.view(torch.uint8) != 0
        return flat.reshape(shape)
    numbers = _numbers(message, str(dtype).removeprefix("torch."))
    if len(numbers) != count:
        raise BadFile(f"its tensor {name!r} has {len(numbers)} elements, not {count}")
    return _from_numbers(numbers, dtype).reshape(shape)


def _numbers(message: Message, dtype: str) -> list[Any]:
    if dtype in _AS_INT32:
        return message["int32s"]  # type: ignore[no-any-return]
    kind = {"float32": "floats", "float64": "doubles", "int64": "int64s", "uint32": "uint64s", "uint64": "uint64s"}
    if dtype not in kind:
        raise BadFile(f"a tensor of {dtype} in it is not raw")
    return message[kind[dtype]]  # type: ignore[no-any-return]


def _from_numbers(numbers: list[Any], dtype: torch.dtype) -> torch.Tensor:
    if dtype in (torch.float16, torch.bfloat16):  # their bits
        return torch.tensor([number & 0xFFFF for number in numbers], dtype=torch.int32).to(torch.int16).view(dtype)
    if dtype is torch.uint64:
        return torch.tensor(numbers, dtype=torch.int64).view(dtype)
    return torch.tensor(numbers, dtype=torch.int64 if not dtype.is_floating_point else torch.float64).to(dtype)
