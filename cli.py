"""The command line: what can be said. `grid --help`; the manual is docs/cli.md. What it does is in grid/commands/.

What is slow to import (torch, and so much of the package grid) is imported by the commands that need it: help,
completion, `start`, `up` and `down` answer at once, and only what computes or prints values needs torch.
"""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from grid.commands.options import DataDir, Force, Json, Out, OwnPeer, Ref, Target, about_workers, peer_names, show_as

Work = Callable[..., Coroutine[Any, Any, Any]]


@dataclass(slots=True)
class _Chosen:
    """The options before the command."""

    via: str | None = None
    debug: bool = False


_chosen = _Chosen()

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
        str | None, typer.Option(metavar="URL", help="Enter the grid at this peer; without it, one on this machine.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    _chosen.via, _chosen.debug = via, debug


async def _joined(without_torch: bool) -> Any:
    if without_torch:
        from grid.mesh import Mesh

        return await Mesh.open(_chosen.via)
    from grid.client import Grid

    return await Grid.open(_chosen.via)


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


# --- peers ------------------------------------------------------------------------------------------------


@app.command()
@about_workers
def start(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What the peer is called: letters, digits, '.', '_', '-'.")
    ],
    port: Annotated[
        int | None, typer.Option(metavar="PORT", help="Default: 7700, or a free one where that is taken.")
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="The address to listen on; loopback only.")
    ] = "127.0.0.1",
    join: Annotated[list[str] | None, typer.Option(metavar="URL", help="A peer elsewhere to join.")] = None,
    advertise: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="What others are told instead of its address: a tunnel, a forwarded port."),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where to keep what is published.")] = None,
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
        typer.Argument(metavar="NAME", help="Which; without names all.", autocompletion=peer_names),
    ] = None,
    as_json: Json = False,
) -> None:
    """End peers on this machine, and wait until they are gone. What they have published stays."""
    from grid.commands import peers as commands

    commands.down(names or (), as_json)


@on_grid(without_torch=True)
async def peers(g: Any, as_json: Json = False) -> None:
    """Who is there, in which state, holding how much."""
    from grid.commands import peers as commands

    await commands.peers(g, as_json)


@on_grid(without_torch=True)
async def status(
    g: Any,
    name: Annotated[
        str | None, typer.Argument(metavar="PEER", help="Which; without it all.", autocompletion=peer_names)
    ] = None,
    as_json: Json = False,
) -> None:
    """What peers say of themselves; of one peer also the tensor bytes it exchanged, and with whom."""
    from grid.commands import peers as commands

    await commands.status(g, name, as_json)


@app.command()
def verify(name: OwnPeer = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Check every hash of what a peer of this machine has stored, and its database. Ends with 1 if it finds damage."""
    from grid.commands import upkeep as commands
    from grid.commands.stopping import run as run_stoppable

    raise typer.Exit(run_stoppable(commands.verify(name, data_dir, as_json)))


@app.command()
def compact(name: OwnPeer = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Free the disk of what a peer of this machine does not need any more."""
    from grid.commands import upkeep as commands
    from grid.commands.stopping import run as run_stoppable

    run_stoppable(commands.compact(name, data_dir, as_json))


# --- objects ----------------------------------------------------------------------------------------------


@on_grid(without_torch=True)
async def put(
    g: Any,
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Files, FILE:NAME inside one, or folders.")],
    to: Annotated[str, typer.Option("--to", metavar="PEER", help="Who is to hold it.", autocompletion=peer_names)],
    tag: Annotated[list[str], typer.Option("--tag", metavar="'#TAG'", help="How it is found; repeat it for more.")],
    describe: Annotated[str, typer.Option(metavar="TEXT", help="A description; search looks into it.")] = "",
    private: Annotated[bool, typer.Option("--private", help="Others may compute on it, not take it.")] = False,
    reveal: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Who may learn what secure runs compute from it, or '*'; repeat it for more."),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="A name; without it, the file's.")] = None,
    as_json: Json = False,
) -> None:
    """Publish files of tensors: .npy .npz .csv .parquet .safetensors .pt, IDX (also .gz), folders. Models: .pt2 .onnx.

    Files may be larger than memory. One that cannot be read does not keep the others.
    """
    from grid.commands import files as commands

    await commands.put(g, files, to, tag, describe, private, name, as_json, reveal or ())


@on_grid(without_torch=True, context_settings={"ignore_unknown_options": True})  # a query may begin with '-'
async def search(
    g: Any,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="docs/queries.md says how; '' finds everything.")],
    watch: Annotated[bool, typer.Option("--watch", help="Go on, and print again whenever the answer changes.")] = False,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Seconds to wait for peers.", min=0.01)] = 3.0,
    as_json: Json = False,
) -> None:
    """Find published objects on all peers, and say which peers did not answer."""
    from grid.commands import objects as commands

    await commands.search(g, query, watch, timeout, as_json)


@on_grid(without_torch=True)
async def show(g: Any, ref: Ref, as_json: Json = False) -> None:
    """All that is known of one object, but its value; of a plan or a model also its program."""
    from grid.commands import objects as commands

    await commands.show_object(g, ref, as_json)


