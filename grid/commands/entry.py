"""The `grid` command itself: the options before a command, and how a command comes to its grid."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from grid.commands.options import show_as

Work = Callable[..., Coroutine[Any, Any, Any]]


@dataclass(slots=True)
class _Chosen:
    """The options before the command."""

    via: str | None = None
    debug: bool = False


chosen = _Chosen()

app = typer.Typer(
    name="grid",
    help="Peers that hold tensors and models: search by tag, compute where the data live, move directly.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        from peer.peer import VERSION

        print(f"peergrid {VERSION}")
        raise typer.Exit


@app.callback()
def options(
    via: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Join the grid through this peer; without it, through one on this machine."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    chosen.via, chosen.debug = via, debug


async def _joined(without_torch: bool) -> Any:
    if without_torch:
        from grid.mesh import Mesh

        return await Mesh.open(chosen.via)
    from grid.client import Grid

    return await Grid.open(chosen.via)


def on_grid(*, without_torch: bool | Callable[[Any], bool] = False, **settings: Any) -> Callable[[Work], Work]:
    """Makes a command of an async function whose first argument is the grid; the others are the command's.

    One that does `without_torch` gets a grid.mesh.Mesh, and so is there a second sooner; a function says so for the
    options that were given.
    """

    def register(work: Work) -> Work:
        @functools.wraps(work)
        def command(*args: Any, **kwargs: Any) -> None:
            from grid.commands.stopping import run as run_stoppable

            async def joined() -> None:
                needs_none = without_torch(kwargs) if callable(without_torch) else without_torch
                async with await _joined(needs_none) as g:
                    await work(g, *args, **kwargs)

            run_stoppable(joined())

        show_as(command, work, {"g": ()})
        app.command(**settings)(command)
        return work

    return register
