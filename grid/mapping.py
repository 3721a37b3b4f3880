"""One plan at several peers, each on its own part of the data; and what comes of it, combined from peer to peer."""

from __future__ import annotations

import asyncio
import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.utils import _pytree as pytree

from grid.at_each import by_peer
from grid.calls import Call
from grid.given import PerPeer, walk
from grid.jails import JailJob
from grid.jobs import Job
from grid.multi import MultiPointer
from grid.parts import Part, end_of_chain
from grid.placement import Input, place
from grid.pointer import Pointer
from grid.running import Ran, Runner
from grid.several import raise_failures
from grid.world import World
from protocol.errors import Ambiguous, BadRequest, GridError, NotCollocated

if TYPE_CHECKING:
    from grid.client import Grid
    from grid.remote import RemotePeer

FAN_IN: Final = 8  # results that come to one peer at once; of more, several peers combine some each, and so on
WAYS: Final = ("sum", "mean", "cat")
_NUMBERS: Final = (torch.Tensor, bool, int, float, complex)


@dataclass(frozen=True, slots=True)
class _Term:
    """One peer's pointer (or a number), and whose leave it needs to go elsewhere: what is computed from it needs the
    same."""

    value: Any
    labels: frozenset[str] = frozenset()

    @classmethod
    def of(cls, value: Any) -> _Term:
        value = end_of_chain(value) if isinstance(value, Pointer) else value
        return cls(value, value._handle.labels if isinstance(value, Pointer) else frozenset())

    @property
    def home(self) -> RemotePeer | None:
        return self.value.location if isinstance(self.value, Pointer) else None

    async def beside(self, home: RemotePeer | None) -> _Term:
        """The same at that peer."""
        if home is None or self.home is None or self.home.id == home.id:
            return self
        return replace(self, value=await self.value._copy_to(home))


