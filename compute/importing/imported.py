"""What a reader finds in a stranger's file: a model, or tensors by name; views of the file, as far as can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from compute.model_spec import ModelSpec
from protocol.errors import BadFile
from protocol.sizes import check_limit


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """A program, and the value of each of its slots by name."""

    spec: ModelSpec
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class ImportedTensors:
    """Tensors by name, dense and strided; what else was in the file was passed over."""

    tensors: Mapping[str, torch.Tensor]


def check_total(nbytes: int, where: str) -> None:
    """TooLarge for more than a peer's memory file may hold, before any of it is allocated."""
    sentence = "{where} would take {size} bytes of memory; at most {allowed} are read"
    check_limit("MAX_MEMORY_TENSOR", nbytes, sentence, where=where)


def slot_name(text: object, taken: Mapping[str, object]) -> str:
    """A name for a tensor of a model that is close to the file's own, and not `taken`."""
    if not isinstance(text, str):
        raise BadFile("a tensor in it has a name that is not text")
    parts = ["".join(sign if sign.isprintable() else "_" for sign in part) for part in text[:200].split(".")]
    plain = ".".join(part for part in parts if part) or "tensor"
    name, number = plain, 2
    while name in taken:
        name, number = f"{plain}_{number}", number + 1
    return name
