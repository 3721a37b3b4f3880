"""Ids of objects: so many bytes each (SPEC.md, Objects), one behind the other where there are several."""

from __future__ import annotations

from typing import Final

ID_BYTES: Final = 16


def split_ids(ids: bytes) -> list[bytes]:
    """Each of those that stand in a row."""
    if len(ids) == ID_BYTES:
        return [ids]
    return [ids[at : at + ID_BYTES] for at in range(0, len(ids), ID_BYTES)]
