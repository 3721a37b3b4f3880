"""Tensor headers: what a tensor is on the wire, checked before anything is allocated (SPEC.md, Tensors).

A tensor is a header {dtype, shape} and its elements in row-major order, little-endian, without padding. Only
dense tensors travel; strides do not: the sender makes the tensor contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from protocol import limits
from protocol.errors import BadTensor
from protocol.sizes import beyond

# Bytes per element of every dense dtype that torch has on CPU. The name is torch's, without "torch.".
ITEMSIZE: Final[Mapping[str, int]] = MappingProxyType(
    {
        "bool": 1,
        "uint8": 1,
        "int8": 1,
        "int16": 2,
        "uint16": 2,
        "int32": 4,
        "uint32": 4,
        "int64": 8,
        "uint64": 8,
        "float8_e4m3fn": 1,
        "float8_e4m3fnuz": 1,
        "float8_e5m2": 1,
        "float8_e5m2fnuz": 1,
        "float8_e8m0fnu": 1,
        "float16": 2,
        "bfloat16": 2,
        "float32": 4,
        "float64": 8,
        "complex32": 4,
        "complex64": 8,
        "complex128": 16,
    }
)


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """dtype (a name of ITEMSIZE) and shape (dimensions). Checks itself; `nbytes` is then exact.

    Raises:
        BadTensor: unknown dtype, or a shape that no tensor can have.
        TooLarge: more elements than any limit allows.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int = field(init=False, repr=False, compare=False)  # of the elements; asked for several times a message

    def __post_init__(self) -> None:
        if not isinstance(self.dtype, str) or self.dtype not in ITEMSIZE:
            raise BadTensor(f"dtype {_shown(self.dtype)} cannot travel; one of: {', '.join(ITEMSIZE)}")
        if not isinstance(self.shape, tuple):
            raise BadTensor(f"a shape is a list of integers, not {_shown(self.shape)}")
        if len(self.shape) > limits.MAX_NDIM:
            raise BadTensor(f"{len(self.shape)} dimensions; at most {limits.MAX_NDIM}")
        nbytes = extent = ITEMSIZE[self.dtype]
        for dim in self.shape:
            # bool is an int in Python: True would pass as 1.
            if type(dim) is not int or not 0 <= dim < limits.MAX_DIM:
                raise BadTensor(f"{_shown(dim)} is not a dimension; they run from 0 to {limits.MAX_DIM - 1}")
            # Zero dimensions do not excuse absurd others: strides are computed from all of them.
            extent *= dim or 1
            nbytes *= dim
        if extent > limits.MAX_TENSOR:
            raise beyond("MAX_TENSOR", extent, "a tensor of {size} bytes; at most {allowed}")
        object.__setattr__(self, "nbytes", nbytes)  # frozen

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def to_wire(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_wire(cls, value: object) -> TensorHeader:
        """The header in a message field; BadTensor for anything else."""
        if type(value) is not dict and not isinstance(value, Mapping):
            raise BadTensor(f"a tensor header is a map, not {_shown(value)}")
        shape = value.get("shape")
        if not isinstance(shape, list | tuple):
            raise BadTensor(f"a shape is a list of integers, not {_shown(shape)}")
        dtype = value.get("dtype")
        if not isinstance(dtype, str):
            raise BadTensor(f"a dtype is a name, not {_shown(dtype)}")
        return cls(dtype, tuple(shape))

    def check_payload(self, nbytes: int) -> None:
        """BadTensor unless a payload of `nbytes` is exactly this tensor."""
        if nbytes != self.nbytes:
            raise BadTensor(f"{self.dtype} {list(self.shape)} is {self.nbytes} bytes, but {nbytes} came")


def _shown(value: object) -> str:
    """A stranger's value, safe to print in an error."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
