"""run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from grid import bars
from grid.commands.files import show_value, show_written
from protocol.errors import BadRequest

if TYPE_CHECKING:
    from grid.client import Grid


async def run(g: Grid, plan: str, arguments: Sequence[str], out: Path | None, overwrite: bool, as_json: bool) -> None:
    from grid import files
    from grid.scripts import load_plan, results

    if out is not None:
        files.check_target(out, overwrite)
    queries = dict(map(assignment, arguments))
    loaded = load_plan(plan)
    with bars.waiting(f"{plan} runs"):
        value = await results(await g.run(loaded, **queries))
    if out is not None:
        show_written(files.write(out, value, overwrite), as_json)
    else:
        show_value(value, as_json)


def assignment(argument: str) -> tuple[str, str]:
    """The name and the query of an argument."""
    name, equals, query = argument.partition("=")
    if not equals or not name.isidentifier():
        raise BadRequest(f"{argument!r} is no argument of a plan: write NAME=QUERY, such as images='#digits #test'")
    return name, query
