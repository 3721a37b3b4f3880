"""Tensors in memory, from files and to files."""

from __future__ import annotations

import os
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compute.values import header_of, tensor_bytes, tensor_from
from grid.files.entries import Entry, as_bad_file
from grid.files.formats import MODELS
from grid.files.reading import Asked, asked, every, reader_for
from grid.files.writing import appearing, check_target, is_whole, write_layout
from peer.worker.reader import kept
from protocol import limits
from protocol.codec import Buffer
from protocol.errors import BadFile
from protocol.tensors import TensorHeader

Value = torch.Tensor | Mapping[str, torch.Tensor] | torch.nn.Module
"""One tensor, or several by name; a module stands for its state_dict, or, in .pt2 and .onnx, for itself."""


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A tensor from a file: `name` says which (the file's stem, the key inside it, or both)."""

    name: str
    tensor: torch.Tensor


def read(path: str | os.PathLike[str]) -> list[NamedTensor]:
    """The tensors in a file, or in all readable files of a folder. `FILE:NAME` picks one from a file of several.

    Raises:
        BadFile: it is missing, empty, of an unknown ending, not what its ending says, or has no such NAME. The
            message names what was expected and what was found.
    """
    with kept():
        return [NamedTensor(file.name_of(entry), _load(file, entry)) for file, entry in every(asked(path))]


def _load(file: Asked, entry: Entry) -> torch.Tensor:
    if not isinstance(entry.header, TensorHeader):
        raise BadFile(f"{file} is a model: grid.read_model reads it")
    data = data_of(file, entry)
    return tensor_from(entry.header, data)


def data_of(file: Asked, entry: Entry) -> memoryview:
    """The bytes of what is in a file, in memory of their own."""
    array: Any = torch.empty(entry.header.nbytes, dtype=torch.uint8).numpy()
    data = memoryview(array)
    reader = reader_for(file.path)
    assert reader is not None
    with as_bad_file(file.path, reader.expects):
        _run(_fill(entry, data))
    return data


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Sources of files never wait, so no loop is needed; one may be running here already."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise AssertionError("the source of a file has waited")


async def _fill(entry: Entry, target: memoryview) -> None:
    source = entry.open()
    try:
        for offset in range(0, source.nbytes, limits.CHUNK):
            size = min(limits.CHUNK, source.nbytes - offset)
            target[offset : offset + size] = await source.read(offset, size)
    finally:
        source.close()


def write(path: str | os.PathLike[str], value: Value, overwrite: bool = False) -> Path:
    """Write a tensor, or several by name, in the format that the ending says. The file appears whole or not at all.

    Raises:
        BadFile: as check_target; or a value that the format cannot hold, or a disk that refuses. StorageFull.
    """
    target = check_target(path, overwrite)
    if target.suffix.lower() in MODELS:
        return _write_model(target, value, overwrite)
    if is_whole(target):
        with appearing(target, overwrite) as file:
            # A view would be saved with the whole storage behind it.
            torch.save(value.detach().clone() if isinstance(value, torch.Tensor) else dict(_several(value)), file)
        return target
    tensors = _several(value)
    layout = [(name, header_of(tensor)) for name, tensor in tensors.items()]
    return write_layout(target, layout, _bytes_of(tensors), overwrite)


def _write_model(target: Path, value: Value, overwrite: bool) -> Path:
    from compute.model import ProgramModule, capture_model
    from grid.files.models import write_model

    if not isinstance(value, torch.nn.Module):
        raise BadFile(f"{target} holds a model, and this is none: write .safetensors, .npz or .pt")
    if not isinstance(value, ProgramModule):
        spec = capture_model(value)
        value = ProgramModule(spec, spec.tensors(value))
    return write_model(value, target, overwrite)


def _several(value: Value) -> Mapping[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {"value": value}
    return value.state_dict() if isinstance(value, torch.nn.Module) else value


def _bytes_of(tensors: Mapping[str, torch.Tensor]) -> Iterator[Buffer]:
    for tensor in tensors.values():
        data = tensor_bytes(tensor)
        for offset in range(0, len(data), limits.CHUNK):
            yield data[offset : offset + limits.CHUNK]
