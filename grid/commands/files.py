"""put, get."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grid import show
from grid.commands.errors import complain, note
from protocol import limits
from protocol.errors import BadFile, BadRequest

if TYPE_CHECKING:
    from grid.client import Grid
    from grid.mesh import Mesh
    from grid.putting import Putting


async def put(
    g: Mesh,
    paths: Sequence[str],
    to: str,
    tags: Sequence[str],
    description: str,
    private: bool,
    name: str | None,
    as_json: bool,
) -> None:
    from grid.putting import Putting

    putting = Putting(g, g.find_member(to), " ".join(tags), description, private, name)
    records: list[dict[str, Any]] = []
    try:
        async for title, record in putting.run(paths, show):
            records.append(record)
            if not as_json:
                print(f"{putting.member.name} has {title}: {show.named(record)}", flush=True)
    except asyncio.CancelledError:
        note(f"stopped: {putting.at_work} is not at {putting.member.name}{_but(len(records))}")
        raise
    finally:
        if as_json and records:
            show.json_out(show.plain(records))
    _report(putting, len(records))


def _but(count: int) -> str:
    return "" if not count else f"; what was put before it is there ({count} of them)"


def _report(putting: Putting, count: int) -> None:
    """The only failure is the command's error; where others went well, or failed too, each is said and then counted."""
    failures = putting.failures
    if failures and not count and len(failures) == 1:
        raise failures[0][1]
    for path, error in failures:
        complain(error, path)
    if failures:
        files = "1 file was" if len(failures) == 1 else f"{len(failures)} files were"
        raise BadFile(f"{files} not put whole, for the reasons above; {putting.member.name} has the rest")


async def get(g: Mesh, ref: str, out: Path, overwrite: bool, as_json: bool) -> None:
    """Into a file."""
    from grid.files.writing import check_target
    from grid.saving import Source, save_object

    check_target(out, overwrite)
    record = await g.find_record(ref)
    member = g.find_member(record["peer_id"])
    is_large = (record.get("nbytes") or 0) > limits.INLINE_PAYLOAD
    source = Source(partial(g.to, member, bulk=is_large), member.name, record["id"], record["kind"])
    try:
        with show.progress(f"{record['id'].hex()[:12]} from {member.name}", "waiting for the disk") as progress:
            written = await save_object(source, out, overwrite, progress)
    except asyncio.CancelledError:
        note(f"stopped: nothing was written to {out}")
        raise
    show_written(written, as_json)


async def get_value(g: Grid, ref: str, as_json: bool) -> None:
    """To be printed."""
    hit = await g.find(ref)
    if not hasattr(hit, "fetch"):
        raise BadRequest(f"fetch does not work on a {hit.record['kind']}")
    with show.progress(f"{hit.record['id'].hex()[:12]} from {hit.location.name}") as progress:
        value = await hit.fetch(progress)
    show_value(value, as_json)


def show_written(written: Path, as_json: bool) -> None:
    nbytes = written.stat().st_size
    if as_json:
        show.json_out({"file": str(written), "bytes": nbytes})
    else:
        print(f"{written}: {show.size(nbytes)}")


def show_value(value: Any, as_json: bool) -> None:
    if as_json:
        show.json_out(show.value_json(value))
    else:
        show.print_value(value)