class Mapper:
    """Runs plans at several peers of one grid."""

    def __init__(self, grid: Grid, runner: Runner) -> None:
        self._grid = grid
        self._runner = runner

    async def map(self, plan: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> PerPeer:
        """See Grid.map."""
        call = Call(plan, args, kwargs)
        world = await self._runner.found(call)
        job = await call.job(Part(world, is_example=True))  # so that what the plan loads is known too
        if len(await self._divide(call, world)) > 1:
            _check_pure(job)
        answers = await self._runner.all_parts(call, world, functools.partial(self._divide, call))
        if "" in answers:  # nothing is at several peers
            ran = answers[""]
            if isinstance(ran, BaseException):
                raise ran
            return PerPeer({ran.peer: await ran.result()})
        results = PerPeer({name: await ran.result() for name, ran in answers.items() if isinstance(ran, Ran)})
        try:
            raise_failures("map()", list(answers), list(answers.values()), "what the others gave is in its `results`")
        except GridError as error:
            error.results = results
            raise
        return results

    async def _divide(self, call: Call, world: World) -> dict[str, Part]:
        """The part of each peer that has one of what is at several."""
        spread = {world.what(query): _by_peer(query, world) for query in world.spread}
        for path, value in walk(call.arguments):
            if isinstance(value, MultiPointer):
                spread[path] = {id: child.location for id, child in by_peer(value).items()}
            elif isinstance(value, PerPeer):
                spread[path] = {self._grid[name].id: self._grid[name] for name in value}
        if not spread:
            return {"": Part(world)}
        _check_same(spread)
        peers = next(iter(spread.values())).values()
        return {_name(peer, peers): Part(world, peer) for peer in peers}

    # --- together -----------------------------------------------------------------------------------------

    async def reduce(self, results: Any, how: Any, weights: Any) -> Any:
        """See Grid.reduce."""
        parts = _parts(results)
        if not isinstance(how, str):
            if weights is not None:
                raise BadRequest("weights are for how='mean': give them to your own plan as a part of the results")
            return await self._by_plan(how, list(parts.values()))
        if how not in WAYS:
            raise BadRequest(f"how is one of {', '.join(WAYS)}, or a plan of a list; not {how!r}")
        if weights is not None and how != "mean":
            raise BadRequest(f"weights are for how='mean', not for {how!r}")
        counts = None if weights is None else _counts(weights, parts)
        flat = [pytree.tree_flatten(value) for value in parts.values()]
        structure = flat[0][1]
        if any(each != structure for _, each in flat):
            raise BadRequest("the results are not of one structure: reduce what is alike in each")
        columns = list(zip(*(leaves for leaves, _ in flat), strict=True))
        combined = await asyncio.gather(*(self._leaf(list(column), how, counts) for column in columns))
        return pytree.tree_unflatten(list(combined), structure)

    async def _by_plan(self, plan: Any, values: list[Any]) -> Any:
        """A plan of one argument gets the list of all; one of two combines two at a time."""
        takes = _number_of_arguments(plan)
        if takes == 1:
            return await self._runner.run(plan, [values], {})
        while len(values) > 1:
            pairs = [values[at : at + 2] for at in range(0, len(values), 2)]
            values = list(await asyncio.gather(*(self._pair(plan, pair) for pair in pairs)))
        return values[0]

    async def _pair(self, plan: Any, pair: list[Any]) -> Any:
        return await self._runner.run(plan, pair, {}) if len(pair) == 2 else pair[0]

    async def _leaf(self, values: list[Any], how: str, counts: list[Any] | None) -> Any:
        """One pointer, or number, of each peer's result."""
        if not all(isinstance(value, _NUMBERS) for value in values):
            if any(value != values[0] for value in values):
                raise BadRequest(f"the results have values that cannot be reduced: {', '.join(map(repr, values[:3]))}")
            return values[0]
        terms = [_Term.of(value) for value in values]
        if how == "cat":
            return await _made(_cat([term.value for term in await self._gathered(terms)]))
        if counts is None:
            total = (await self._sum(terms)).value
            return await _made(total / len(values) if how == "mean" else total)
        weights = [_Term.of(count) for count in counts]
        weighted = await asyncio.gather(*map(_times, terms, weights))
        total, whole = await asyncio.gather(self._sum(weighted), self._sum(weights))
        return await _made(total.value / (await whole.beside(total.home)).value)

    async def _sum(self, terms: Sequence[_Term]) -> _Term:
        """In groups, each at the peer of one of them; the last one where the fewest bytes have to go."""
        _check_alike([term.value for term in terms])
        target = self._place(terms)
        terms = sorted(terms, key=lambda term: term.home is None or target is None or term.home.id != target.id)
        while len(terms) > 1:
            groups = [terms[at : at + FAN_IN] for at in range(0, len(terms), FAN_IN)]
            terms = await asyncio.gather(*map(self._added, groups))
        return terms[0]

    async def _added(self, group: Sequence[_Term]) -> _Term:
        there = await self._gathered(group)
        total = functools.reduce(operator.add, (_counted(term.value) for term in there))
        return _Term(total, frozenset().union(*(term.labels for term in group)))

    async def _gathered(self, terms: Sequence[_Term]) -> list[_Term]:
        """The terms at the peer to which the fewest bytes have to go, directly from where they are."""
        target = self._place(terms)
        return list(await asyncio.gather(*(term.beside(target) for term in terms)))

    def _place(self, terms: Sequence[_Term]) -> RemotePeer | None:
        """NotCollocated where private results are at different peers. None: nothing is at a peer."""
        inputs = [
            Input("a result", term.home.id, term.value.nbytes, term.labels, term.home.name)
            for term in terms
            if term.home is not None
        ]
        return self._grid[place(inputs, self._grid.id).peer] if inputs else None


def _check_pure(job: Job | JailJob) -> None:
    """BadRequest for a plan that changes its arguments: each peer would change them in its own way."""
    changed = job.finish.captured.state if isinstance(job, Job) and job.finish is not None else ()
    if changed:
        raise BadRequest(
            f"the plan changes {changed[0]} of its arguments, which would be another value at each peer: return what "
            "it makes (the model, say) and combine that with g.reduce"
        )


def _by_peer(query: str, world: World) -> dict[str, RemotePeer]:
    """The peers that have one of what a query found. Ambiguous where one has several."""
    peers: dict[str, RemotePeer] = {}
    for hit in world.hits[query]:
        if hit.location.id in peers:
            there = [each for each in world.hits[query] if each.location.id == hit.location.id]
            ids = ", ".join(each.id_at_location[:12] for each in there)
            raise Ambiguous(
                f"{world.what(query)}: {len(there)} objects match {query!r} at {hit.location.name} ({ids}): one of "
                "each peer is wanted. Add a tag or a name, or publish them as one (torch.cat, then tag)"
            )
        peers[hit.location.id] = hit.location
    return peers


def _check_same(spread: Mapping[str, Mapping[str, RemotePeer]]) -> None:
    (first, peers), *others = spread.items()
    for what, there in others:
        if there.keys() != peers.keys():
            only = {id: peer for id, peer in [*peers.items(), *there.items()] if id not in peers or id not in there}
            raise NotCollocated(
                f"{first} is at {_names(peers)}, and {what} at {_names(there)}: {_names(only)} cannot be matched. "
                "Narrow the queries (-peer:NAME leaves one out, peer:NAME picks one for all)"
            )


def _names(peers: Mapping[str, RemotePeer]) -> str:
    return ", ".join(sorted(peer.name for peer in peers.values()))


def _name(peer: RemotePeer, peers: Any) -> str:
    """What a peer is called among these: its name, with the id where another has the same."""
    return peer.name if [each.name for each in peers].count(peer.name) == 1 else f"{peer.name}:{peer.id[:12]}"


# --- what is to be reduced --------------------------------------------------------------------------------


def _parts(results: Any) -> dict[str, Any]:
    """The results by a name each: those of a map, of a dict or a list of them, or of a multi-pointer."""
    if isinstance(results, MultiPointer):
        return {child.location.name: child for child in results.children}
    if isinstance(results, Mapping):
        found = dict(results)
    elif isinstance(results, list | tuple):
        found = {str(number): value for number, value in enumerate(results)}
    else:
        raise BadRequest(f"reduce takes what map() gave, a list of pointers, or a plan; not {type(results).__name__}")
    if not found:
        raise BadRequest("there is nothing to reduce: no peer gave a result")
    return found


def _counts(weights: Any, parts: Mapping[str, Any]) -> list[Any]:
    """A weight for each of the parts, in their order."""
    given = _parts(weights)
    if given.keys() == parts.keys():
        return [given[name] for name in parts]
    if not isinstance(weights, Mapping) and len(given) == len(parts):
        return list(given.values())
    raise BadRequest(f"weights are one for each of {', '.join(parts)}; given were {', '.join(given)}")


async def _times(term: _Term, weight: _Term) -> _Term:
    there = await weight.beside(term.home)
    return _Term(term.value * there.value, term.labels | weight.labels)


def _check_alike(values: Sequence[Any]) -> None:
    """BadRequest for shapes that torch would stretch."""
    shapes = {tuple(value.shape) if isinstance(value, torch.Tensor) else () for value in values}
    if len(shapes) > 1:
        listed = ", ".join(str(list(shape)) for shape in sorted(shapes))
        raise BadRequest(f"results of the shapes {listed} have no sum: how='cat' puts them one after another")


def _counted(value: Any) -> Any:
    """As torch.sum counts: whole numbers and truths in int64."""
    if isinstance(value, torch.Tensor) and not value.is_floating_point() and not value.is_complex():
        return value.long()
    return value


def _cat(values: list[Any]) -> Any:
    tensors = [value if isinstance(value, torch.Tensor) else torch.as_tensor(value) for value in values]
    return torch.cat([tensor.reshape(1) if tensor.dim() == 0 else tensor for tensor in tensors])


async def _made(value: Any) -> Any:
    """The value when its peer has made it."""
    return await value if isinstance(value, Pointer) else value


def _number_of_arguments(plan: Any) -> int:
    from grid.plans import Plan, RemotePlan

    if isinstance(plan, RemotePlan):
        return len({given.name.partition(".")[0] for given in plan.program.inputs})
    return len((plan if isinstance(plan, Plan) else Plan(plan)).parameters)
