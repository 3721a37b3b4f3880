"""Objects: put, search, show, get, move, copy, tag, rm."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from grid.commands.entry import on_grid
from grid.commands.options import Force, Json, Out, Ref, Target, peer_names


@on_grid(without_torch=True)
async def put(
    g: Any,
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Files, FILE:NAME inside one, or folders.")],
    to: Annotated[str, typer.Option("--to", metavar="PEER", help="The peer to hold them.", autocompletion=peer_names)],
    tag: Annotated[
        list[str], typer.Option("--tag", metavar="'#TAG'", help="A tag to find them by; repeat it for more.")
    ],
    describe: Annotated[str, typer.Option(metavar="TEXT", help="A description, which search looks into.")] = "",
    private: Annotated[
        bool, typer.Option("--private", help="Others may compute on it, but not take its value.")
    ] = False,
    reveal: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Who may learn what secure runs compute from it, or '*'; repeat it for more."),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="The object's name; without it, the file's.")] = None,
    as_json: Json = False,
) -> None:
    """Publish tensors and models from files.

    Tensors: .npy .npz .csv .parquet .safetensors .pt, IDX (also .gz), folders of these. Models: .pt2 .onnx. Files may
    be larger than memory. If one cannot be read, the others are put all the same.
    """
    from grid.commands import files as commands

    await commands.put(g, files, to, tag, describe, private, name, as_json, reveal or ())


@on_grid(without_torch=True, context_settings={"ignore_unknown_options": True})  # a query may begin with '-'
async def search(
    g: Any,
    query: Annotated[
        str,
        typer.Argument(
            metavar="QUERY", help="Tags and more, such as '#digits rows>=1000'; '' finds all. See docs/queries.md."
        ),
    ],
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep watching, and print the answer again whenever it changes.")
    ] = False,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait for peers.", min=0.01)] = 3.0,
    as_json: Json = False,
) -> None:
    """Find published objects on all peers. Says which peers did not answer."""
    from grid.commands import objects as commands

    await commands.search(g, query, watch, timeout, as_json)


@on_grid(without_torch=True)
async def show(g: Any, ref: Ref, as_json: Json = False) -> None:
    """Show all that is known of an object but its value. Of a plan or a model, also its program."""
    from grid.commands import objects as commands

    await commands.show_object(g, ref, as_json)


@on_grid(without_torch=lambda options: options["out"] is not None)
async def get(g: Any, ref: Ref, out: Out = None, force: Force = False, as_json: Json = False) -> None:
    """Fetch an object's value into a file, or print it. The peer keeps it.

    The file may be larger than memory (except .pt .pt2 .onnx), and appears whole or not at all.
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
