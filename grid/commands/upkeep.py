"""verify, compact."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from grid import bars, show
from grid.commands.errors import raise_last
from grid.upkeep import Keeper, Report
from peer.folders import Folders
from protocol.errors import BadRequest, Corrupt, GridError, NothingRunning


async def verify(name: str | None, data_dir: Path | None, as_json: bool) -> int:
    """The exit code: 1 where something is damaged."""
    keeper = Keeper(Folders.default())

    async def check(peer: str) -> Report:
        with bars.progress(f"checking {peer}") as progress:
            try:
                return await keeper.verify(peer, data_dir, progress)
            except Corrupt as error:  # so damaged that it cannot be opened
                return {"objects": 0, "blobs": 0, "bytes": 0, "damaged": [], "database": [error.message]}

    reports, failures = await _each(keeper, name, data_dir, check)
    if as_json:
        show.json_out(show.plain(reports))
    else:
        for report in reports:
            show.print_verified(report)
    raise_last(failures)
    return int(any(report["damaged"] or report["database"] for report in reports))


async def compact(name: str | None, data_dir: Path | None, as_json: bool) -> None:
    keeper = Keeper(Folders.default())

    async def sweep(peer: str) -> Report:
        with bars.waiting(f"compacting {peer}"):
            return await keeper.compact(peer, data_dir)

    reports, failures = await _each(keeper, name, data_dir, sweep)
    if as_json:
        show.json_out(reports)
    else:
        for report in reports:
            show.print_compacted(report)
    raise_last(failures)


async def _each(
    keeper: Keeper, name: str | None, data_dir: Path | None, work: Callable[[str], Awaitable[Report]]
) -> tuple[list[Report], list[GridError]]:
    """The reports of the peer, or of all of this machine, and the errors of those that gave none."""
    if name is None and data_dir is not None:
        raise BadRequest("name the peer whose folder it is: grid verify NAME --data-dir FOLDER")
    names = [name] if name is not None else keeper.names()
    if not names:
        raise NothingRunning("no peer runs on this machine, and none has kept anything here")
    reports: list[Report] = []
    failures: list[GridError] = []
    for peer in names:
        try:
            reports.append({"peer": peer, **await work(peer)})
        except GridError as error:
            if name is None and error.peer is None:
                error.peer = peer
            failures.append(error)
    return reports, failures
