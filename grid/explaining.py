"""What a run would do, before anything moves or runs: `await g.explain(plan, ...)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from compute.forecast import foresee
from compute.program import Program
from grid.jails import JailJob
from grid.jobs import Job
from grid.placement import Candidate, Input, place
from grid.pointer import Pointer
from grid.show import duration, size
from grid.world import World
from protocol.errors import GridError, NotCollocated

if TYPE_CHECKING:
    from grid.hits import Hit


@dataclass(frozen=True, slots=True)
class FoundObject:
    """One object that a query found. `what`: the argument, or the grid.load, that the query stands in."""

    what: str
    query: str
    peer: str
    id: str
    kind: str
    dtype: str | None
    shape: tuple[int, ...] | None
    nbytes: int
    is_private: bool

    @property
    def described(self) -> str:
        """For people: private tensor float32 [500, 10]."""
        words = ["private"] if self.is_private else []
        words += [self.kind] + ([f"{self.dtype} {list(self.shape)}"] if self.shape is not None else [])
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Place:
    """A peer that could run it: the bytes that would travel there, and why it may not (empty: it may)."""

    peer: str
    nbytes: int
    forbidden: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Movement:
    """What goes where: so many tensors of one argument. `source` None: from here."""

    what: str
    source: str | None
    target: str
    tensors: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Expense:
    """What the run costs: operations (a loop is one), the steps that they take and the least time for these on one fast
    core, and the bytes in use at once at most, beside the inputs. `problem`: why no peer would run it."""

    operations: int
    work: int
    seconds: float
    memory: int | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a jail is, before it runs, and may take: `shipped` bytes of source and plain arguments, to the chosen peer,
    which gives it `seconds` by the clock and `memory` bytes (None: not told, or as many as your workers have there).
    `is_rehearsed`: private data of others go in, so it runs on zeros in their place first."""

    shipped: int
    seconds: float | None
    memory: int | None
    is_rehearsed: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """What `g.run` would do with these arguments now. Print it: it is a table.

    Attributes:
        plan, program: the plan's name, and the id of the program that it is for these arguments; of a jail "".
        found: what each query found.
        peer: where it would run; None where it may run nowhere, and `problem` says why and what to do.
        places: all peers that come into question, the cheapest first.
        moves: what would go there, directly from where it is.
        nbytes: how many bytes in all.
        cost: of the run; of a jail None, as it is known when it has run.
        jail: where it is one, what is shipped of it and what it may take.
    """

    plan: str
    program: str
    found: tuple[FoundObject, ...]
    peer: str | None
    problem: str | None
    places: tuple[Place, ...]
    moves: tuple[Movement, ...]
    nbytes: int
    cost: Expense | None
    jail: Allowance | None = None

    def to_json(self) -> dict[str, Any]:
        """The same as plain maps and lists."""
        return asdict(self)

    def __str__(self) -> str:
        where = f"runs at {self.peer}" if self.peer is not None else f"runs nowhere: {self.problem}"
        what = f"jail {self.plan}" if self.jail is not None else f"plan {self.plan}, program {self.program[:12]}"
        parts = [
            [f"{what}: {where}"],
            self._found(),
            self._places(),
            self._moves(),
        ]
        return "\n\n".join("\n".join(part) for part in [*parts, self._cost()] if part)

    def _found(self) -> list[str]:
        if not self.found:
            return ["no argument is a query"]
        rows = [
            (each.what, each.query, each.peer, each.id[:12], each.described, size(each.nbytes)) for each in self.found
        ]
        return _table(("argument", "query", "found at", "id", "what", "size"), rows)

    def _places(self) -> list[str]:
        rows = [(each.peer, "-" if each.forbidden else size(each.nbytes), self._why(each)) for each in self.places]
        return _table(("it could run at", "would travel there", ""), rows)

    def _why(self, place: Place) -> str:
        if place.peer == self.peer:
            return "chosen"
        return "; ".join(place.forbidden) or ("as cheap" if place.nbytes == self.nbytes else "costs more")

    def _moves(self) -> list[str]:
        if self.peer is None:
            return []
        if not self.moves:
            return ["nothing travels: all of it is there"]
        rows = [
            (
                each.what + (f" ({each.tensors} tensors)" if each.tensors > 1 else ""),
                each.source or "here",
                each.target,
                size(each.nbytes),
            )
            for each in self.moves
        ]
        return _table(("what travels, directly", "from", "to", "size"), rows)

    def _cost(self) -> list[str]:
        cost = self.cost
        if cost is None:
            return [self._allowed()]
        if cost.problem is not None:
            return [f"{_counted(cost.operations)}, and it would fail: {cost.problem}"]
        memory = "" if cost.memory is None else f", up to {size(cost.memory)} of memory beside the inputs"
        return [
            f"{_counted(cost.operations)}, {cost.work:.3g} steps: {_seconds(cost.seconds)} or more on one core{memory}"
        ]

    def _allowed(self) -> str:
        """Of a jail."""
        jail = self.jail
        assert jail is not None
        told = f"{size(jail.shipped)} of source and plain arguments are shipped; what it costs is known when it has run"
        if jail.seconds is not None:
            memory = "as much memory as your workers there" if jail.memory is None else f"{size(jail.memory)} of memory"
            told += f", in at most {jail.seconds:g} s and with {memory}"
        if jail.is_rehearsed:
            told += ". Private data of others go in: it runs on zeros in their place first"
        return told


