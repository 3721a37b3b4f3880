"""Plans: Python functions over tensors that run where their data are.

    @grid.plan
    def accuracy(images, labels, model):
        return (model(images).argmax(1) == labels).float().mean()

    await g.run(accuracy, images="#digits #test #images", labels="#digits #test #labels", model="#digits #classifier")

Called like a function a plan is one: on tensors it runs here, on pointers at their peer, operation by operation.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compute import capture as capturing
from compute.capture import Captured, capture
from compute.program import Program
from grid.handle import Handle
from grid.ids import fresh_id
from grid.stored import Stored
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
        self._signature = inspect.signature(function)
        self._captured: Captured | None = None
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __repr__(self) -> str:
        state = self.id[:12] if self._captured is not None else "not built"
        return f"Plan({self._function.__name__}{self._signature}, {state})"

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by parameter name, defaults filled in; BadRequest says what is missing or too much."""
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise BadRequest(f"{self._function.__name__}{self._signature}: {error}") from None
        bound.apply_defaults()
        return dict(bound.arguments)

    @property
    def function(self) -> Callable[..., Any]:
        return self._function

    # --- built --------------------------------------------------------------------------------------------

    def build(self, *examples: Any, **named: Any) -> Plan:
        """Capture the plan for arguments like these; returns it. CannotCapture points at the line that prevents it."""
        self._captured = capture(self._function, self.bind(examples, named))
        return self

    @property
    def captured(self) -> Captured:
        if self._captured is None:
            raise CannotCapture(
                f"plan {self._function.__name__} is not built: call {self._function.__name__}.build(*examples) first"
            )
        return self._captured

    @property
    def program(self) -> Program:
        """The program of a built plan."""
        return self.captured.program

    @property
    def id(self) -> str:
        """The SHA-256 of the program's bytes, in hex."""
        return self.program.id

    async def send(
        self, peer: RemotePeer, tags: Sequence[str] | str = (), description: str = "", name: str | None = None
    ) -> RemotePlan:
        """Store a built plan at a peer, to be found by its tags."""
        code = self.program.to_bytes()
        fields = {
            "kind": "plan",
            "tags": list(parse_tags(tags)),
            "publish": True,
            "description": description or inspect.getdoc(self._function) or "",
            "name": name or self._function.__name__,
            "spec_bytes": len(code),
        }
        return await RemotePlan(peer, await peer.put(fresh_id(), fields, [code])).load()


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


class RemotePlan(Stored):
    """A stored plan that a search found: `await g.run(hit, ...)` runs it, its inputs by name.

    Awaited: load, fetch (its program), move, copy, tag, untag, describe, delete.
    """

    def __init__(self, home: RemotePeer, record: dict[str, Any]) -> None:
        self._handle = Handle(home, record["id"], owns=False, record=record)
        self._program: Program | None = None

    def __repr__(self) -> str:
        return f"RemotePlan({self.location.name}:{self.id_at_location[:12]}, {self.record.get('name')})"

    async def load(self) -> RemotePlan:
        """Get its program."""
        if self._program is None:
            self._program = Program.from_bytes(await self.location.read_spec(self._handle.id))
        return self

    @property
    def program(self) -> Program:
        if self._program is None:
            raise NeedsAwait("the plan's program is not here yet: await plan.load()")
        return self._program

    async def fetch(self, progress: Callable[[int, int], None] | None = None) -> Program:
        """Its program."""
        return (await self.load()).program

    def _elsewhere(self, peer: RemotePeer, record: dict[str, Any]) -> RemotePlan:
        return RemotePlan(peer, record)
