"""The command line: parse, call, print. `grid --help`; the manual is docs/cli.md.

What is slow to import (torch, and so the package grid) is imported by the commands that need it: help, completion,
`start`, `up` and `down` answer at once.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, get_type_hints

import typer

from protocol.errors import (
    Ambiguous,
    BadProgram,
    BadRequest,
    CannotCapture,
    Denied,
    GridError,
    LinkError,
    NeedsAwait,
    NotCollocated,
    NotFound,
    OperationFailed,
    OperationNotAllowed,
    PeerError,
    ReadOnly,
    RequestError,
    SetupError,
    StorageError,
    UnknownPeer,
    WorkerLost,
)

# The nearest base class counts; docs/cli.md has the same table.
EXIT_CODES: Final[dict[type[BaseException], int]] = {
    BaseException: 1,
    PeerError: 1,
    BadRequest: 2,
    NotFound: 3,
    Ambiguous: 3,
    Denied: 4,
    LinkError: 5,
    StorageError: 6,
    RequestError: 7,
    SetupError: 8,
    BadProgram: 9,
    CannotCapture: 9,
    NeedsAwait: 9,
    NotCollocated: 9,
    OperationFailed: 9,
    OperationNotAllowed: 9,
    ReadOnly: 9,
    WorkerLost: 9,
    KeyboardInterrupt: 130,
}


Work = Callable[..., Awaitable[None]]


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


def _peer_names(incomplete: str) -> list[str]:
    """For the shell's completion: the peers that run on this machine."""
    from peer.folders import Folders
    from peer.neighbours import Neighbours

    names = (neighbour.name for neighbour in Neighbours(Folders.default().peers).list())
    return [name for name in names if name.startswith(incomplete)]


Json = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]
Ref = Annotated[str, typer.Argument(metavar="REF", help="The beginning of an id, or a query that finds one object.")]
Target = Annotated[str, typer.Argument(metavar="PEER", help="A peer's name or id.", autocompletion=_peer_names)]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help=".npy .npz .csv .safetensors .pt")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")]


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


async def _joined(looks_only: bool) -> Any:
    if looks_only:
        from grid.mesh import Mesh

        return await Mesh.open(_chosen.via)
    from grid.client import Grid

    return await Grid.open(_chosen.via)


def on_grid(*, looks_only: bool = False, **settings: Any) -> Callable[[Work], Work]:
    """Makes a command of an async function whose first argument is the grid; the others are the command's.

    One that `looks_only` gets a grid.mesh.Mesh, which needs no torch and so is there a second sooner.
    """

    def register(work: Work) -> Work:
        @functools.wraps(work)
        def command(*args: Any, **kwargs: Any) -> None:
            from peer.process import run_loop

            async def joined() -> None:
                async with await _joined(looks_only) as g:
                    await work(g, *args, **kwargs)

            run_loop(joined())

        signature = inspect.signature(work)
        hints = get_type_hints(work, include_extras=True)
        visible = [value.replace(annotation=hints[name]) for name, value in signature.parameters.items() if name != "g"]
        command.__signature__ = signature.replace(parameters=visible)  # type: ignore[attr-defined]
        command.__annotations__ = {name: hint for name, hint in hints.items() if name != "g"}
        app.command(**settings)(command)
        return work

    return register


# --- peers ------------------------------------------------------------------------------------------------


@app.command()
def start(
    name: Annotated[str, typer.Argument(help="What the peer is called: letters, digits, '.', '_', '-'.")],
    port: Annotated[int | None, typer.Option(help="Default: 7700, or a free one where that is taken.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on; loopback only.")] = "127.0.0.1",
    join: Annotated[list[str] | None, typer.Option(metavar="URL", help="A peer elsewhere to join.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where to keep what is published.")] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error, on standard error.")] = "warning",
) -> None:
    """Run a peer in this terminal until Ctrl-C. Peers on one machine find each other."""
    from peer import process
    from peer.peer import Peer, Settings

    def on_ready(peer: Peer) -> None:
        print(f"{peer.name} is ready at {peer.url} (id {peer.id[:12]}); Ctrl-C stops it", flush=True)

    if log_level not in ("debug", "info", "warning", "error"):
        raise typer.BadParameter(f"{log_level!r} is none of debug, info, warning, error", param_hint="--log-level")
    process.log_to_stderr(log_level)
    process.run(Settings(name, host, port, tuple(join or ()), data_dir), on_ready)