def explained_jail(
    job: JailJob,
    world: World,
    inputs: Sequence[Input],
    places: Sequence[Candidate],
    allowed: Mapping[str, Mapping[str, Any]],
    asker: str,
) -> Explanation:
    """The explanation of a run of a jail. `allowed`: what the peers that run the asker's jails give one, by id; why
    others may not is in `places`."""
    chosen = _chosen(places)
    given = allowed.get(chosen.peer, {}) if chosen is not None else {}
    return Explanation(
        job.name,
        "",
        _all_found(world),
        chosen.name if chosen else None,
        None if chosen else _problem(inputs, places, asker),
        _places(places),
        tuple(_movements(inputs, chosen) if chosen else ()),
        chosen.nbytes if chosen else 0,
        None,
        Allowance(
            len(job.packed()),
            given.get("seconds"),
            given.get("memory"),
            any(each.labels - {asker} for each in inputs),
        ),
    )


def _chosen(places: Sequence[Candidate]) -> Candidate | None:
    return places[0] if places and not places[0].forbidden else None


def _problem(inputs: Sequence[Input], places: Sequence[Candidate], asker: str) -> str:
    if not places:
        return "nothing is at a peer: give a query or a pointer"
    try:
        place(inputs, asker)
    except NotCollocated as error:
        return error.message
    name = places[0].name
    return (
        f"{name} is where it would run, and {'; '.join(places[0].forbidden)}: its owner has to say so, with "
        f"'grid start {name} --jails-for {asker}'"
    )


def _all_found(world: World) -> tuple[FoundObject, ...]:
    return tuple(_found(world.found(query), world.what(query), query) for query, hits in world.hits.items() if hits)


def _places(places: Sequence[Candidate]) -> tuple[Place, ...]:
    return tuple(Place(each.name, each.nbytes, each.forbidden) for each in places)


def explained(job: Job, world: World, inputs: Sequence[Input], places: Sequence[Candidate], asker: str) -> Explanation:
    """The explanation of a run of this job. `places` are those of placement.candidates."""
    chosen = _chosen(places)
    return Explanation(
        job.name,
        job.program.id,
        (
            *_all_found(world),
            *(
                _found(_near(held, chosen), job.what[number], f"contents {job.program.inputs[number].content:.12}")
                for number, held in job.held.items()
            ),
        ),
        chosen.name if chosen else None,
        None if chosen else _problem(inputs, places, asker),
        _places(places),
        tuple(_movements(inputs, chosen) if chosen else ()),
        chosen.nbytes if chosen else 0,
        _expense(job.program, job.inputs),
    )


def _near(held: Sequence[Pointer], chosen: Candidate | None) -> Pointer:
    """The one at the chosen peer, if it has one."""
    return next((each for each in held if chosen is not None and each.location.id == chosen.peer), held[0])


def _found(hit: Hit, what: str, query: str) -> FoundObject:
    record = hit.record
    shape = record.get("shape")
    return FoundObject(
        what,
        query,
        hit.location.name,
        hit.id_at_location,
        str(record["kind"]),
        record.get("dtype"),
        None if shape is None else tuple(shape),
        int(record.get("nbytes") or 0),
        bool(record.get("private")),
    )


def _movements(inputs: Sequence[Input], chosen: Candidate) -> list[Movement]:
    """One for each argument and holder: a model is many tensors."""
    totals: dict[tuple[str, str | None], tuple[int, int]] = {}
    for index in chosen.brought:
        each = inputs[index]
        key = (each.what, each.peer_name or None)
        tensors, nbytes = totals.get(key, (0, 0))
        totals[key] = (tensors + 1, nbytes + each.nbytes)
    return [
        Movement(what, source, chosen.name, tensors, nbytes) for (what, source), (tensors, nbytes) in totals.items()
    ]


def _expense(program: Program, inputs: Sequence[torch.Tensor]) -> Expense:
    try:
        found = foresee(program, inputs)
    except GridError as error:
        return Expense(len(program.nodes), 0, 0.0, None, error.message)
    return Expense(len(program.nodes), found.cost.work, found.cost.seconds, found.peak)


def _seconds(seconds: float) -> str:
    for unit, length in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}" if seconds < 120 else duration(seconds)
    return f"{seconds * 1e6:.3g} us"


def _counted(operations: int) -> str:
    return "1 operation" if operations == 1 else f"{operations} operations"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [heads, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
