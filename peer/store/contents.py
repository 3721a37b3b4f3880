"""What an object is made of, and how it lies in a file: the safetensors format, written by ourselves.

A file is `u64 little-endian header length | JSON header | the tensors, one after another`. The header is padded
with spaces so that the first tensor starts at a multiple of 64 bytes. The tensors keep the order in which they
are given (and so, on the wire, arrive); a later one may therefore start at an offset that its dtype does not divide.
Reference: https://github.com/huggingface/safetensors, section "Format".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, TypeGuard

import msgpack
from blake3 import blake3

from protocol import limits
from protocol.errors import BadTensor, TooLarge
from protocol.sizes import check_limit
from protocol.tensors import TensorHeader
from search.text import is_text

ALIGNMENT: Final = 64  # of the first tensor: a cache line, and what vector units load at once
ONE_TENSOR: Final = "data"  # the name of the tensor in an object that is just one
TRUE_HEADERS: Final = "peergrid.tensors"  # metadata key: JSON of the headers that the format has no dtype for
PROGRAM: Final = "peergrid.program"  # metadata key: BLAKE3 of what an object has besides tensors, so its name covers it
_METADATA: Final = "__metadata__"
_CONTENT_NAME: Final = re.compile("[0-9a-f]{64}")

# What the reader of safetensors 0.8 accepts. complex32 and complex128 are not among them: they are stored as
# bytes, with their header under TRUE_HEADERS.
_SAFETENSORS_DTYPE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "bool": "BOOL",
        "uint8": "U8",
        "int8": "I8",
        "int16": "I16",
        "uint16": "U16",
        "int32": "I32",
        "uint32": "U32",
        "int64": "I64",
        "uint64": "U64",
        "float8_e4m3fn": "F8_E4M3",
        "float8_e4m3fnuz": "F8_E4M3FNUZ",
        "float8_e5m2": "F8_E5M2",
        "float8_e5m2fnuz": "F8_E5M2FNUZ",
        "float8_e8m0fnu": "F8_E8M0",
        "float16": "F16",
        "bfloat16": "BF16",
        "float32": "F32",
        "float64": "F64",
        "complex64": "C64",
    }
)
DTYPE_OF_SAFETENSORS: Final[Mapping[str, str]] = MappingProxyType(
    {its: ours for ours, its in _SAFETENSORS_DTYPE.items()}
)


def is_content_name(value: object) -> TypeGuard[str]:
    """Whether it can name contents: a BLAKE3 in hex."""
    return isinstance(value, str) and _CONTENT_NAME.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor's bytes are: `nbytes` from `offset` on, in a blob file or in the inline bytes."""

    header: TensorHeader
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Contents:
    """Named tensors in the order of their bytes, text metadata, and bytes besides (a program). Checks itself.

    Raises:
        BadTensor: names that repeat, are empty or too long, or are not text.
        TooLarge: beyond MAX_STORED_TENSORS, MAX_METADATA, MAX_PROGRAM or MAX_TENSOR.
    """

    tensors: tuple[tuple[str, TensorHeader], ...] = ()
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    extra: bytes = b""
    nbytes: int = field(init=False, compare=False)  # of all tensors together

    def __post_init__(self) -> None:
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))
        object.__setattr__(self, "nbytes", sum(header.nbytes for _, header in self.tensors))
        check_limit("MAX_STORED_TENSORS", len(self.tensors), "an object of {size} tensors; at most {allowed}")
        check_limit("MAX_PROGRAM", len(self.extra), "a program of {size} bytes; at most {allowed}")
        check_limit("MAX_TENSOR", self.nbytes, "an object of {size:bytes}; at most {allowed:bytes}")
        _check_names([name for name, _ in self.tensors])
        _check_metadata(self.metadata)

    @classmethod
    def one(cls, header: TensorHeader) -> Contents:
        """The contents of an object that is one tensor."""
        return cls(((ONE_TENSOR, header),))

    @cached_property
    def packed(self) -> bytes:
        """All of it as the database keeps it."""
        tensors = [[name, header.dtype, list(header.shape)] for name, header in self.tensors]
        packed: bytes = msgpack.packb([tensors, dict(self.metadata), self.extra])
        return packed

    @classmethod
    def unpack(cls, packed: bytes) -> Contents:
        """What `packed` gave. BadTensor for anything else."""
        try:
            rows, metadata, extra = msgpack.unpackb(packed)
            tensors = tuple((name, TensorHeader(dtype, tuple(shape))) for name, dtype, shape in rows)
            return cls(tensors, metadata, extra)
        except (ValueError, TypeError, TooLarge, msgpack.UnpackException) as error:
            raise BadTensor("this describes no contents") from error

    def lay_out(self, start: int) -> dict[str, StoredTensor]:
        """Where each tensor is when the first begins at `start`."""
        places = {}
        for name, header in self.tensors:
            places[name] = StoredTensor(header, start, header.nbytes)
            start += header.nbytes
        return places

    def file_header(self) -> bytes:
        """All bytes of a safetensors file that stand before its tensors."""
        text = json.dumps(self._entries(), separators=(",", ":")).encode("ascii")
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    def _entries(self) -> dict[str, Any]:
        metadata = dict(self.metadata)
        entries: dict[str, Any] = {_METADATA: metadata}
        foreign = {}
        for name, place in self.lay_out(0).items():
            header = place.header
            dtype, shape = _SAFETENSORS_DTYPE.get(header.dtype), list(header.shape)
            if dtype is None:
                foreign[name] = header.to_wire()
                dtype, shape = "U8", [header.nbytes]
            span = [place.offset, place.offset + place.nbytes]
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": span}
        if self.extra:
            metadata[PROGRAM] = blake3(self.extra).hexdigest()
        if foreign:
            metadata[TRUE_HEADERS] = json.dumps(foreign, separators=(",", ":"))
        if not metadata:
            del entries[_METADATA]
        return entries


def _check_names(names: list[str]) -> None:
    for name in names:
        if not is_text(name) or not 0 < len(name) <= limits.MAX_TENSOR_NAME or name == _METADATA:
            shown = repr(name)[:80]
            raise BadTensor(f"{shown} cannot name a tensor: text of 1 to {limits.MAX_TENSOR_NAME} characters")
    if len(set(names)) != len(names):
        raise BadTensor("two tensors of one object have the same name")


def _check_metadata(metadata: Mapping[str, str]) -> None:
    if not all(is_text(text) for pair in metadata.items() for text in pair):
        raise BadTensor("metadata maps text to text")
    for key in (TRUE_HEADERS, PROGRAM):
        if key in metadata:
            raise BadTensor(f"the metadata key {key!r} is the store's own")
    size = sum(len(k) + len(v) for k, v in metadata.items())
    check_limit("MAX_METADATA", size, "metadata of {size:bytes}; at most {allowed:bytes}")
