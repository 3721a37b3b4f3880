"""Random, often absurd arguments for any operation of the table, small and quickly made (tests/attacks has worse)."""

import ctypes
import mmap
import random
from typing import Any

import torch

from compute.arguments import _WORDS

DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
]
INTEGERS = [0, 1, 2, 3, -1, -2, 7, 65_536, 2**30, 2**31, -(2**31)]
VALUES = [0, 1, 2, 3, -1, -5, 10**6, 2**40, -(2**40), 2**63 - 1, -(2**63)]
PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
regions: list[Any] = []


def guarded(tensor: torch.Tensor) -> torch.Tensor:
    """A copy whose last byte is the last before a page that cannot be read or written."""
    nbytes = tensor.numel() * tensor.element_size()
    if not nbytes:
        return tensor
    room = -(-nbytes // PAGE) * PAGE
    region = mmap.mmap(-1, room + PAGE)
    regions.append(region)
    address = ctypes.addressof(ctypes.c_char.from_buffer(region))
    libc.mprotect(address + room, PAGE, 0)
    raw = torch.frombuffer(region, dtype=torch.uint8, count=nbytes, offset=room - nbytes)
    raw.copy_(tensor.contiguous().reshape(-1).view(torch.uint8))
    return raw.view(tensor.dtype).reshape(tensor.shape)


def tensor(chance: random.Random, shape: list[int], dtype: torch.dtype, is_index: bool) -> torch.Tensor:
    if dtype is torch.bool:
        return guarded(torch.rand(shape) < 0.5)
    if dtype.is_floating_point or dtype.is_complex:
        made = torch.randn(shape, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype)
        if made.numel() and chance.random() < 0.2:
            made.view(-1)[chance.randrange(made.numel())] = chance.choice([float("nan"), float("inf"), -1e30, 0.0])
        return guarded(made)
    made = torch.randint(0, 4, shape).to(dtype)
    info = torch.iinfo(dtype)
    if made.numel() and chance.random() < (0.4 if is_index else 0.2):
        value = chance.choice([v for v in (*VALUES, info.min) if info.min <= v <= info.max])
        made.view(-1)[chance.randrange(made.numel())] = value
    return guarded(made)


class Maker:
    """Arguments of one call: usually of one dtype and of few shapes, so that some calls get through."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.dtype = chance.choice(DTYPES)
        self.shape = [chance.choice([0, 1, 2, 3, 4, 8]) for _ in range(chance.choice([0, 1, 2, 2, 3, 4, 4]))]

    def make(self, kind: str, name: str) -> Any:
        chance = self.chance
        if kind.startswith("Optional["):
            return None if chance.random() < 0.4 else self.make(kind[9:-1], name)
        if kind.startswith("List["):
            return [self.make(kind[5:-1], name) for _ in range(chance.choice([0, 1, 2, 2, 3, 4]))]
        if kind == "Tensor":
            is_index = "ind" in name or name in ("target", "repeats", "pivots", "sorter")
            dtype = torch.int64 if is_index and chance.random() < 0.9 else self.dtype
            dtype = chance.choice(DTYPES) if chance.random() < 0.1 else dtype
            shape = list(self.shape)
            if shape and chance.random() < 0.4:
                shape[chance.randrange(len(shape))] = chance.choice([0, 1, 2, 3, 5, 40])
            return tensor(chance, shape, dtype, is_index)
        if kind == "str":
            return chance.choice(sorted(_WORDS.get(name, {"ij,jk->ik"})) or ["x"])
        simple: dict[str, list[Any]] = {
            "int": [*INTEGERS, 0, 1, 1, 2, 2, -1],
            "float": [0.5, 0.1, 1.0, 0.0, -1.0, float("nan"), 1e30],
            "number": [0, 1, 2, 0.5, -1, -1.5, True, 2**63 - 1],
            "bool": [True, False],
            "ScalarType": DTYPES,
            "MemoryFormat": [torch.contiguous_format, torch.channels_last, torch.preserve_format],
        }
        return chance.choice(simple.get(kind, [None]))
