"""A run that was started and is watched: how far it is, what it gave, and how to end it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grid.executing import Watched, watched
from grid.runs import RunInfo, RunInfos, running
from protocol.errors import GridError

if TYPE_CHECKING:
    from grid.client import Grid

_EVERY = 0.25  # seconds between two looks: so often a worker says how far it is


class Run:
    """What `g.start` gives. `await run` is what `await g.run(...)` gives; cancelling that ends the run.

        run = g.start(train, data="#x", model=m)
        async for info in run:                  # until it has ended
            print(info.progress)                # iteration 120 of 1000
        model = await run

    It runs on whether it is awaited or not; only who awaits it hears of an error.
    """

    def __init__(self, grid: Grid, work: Coroutine[Any, Any, Any]) -> None:
        self._grid = grid
        self._watched = Watched()
        token = watched.set(self._watched)
        try:
            self._task = asyncio.get_running_loop().create_task(work)
        finally:
            watched.reset(token)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._task.__await__()

    def __repr__(self) -> str:
        return f"Run({'ended' if self.done else 'under way'})"

    @property
    def done(self) -> bool:
        """Whether it has ended, however."""
        return self._task.done()

    def cancel(self) -> None:
        """End it. `await run` raises CancelledError then; the peer stops between two operations."""
        self._task.cancel()

    async def running(self) -> RunInfos:
        """How far it is: what its peer says, of one that runs at several peers what each says. Nothing where it has
        not begun there (queries are asked, a function is captured, data move), or is over."""
        found: list[RunInfo] = []
        unreachable: dict[str, str] = {}
        for id, home in list(self._watched.under_way.items()):
            try:
                there = await running(self._grid, [home.id], id)
            except GridError as error:
                unreachable[home.name] = error.message
                continue
            found += there.runs
            unreachable |= there.unreachable
        return RunInfos(tuple(found), unreachable)

    async def __aiter__(self) -> AsyncIterator[RunInfo]:
        """Each time that something new is heard of it, what that is, until it has ended. Await it for how it ended."""
        before: dict[bytes, Any] = {}
        while not self._task.done():
            for info in await self.running():
                if before.get(info.id) != info.progress:
                    before[info.id] = info.progress
                    yield info
            await asyncio.wait([self._task], timeout=_EVERY)


@dataclass(frozen=True, slots=True)
class Profile:
    """What `g.profile` gives: the result, and what took how long (`reports`, one for each run). Print it."""

    result: Any
    reports: tuple[Any, ...]

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.reports))


async def profiled(work: Coroutine[Any, Any, Any]) -> Profile:
    """What that gives, with a report of each run that it makes."""
    watching = Watched(wants_reports=True)
    token = watched.set(watching)
    try:
        result = await work
    finally:
        watched.reset(token)
    return Profile(result, tuple(watching.reports))