@app.command()
def up(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="What the peers are called.")],
    as_json: Json = False,
) -> None:
    """Run peers in the background. Their logs are in one folder, which is printed."""
    from peer.folders import Folders
    from peer.peer import Settings
    from peer.process import run_loop
    from peer.processes import PeerProcess

    folders = Folders.default()
    wanted = [Settings(name, folders=folders) for name in dict.fromkeys(names)]

    async def start_all() -> list[PeerProcess | BaseException]:
        starting = (
            PeerProcess.start(settings, folders.logs / f"{settings.name}.log", outlives_us=True) for settings in wanted
        )
        return await asyncio.gather(*starting, return_exceptions=True)

    results = run_loop(start_all())
    started = [result for result in results if isinstance(result, PeerProcess)]
    for process in started:
        process.let_go()
    if as_json:
        _print_json([{"name": made.name, "id": made.id, "url": made.url, "pid": made.pid} for made in started])
    else:
        for made in started:
            print(f"{made.name} is ready at {made.url} (id {made.id[:12]}, process {made.pid})")
        if started:
            print(f"logs are in {folders.logs}; 'grid down' ends them")
    _raise_failures([result for result in results if isinstance(result, BaseException)])


@app.command()
def down(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME...]", help="Which; without names all.", autocompletion=_peer_names),
    ] = None,
    as_json: Json = False,
) -> None:
    """End peers on this machine, and wait until they are gone. What they have published stays."""
    from peer.folders import Folders
    from peer.neighbours import Neighbours
    from peer.process import run_loop
    from peer.processes import end

    running = {neighbour.name: neighbour for neighbour in Neighbours(Folders.default().peers).list()}
    unknown = [name for name in names or () if name not in running]
    if unknown:
        raise UnknownPeer(f"no peer named {unknown[0]!r} runs on this machine; running: {', '.join(running) or 'none'}")
    ended = list(dict.fromkeys(names)) if names else list(running)

    async def end_all() -> list[bool]:
        return await asyncio.gather(*(end(running[name].pid) for name in ended))

    in_order = run_loop(end_all())
    if as_json:
        _print_json([{"name": name, "killed": not orderly} for name, orderly in zip(ended, in_order, strict=True)])
        return
    for name, orderly in zip(ended, in_order, strict=True):
        print(f"{name} is down" + ("" if orderly else " (it had to be killed)"))
    if not ended:
        print("no peer runs on this machine")


@on_grid(looks_only=True)
async def peers(g: Any, as_json: Json = False) -> None:
    """Who is there, in which state, holding how much."""
    from grid import show

    infos = g.peers()  # asked for when the grid was joined
    if as_json:
        show.json_out(show.peers_json(infos))
    else:
        show.out().print(show.peers_table(infos))


@on_grid(looks_only=True)
async def status(
    g: Any,
    name: Annotated[
        str | None, typer.Argument(metavar="[PEER]", help="Which; without it all.", autocompletion=_peer_names)
    ] = None,
    as_json: Json = False,
) -> None:
    """What peers say of themselves; of one peer also the tensor bytes it exchanged, and with whom."""
    from grid import show

    asked = [name] if name else [info.id for info in g.peers() if info.state == "alive"]
    statuses = await asyncio.gather(*(g.status(g.find_member(peer)) for peer in asked))
    if as_json:
        show.json_out(show.plain(statuses[0] if name else statuses))
        return
    show.out().print(show.status_table(statuses))
    if name:
        show.out().print(show.traffic_table(statuses[0]["traffic"]))


# --- objects ----------------------------------------------------------------------------------------------


