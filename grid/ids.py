"""Fresh object ids: 16 random bytes each, drawn from the system in batches, because one call a piece is dear."""

from __future__ import annotations

import os
from typing import Final

from protocol.ids import ID_BYTES, split_ids

PART_BYTES: Final = 2
"""The last ones of a model's id, which count its tensors (SPEC.md, Objects)."""

_BATCH: Final = 256

_drawn: list[bytes] = []


def fresh_id() -> bytes:
    """An id that nothing has yet."""
    try:
        return _drawn.pop()
    except IndexError:
        random = os.urandom(ID_BYTES * _BATCH)
        _drawn.extend(split_ids(random))
        return _drawn.pop()


def fresh_model_id() -> bytes:
    """One for a model: the ids of its tensors count on from it."""
    return fresh_id()[:-PART_BYTES] + bytes(PART_BYTES)


# A forked child would otherwise give out the same ids as its parent.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drawn.clear)
