"""Plans: Python functions over tensors that run where their data are.

    @grid.plan
    def accuracy(images, labels, model):
        return (model(images).argmax(1) == labels).float().mean()

    await g.run(accuracy, images="#digits #test #images", labels="#digits #test #labels", model="#digits #classifier")

Called like a function a plan is one: on tensors it runs here, on pointers at their peer, operation by operation.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from compute import capture as capturing
from compute.capture import Captured, capture
from compute.program import Program
from compute.program_module import ProgramFunction
from grid.handle import Handle
from grid.ids import fresh_id
from grid.stored import Stored
from grid.stored_constants import with_stored_constants
from protocol.errors import BadRequest, CannotCapture, NeedsAwait
from search.query import parse_query
from search.tags import parse_tags

if TYPE_CHECKING:
    from grid.remote import RemotePeer


class Plan:
    """A function that can be captured as a program. Make it with `@grid.plan`.

    `build(*examples)` captures it here and now; `g.run` captures it for the shapes of what it finds. A built plan
    has a `program` and an `id` (the program's content hash), and can be sent: `await plan.send(alice, tags=[...])`.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._signature = _signature(function)
        self._captured: Captured | None = None
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> Plan:
        """In a class it is a method."""
        return self if instance is None else Plan(MethodType(self._function, instance))

    def __repr__(self) -> str:
        state = self.id[:12] if self._captured is not None else "not built"
        return f"Plan({self.name}{self._signature}, {state})"

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by parameter name, defaults filled in; BadRequest says what is missing or too much."""
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise BadRequest(f"{self.name}{self._signature}: {self._unknown(kwargs) or error}") from None
        bound.apply_defaults()
        return dict(bound.arguments)

    def bound(self, arguments: Mapping[str, Any]) -> inspect.BoundArguments:
        """What `bind` gave, as the function takes it: by position and by name."""
        return inspect.BoundArguments(self._signature, OrderedDict(arguments))

    @property
    def entry(self) -> Callable[..., Any]:
        """The function as it is called with what `bind` gave, all by name."""

        @functools.wraps(self._function)
        def call(**arguments: Any) -> Any:
            bound = self.bound(arguments)
            return self._function(*bound.args, **bound.kwargs)

        return call

    def _unknown(self, kwargs: Mapping[str, Any]) -> str:
        """Which of these names it does not take, and what was perhaps meant."""
        unknown = [name for name in kwargs if name not in self.parameters]
        close = [match for name in unknown for match in difflib.get_close_matches(name, self.parameters, 1)]
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        return f"there is no argument {', '.join(unknown)}{hint}" if unknown else ""

    @property
    def function(self) -> Callable[..., Any]:
        return self._function

    @property
    def name(self) -> str:
        """What the function is called."""
        return str(getattr(self._function, "__name__", type(self._function).__name__))

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of its arguments."""
        return tuple(self._signature.parameters)

    # --- built --------------------------------------------------------------------------------------------

    def build(self, *examples: Any, dynamic: bool | Mapping[str, Any] | None = None, **named: Any) -> Plan:
        """Capture the plan for arguments like these; returns it. CannotCapture points at the line that prevents it.

        Sizes of its inputs are left open where the function leaves them open, so that what was built with 32 rows runs
        on 1 and on 100; `notes` says which are not. `dynamic`: False: none are; {"x": [0]}: these dimensions are, and
        CannotCapture says why one of them cannot be; True: the first dimension of some input at least.

        What its arguments are, or what it loads, may have to be searched for: `await g.build(plan, ...)` does that.
        """
        try:
            return self.take(capture(self.entry, self.bind(examples, named), dynamic=dynamic))
        except CannotCapture as error:
            query = error.fields.get("load")
            if query is None:
                raise
            raise CannotCapture(
                f"plan {self.name} loads {query!r}, which has to be searched for: await g.build({self.name}, ...)"
            ) from None

    def take(self, captured: Captured) -> Plan:
        """It is built: captured as this. Returns it."""
        self._captured = captured
        return self

    @property
    def captured(self) -> Captured:
        if self._captured is None:
            raise CannotCapture(f"plan {self.name} is not built: call {self.name}.build(*examples) first")
        return self._captured

    @property
    def program(self) -> Program:
        """The program of a built plan."""
        return self.captured.program

    @property
    def notes(self) -> tuple[str, ...]:
        """Of a built plan: which sizes are those of its examples, in words."""
        return self.captured.notes

    @property
    def id(self) -> str:
        """The SHA-256 of the program's bytes, in hex."""
        return self.program.id

    async def send(
        self, peer: RemotePeer, tags: Sequence[str] | str = (), description: str = "", name: str | None = None
    ) -> RemotePlan:
        """Store a built plan at a peer, to be found by its tags.

        Large tensors from outside the function are published there too, and the program names their contents.

        Raises:
            CannotCapture: it is not built, or uses a pointer from outside the function.
        """
        program = self.program
        if self.captured.constants:
            program = await with_stored_constants(program, self.captured.constants, peer, self.name)
        code = program.to_bytes()
        fields = {
            "kind": "plan",
            "tags": list(parse_tags(tags)),
            "publish": True,
            "description": description or inspect.getdoc(self._function) or "",
            "name": name or self.name,
            "spec_bytes": len(code),
        }
        return await RemotePlan(peer, await peer.put(fresh_id(), fields, [code])).load()


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except ValueError:  # one of C, as torch.add: what it takes is found out when it is called
        return inspect.signature(lambda *args, **kwargs: None)


def plan(function: Callable[..., Any]) -> Plan:
    """Decorator: make a plan of a function over tensors, modules and plain values."""
    return Plan(function)


# --- grid.load --------------------------------------------------------------------------------------------


def load(query: str) -> Any:
    """Inside a plan: the one object that `query` finds when the plan is run (docs/queries.md).

    Raises:
        QueryError: the query does not parse.
        BadRequest: outside a plan; use (await g.search(query)).one() there.
    """
    parse_query(query)
    return capturing.load(query)


# --- stored plans -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a plan was given and took: pointers, or dicts of pointers.

    Attributes:
        arguments: the name of each, and of a dict its keys.
        order: for each input of the program, which of all these pointers it is.
        looks: dtype and shape of each pointer.
    """

    arguments: tuple[tuple[str, tuple[str, ...] | None], ...]
    order: tuple[int, ...]
    looks: tuple[tuple[torch.dtype, torch.Size], ...]


class RemotePlan(Stored):
    """A stored plan that a search found. `await plan(x)` runs it as one request where its arguments are, and so does
    `await g.run(plan, x=...)`; the arguments, by position or by name, are what g.run takes. Inside another plan it is
    a function: it runs as a part of that.

    Awaited: load, fetch (its program), move, copy, tag, untag, describe, delete.
    """

    def __init__(self, home: RemotePeer, record: dict[str, Any]) -> None:
        self._handle = Handle(home, record["id"], owns=False, record=record)
        self._program: Program | None = None
        self.fitted: Fitted | None = None  # what it took last

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Awaited: a pointer for each result, in their structure. See Grid.run."""
        if _is_capturing((args, kwargs)):
            return self.inline(*args, **kwargs)
        return self.location.run_plan(self, *args, **kwargs)

    def __repr__(self) -> str:
        return f"RemotePlan({self.location.name}:{self.id_at_location[:12]}, {self.record.get('name')})"

    async def load(self) -> RemotePlan:
        """Get its program."""
        if self._program is None:
            self._program = Program.from_bytes(await self.location.read_spec(self._handle.id))
        return self

    @property
    def is_loaded(self) -> bool:
        """Whether its program is here."""
        return self._program is not None

    @property
    def called(self) -> str:
        """Its name, or what it is."""
        return str((self._handle.record or {}).get("name") or "plan")

    @property
    def program(self) -> Program:
        if self._program is None:
            raise NeedsAwait("the plan's program is not here yet: await plan.load()")
        return self._program

    def inline(self, *args: Any, **kwargs: Any) -> Any:
        """Run its operations here, on tensors of any kind: as a part of a plan that is being captured, say."""
        return self.holding({})(*args, **kwargs)

    def holding(self, held: Mapping[str, torch.Tensor]) -> ProgramFunction:
        """The plan as a function here, with values for the inputs that it loads, or names by their contents."""
        return ProgramFunction(self.program, held, str(self.record.get("name") or "plan"))

    async def fetch(self, progress: Callable[[int, int], None] | None = None) -> Program:
        """Its program."""
        return (await self.load()).program

    def _elsewhere(self, peer: RemotePeer, record: dict[str, Any]) -> RemotePlan:
        return RemotePlan(peer, record)


def _is_capturing(arguments: Any) -> bool:
    return any(isinstance(leaf, FakeTensor) for leaf in pytree.tree_leaves(arguments))
