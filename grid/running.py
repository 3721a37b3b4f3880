"""A plan from its arguments to its result: find, capture, place, bring, run as one request.

While it runs, what was found is looked at again. Where that is not so any more, or the run met something that is gone,
the queries are asked once more; if they find other objects now, it runs once more, on those.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from grid.at_hand import AtHand, at_hand
from grid.calls import Call
from grid.executing import Executor
from grid.explaining import Explanation, explained, explained_jail
from grid.given import walk
from grid.jails import JailJob
from grid.jobs import Job
from grid.parts import Part
from grid.placement import Candidate, Choice, Input, candidates, place
from grid.plans import Plan
from grid.pointer import Pointer
from grid.remote import pointer_to
from grid.several import settled
from grid.world import Seen, World
from protocol.errors import Ambiguous, Changed, GridError, LinkError, NotCollocated, NotFound

if TYPE_CHECKING:
    from grid.client import Grid
    from grid.remote import RemotePeer

_AT_ONCE = 8  # inputs on their way at the same time

Divide = Callable[[World], Awaitable[Mapping[str, Part]]]


@dataclass(frozen=True, slots=True)
class Ran:
    """What a job gave, the name of the peer that has it, and whether what was found had changed meanwhile, perhaps."""

    job: Job | JailJob
    outputs: Any
    peer: str
    is_doubtful: bool

    async def result(self) -> Any:
        """The function's own. What the function changes in its arguments is changed now, and not for a run that has to
        be done again."""
        if isinstance(self.job, JailJob) or self.job.finish is None:
            return self.outputs
        return await self.job.finish(self.outputs)


class Runner:
    """Runs plans for one grid, and remembers which peer knows which program.

    A plan is captured each time, but where it hangs on nothing but its arguments, and these look as they did
    (compute/remembered.py).
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._executor = Executor()

    async def run(self, plan: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """See Grid.run."""
        call = Call(plan, args, kwargs)

        async def whole(world: World) -> Mapping[str, Part]:
            return {"": Part(world)}

        (ran,) = (await self.all_parts(call, await self.found(call), whole)).values()
        if isinstance(ran, BaseException):
            raise ran
        return await ran.result()

    def at_hand(self, plan: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> AtHand | None:
        """What can run as it is, if that is so."""
        found = at_hand(plan, args, kwargs)
        return found if found is not None and found.home.grid is self._grid else None

    async def run_at_hand(self, found: AtHand) -> Any:
        """`run`, of what was at hand just now."""
        try:
            return await self._executor.run(
                found.home, found.program, found.ids, name=found.name, record=self._record(found.labels)
            )
        except NotFound:
            await _recheck(found.given)
            raise

    async def explain(self, plan: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Explanation:
        """See Grid.explain."""
        call = Call(plan, args, kwargs)
        part = Part(await self.found(call))
        job = await call.job(part)
        inputs, choice = described(job), self._choice(job, part)
        places = candidates(inputs, self._grid.id, choice)
        if isinstance(job, Job):
            return explained(job, part.world, inputs, places, self._grid.id)
        answers = await asyncio.gather(*(self._allowance(each) for each in places))
        refused = [
            each if answer is not None else replace(each, forbidden=(*each.forbidden, "it runs no jails of yours"))
            for each, answer in zip(places, answers, strict=True)
        ]
        allowed = {each.peer: answer for each, answer in zip(places, answers, strict=True) if answer}
        return explained_jail(job, part.world, inputs, refused, allowed, self._grid.id)

    async def _allowance(self, at: Candidate) -> Mapping[str, Any] | None:
        """What a jail may take there; None: the peer runs none of ours. Empty where it does not answer."""
        try:
            answer = (await self._grid[at.peer].status()).get("jails")
        except GridError:
            return {}
        return answer if isinstance(answer, dict) else None

    async def build(self, plan: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Plan:
        """See Grid.build."""
        call = Call(plan, args, kwargs)
        return await call.build(Part(await self.found(call)))

    async def found(self, call: Call) -> World:
        """What the queries of a call find."""
        world = World(self._grid.search, self._holders, _near(call))
        await world.look(call.queries)
        return world

    async def _holders(self, content: str) -> list[Pointer]:
        found = await self._grid.holders(content)
        return [pointer_to(self._grid[member.id], record) for member, record in found if record["kind"] == "tensor"]

    # --- a world that changes -----------------------------------------------------------------------------

    async def all_parts(self, call: Call, world: World, divide: Divide) -> dict[str, Any]:
        """Run all parts into which `divide` divides what was found, at the same time. For each what it gave (a Ran),
        or its exception. Those whose objects changed meanwhile run once more.

        Raises:
            NotFound, Ambiguous: a query does not find one object, or not any more; the message says what it found.
        """
        parts = await divide(world)
        answers = await self._run_parts(call, parts, {})
        if not any(map(_is_doubtful, answers.values())):
            return answers
        later = await world.again()
        changes = world.changes(later)
        if not changes:
            return answers
        lost = {name: answer for name, answer in answers.items() if isinstance(answer, LinkError)}
        kept = {parts[name].seen: ran for name, ran in answers.items() if isinstance(ran, Ran)}
        try:
            parts = await divide(later)
        except (NotFound, Ambiguous, NotCollocated) as error:
            raise _told(error, changes) from None
        answers = await self._run_parts(call, parts, kept)
        if any(map(_is_doubtful, answers.values())):
            again = later.changes(await later.again())
            answers = {name: _second(answer, changes, again) for name, answer in answers.items()}
        return {**{name: error for name, error in lost.items() if name not in parts}, **answers}

    async def _run_parts(self, call: Call, parts: Mapping[str, Part], kept: Mapping[Seen, Ran]) -> dict[str, Any]:
        """Each part's result or exception; of one that ran on these very objects before, what that gave.

        Raises:
            NotCollocated: one of them may not run where it has to; then none did.
        """
        answers: dict[str, Any] = {name: kept.get(part.seen) for name, part in parts.items()}
        left = {name: part for name, part in parts.items() if answers[name] is None}
        answers.update(zip(left, await settled([call.job(part) for part in left.values()]), strict=True))
        ready = {name: answers[name] for name in left if isinstance(answers[name], Job | JailJob)}
        places = {name: self._place(job, left[name]) for name, job in ready.items()}
        running = [self._run_part(left[name], job, places[name]) for name, job in ready.items()]
        return {**answers, **dict(zip(ready, await settled(running), strict=True))}

    def _place(self, job: Job | JailJob, part: Part) -> Candidate:
        home = _only_home(job)
        if home is not None and part.peer in (None, home):
            return Candidate(home.id, home.name, (), 0)  # as would come out below
        return place(described(job), self._grid.id, self._choice(job, part))

    async def _run_part(self, part: Part, job: Job | JailJob, placement: Candidate) -> Ran:
        home = self._grid[placement.peer]
        if not part.world.hits:
            return Ran(job, await self._run_there(job, home, placement), home.name, False)
        looking = asyncio.create_task(part.is_doubtful())
        try:
            outputs = await self._run_there(job, home, placement)
            return Ran(job, outputs, home.name, await looking)
        finally:
            looking.cancel()

    def _choice(self, job: Job | JailJob, part: Part) -> Choice:
        alive = {peer.id for peer in self._grid.peers() if peer.state == "alive"}
        ready = alive if isinstance(job, JailJob) else self._executor.knowing(job.program) & alive
        at, otherwise = (None if one is None else (one.id, one.name) for one in (part.peer, job.holder))
        return Choice(ready, at, otherwise)

    # --- bringing together --------------------------------------------------------------------------------

    async def _run_there(self, job: Job | JailJob, home: RemotePeer, placement: Candidate | None = None) -> Any:
        for other in {each._handle.home for each in job.inputs if isinstance(each, Pointer)} - {home}:
            if other.id == home.id:  # over another connection to it, and what is queued there comes first
                await other.outbox.settle()
        brought = {} if placement is None or not placement.brought else await self._bring(job, placement, home)
        named = job.held if isinstance(job, Job) else {}
        ids = [_at(home, each, brought)._handle.id for number, each in enumerate(job.inputs) if number not in named]
        record = self._record(frozenset().union(*(t._handle.labels for t in job.inputs if isinstance(t, Pointer))))
        try:
            if isinstance(job, JailJob):
                return await job.run(home, ids, record)
            contents = {
                str(job.program.inputs[number].content): brought[key]._handle.id
                for number, key in ((number, _key(job.inputs[number])) for number in named)
                if key in brought
            }
            return await self._executor.run(home, job.program, ids, name=job.name, record=record, contents=contents)
        except NotFound:
            await _recheck(job.inputs)
            raise

    def _record(self, labels: frozenset[str]) -> dict[str, Any] | None:
        """What is known of the results of what has these labels."""
        return {"labels": sorted(labels), "owner": self._grid.id, "published": False} if labels else None

    async def _bring(self, job: Job | JailJob, placement: Candidate, home: RemotePeer) -> dict[object, Pointer]:
        """What was brought to `home`: temporaries, to be kept until the end, each by its object."""
        limit = asyncio.Semaphore(_AT_ONCE)

        async def bring(tensor: torch.Tensor) -> Pointer:
            async with limit:
                if isinstance(tensor, Pointer):
                    return await tensor._copy_to(home)
                return await home.send(tensor.detach())

        tensors = [job.inputs[index] for index in placement.brought]
        made = await asyncio.gather(*map(bring, tensors))
        return dict(zip(map(_key, tensors), made, strict=True))


def _near(call: Call) -> Counter[str]:
    """How many bytes of the tensors that a call was given are at which peer, by its id."""
    near: Counter[str] = Counter()
    for _, item in walk(call.arguments):
        if isinstance(item, Pointer):
            near[item._handle.home.id] += item.numel() * item.element_size()
    return near


def described(job: Job | JailJob) -> list[Input]:
    """The inputs, as placement sees them."""
    found, held = [], job.held if isinstance(job, Job) else {}
    for number, (what, tensor) in enumerate(zip(job.what, job.inputs, strict=True)):
        nbytes, key = tensor.numel() * tensor.element_size(), _key(tensor)
        if isinstance(tensor, Pointer):
            handle = tensor._handle
            copies = {copy.location.id: copy.location.name for copy in held.get(number, ())}
            found.append(Input(what, handle.home.id, nbytes, handle.labels, handle.home.name, key, copies))
        else:
            found.append(Input(what, None, nbytes, key=key))
    return found


def _only_home(job: Job | JailJob) -> RemotePeer | None:
    """The peer at which all inputs are; None where they are at several, or one is here."""
    homes = {tensor._handle.home if isinstance(tensor, Pointer) else None for tensor in job.inputs}
    return homes.pop() if len(homes) == 1 else None


def _key(tensor: torch.Tensor) -> object:
    return (tensor._handle.home.id, tensor._handle.id) if isinstance(tensor, Pointer) else id(tensor)


def _at(home: RemotePeer, tensor: torch.Tensor, brought: Mapping[object, Pointer]) -> Pointer:
    if isinstance(tensor, Pointer) and (tensor._handle.home is home or tensor._handle.home.id == home.id):
        return tensor
    return brought[_key(tensor)]


async def _recheck(inputs: Sequence[torch.Tensor]) -> None:
    """Says what became of the pointers among them, where that is why something was not found."""
    for given in inputs:
        if isinstance(given, Pointer):
            await given._handle.recheck()


# --- what changed -----------------------------------------------------------------------------------------


def _is_doubtful(answer: Any) -> bool:
    """Whether another look at what the queries find might tell why, or give another result."""
    return answer.is_doubtful if isinstance(answer, Ran) else isinstance(answer, NotFound | LinkError | Changed)


def _second(answer: Any, changes: Sequence[str], again: Sequence[str]) -> Any:
    """What the second try gave; where it was in vain too, with what had changed."""
    if again and _is_doubtful(answer):
        return Changed(
            f"what the plan's queries find changed twice while it was about to run: {'; '.join([*changes, *again])}. "
            "Run it again when they stay as they are, or give pointers (hits.one()) instead of queries"
        )
    return _told(answer, changes) if isinstance(answer, GridError) else answer


def _told(error: GridError, changes: Sequence[str]) -> GridError:
    """The error of the second try, with what had become of the first."""
    told = error.again()
    told.message = f"{error.message}. The grid changed while the plan was about to run: {'; '.join(changes)}"
    told.args = (told.message,)
    return told
