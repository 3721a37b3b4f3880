"""ps, kill."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.markup import escape

from grid import bars, show
from grid.commands.errors import raise_last
from protocol.errors import GridError

if TYPE_CHECKING:
    from grid.mesh import Mesh
    from grid.runs import RunInfo, RunInfos

_EVERY = 0.5  # seconds between two looks
_SHOWN = 12  # hex digits of an id


async def ps(g: Mesh, peer: str | None, watch: bool, as_json: bool) -> None:
    peers = (peer,) if peer else ()
    before = None
    with _screen(is_live=watch and not as_json) as put:
        while True:
            found = await g.running(*peers)
            answer = _json(found)
            if answer != before and as_json:
                show.json_out(answer)
            elif answer != before:
                put(_view(found, g.id))
            if not watch:
                return
            before = answer
            await asyncio.sleep(_EVERY)


async def kill(g: Mesh, ids: Sequence[str], as_json: bool) -> None:
    listed = await g.running()
    chosen = {run.id: run for run in (listed.one(id) for id in ids)}  # all are found before any is ended
    ended: list[RunInfo] = []
    failures: list[GridError] = []
    for run in chosen.values():
        try:
            with bars.waiting(f"{_named(run)} ends at {run.peer}"):
                ended.append(await g.cancel(run))
        except GridError as error:
            failures.append(error)
            continue
        if not as_json:
            print(f"ended at {show.clean(run.peer)}: {show.clean(_named(run))}")
    if as_json:
        show.json_out([{"id": run.id.hex(), "peer": run.peer} for run in ended])
    raise_last(failures)


# --- how it looks -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _screen(*, is_live: bool) -> Iterator[Callable[[Any], None]]:
    """Where tables go: on a terminal that is watched each in the place of the one before."""
    console = show.out()
    if not (is_live and console.is_terminal):
        yield console.print
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda view: live.update(view, refresh=True)


def _view(found: RunInfos, own: str) -> Group:
    """The table of what runs, and below it who did not answer and why."""
    lines: list[Any] = [_table(found, own)] if len(found) else ["nothing runs"]
    for name, reason in found.unreachable.items():
        lines.append(escape(f"no answer from {show.clean(name)}: {show.clean(reason)}"))
    return Group(*lines)


def _table(found: RunInfos, own: str) -> Any:
    columns = ("peer", "id", "kind", "name", "by", "for", "progress", "process")
    return show.table(*columns, rows=[_cells(run, own) for run in found])


def _cells(run: RunInfo, own: str) -> list[object]:
    by = "you" if run.principal == own else run.principal[:_SHOWN]
    far = "" if run.progress is None else f"{run.progress} ({run.progress.fraction:.0%})"
    process = "" if run.process is None else run.process
    return [
        run.peer,
        run.id.hex()[:_SHOWN],
        run.kind,
        run.name or run.what[:_SHOWN],
        by,
        show.duration(run.seconds),
        far,
        process,
    ]


def _named(run: RunInfo) -> str:
    return f"{run.kind} {run.name or run.what[:_SHOWN]}, run {run.id.hex()[:_SHOWN]}"


def _json(found: RunInfos) -> dict[str, Any]:
    runs = []
    for run in found:
        progress = None if run.progress is None else {**run.progress._asdict(), "fraction": run.progress.fraction}
        runs.append(show.plain({**asdict(run), "progress": progress}))
    return {"runs": runs, "unreachable": dict(found.unreachable)}
