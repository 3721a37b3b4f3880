"""Ids of objects: so many bytes each (SPEC.md, Objects), one behind the other where there are several."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from struct import Struct
from typing import Final

ID_BYTES: Final = 16


@lru_cache(32)
def splitter(count: int) -> Callable[[bytes], tuple[bytes, ...]]:
    """What gives each of so many ids that stand in a row, where that is done again and again; `struct.error` for
    another number of bytes."""
    return Struct(f"{ID_BYTES}s" * count).unpack


def split_ids(ids: bytes) -> list[bytes]:
    """Each of those that stand in a row."""
    return [ids[at : at + ID_BYTES] for at in range(0, len(ids), ID_BYTES)]
