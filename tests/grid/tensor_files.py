"""Files of tensors, made and read."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch

from grid.files import read


def idx(values: np.ndarray, kind: int = 0x08) -> bytes:
    header = bytes([0, 0, kind, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(values.dtype.newbyteorder(">")).tobytes()


def only(path: Path | str) -> torch.Tensor:
    (found,) = read(path)
    return found.tensor
