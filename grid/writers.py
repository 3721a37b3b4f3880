"""One writer for each file format that `grid get -o` writes: an open file and a value in."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import torch

from protocol.errors import BadFile

Value = torch.Tensor | Mapping[str, torch.Tensor] | torch.nn.Module
"""One tensor, or several by name; a module stands for its state_dict."""

Writer = Callable[[IO[bytes], Value, Path], None]
_WITHOUT_NUMPY: Final = "NumPy has no {dtype}, so {path} cannot hold it; write .safetensors or .pt"


def writer_for(path: Path) -> Writer | None:
    return WRITERS.get(path.suffix.lower())


def _one(value: Value, path: Path) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    named = _several(value)
    if len(named) != 1:
        raise BadFile(f"{path} holds one tensor, and there are {len(named)}; write .npz, .safetensors or .pt")
    return next(iter(named.values()))


def _several(value: Value) -> Mapping[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {"value": value}
    return value.state_dict() if isinstance(value, torch.nn.Module) else value


def _to_numpy(tensor: torch.Tensor, path: Path) -> np.ndarray[Any, Any]:
    try:
        return tensor.detach().resolve_conj().resolve_neg().numpy()
    except TypeError:
        raise BadFile(_WITHOUT_NUMPY.format(dtype=str(tensor.dtype).removeprefix("torch."), path=path)) from None


def _write_npy(file: IO[bytes], value: Value, path: Path) -> None:
    np.lib.format.write_array(file, _to_numpy(_one(value, path), path), allow_pickle=False)


def _write_npz(file: IO[bytes], value: Value, path: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, tensor in _several(value).items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, _to_numpy(tensor, path), allow_pickle=False)


def _write_csv(file: IO[bytes], value: Value, path: Path) -> None:
    tensor = _one(value, path)
    if tensor.dim() > 2 or tensor.is_complex():
        raise BadFile(f"{path} holds a table of real numbers, not {tensor.dtype} {list(tensor.shape)}; write .npy")
    if tensor.dtype is torch.bool:
        tensor = tensor.to(torch.uint8)
    for row in _to_numpy(tensor, path).reshape(len(tensor) if tensor.dim() else 1, -1):
        # str of a NumPy number is the shortest text that reads back as the same value.
        file.write((",".join(map(str, row)) + "\n").encode())


def _write_safetensors(file: IO[bytes], value: Value, path: Path) -> None:
    from safetensors.torch import save_file

    # It takes no two names for one storage, and no gaps.
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in _several(value).items()}
    save_file(tensors, file.name)


def _write_pt(file: IO[bytes], value: Value, path: Path) -> None:
    # A view would be saved with the whole storage behind it.
    torch.save(value.detach().clone() if isinstance(value, torch.Tensor) else dict(_several(value)), file)


WRITERS: Final[Mapping[str, Writer]] = {
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".csv": _write_csv,
    ".safetensors": _write_safetensors,
    ".pt": _write_pt,
    ".pth": _write_pt,
}
