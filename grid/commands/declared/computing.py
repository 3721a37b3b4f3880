"""Computing: run, ps, kill, demo."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from grid.commands.entry import app, on_grid
from grid.commands.options import Force, Json, Out, peer_names


@on_grid()
async def run(
    g: Any,
    plan: Annotated[
        str, typer.Argument(metavar="PLAN", help="FILE.py:PLAN of yours, or a query that finds a stored plan or model.")
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME=VALUE", help="The plan's arguments: a query that finds one object, a number, a text."
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Only say what would run where, what would move, and what it costs.")
    ] = False,
    at_each: Annotated[
        bool, typer.Option("--map", help="Run it at each of several peers, on what each of them has.")
    ] = False,
    reduce: Annotated[
        str | None,
        typer.Option(metavar="HOW", help="As --map, and combine the results: sum, mean, cat, or FILE.py:PLAN."),
    ] = None,
    parties: Annotated[
        str | None, typer.Option(metavar="PEERS", help="Compute on secret shares at these peers, such as alice,bob.")
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(
            metavar="PEER",
            help="The peer that deals randomness to them, and sees no data. Three parties can do without.",
        ),
    ] = None,
    precision: Annotated[
        int | None, typer.Option(metavar="BITS", help="Fractional bits of secret reals, 10 to 24. Default: 16.")
    ] = None,
    checked: Annotated[
        bool, typer.Option("--checked", help="Use MACs: there is no result if a party changes a bit of anything.")
    ] = False,
    reveal_to: Annotated[
        str | None, typer.Option(metavar="PEER", help="A peer that learns the result in your place; with --tag.")
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="'#TAG'", help="A tag for it to find the result by; repeat it for more."),
    ] = None,
    patience: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="How long the parties wait for each other. Default: 60.")
    ] = None,
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Run a plan where its data are, and print its result. A query as an argument finds one object."""
    from grid.commands import computing as commands

    team = commands.secure(
        parties,
        tag or (),
        provider=provider,
        precision=precision,
        checked=checked,
        reveal_to=reveal_to,
        patience=patience,
    )
    wanted = commands.Wanted(explain, at_each, reduce, out, force, as_json, team, tag or ())
    await commands.run(g, plan, arguments or (), wanted)


@on_grid(without_torch=True)
async def ps(
    g: Any,
    name: Annotated[
        str | None, typer.Argument(metavar="PEER", help="At which peer; without it, at all.", autocompletion=peer_names)
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Keep watching, and show progress.")] = False,
    as_json: Json = False,
) -> None:
    """List what runs, and how far it is. Your programs and jails, and everybody's at peers of this machine."""
    from grid.commands import running as commands

    await commands.ps(g, name, watch, as_json)


@on_grid(without_torch=True)
async def kill(
    g: Any,
    ids: Annotated[list[str], typer.Argument(metavar="ID", help="The beginning of an id that 'grid ps' shows.")],
    as_json: Json = False,
) -> None:
    """End runs. A program ends between two of its operations; returns when it has ended."""
    from grid.commands import running as commands

    await commands.kill(g, ids, as_json)


@app.command()
def demo(as_json: Json = False) -> None:
    """Do the main job on real data, from search to training. Starts three peers here, and explains itself."""
    from grid.demo import main as run_demo

    raise typer.Exit(run_demo(as_json))
