"""What torch.save wrote, as far as it is tensors.

torch's own reader of pickles makes tensors and nothing else (weights_only); here it gets the parts of the file in place
of copies, so that a file may be larger than memory. What it has been talked into before (torch 2.13 and older): sparse
tensors with wrong indices, which corrupt memory when they are used, and terabytes out of one element.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import _weights_only_unpickler

from compute.dtypes import NAME_OF
from compute.importing.archive import Archive
from compute.importing.imported import ImportedTensors
from protocol import limits
from protocol.errors import BadFile, GridError
from protocol.sizes import check_limit

_ZIP: Final = b"PK\x03\x04"
_PICKLED: Final = (
    "it holds Python objects besides tensors, and reading those could run code: save a tensor or model.state_dict(); "
    "a whole model goes as torch.export.save(torch.export.export(model, example), 'model.pt2'), or as ONNX"
)
_OF_OBJECTS: Final = ("weights_only", "GLOBAL", "Unsupported")  # in torch's words where it meets more than tensors
_SCRIPT: Final = (
    "it is a TorchScript module, which is code: save its state_dict(), or export the module that it was made from "
    "with torch.export.save(torch.export.export(model, example), 'model.pt2')"
)
_EXPORTED: Final = "it is an archive of torch.export.save: call it .pt2"
_MOST_TENSORS: Final = 65_535


def read(data: memoryview) -> ImportedTensors:
    """All tensors in it, with dotted names.

    Raises:
        BadFile: it is no such file, or holds more than dense tensors, in which case the message says what to save.
        TooLarge: it would grow absurdly.
    """
    try:
        # Without the check, sparse tensors with wrong indices load, and corrupt the heap when they are used.
        checks: Any = torch.sparse.check_sparse_tensor_invariants
        with checks():
            value = _unpacked(data) if bytes(data[:4]) == _ZIP else _old_format(data)
    except GridError:
        raise
    except Exception as error:  # UnpicklingError, and whatever else strangers' bytes lead to
        if any(word in str(error) for word in _OF_OBJECTS):
            raise BadFile(_PICKLED) from None
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise BadFile(f"it is not a file of torch.save: {line}") from None
    found: dict[str, torch.Tensor] = {}
    total = 0
    for name, tensor in _tensors_in(value, "", set()):
        total += _checked(tensor, name)
        check_expansion(total, len(data))  # stride 0 makes terabytes out of one element
        if name in found or len(found) >= _MOST_TENSORS:
            raise BadFile(f"two of its tensors are called {name[:80]!r}" if name in found else "too many tensors")
        found[name] = tensor.detach().as_subclass(torch.Tensor)
    return ImportedTensors(found)


def check_expansion(nbytes: int, size: int) -> None:
    """TooLarge for a file of `size` bytes that would become absurdly larger."""
    allowed = max(limits.SMALL_EXPANSION, limits.MAX_EXPANSION * size)
    sentence = "it would grow to {size} bytes; at most {allowed} are read from a file of its size"
    check_limit("MAX_EXPANSION", nbytes, sentence, allowed=allowed)


def _unpacked(data: memoryview) -> Any:
    archive = Archive(data)
    if "constants.pkl" in archive or any(name.startswith("code/") for name in archive.names):
        raise BadFile(_SCRIPT)
    if "archive_format" in archive or any(name.startswith("models/") for name in archive.names):
        raise BadFile(_EXPORTED)
    check_expansion(archive.nbytes, len(data))
    if "byteorder" in archive and bytes(archive.read("byteorder", 64)).strip() != b"little":
        raise BadFile("it was saved on a machine of another byte order")
    storages: dict[str, Any] = {}

    def storage(described: Any) -> Any:
        kind, made_as, key, _, count = described
        if kind != "storage" or not isinstance(key, str) or not isinstance(count, int):
            raise BadFile("it refers to something that is no storage")
        if key not in storages:
            part = archive.read(f"data/{key}", limits.MAX_EXPANSION * len(data) + limits.SMALL_EXPANSION)
            storages[key] = _storage(part)
        dtype = torch.uint8 if made_as is torch.UntypedStorage else made_as.dtype
        typed: Any = torch.storage.TypedStorage
        return typed(wrap_storage=storages[key], dtype=dtype, _internal=True)

    unpickler: Any = _weights_only_unpickler.Unpickler(io.BytesIO(archive.read("data.pkl", limits.MAX_FILE_HEADER)))
    unpickler.persistent_load = storage
    return unpickler.load()


def _storage(part: memoryview) -> Any:
    if not part.nbytes:
        return torch.empty(0, dtype=torch.uint8).untyped_storage()
    return torch.frombuffer(part, dtype=torch.uint8).untyped_storage()


def _old_format(data: memoryview) -> Any:
    """That of torch 1.5 and older: pickles, and the tensors behind them."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _checked(tensor: torch.Tensor, name: str) -> int:
    """Its bytes, if it can travel: strided, dense, on the CPU, of a known dtype."""
    what = f"{name[:80] or 'its tensor'}"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise BadFile(f"{what} is no dense tensor: call .to_dense(), .dequantize() or .cpu() on it before saving")
    if tensor.dtype not in NAME_OF:
        raise BadFile(f"{what} has dtype {str(tensor.dtype).removeprefix('torch.')}, which cannot travel")
    return math.prod(tensor.shape) * tensor.element_size()


def _tensors_in(value: object, name: str, seen: set[int]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in nested maps and lists, with dotted names; what else is there (epochs, settings) is passed over."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
        seen.add(id(value))  # pickled lists can hold themselves
        items: Any = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inside in items:
            yield from _tensors_in(inside, f"{name}.{key}" if name else str(key), seen)
