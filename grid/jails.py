"""Jails: Python functions whose source runs where the data are, with ordinary control flow on their values.

    @grid.jail
    def trimmed(x):
        while x.std() > 1:
            x = x[(x - x.mean()).abs() < 2 * x.std()]
            print(len(x), "are left")
        return x.mean()

    mean = await g.run(trimmed, x="#heights")     # or: await trimmed(pointer)
    print(mean.printed)

A peer runs them only if its owner said so: `grid start NAME --jails`. docs/jails.md has what can be said inside.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgpack
import torch

from compute.dtypes import DTYPE_OF
from compute.jail import structure
from compute.jail.running import Work
from compute.jail.source import Source, source_of
from compute.jail.structure import Called
from compute.model import capture_model
from compute.program_module import ProgramFunction, ProgramModule
from compute.spec import pack_spec
from grid.given import mapped, walk
from grid.handle import Handle
from grid.ids import fresh_id
from grid.multi import MultiPointer
from grid.plans import load
from grid.pointer import Pointer
from protocol import limits
from protocol.errors import BadJail, BadRequest, GridError

if TYPE_CHECKING:
    from grid.parts import Part
    from grid.remote import RemotePeer


class Jail:
    """A function whose source runs where its arguments are. Make it with `@grid.jail`.

    `await g.run(jail, ...)` and `await jail(pointer, ...)` run it there; on tensors that are here it is the function
    itself. `printed` is what it printed when it last ran at a peer.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._signature = inspect.signature(function)
        self.printed = ""
        functools.update_wrapper(self, function)

    @property
    def name(self) -> str:
        """What the function is called."""
        return self._function.__name__

    @property
    def source(self) -> Source:
        """What is shipped of it, as it is now.

        Raises:
            BadJail: it says or needs something that cannot be; the message says which line, and what to write.
        """
        return source_of(self._function, load)

    def __repr__(self) -> str:
        return f"Jail({self.name}{self._signature})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Awaited, where an argument is at a peer; else what the function gives here."""
        for _, value in walk((args, kwargs)):
            if isinstance(value, MultiPointer):
                value = value.children[0]
            if isinstance(value, Pointer):
                return value._handle.home.run_plan(self, *args, **kwargs)
        return self._function(*args, **kwargs)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by parameter name, defaults filled in; BadRequest says what is missing or too much."""
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise BadRequest(f"{self.name}{self._signature}: {error}") from None
        bound.apply_defaults()
        return dict(bound.arguments)

    async def job(self, arguments: Mapping[str, Any], part: Part) -> JailJob:
        """What is to be run, for arguments as `bind` gives them."""
        source = self.source
        await part.world.look({query: f"grid.load({query!r})" for query in source.loads})
        given = mapped(await part.resolved(arguments), _shipped)
        loaded = {query: _shipped(await part.resolved(query)) for query in source.loads}
        bound = inspect.BoundArguments(self._signature, dict(given))
        collected = _Collected()
        work = Work(
            source=source.text,
            name=source.name,
            line=source.line,
            args=collected.plain(list(bound.args), "an argument"),
            kwargs=collected.plain(dict(bound.kwargs), "an argument"),
            values={name: collected.plain(value, name) for name, value in source.values.items()},
            modules=source.modules,
            loads={query: collected.plain(value, f"grid.load({query!r})") for query, value in loaded.items()},
        )
        named = {id(value): path for path, value in _tensors(given)}
        named.update({id(value): f"grid.load({query!r})" for query, value in _tensors(loaded)})
        what = tuple(named.get(id(tensor), "a value of the jail's") for tensor in collected.tensors)
        return JailJob(self, source, work, tuple(collected.tensors), what)


def jail(function: Callable[..., Any]) -> Jail:
    """Decorator: make a jail of a function. What cannot be shipped of it is said when it runs."""
    return Jail(function)


def _shipped(value: Any) -> Any:
    """A model or stored plan as what is rebuilt in the jail; all else as it is."""
    if isinstance(value, ProgramFunction):
        return Called("plan", value.program.to_bytes(), value.held)
    if not isinstance(value, torch.nn.Module):
        return value
    if not isinstance(value, ProgramModule):
        if value.training:
            raise BadJail(
                f"a {type(value).__name__} in training mode does not go into a jail: call eval() first, or define its "
                "class inside and give its state_dict()"
            )
        spec = capture_model(value)
        value = ProgramModule(spec, spec.tensors(value))
    return Called("model", pack_spec(value.spec.to_wire()), value.held)


def _tensors(given: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of arguments, each with the path of its argument; those of a model with that of the model."""
    for path, value in walk(given):
        for tensor in value.held.values() if isinstance(value, Called) else [value]:
            if isinstance(tensor, torch.Tensor):
                yield path, tensor


