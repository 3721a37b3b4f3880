"""torch's dtypes and memory formats by name: dictionaries, so that no stranger's string reaches getattr."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import torch

from protocol.tensors import ITEMSIZE

# Newer dtypes are missing from older releases of torch; a tensor of them is then refused by name.
DTYPE_OF: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {name: getattr(torch, name) for name in ITEMSIZE if hasattr(torch, name)}
)
NAME_OF: Final[Mapping[torch.dtype, str]] = MappingProxyType({dtype: name for name, dtype in DTYPE_OF.items()})

MEMORY_FORMAT_OF: Final[Mapping[str, torch.memory_format]] = MappingProxyType(
    {
        "contiguous_format": torch.contiguous_format,
        "preserve_format": torch.preserve_format,
        "channels_last": torch.channels_last,
        "channels_last_3d": torch.channels_last_3d,
    }
)
MEMORY_FORMAT_NAME: Final[Mapping[torch.memory_format, str]] = MappingProxyType(
    {memory_format: name for name, memory_format in MEMORY_FORMAT_OF.items()}
)
