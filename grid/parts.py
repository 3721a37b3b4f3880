"""One run of what was asked for: what its arguments mean there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from compute.capture import LOADED
from compute.program_module import ProgramFunction
from grid.given import PerPeer, Text, as_query, joined, mapped, walk
from grid.multi import MultiPointer
from grid.plans import RemotePlan
from grid.pointer import Pointer
from grid.stored_constants import holders
from grid.stored_models import RemoteModel
from grid.unsized import Unsized
from grid.world import Seen, World
from protocol.errors import BadRequest, NotCollocated, QueryError

if TYPE_CHECKING:
    from grid.remote import RemotePeer

_TO_BE_FOUND: Final = (str, PerPeer, MultiPointer, RemoteModel, RemotePlan, Unsized)  # see Part.resolved


@dataclass(frozen=True, slots=True)
class Part:
    """One run of a call: what its queries found, and the peer where it is to run (None: where it is cheapest).

    `is_example`: of several objects any will do, as it is not run but only looked at.
    """

    world: World
    peer: RemotePeer | None = None
    is_example: bool = False

    @property
    def seen(self) -> Seen:
        """Which objects the queries of this run found so far."""
        return self.world.seen(self.peer.id if self.peer else None)

    async def is_doubtful(self) -> bool:
        """See World.is_doubtful; of the objects of this run."""
        return await self.world.is_doubtful(self.peer.id if self.peer else None)

    async def one(self, query: str) -> Any:
        """The object that a query of this run finds; see World.one."""
        hits = self.world.hits[query]
        if self.is_example and len(hits):
            return hits[0]
        return await self.world.one(query, self.peer.id if self.peer else None)

    async def resolved(self, value: Any) -> Any:
        """Arguments with everything in them as it goes into the program: queries and stored objects found."""
        items = [item for _, item in walk(value)]
        open_items = [number for number, item in enumerate(items) if isinstance(item, _TO_BE_FOUND)]
        found = await asyncio.gather(*(self._meant(items[number]) for number in open_items)) if open_items else []
        for number, item in zip(open_items, found, strict=True):
            items[number] = item
        left = iter(items)
        return mapped(value, lambda _: _checked(next(left)))

    async def _meant(self, value: Any) -> Any:
        asked = as_query(value)
        if asked is not None:
            value = await self.one(asked)
        if isinstance(value, PerPeer):
            return await self.resolved(self._of(value))
        if isinstance(value, MultiPointer):
            value = value.children[0] if self.peer is None else value.at(self.peer)
        if isinstance(value, RemoteModel):
            return (await value.load()).module
        if isinstance(value, RemotePlan):
            return await self._inlined(await value.load())
        if isinstance(value, Unsized):
            value = await value
        return str(value) if isinstance(value, Text) else value

    async def _inlined(self, plan: RemotePlan) -> ProgramFunction:
        """The plan as a function, for the body of another one; what it loads, or names by contents, is found."""
        found: dict[str, torch.Tensor] = {}
        for given in plan.program.inputs:
            if given.content is not None:
                found[given.name] = (await holders(given, self.world))[0]
            elif given.name.startswith(LOADED) and given.name not in found:
                found.update(await loaded(given.name, self))
        return plan.holding(found)

    def _of(self, results: PerPeer) -> Any:
        if self.peer is None:
            return next(iter(results.values()))
        if self.peer.name not in results:
            raise NotCollocated(f"these results are of {', '.join(results)}: there is none at {self.peer.name}")
        return results[self.peer.name]


async def loaded(name: str, part: Part) -> dict[str, torch.Tensor]:
    """What `grid.load` in a stored plan stands for: the input is named by the query, and in a model by the tensor's
    name after it. Both may have dots in them, so the longest query that finds something with that name is meant."""
    text = name.removeprefix(LOADED)
    for end in [len(text), *(at for at in range(len(text) - 1, 0, -1) if text[at] == ".")]:
        query = text[:end]
        if not _parses(query):
            continue
        await part.world.look({query: f"grid.load({query!r})"})
        if len(part.world.hits[query]):
            found = dict(leaves(await part.resolved(query), LOADED + query))
            if name in found:
                return found
    await part.one(text)  # says that it finds nothing
    raise BadRequest(f"{text!r} is not what the plan was built with: it takes {name}")


def _parses(query: str) -> bool:
    try:
        return as_query(query) is not None
    except QueryError:
        return False


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The tensors and numbers of an argument, by the paths that capture gives their inputs; those of modules too."""
    for inner, item in walk(value, path):
        if isinstance(item, nn.Module):
            named = [*item.named_parameters(remove_duplicate=False), *item.named_buffers(remove_duplicate=False)]
            for name, tensor in named:
                yield joined(inner, name), tensor
        else:
            yield inner, item


def _checked(value: Any) -> Any:
    """What a pointer among arguments is good for; other values are what they are."""
    if isinstance(value, Pointer):
        value._handle.check()
        return end_of_chain(value)
    return value


def end_of_chain(pointer: Pointer) -> Pointer:
    """Where the data of a chain are."""
    while pointer._handle.target is not None:
        pointer = pointer._handle.target
    return pointer