@on_grid(without_torch=lambda options: options["out"] is not None)
async def get(g: Any, ref: Ref, out: Out = None, force: Force = False, as_json: Json = False) -> None:
    """Fetch one object's value into a file, or print it. The peer keeps it.

    The file may be larger than memory (but .pt .pt2 .onnx), and appears whole or not at all.
    """
    from grid.commands import files as commands

    if out is not None:
        await commands.get(g, ref, out, force, as_json)
    else:
        await commands.get_value(g, ref, as_json)


@on_grid(without_torch=True)
async def move(g: Any, ref: Ref, peer: Target, as_json: Json = False) -> None:
    """Move an object to a peer; the data go there directly."""
    from grid.commands import objects as commands

    await commands.transfer(g, ref, peer, "move", as_json)


@on_grid(without_torch=True)
async def copy(g: Any, ref: Ref, peer: Target, as_json: Json = False) -> None:
    """Copy an object to a peer; the data go there directly."""
    from grid.commands import objects as commands

    await commands.transfer(g, ref, peer, "copy", as_json)


@on_grid(without_torch=True, context_settings={"ignore_unknown_options": True})
async def tag(
    g: Any,
    ref: Ref,
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="+TAG|-TAG", help="+#a adds a tag, -#b takes one away.")
    ] = None,
    describe: Annotated[str | None, typer.Option(metavar="TEXT", help="Set the description.")] = None,
    as_json: Json = False,
) -> None:
    """Change the tags or the description of an object of yours."""
    from grid.commands import objects as commands

    await commands.tag(g, ref, changes or (), describe, as_json)


@on_grid(without_torch=True)
async def rm(
    g: Any,
    refs: Annotated[list[str], typer.Argument(metavar="REF", help="Ids, or queries that find one object each.")],
    as_json: Json = False,
) -> None:
    """Delete objects of yours."""
    from grid.commands import objects as commands

    await commands.rm(g, refs, as_json)


# --- computing --------------------------------------------------------------------------------------------


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
        str | None, typer.Option(metavar="HOW", help="The same, combined: sum, mean, cat, or FILE.py:PLAN.")
    ] = None,
    parties: Annotated[
        str | None, typer.Option(metavar="PEERS", help="Compute on secret shares at these, such as alice,bob.")
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(metavar="PEER", help="Who deals randomness to them, and sees no data. Three can do without."),
    ] = None,
    precision: Annotated[
        int | None, typer.Option(metavar="BITS", help="Fractional bits of secret reals, 10 to 24; else 16.")
    ] = None,
    checked: Annotated[
        bool, typer.Option("--checked", help="With MACs: nobody has a result if a party changes a bit of anything.")
    ] = False,
    reveal_to: Annotated[
        str | None, typer.Option(metavar="PEER", help="A peer that learns the result in your place; with --tag.")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", metavar="'#TAG'", help="How it finds the result; repeat it for more.")
    ] = None,
    patience: Annotated[
        float | None, typer.Option(metavar="S", help="Seconds that the parties wait for each other; else 60.")
    ] = None,
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Run a plan where its data are, and print its result: its arguments are found by query, one object each."""
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
        str | None, typer.Argument(metavar="PEER", help="Where; without it everywhere.", autocompletion=peer_names)
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, and show how far it is.")] = False,
    as_json: Json = False,
) -> None:
    """What runs: your programs and jails, and everybody's at peers of this machine; how far each is."""
    from grid.commands import running as commands

    await commands.ps(g, name, watch, as_json)


@on_grid(without_torch=True)
async def kill(
    g: Any,
    ids: Annotated[list[str], typer.Argument(metavar="ID", help="The beginning of an id that 'grid ps' shows.")],
    as_json: Json = False,
) -> None:
    """End what runs: a program between two of its operations. Ends when it has ended."""
    from grid.commands import running as commands

    await commands.kill(g, ids, as_json)


@app.command()
def demo(as_json: Json = False) -> None:
    """The main job on real data, from search to training, with three peers on this machine; explains itself."""
    from grid.demo import main as run_demo

    raise typer.Exit(run_demo(as_json))


# --- the end ----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """The `grid` command. Returns the exit code; errors are a line on standard error, never a traceback."""
    from grid.commands.errors import EXIT_CODES, complain, exit_code

    try:
        app(args=None if arguments is None else list(arguments), prog_name="grid")
    except SystemExit as end:
        return _quiet_after(end.code if isinstance(end.code, int) else 0 if end.code is None else 1)
    except KeyboardInterrupt:
        return _quiet_after(EXIT_CODES[KeyboardInterrupt])
    except Exception as error:
        if _chosen.debug:
            raise
        complain(error)
        return exit_code(error)
    return 0


def _quiet_after(code: int) -> int:
    """After a Ctrl-C the next one, while Python takes itself down, is silent too."""
    from grid.commands.errors import EXIT_CODES
    from grid.commands.stopping import end_at_once

    if code == EXIT_CODES[KeyboardInterrupt]:
        signal.signal(signal.SIGINT, end_at_once)
    return code


if __name__ == "__main__":
    sys.exit(main())
