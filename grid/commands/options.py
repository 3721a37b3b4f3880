"""The options and arguments that several commands have, and the settings that those of `start` and `up` make.

Nothing slow is imported until there is something to read: the help of every command comes by here.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_type_hints

import typer

if TYPE_CHECKING:
    from peer.pool_settings import PoolSettings


def peer_names(incomplete: str) -> list[str]:
    """For the shell's completion: the peers that run on this machine."""
    from peer.folders import Folders
    from peer.neighbours import Neighbours

    names = (neighbour.name for neighbour in Neighbours(Folders.default().peers).list())
    return [name for name in names if name.startswith(incomplete)]


Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON value.")]
Ref = Annotated[str, typer.Argument(metavar="REF", help="The beginning of an id, or a query that finds one object.")]
Target = Annotated[str, typer.Argument(metavar="PEER", help="A peer's name or id.", autocompletion=peer_names)]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        help="Write it to a file: .npy .npz .csv .safetensors .pt; a model also to .pt2 .onnx.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")]
OwnPeer = Annotated[
    str | None,
    typer.Argument(metavar="PEER", help="A peer of this machine; without it, all.", autocompletion=peer_names),
]
DataDir = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="The folder of a peer that does not run now and was started with it."),
]


def show_as(command: Any, work: Callable[..., Any], instead: Mapping[str, Sequence[inspect.Parameter]]) -> None:
    """Has typer see in `command` the arguments of `work`, and instead of some of them others, or none."""
    hints = get_type_hints(work, include_extras=True)
    shown: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(work).parameters.items():
        shown += instead[name] if name in instead else [parameter.replace(annotation=hints[name])]
    command.__signature__ = inspect.Signature(shown)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}


def about_workers(work: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options about workers, in the place of its argument `workers`: the settings they make."""

    @functools.wraps(work)
    def command(**given: Any) -> None:
        of_workers = {name: given.pop(name) for name in _WORKER_OPTIONS}
        work(**given, workers=pool_settings(**of_workers))

    show_as(command, work, {"workers": _OF_WORKERS})
    return command


# Of each: its type, its default, and what is said of it.
_WORKER_OPTIONS: Final[dict[str, tuple[Any, Any, Any]]] = {
    "worker_memory": (
        str | None,
        None,
        typer.Option(
            metavar="SIZE",
            help="Memory for the operations of one principal, such as 4GB. Default: half of the machine's.",
        ),
    ),
    "worker_seconds": (
        float | None,
        None,
        typer.Option(metavar="SECONDS", help="How long one operation or program may run. Default: 600."),
    ),
    "worker_cpu": (
        float | None,
        None,
        typer.Option(metavar="CORES", help="Cores that one principal may keep busy in the long run. Default: all."),
    ),
    "worker_burst": (
        float | None,
        None,
        typer.Option(
            metavar="SECONDS", help="Seconds of a core that it may take before --worker-cpu counts. Default: 60."
        ),
    ),
    "jails": (
        bool,
        False,
        typer.Option("--jails", help="Run jails (Python source, confined by the kernel) for everybody. Default: none."),
    ),
    "jails_for": (
        list[str] | None,
        None,
        typer.Option("--jails-for", metavar="ID", help="Run jails of this principal; repeat it for more."),
    ),
    "jail_seconds": (
        float | None,
        None,
        typer.Option(metavar="SECONDS", help="How long one jail may run. Default: 60."),
    ),
    "jail_memory": (
        str | None,
        None,
        typer.Option(metavar="SIZE", help="Memory of one jail, such as 4GB. Default: as --worker-memory."),
    ),
    "device": (
        str,
        "cpu",
        typer.Option("--device", metavar="DEVICE", help="Where operations run and results are: cpu or cuda."),
    ),
    "unsafe_no_sandbox": (
        bool,
        False,
        typer.Option(
            "--unsafe-no-sandbox", help="Run operations without a sandbox: whoever computes here can do what you can."
        ),
    ),
}
_OF_WORKERS: Final = [
    inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=Annotated[kind, said])
    for name, (kind, default, said) in _WORKER_OPTIONS.items()
]


def pool_settings(
    worker_memory: str | None,
    worker_seconds: float | None,
    worker_cpu: float | None,
    worker_burst: float | None,
    jails: bool,
    jails_for: list[str] | None,
    jail_seconds: float | None,
    jail_memory: str | None,
    device: str,
    unsafe_no_sandbox: bool,
) -> PoolSettings:
    """What the options say of workers.

    Raises:
        BadParameter: a value that cannot be.
    """
    from peer.jail_rules import JailRules
    from peer.pool_settings import PoolSettings
    from protocol.errors import BadRequest
    from search.fields import FIELDS

    def checked(hint: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except (ValueError, BadRequest) as error:
            raise typer.BadParameter(str(error), param_hint=hint) from None

    plain = PoolSettings()
    memory = None if worker_memory is None else checked("--worker-memory", lambda: FIELDS["size"].read(worker_memory))
    worker = dataclasses.replace(plain.worker, is_sandboxed=not unsafe_no_sandbox)
    for hint, name, value in (
        ("--worker-memory", "memory", memory),
        ("--worker-seconds", "seconds", worker_seconds),
        ("--device", "device", device),
    ):
        if value is not None:
            worker = checked(hint, functools.partial(dataclasses.replace, worker, **{name: value}))
    burst = plain.burst if worker_burst is None else worker_burst
    settings: PoolSettings = checked(
        "--worker-cpu, --worker-burst",
        lambda: dataclasses.replace(plain, worker=worker, cpu=worker_cpu, burst=burst),
    )
    most = None if jail_memory is None else checked("--jail-memory", lambda: FIELDS["size"].read(jail_memory))
    seconds = plain.jails.seconds if jail_seconds is None else jail_seconds
    rules = checked("--jails-for, --jail-...", lambda: JailRules(jails, tuple(jails_for or ()), seconds, most))
    settings = checked("--jails", lambda: dataclasses.replace(settings, jails=rules))
    return settings
