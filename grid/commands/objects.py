"""search, show, move, copy, tag, rm."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from grid import bars, show
from grid.commands.stopping import leaving
from grid.found import Found
from grid.hits import is_whole_id
from grid.stored_programs import program_of
from protocol.errors import BadRequest, QueryError

if TYPE_CHECKING:
    from grid.mesh import Mesh

PLAN: Final = re.compile(r"\S+\.py(:\w+)?")  # as 'grid run' takes it


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
    if PLAN.fullmatch(ref):
        raise BadRequest(
            f"{ref} is a plan in a file, which is no program before its arguments are known: "
            f"'grid run {ref} ... --explain' says what it would do; show is for what is stored"
        )
    record = await g.find_record(ref)
    program = str(await program_of(g, record)) if record["kind"] in ("plan", "model") else None
    if as_json:
        show.json_out(show.plain(record) | ({"program": program} if program is not None else {}))
        return
    show.print_fields(show.record_fields(record))
    if program is not None:
        print(f"\n{show.clean_lines(program)}")


async def transfer(g: Mesh, ref: str, peer: str, what: Literal["move", "copy"], as_json: bool) -> None:
    target, found = g.find_member(peer), await Found.find(g, ref)
    source, object = found.peer, show.named(found.record)
    at_source = "is still there, or is whole at" if what == "move" else "is still there; 'grid search' says if it is at"
    with leaving(lambda: f"{object} was at {source}; it {at_source} {target.name}"):
        with bars.waiting(f"{object} goes from {source} to {target.name}"):
            arrived = await (found.move(target) if what == "move" else found.copy(target))
    if as_json:
        show.json_out(show.plain(arrived.record))
    elif arrived is found:
        print(f"{target.name} has it already: {show.named(arrived.record)}")
    else:
        print(f"{target.name} has it from {source}: {show.named(arrived.record)}")


async def tag(g: Mesh, ref: str, changes: Sequence[str], description: str | None, as_json: bool) -> None:
    wrong = [change for change in changes if change[:1] not in "+-" or len(change) < 2]
    if wrong or not (changes or description is not None):
        raise BadRequest(
            f"{wrong[0] if wrong else 'nothing'!r} is no change: write '+#tag', '-#tag' or --describe TEXT"
        )
    added = [change[1:] for change in changes if change[0] == "+"]
    removed = [change[1:] for change in changes if change[0] == "-"]
    found = await Found.find(g, ref)
    await found.edit(added, removed, description)
    _show_record(found.record, as_json)


async def rm(g: Mesh, refs: Sequence[str], as_json: bool) -> None:
    found = [await _to_delete(g, ref) for ref in refs]  # all are found before any is deleted
    removed = {one.id: one for one in found}
    for one in removed.values():
        await one.delete()
        if not as_json:
            print(f"{one.peer} no longer has it: {show.named(one.record)}")
    if as_json:
        show.json_out([{"id": id.hex(), "peer": one.peer} for id, one in removed.items()])


async def _to_delete(g: Mesh, ref: str) -> Found:
    """As Found.find; PEER:ID with a whole id is also what is too damaged to be found, as 'grid verify' names it."""
    try:
        return await Found.find(g, ref)
    except QueryError:  # PEER is no field
        peer, _, id = ref.rpartition(":")
        if not peer or not is_whole_id(id):
            raise
        member = g.find_member(peer)
        return Found(g, {"id": bytes.fromhex(id), "kind": "object", "peer_id": member.id})


def _show_record(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show.json_out(show.plain(record))
    else:
        show.print_fields(show.record_fields(record))
