"""Peers: start, up, down, peers, status, verify, compact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from grid.commands.entry import app, on_grid
from grid.commands.options import DataDir, Json, OwnPeer, about_workers, peer_names


@app.command()
@about_workers
def start(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What the peer is called: letters, digits, '.', '_', '-'.")
    ],
    port: Annotated[
        int | None,
        typer.Option(metavar="PORT", help="The port to listen on. Default: 7700, or a free one if that is taken."),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="The address to listen on; loopback only.")
    ] = "127.0.0.1",
    join: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="The address of a peer to join, if it is not found by itself."),
    ] = None,
    advertise: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="What others are told instead of its address: a tunnel, a forwarded port."),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to keep what is published. Default: ~/.local/share/peergrid/NAME."),
    ] = None,
    log_level: Annotated[
        str, typer.Option(metavar="LEVEL", help="debug, info, warning or error, on standard error.")
    ] = "warning",
    workers: Any = None,
) -> None:
    """Run a peer in this terminal until Ctrl-C. Peers on one machine find each other."""
    from grid.commands import peers as commands
    from peer.peer import Settings

    if log_level not in ("debug", "info", "warning", "error"):
        raise typer.BadParameter(f"{log_level!r} is none of debug, info, warning, error", param_hint="--log-level")
    settings = Settings(
        name, host, port, tuple(join or ()), data_dir, advertise=tuple(advertise or ()), workers=workers
    )
    commands.start(settings, log_level)


@app.command()
@about_workers
def up(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="What the peers are called.")],
    workers: Any = None,
    as_json: Json = False,
) -> None:
    """Run peers in the background. Their logs are in one folder, which is printed."""
    from grid.commands import peers as commands

    commands.up(names, as_json, workers)


@app.command()
def down(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Which peers; without names, all.", autocompletion=peer_names),
    ] = None,
    as_json: Json = False,
) -> None:
    """End peers on this machine, and wait until they are gone. What they have published stays."""
    from grid.commands import peers as commands

    commands.down(names or (), as_json)


@on_grid(without_torch=True)
async def peers(g: Any, as_json: Json = False) -> None:
    """List the peers, their states, and how much each holds."""
    from grid.commands import peers as commands

    await commands.peers(g, as_json)


@on_grid(without_torch=True)
async def status(
    g: Any,
    name: Annotated[
        str | None, typer.Argument(metavar="PEER", help="Which peer; without it, all.", autocompletion=peer_names)
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what peers say of themselves. Of one peer, also who computes there, and the tensor bytes exchanged."""
    from grid.commands import peers as commands

    await commands.status(g, name, as_json)


@app.command()
def verify(name: OwnPeer = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Check all that peers of this machine have stored. Every hash and the database; ends with 1 if there is damage."""
    from grid.commands import upkeep as commands
    from grid.commands.stopping import run as run_stoppable

    raise typer.Exit(run_stoppable(commands.verify(name, data_dir, as_json)))


@app.command()
def compact(name: OwnPeer = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Free disk space that peers of this machine no longer need."""
    from grid.commands import upkeep as commands
    from grid.commands.stopping import run as run_stoppable

    run_stoppable(commands.compact(name, data_dir, as_json))