@on_grid()
async def put(
    g: Any,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Files, FILE:NAME inside one, or folders.")],
    to: Annotated[str, typer.Option("--to", metavar="PEER", help="Who is to hold it.", autocompletion=_peer_names)],
    tag: Annotated[list[str], typer.Option("--tag", metavar="'#TAG'", help="How it is found; repeat it for more.")],
    describe: Annotated[str, typer.Option(help="A description; search looks into it.")] = "",
    private: Annotated[bool, typer.Option("--private", help="Others may compute on it, not take it.")] = False,
    name: Annotated[str | None, typer.Option(help="A name; without it, the file's.")] = None,
    as_json: Json = False,
) -> None:
    """Publish tensors from files: .npy .npz .csv .parquet .safetensors .pt, IDX (also .gz), folders of them."""
    from grid import files as tensors
    from grid import show

    peer = g[to]
    found = [one for file in files for one in tensors.read(file)]
    records = []
    for one in found:
        named = one.name if name is None else name if len(found) == 1 else f"{name}/{one.name}"
        with show.progress(f"{named} to {peer.name}") as progress:
            sent = await peer.send(one.tensor, " ".join(tag), describe, private, named, progress=progress)
        records.append(sent.record)
        if not as_json:
            print(f"{peer.name} has {named}: {show.named(sent.record)}", flush=True)
    if as_json:
        show.json_out(show.plain(records))


@on_grid(looks_only=True, context_settings={"ignore_unknown_options": True})  # a query may begin with '-'
async def search(
    g: Any,
    query: Annotated[str, typer.Argument(help="docs/queries.md says how; '' finds everything.")],
    watch: Annotated[bool, typer.Option("--watch", help="Go on, and print again whenever the answer changes.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for peers.", min=0.01)] = 3.0,
    as_json: Json = False,
) -> None:
    """Find published objects on all peers, and say which peers did not answer."""
    from grid import show

    before = None
    while True:
        hits = await g.find_records(query, timeout)
        answer = show.hits_json(hits)
        if answer != before and as_json:
            show.json_out(answer)
        elif answer != before:
            show.print_hits(hits)
        if not watch:
            return
        before = answer
        await asyncio.sleep(1.0)


@on_grid()
async def show(g: Any, ref: Ref, as_json: Json = False) -> None:
    """All that is known of one object, but its value."""
    from grid import show

    record = (await g.find(ref)).record
    if as_json:
        show.json_out(show.plain(record))
    else:
        show.print_fields(show.record_fields(record))


@on_grid()
async def get(g: Any, ref: Ref, out: Out = None, force: Force = False, as_json: Json = False) -> None:
    """Fetch one object's value into a file, or print it. The peer keeps it."""
    from grid import files as tensors
    from grid import show

    if out is not None:
        tensors.check_target(out, force)
    hit = await g.find(ref)
    _check_can(hit, "fetch")
    with show.progress(f"{hit.record['id'].hex()[:12]} from {hit.location.name}") as progress:
        value = await hit.fetch(progress)
    _deliver(value, out, force, as_json)


@on_grid()
async def move(g: Any, ref: Ref, peer: Target, as_json: Json = False) -> None:
    """Move an object to a peer; the data go there directly."""
    await _transfer(g, ref, peer, "move", as_json)


@on_grid()
async def copy(g: Any, ref: Ref, peer: Target, as_json: Json = False) -> None:
    """Copy an object to a peer; the data go there directly."""
    await _transfer(g, ref, peer, "copy", as_json)


async def _transfer(g: Any, ref: str, peer: str, what: str, as_json: bool) -> None:
    from grid import show

    target, hit = g[peer], await g.find(ref)
    _check_can(hit, what)
    source = hit.location.name
    with show.waiting(f"{show.named(hit.record)} goes from {source} to {target.name}"):
        arrived = await getattr(hit, what)(target)
    if as_json:
        show.json_out(show.plain(arrived.record))
    else:
        print(f"{target.name} has it from {source}: {show.named(arrived.record)}")


@on_grid(context_settings={"ignore_unknown_options": True})
async def tag(
    g: Any,
    ref: Ref,
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[+TAG|-TAG]...", help="+#a adds a tag, -#b takes one away.")
    ] = None,
    describe: Annotated[str | None, typer.Option(help="Set the description.")] = None,
    as_json: Json = False,
) -> None:
    """Change the tags or the description of an object of yours."""
    from grid import show

    wrong = [change for change in changes or () if change[:1] not in "+-" or len(change) < 2]
    if wrong or not (changes or describe is not None):
        raise BadRequest(f"{wrong[0] if wrong else 'nothing'!r} is no change: write '+#tag', '-#tag' or --describe T")
    hit = await g.find(ref)
    _check_can(hit, "tag")
    added = [change[1:] for change in changes or () if change[0] == "+"]
    removed = [change[1:] for change in changes or () if change[0] == "-"]
    if added:
        await hit.tag(*added)
    if removed:
        await hit.untag(*removed)
    if describe is not None:
        await hit.describe(describe)
    if as_json:
        show.json_out(show.plain(hit.record))
    else:
        show.print_fields(show.record_fields(hit.record))


