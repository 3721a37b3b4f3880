"""Models from files, and into them."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Final

import torch
from torch import nn

from compute import exporting
from compute.model import ModelSpec, ProgramModule
from compute.spec import unpack_spec
from compute.values import tensor_from
from grid.files.entries import ModelHeader
from grid.files.reading import asked, every
from grid.files.values import data_of, read
from grid.files.writing import appearing
from peer.worker.reader import kept
from protocol.errors import BadFile

WRITERS: Final[Mapping[str, Callable[[ProgramModule, IO[bytes]], None]]] = {
    ".pt2": exporting.write_pt2,
    ".onnx": exporting.write_onnx,
}
"""Of whole models, by the file's ending."""


def read_model(path: str | os.PathLike[str], into: nn.Module | None = None) -> nn.Module:
    """The model in a file, as a module that needs nobody's class.

    .pt2 (torch.export.save) and .onnx hold whole models; both are opened by a confined process, which runs nothing
    that is in them. Files of tensors (.safetensors, .pt, .npz) hold weights only: `into` says of which architecture.

    Args:
        into: a module whose state dict the file holds; it stays as it is, a copy with the file's values is given.

    Raises:
        BadFile: it is not what its ending says, holds what is not read (the message says what), or its tensors are not
            those of `into`.
    """
    if into is not None:
        return _with_state(path, into)
    with kept():
        found = list(every(asked(path)))
        file, entry = found[0]
        if len(found) != 1 or not isinstance(entry.header, ModelHeader):
            raise BadFile(
                f"{file.path} holds tensors and no model: grid.read_model(path, into=module) gives them to a module"
            )
        data = data_of(file, entry)
    spec = ModelSpec.from_wire(unpack_spec(bytes(data[: entry.header.spec_bytes])))
    return built(spec, data[entry.header.spec_bytes :])


def built(spec: ModelSpec, data: memoryview) -> ProgramModule:
    """The module of a spec and the bytes of its tensors, one after another."""
    tensors, at = {}, 0
    for slot in spec.slots:
        if slot.same_as is None:
            tensors[slot.name] = tensor_from(slot.header, data[at : at + slot.header.nbytes])
            at += slot.header.nbytes
    return ProgramModule(spec, tensors)


def write_model(model: ProgramModule, path: Path, overwrite: bool = False) -> Path:
    """Write a model to .pt2 or .onnx; the file appears whole or not at all."""
    with appearing(path, overwrite) as file:
        WRITERS[path.suffix.lower()](model, file)
    return path


def _with_state(path: str | os.PathLike[str], module: nn.Module) -> nn.Module:
    found = {item.name: item.tensor for item in read(path)}
    # What is computed of parameters and kept beside them (nn.utils.weight_norm) is none of the copy's graph.
    computed = [each for part in module.modules() for each in vars(part).values() if _is_computed(each)]
    made = copy.deepcopy(module, {id(each): each.detach().clone() for each in computed})
    names = made.state_dict().keys()
    inner = next((root for root in ("state_dict.", "model.", "model_state_dict.") if _is_below(root, found, names)), "")
    state: dict[str, torch.Tensor] = {name: found[inner + name] for name in names if inner + name in found}
    try:
        made.load_state_dict(state if len(state) == len(names) else found)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise BadFile(f"{path} is not the state dict of {type(module).__name__}: {' '.join(lines)[:300]}") from None
    return made


def _is_computed(value: object) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_leaf


def _is_below(root: str, found: Mapping[str, torch.Tensor], names: object) -> bool:
    return all(root + name in found for name in names)  # type: ignore[attr-defined]  # the keys of a state dict
