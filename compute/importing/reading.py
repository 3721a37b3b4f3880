"""Which reader reads what, and what it found as bytes: how it crosses from the sandbox to who asked.

a model     its spec (SPEC.md, 12), then its tensors
tensors     a msgpack list of [name, dtype, shape, place, start], then those that are not in the file as they are
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

import msgpack
import torch

from compute.dtypes import NAME_OF
from compute.importing import onnx, pt, pt2
from compute.importing.imported import ImportedModel, ImportedTensors, check_total
from compute.spec import pack_spec
from compute.uncompiled import LATE
from compute.values import tensor_bytes
from protocol.codec import Buffer
from protocol.errors import BadFile, GridError

READERS: Final[Mapping[str, Callable[[memoryview], ImportedModel | ImportedTensors]]] = {
    "pt": pt.read,
    "pt2": pt2.read,
    "onnx": onnx.read,
}
IN_FILE: Final = "file"
IN_ANSWER: Final = "answer"


def read(kind: str, data: memoryview) -> tuple[str, bytes, Iterator[Buffer]]:
    """What is in a file of that kind: "model" or "tensors", its head, and the bytes that follow it.

    Raises:
        GridError: the file is not what it should be, or nothing that may be read. Nothing else is raised.
    """
    try:
        found = READERS[kind](data)
        if isinstance(found, ImportedModel):
            return "model", *_model(found)
        return "tensors", *_tensors(found, data)
    except GridError:
        raise
    except MemoryError:
        raise BadFile("reading it takes more memory than a reader gets") from None
    except Exception as error:  # strangers' files make libraries raise nearly anything
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise BadFile(f"it is damaged: {line}") from None


def warm(kinds: Collection[str]) -> None:
    """All that these readers import, and torch's first run of it: behind the walls nothing can be imported."""
    torch.set_num_threads(1)
    if "onnx" in kinds:
        for module in (*LATE, "torch._dynamo"):
            importlib.import_module(module)
        torch.conv2d(torch.empty(1, 1, 4, 4, device="meta"), torch.empty(1, 1, 3, 3, device="meta"))
    if "pt" in kinds:
        for is_zip in (True, False):
            file = io.BytesIO()
            value = {"a": torch.zeros(2, dtype=torch.bool), "b": torch.nn.Parameter(torch.zeros(2))}
            torch.save(value, file, _use_new_zipfile_serialization=is_zip)
            read("pt", memoryview(file.getvalue()))
    for kind in kinds:
        for data in (b"PK\3\4" + bytes(100), b"x" * 100):
            with contextlib.suppress(GridError):
                read(kind, memoryview(data))


def _model(found: ImportedModel) -> tuple[bytes, Iterator[Buffer]]:
    names = [slot.name for slot in found.spec.slots if slot.same_as is None]
    check_total(found.spec.nbytes, "what is in it")
    return pack_spec(found.spec.to_wire()), (_plain(found.tensors[name]) for name in names)


def _tensors(found: ImportedTensors, data: memoryview) -> tuple[bytes, Iterator[Buffer]]:
    begin = torch.frombuffer(data, dtype=torch.uint8).data_ptr() if len(data) else 0
    rows, copied, at = [], [], 0
    for name, tensor in found.tensors.items():
        start = tensor.data_ptr() - begin
        is_part = tensor.is_contiguous() and 0 <= start <= len(data) - tensor.nbytes and tensor.nbytes > 0
        if is_part and not tensor.is_neg() and not tensor.is_conj():
            rows.append([name, NAME_OF[tensor.dtype], list(tensor.shape), IN_FILE, start])
            continue
        rows.append([name, NAME_OF[tensor.dtype], list(tensor.shape), IN_ANSWER, at])
        copied.append(tensor)
        at += tensor.numel() * tensor.element_size()
    check_total(at, "what is in it")
    head: bytes = msgpack.packb(rows)
    return head, (_plain(tensor) for tensor in copied)


def _plain(tensor: torch.Tensor) -> Any:
    """Its bytes as they travel: row by row; truths are 0 or 1."""
    plain = tensor.detach().contiguous()
    if plain.dtype is torch.bool:
        plain = (plain.reshape(-1).view(torch.uint8) != 0).reshape(plain.shape)
    return tensor_bytes(plain)