@on_grid()
async def rm(
    g: Any,
    refs: Annotated[list[str], typer.Argument(metavar="REF...", help="Ids, or queries that find one object each.")],
    as_json: Json = False,
) -> None:
    """Delete objects of yours."""
    from grid import show

    hits = [await g.find(ref) for ref in refs]  # all are found before any is deleted
    removed = {hit.record["id"]: hit for hit in hits}
    for hit in removed.values():
        await hit.delete()
        if not as_json:
            print(f"{hit.location.name} has it no more: {show.named(hit.record)}")
    if as_json:
        show.json_out([{"id": id.hex(), "peer": hit.location.name} for id, hit in removed.items()])


# --- computing --------------------------------------------------------------------------------------------


@on_grid()
async def run(
    g: Any,
    plan: Annotated[str, typer.Argument(metavar="FILE.py:PLAN", help="A file of yours, and the @grid.plan in it.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[NAME=QUERY]...")] = None,
    out: Out = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Run a plan where its data are: its arguments are found by query, one object each."""
    from grid import files as tensors
    from grid import show
    from grid.scripts import load_plan, results

    if out is not None:
        tensors.check_target(out, force)
    queries = dict(_assignment(argument) for argument in arguments or ())
    loaded = load_plan(plan)
    with show.waiting(f"{plan} runs"):
        value = await results(await g.run(loaded, **queries))
    _deliver(value, out, force, as_json)


@app.command()
def demo(as_json: Json = False) -> None:
    """The main job on real data, from search to training, with three peers on this machine; explains itself."""
    from grid.demo import main as run_demo

    raise typer.Exit(run_demo(as_json))


# --- parts ------------------------------------------------------------------------------------------------


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value), flush=True)


def _raise_failures(failures: Sequence[BaseException]) -> None:
    for failure in failures[:-1]:
        _complain(failure)
    if failures:
        raise failures[-1]


def _check_can(hit: Any, what: str) -> None:
    if not hasattr(hit, what):
        raise BadRequest(f"{what} does not work on a {hit.record['kind']}")


def _assignment(argument: str) -> tuple[str, str]:
    name, equals, query = argument.partition("=")
    if not equals or not name.isidentifier():
        raise BadRequest(f"{argument!r} is no argument of a plan: write NAME=QUERY, such as images='#digits #test'")
    return name, query


def _deliver(value: Any, out: Path | None, force: bool, as_json: bool) -> None:
    from grid import files as tensors
    from grid import show

    if out is not None:
        written = tensors.write(out, value, force)
        if as_json:
            show.json_out({"file": str(written), "bytes": written.stat().st_size})
        else:
            print(f"{written}: {show.size(written.stat().st_size)}")
    elif as_json:
        show.json_out(show.value_json(value))
    else:
        show.print_value(value)


# --- errors -----------------------------------------------------------------------------------------------


def exit_code(error: BaseException) -> int:
    """What the process ends with for this error."""
    return next(EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)


def _complain(error: BaseException) -> None:
    from rich.console import Console
    from rich.text import Text

    text = str(error) if isinstance(error, GridError) else f"a defect: {type(error).__name__}: {error}"
    hint = "" if isinstance(error, GridError) else "\n'grid --debug ...' shows where it comes from"
    # A message may quote strangers: nothing in it moves the cursor.
    safe = "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in text + hint)
    Console(stderr=True, highlight=False).print(Text("error: ", style="red") + Text(safe), soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The `grid` command. Returns the exit code; errors are a line on standard error, never a traceback."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="grid")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except KeyboardInterrupt:
        return EXIT_CODES[KeyboardInterrupt]
    except Exception as error:
        if _chosen.debug:
            raise
        _complain(error)
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
