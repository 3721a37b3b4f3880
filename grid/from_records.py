"""What records stand for: pointers, stored models, stored plans."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from grid.plans import RemotePlan
from grid.pointer import Pointer
from grid.remote import RemotePeer, pointer_to
from grid.stored_models import RemoteModel
from protocol.errors import GridError

if TYPE_CHECKING:
    from grid.client import Grid

_LOAD_AT_ONCE: Final = 16  # models and plans among the hits whose programs are fetched with them, ready to be called
_MAX_CHAIN: Final = 16


async def hits_of(grid: Grid, records: Sequence[dict[str, Any]], broken: dict[str, str]) -> list[Any]:
    """Pointers, models and plans for what was found. One that does not hold what its record says, or a chain whose end
    is gone, is noted in `broken` by peer and id."""
    made = await asyncio.gather(*(_hit(grid, record) for record in records), return_exceptions=True)
    hits = []
    for record, hit in zip(records, made, strict=True):
        if isinstance(hit, GridError):
            broken[f"{record['peer']}:{record['id'].hex()[:12]}"] = hit.message
        elif isinstance(hit, BaseException):
            raise hit
        else:
            hits.append(hit)
    to_load = [hit for hit in hits if isinstance(hit, RemoteModel | RemotePlan)]
    if len(to_load) <= _LOAD_AT_ONCE:
        # What cannot be loaded says so when it is used.
        await asyncio.gather(*(hit.load() for hit in to_load), return_exceptions=True)
    return hits


async def _hit(grid: Grid, record: dict[str, Any]) -> Any:
    home = grid[record["peer_id"]]
    match record["kind"]:
        case "model":
            return RemoteModel(home, record)
        case "plan":
            return RemotePlan(home, record)
        case "pointer":
            return await _chain(grid, home, record)
    return pointer_to(home, record)


async def _chain(grid: Grid, home: RemotePeer, record: dict[str, Any], depth: int = 0) -> Pointer:
    """A pointer to a pointer: follows what its holder says it points to."""
    full = record if "target" in record else await home.describe_object(record["id"])
    target = full.get("target") or {}
    if depth > _MAX_CHAIN:
        raise GridError(f"object {record['id'].hex()[:12]} at {home.name} is a chain of more than {_MAX_CHAIN} peers")
    there = grid[str(target.get("peer"))]
    described = await there.describe_object(target["object"])
    is_pointer = described["kind"] == "pointer"
    inner = await _chain(grid, there, described, depth + 1) if is_pointer else pointer_to(there, described)
    return pointer_to(home, {**full, **{key: described[key] for key in ("dtype", "shape")}}, inner)
