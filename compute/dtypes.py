"""torch's dtypes and memory formats by name: dictionaries, so that no stranger's string reaches getattr."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final

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

DEFAULT: Final = torch.float32
"""What torch's default dtype is where programs run, whatever it is where they are made."""


def is_by_default(given: Iterable[torch.Tensor], made: torch.dtype) -> bool:
    """Whether what is made of these tensors has its dtype from torch's default here, which is not that of peers."""
    default = torch.get_default_dtype()
    if default is DEFAULT or made not in (default, default.to_complex()):
        return False
    return not any(tensor.is_floating_point() or tensor.is_complex() for tensor in given)


def with_default(value: Any) -> Any:
    """Whole numbers as torch makes floating-point ones of them, by its default here; other values are themselves."""
    if not isinstance(value, torch.Tensor) or value.is_floating_point() or value.is_complex():
        return value
    return value.to(torch.get_default_dtype())


@contextmanager
def as_peers_have_it() -> Iterator[None]:
    """With the default dtype that peers have."""
    before = torch.get_default_dtype()
    if before is DEFAULT:
        yield
        return
    torch.set_default_dtype(DEFAULT)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
