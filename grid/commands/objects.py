"""search, show, move, copy, tag, rm."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from grid import show
from grid.commands.errors import note
from protocol.errors import BadRequest

if TYPE_CHECKING:
    from grid.client import Grid
    from grid.mesh import Mesh


async def search(g: Mesh, query: str, watch: bool, timeout: float, as_json: bool) -> None:
    before = None
    while True:
        hits = await g.find_records(query, timeout)
        answer = show.hits_json(hits)
        if answer != before and as_json:
            show.json_out(answer)
        elif answer != before:
            show.print_hits(hits)
        if not watch:
            return
        before = answer
        await asyncio.sleep(1.0)


async def show_object(g: Mesh, ref: str, as_json: bool) -> None:
    _show_record(await g.find_record(ref), as_json)


async def transfer(g: Grid, ref: str, peer: str, what: str, as_json: bool) -> None:
    """`what`: move or copy."""
    target, hit = g[peer], await g.find(ref)
    check_can(hit, what)
    source, object = hit.location.name, show.named(hit.record)
    try:
        with show.waiting(f"{object} goes from {source} to {target.name}"):
            arrived = await getattr(hit, what)(target)
    except asyncio.CancelledError:
        where = "is still there, or is whole at" if what == "move" else "is still there; 'grid search' says if it is at"
        note(f"stopped: {object} was at {source}; it {where} {target.name}")
        raise
    if as_json:
        show.json_out(show.plain(arrived.record))
    elif target.name == source and what == "move":
        print(f"{target.name} has it already: {show.named(arrived.record)}")
    else:
        print(f"{target.name} has it from {source}: {show.named(arrived.record)}")


async def tag(g: Grid, ref: str, changes: Sequence[str], description: str | None, as_json: bool) -> None:
    wrong = [change for change in changes if change[:1] not in "+-" or len(change) < 2]
    if wrong or not (changes or description is not None):
        raise BadRequest(f"{wrong[0] if wrong else 'nothing'!r} is no change: write '+#tag', '-#tag' or --describe T")
    hit = await g.find(ref)
    check_can(hit, "tag")
    added = [change[1:] for change in changes if change[0] == "+"]
    removed = [change[1:] for change in changes if change[0] == "-"]
    if added:
        await hit.tag(*added)
    if removed:
        await hit.untag(*removed)
    if description is not None:
        await hit.describe(description)
    _show_record(hit.record, as_json)


async def rm(g: Grid, refs: Sequence[str], as_json: bool) -> None:
    hits = [await g.find(ref) for ref in refs]  # all are found before any is deleted
    removed = {hit.record["id"]: hit for hit in hits}
    for hit in removed.values():
        await hit.delete()
        if not as_json:
            print(f"{hit.location.name} has it no more: {show.named(hit.record)}")
    if as_json:
        show.json_out([{"id": id.hex(), "peer": hit.location.name} for id, hit in removed.items()])


def check_can(hit: Any, what: str) -> None:
    """BadRequest for a kind of object of which this cannot be asked."""
    if not hasattr(hit, what):
        raise BadRequest(f"{what} does not work on a {hit.record['kind']}")


def _show_record(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show.json_out(show.plain(record))
    else:
        show.print_fields(show.record_fields(record))
