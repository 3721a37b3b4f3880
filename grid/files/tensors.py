"""Files of named tensors: .safetensors, read by what its header says and without torch; and .pt, loaded whole by it."""

from __future__ import annotations

import importlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from grid.files.entries import Entries, Entry, check_expansion
from grid.files.sources import FileRange, truth
from peer.payloads import JoinedPayload, Payload
from peer.store.contents import DTYPE_OF_SAFETENSORS
from protocol import limits
from protocol.errors import BadFile, GridError
from protocol.tensors import ITEMSIZE, TensorHeader

if TYPE_CHECKING:
    import torch

_METADATA: Final = "__metadata__"


# --- safetensors ------------------------------------------------------------------------------------------


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


# --- torch.save -------------------------------------------------------------------------------------------


def pt_entries(path: Path) -> Entries:
    """Loaded by torch, which maps it where it can (the format since torch 1.6) and else holds all of it in memory."""
    torch: Any = importlib.import_module("torch")
    is_mapped = False
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        check_expansion(path, sum(member.file_size for member in members))
        is_mapped = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    try:
        # Without the check, sparse tensors with wrong indices load, and corrupt the heap when they are used.
        with torch.sparse.check_sparse_tensor_invariants():
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except GridError:
        raise
    except Exception as error:
        if "weights_only" not in str(error):
            raise
        raise BadFile(
            f"{path} holds Python objects besides tensors, and reading those could run code: "
            "save a tensor or model.state_dict()"
        ) from None
    total = 0
    for name, tensor in _tensors_in(value, "", set(), torch.Tensor):
        total += tensor.numel() * tensor.element_size()  # stride 0 makes terabytes out of one element
        check_expansion(path, total)
        header = _header(path, name, tensor)
        yield Entry(name, header, partial(_payload, tensor))


def _header(path: Path, name: str, tensor: torch.Tensor) -> TensorHeader:
    """What it is, if it can travel: strided, dense, on the CPU, of a known dtype and an honest size."""
    what = f"{path}: {name or 'its tensor'}"
    if str(tensor.layout) != "torch.strided" or tensor.is_quantized or tensor.device.type != "cpu":
        raise BadFile(f"{what} is no dense tensor: call .to_dense(), .dequantize() or .cpu() on it before saving")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in ITEMSIZE:
        raise BadFile(f"{what} has dtype {dtype}, which cannot travel")
    return TensorHeader(dtype, tuple(tensor.shape))


def _payload(tensor: torch.Tensor) -> Payload:
    import torch as loaded

    from compute.values import tensor_bytes

    plain = tensor.detach().as_subclass(loaded.Tensor)
    if plain.dtype is loaded.bool:
        plain = (plain.contiguous().reshape(-1).view(loaded.uint8) != 0).reshape(plain.shape)
    return JoinedPayload([tensor_bytes(plain)])


def _tensors_in(value: object, name: str, seen: set[int], kind: type) -> Iterator[tuple[str, Any]]:
    """The tensors in nested maps and lists, with dotted names; what else is there (epochs, settings) is passed over."""
    if isinstance(value, kind):
        yield name, value
    elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
        seen.add(id(value))  # pickled lists can hold themselves
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inside in items:
            yield from _tensors_in(inside, f"{name}.{key}" if name else str(key), seen, kind)