class _Collected:
    """Tensors of a jail's arguments, each once, and the arguments with their numbers instead."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []
        self._numbers: dict[object, int] = {}

    def plain(self, value: Any, what: str) -> Any:
        try:
            return structure.encode(value, self._number)
        except BadRequest as error:
            raise BadJail(f"{what}: {error.message}") from None

    def _number(self, value: Any) -> int | None:
        if not isinstance(value, torch.Tensor):
            return None
        key = value._handle if isinstance(value, Pointer) else id(value)
        if key not in self._numbers:
            self._numbers[key] = len(self.tensors)
            self.tensors.append(value)
        return self._numbers[key]


@dataclass(frozen=True, slots=True)
class JailJob:
    """A jail to be run: as grid.jobs.Job, for what is shipped as source.

    Attributes:
        inputs: the tensors and pointers that the work numbers.
        what: of each the argument that it is, or is a part of.
    """

    jail: Jail
    source: Source
    work: Work
    inputs: tuple[torch.Tensor, ...]
    what: tuple[str, ...]
    holder: None = None

    @property
    def name(self) -> str:
        return self.jail.name

    def packed(self) -> bytes:
        """What is shipped, but for tensors. BadJail: it is too much."""
        packed: bytes = msgpack.packb(self.work.to_wire())
        if len(packed) > limits.JAIL_REQUEST:
            raise BadJail(
                f"{self.name} and its plain arguments have {len(packed)} bytes, and a jail takes "
                f"{limits.JAIL_REQUEST}: give what is large as tensors"
            )
        return packed

    async def run(self, home: RemotePeer, ids: Sequence[bytes], record: dict[str, Any] | None) -> Any:
        """Run it at `home`, where its inputs have these ids now. `record`: of results that are private to somebody."""
        packed = self.packed()
        args = {"inputs": list(ids), "run": fresh_id(), "name": self.name}
        self.jail.printed = ""
        try:
            answer = await (await home.outbox.flush()).post("jail", args, packed)  # cancelled, it ends there
        except GridError as error:
            self._note(error)
            raise
        made = [
            Pointer.of(Handle(home, id, owns=True, record=record), DTYPE_OF[dtype], shape)
            for id, dtype, shape in answer.result["results"]
        ]
        self.jail.printed = bytes(answer.payload).decode(errors="replace")
        result = structure.decode(msgpack.unpackb(answer.result["structure"], raw=False), made.__getitem__)
        return _with_printed(result, self.jail.printed)

    def _note(self, error: GridError) -> None:
        """The user's own lines, and what was printed, where Python shows notes: below the error."""
        printed, lines = error.fields.get("printed"), error.fields.get("traceback")
        if isinstance(printed, str) and printed:
            self.jail.printed = printed
            error.add_note(f"{self.name} had printed:\n{printed.rstrip()}")
        if isinstance(lines, str) and lines:
            shown = lines.replace("  line ", f'  File "{self.source.file}", line ').rstrip()
            error.add_note(f"In the jail, at {error.peer}:\n{shown}")


# --- results ----------------------------------------------------------------------------------------------


class JailTuple(tuple[Any, ...]):
    """A tuple that a jail gave; `printed` is what that printed."""

    printed: str


class JailList(list[Any]):
    """A list that a jail gave; `printed` is what that printed."""

    printed: str


class JailDict(dict[Any, Any]):
    """A dict that a jail gave; `printed` is what that printed."""

    printed: str


_KINDS: Mapping[type, type] = {tuple: JailTuple, list: JailList, dict: JailDict}


def _with_printed(result: Any, printed: str) -> Any:
    """The result, with the attribute `printed` where it can have one (numbers, text and None cannot: jail.printed)."""
    kind = _KINDS.get(type(result))
    if kind is not None:
        result = kind(result)
    if kind is not None or isinstance(result, Pointer):
        result.printed = printed
    return result
