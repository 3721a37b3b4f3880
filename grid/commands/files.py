"""put, get."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from grid import bars, show
from grid.commands.errors import complain
from grid.commands.stopping import leaving
from protocol import limits
from protocol.errors import BadFile, BadRequest, GridError, LinkError

if TYPE_CHECKING:
    from grid.client import Grid
    from grid.mesh import Mesh
    from grid.putting import Putting

_SHOWN: Final = 5  # names of what was not tried


async def put(
    g: Mesh,
    paths: Sequence[str],
    to: str,
    tags: Sequence[str],
    description: str,
    private: bool,
    name: str | None,
    as_json: bool,
    reveal: Sequence[str] = (),
) -> None:
    from grid.putting import Putting

    putting = Putting(g, g.find_member(to), " ".join(tags), description, private, name, reveal)
    records: list[dict[str, Any]] = []
    try:
        with leaving(partial(_stopped, putting), partial(_ended_at_once, putting)):
            async for title, record in putting.run(paths, bars):
                records.append(record)
                if not as_json:
                    print(f"{putting.member.name} has {title}: {show.named(record)}", flush=True)
    finally:
        if as_json and records:
            show.json_out(show.plain(records))
    _report(putting)


def _stopped(putting: Putting) -> str:
    there = f"; what was put before it is there ({putting.count} of them)" if putting.count else ""
    return f"{putting.at_work} is not at {putting.member.name}{there}"


def _ended_at_once(putting: Putting) -> str:
    peer, work = putting.member.name, putting.at_work
    return f"{peer} throws away what it has of {work} within a minute, or has all of it: 'grid search' says which"


def _report(putting: Putting) -> None:
    """The only failure is the command's error; where others went well, or failed too, each is said and then counted."""
    peer, failures = putting.member.name, putting.failures
    if putting.end is None and not putting.count and len(failures) == 1:
        raise failures[0][1]
    for path, error in failures:
        complain(error, path)
    if putting.end is not None:
        raise _told(putting, putting.end)
    if failures:
        files = "1 file was" if len(failures) == 1 else f"{len(failures)} files were"
        raise BadFile(f"{files} not put whole, for the reasons above; {peer} has the rest")


def _told(putting: Putting, end: GridError) -> GridError:
    """Why no more was put, with what it leaves: what is there, and what was not tried."""
    peer, work = putting.member.name, putting.at_work
    unsure = f"; 'grid search' says whether {work} is there all the same" if isinstance(end, LinkError) else ""
    there = f"; what was put before it is there ({putting.count} of them)" if putting.count else ""
    untried = f"; not tried: {_some(putting.untried)}" if putting.untried else ""
    end.message = f"{work} of {putting.file} could not be put at {peer}: {end.message}{unsure}{there}{untried}"
    return end


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


async def get(g: Mesh, ref: str, out: Path, overwrite: bool, as_json: bool) -> None:
    """Into a file."""
    from grid.files.writing import check_target
    from grid.saving import Source, save_object

    check_target(out, overwrite)
    record = await g.find_record(ref)
    member = g.find_member(record["peer_id"])
    is_large = (record.get("nbytes") or 0) > limits.INLINE_PAYLOAD
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    with leaving(
        lambda: f"nothing was written to {out}",
        lambda: f"nothing was written to {out}, but {part} may be left, which the next 'grid get' to {out} removes",
    ):
        with bars.progress(f"{record['id'].hex()[:12]} from {member.name}", "waiting for the disk") as bar:
            connect = partial(g.to, member, bulk=is_large)
            source = Source(connect, member.name, record["id"], record["kind"], bar.waiting, g.others(record))
            written = await save_object(source, out, overwrite, bar)
    show_written(written, as_json)


async def get_value(g: Grid, ref: str, as_json: bool) -> None:
    """To be printed."""
    hit = await g.find(ref)
    if not hasattr(hit, "fetch"):
        raise BadRequest(f"fetch does not work on a {hit.record['kind']}")
    with bars.progress(f"{hit.record['id'].hex()[:12]} from {hit.location.name}") as progress:
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
