"""Files of named tensors: .safetensors, read by what its header says, and without torch."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, Final

from grid.files.entries import Entries, Entry
from grid.files.sources import FileRange, truth
from peer.store.contents import DTYPE_OF_SAFETENSORS
from protocol import limits
from protocol.errors import BadFile
from protocol.tensors import TensorHeader

_METADATA: Final = "__metadata__"


def safetensors_entries(path: Path) -> Entries:
    """https://github.com/huggingface/safetensors, "Format": a header, and the tensors without gaps behind it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, limits.MAX_FILE_HEADER):
            raise BadFile(f"{path} is not a safetensors file: its header would have {length} bytes")
        described = json.loads(file.read(length).decode())
    if not isinstance(described, dict):
        raise BadFile(f"{path} is not a safetensors file: its header is no map")
    described.pop(_METADATA, None)
    spans = []
    for name, fields in described.items():
        header, start, end = _described(path, name, fields)
        spans.append((start, end))
        fix = truth if header.dtype == "bool" else None
        yield Entry(name, header, partial(FileRange, path, 8 + length + start, header.nbytes, fix))
    _check_spans(path, sorted(spans), size - 8 - length)


def _described(path: Path, name: str, fields: Any) -> tuple[TensorHeader, int, int]:
    try:
        dtype, shape, (start, end) = fields["dtype"], fields["shape"], fields["data_offsets"]
        is_sound = type(start) is int and type(end) is int and 0 <= start <= end
    except (TypeError, KeyError, ValueError):
        is_sound = False
    if not is_sound:
        raise BadFile(f"{path}: {name[:80]!r} has no dtype, shape and data_offsets")
    if dtype not in DTYPE_OF_SAFETENSORS:
        raise BadFile(f"{path}: {name[:80]!r} has dtype {str(dtype)[:40]}, which cannot travel")
    header = TensorHeader.from_wire({"dtype": DTYPE_OF_SAFETENSORS[dtype], "shape": shape})
    if header.nbytes != end - start:
        raise BadFile(
            f"{path}: {name[:80]!r} is {header.dtype} {list(header.shape)}, {header.nbytes} bytes, not {end - start}"
        )
    return header, start, end


def _check_spans(path: Path, spans: list[tuple[int, int]], nbytes: int) -> None:
    at = 0
    for start, end in spans:
        if start != at:
            raise BadFile(f"{path}: its tensors overlap, or have gaps between them, at byte {min(start, at)}")
        at = end
    if at != nbytes:
        raise BadFile(f"{path}: its tensors are {at} bytes, but {nbytes} follow its header")
