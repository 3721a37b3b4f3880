"""What is to be run: a program, and for each of its inputs the tensor or pointer that it is given.

A plan is a function (captured for what its arguments are), a stored plan or a stored model (programs already), or a
module.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from compute.capture import LOADED, Captured, capture
from compute.dtypes import DTYPE_OF, NAME_OF
from compute.given import Given
from compute.program import Input, Program
from compute.program_module import ProgramFunction
from compute.tracing import unique
from grid.finishing import Finishing
from grid.given import PerPeer, Text, as_query, joined, mapped, plain_texts, queries, walk
from grid.jails import Jail, JailJob
from grid.modules import RemoteModel
from grid.multi import MultiPointer
from grid.plans import Plan, RemotePlan
from grid.pointer import Pointer
from grid.stored_constants import holders
from grid.unsized import Unsized
from grid.world import Seen, World
from protocol.errors import BadRequest, NotCollocated, QueryError, RequestError

if TYPE_CHECKING:
    from grid.remote import RemotePeer


@dataclass(frozen=True, slots=True)
class Job:
    """A program to be run.

    Attributes:
        name: what the plan is called.
        inputs: what the program is given, in the order of its inputs.
        what: of each input the argument that it is, or is a part of.
        holder: who has the plan, where it is a stored one.
        finish: makes the function's own result of what the program gave; None: it is that.
        held: of inputs that the program names by their contents, by their numbers, all objects that have these.
    """

    name: str
    program: Program
    inputs: tuple[torch.Tensor, ...]
    what: tuple[str, ...]
    holder: RemotePeer | None = None
    finish: Finishing | None = None
    held: Mapping[int, tuple[Pointer, ...]] = field(default_factory=dict)


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
                found.update(await _loaded(given.name, self))
        return plan.holding(found)

    def _of(self, results: PerPeer) -> Any:
        if self.peer is None:
            return next(iter(results.values()))
        if self.peer.name not in results:
            raise NotCollocated(f"these results are of {', '.join(results)}: there is none at {self.peer.name}")
        return results[self.peer.name]


class Call:
    """What somebody asked to be run: a plan of any kind, and its arguments as they were given.

    Raises:
        BadRequest: it is no plan, or the arguments are not the function's.
    """

    def __init__(self, plan: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._query = as_query(plan) if isinstance(plan, str) else None
        self._plan = plan
        self._args, self._kwargs = tuple(args), dict(kwargs)
        self._captured_before: dict[Any, tuple[Captured, Any]] = {}
        if isinstance(plan, str) and self._query is None:
            raise BadRequest(f"{plan!r} is no plan and no query that finds one: a query has a tag, such as '#accuracy'")
        if self._query is None and not callable(plan):
            raise BadRequest(f"run takes a plan, a function, a module or a stored plan first, not {_kind(plan)}")
        self._is_stored = self._query is not None or isinstance(plan, RemotePlan | RemoteModel)
        if not self._is_stored:
            self._made = plan if isinstance(plan, Plan) else Plan(plan.forward if isinstance(plan, nn.Module) else plan)
            self._bound = self._made.bind(args, kwargs)

    @property
    def arguments(self) -> Any:
        """All that was given."""
        return self._bound if not self._is_stored else (self._args, self._kwargs)

    @property
    def queries(self) -> dict[str, str]:
        """The queries among them, each with the name of its argument."""
        if not self._is_stored:
            return queries(self._bound)
        found = {self._query: "the plan"} if self._query is not None else {}
        for at, value in enumerate(self._args):
            found.update({query: joined(f"argument {at + 1}", path) for query, path in queries(value).items()})
        return queries(self._kwargs) | found

    async def build(self, part: Part) -> Plan:
        """The plan, built for these arguments. BadRequest: it is a program already."""
        if not isinstance(self._made, Plan):
            raise BadRequest("build takes a plan or a function: a stored plan or model is a program already")
        _, captured = await self._capture_all(self._made, part, dynamic=None)
        return self._made.take(captured)

    async def job(self, part: Part) -> Job | JailJob:
        """The program, and what it is given in this part.

        Raises:
            NotFound, Ambiguous; CannotCapture; BadRequest: a stored plan or model takes something else.
        """
        if isinstance(self._plan, Jail):
            return await self._plan.job(self._bound, part)
        if not self._is_stored:
            return await self._of_function(self._made, part)
        plan = await part.one(self._query) if self._query is not None else self._plan
        if isinstance(plan, RemotePlan):
            return await _stored_plan(await plan.load(), self._args, self._kwargs, part)
        if isinstance(plan, RemoteModel):
            return await _stored_model(await plan.load(), self._args, self._kwargs, part)
        raise BadRequest(f"{self._query!r} finds a {plan.record['kind']}, which cannot be run: add kind:plan to it")

    # --- functions ----------------------------------------------------------------------------------------

    async def _of_function(self, plan: Plan, part: Part) -> Job:
        arguments, captured = await self._capture_all(plan, part)
        inputs = tuple(captured.given[path] for path in captured.inputs)
        what = tuple(_argument(path, captured.constants) for path in captured.inputs)
        return Job(plan.name, captured.program, inputs, what, finish=Finishing(captured, arguments))

    async def _capture_all(self, plan: Plan, part: Part, dynamic: bool | None = False) -> tuple[Any, Captured]:
        """The arguments as the function gets them, and the captured function. `dynamic`: see compute.capture."""
        function, arguments = self._with_module(plan, await part.resolved(self._bound))
        loads: dict[str, Any] = {}
        while True:
            try:
                return arguments, self._capture(function, arguments, loads, dynamic)
            except RequestError as error:
                query = error.fields.get("load")
                if query is None or query in loads:
                    raise self._with_hint(error) from None
                await part.world.look({query: f"grid.load({query!r})"})
                loads[query] = await part.resolved(query)

    def _with_module(self, plan: Plan, arguments: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
        """The function and its arguments; of a module its parameters are inputs too."""
        module = self._plan
        if not isinstance(module, nn.Module):
            return plan.entry, arguments
        name = unique("module", arguments)

        def call(**given: Any) -> Any:
            bound = plan.bound({key: value for key, value in given.items() if key != name})
            return module(*bound.args, **bound.kwargs)

        return call, {**arguments, name: module}

    def _capture(
        self, function: Callable[..., Any], arguments: Any, loads: Mapping[str, Any], dynamic: bool | None
    ) -> Captured:
        """As `capture`, which is asked once for all parts whose arguments look the same."""
        key = tuple(
            (path, item.dtype, item.shape) if isinstance(item, torch.Tensor) else (path, id(item))
            for path, item in walk((arguments, loads))
        )
        found = self._captured_before.get(key)
        if found is None:
            captured = capture(function, arguments, loads, dynamic)
            self._captured_before[key] = found = captured, (arguments, loads)  # these are alive: no id is another's
        captured, _ = found
        return replace(captured, given={**Given(arguments, loads, LOADED).tensors, **captured.constants})

    def _with_hint(self, error: RequestError) -> RequestError:
        """Texts that were meant as queries are a common reason."""
        texts = plain_texts(self._bound)
        if texts:
            shown = ", ".join(f"{path}={text!r}" for path, text in list(texts.items())[:3])
            error.message += (
                f" ({shown}: taken for plain text, not for a query, as there is no tag (#...) and no field (kind:...) "
                "in it; grid.query(...) makes a query of words)"
            )
            error.args = (error.message,)
        return error


# --- stored plans and models ------------------------------------------------------------------------------


async def _stored_plan(plan: RemotePlan, args: Sequence[Any], kwargs: Mapping[str, Any], part: Part) -> Job:
    program = plan.program
    own = [given.name for given in program.inputs if not given.name.startswith(LOADED) and given.content is None]
    takes = list(dict.fromkeys(name.partition(".")[0] for name in own))
    arguments = {**dict(zip(takes, args, strict=False)), **kwargs}
    if len(args) + len(kwargs) > len(arguments) or len(args) > len(takes) or arguments.keys() - set(takes):
        raise BadRequest(f"the plan takes {_listed(takes)}; given were {_listed(_names(takes, args, kwargs))}")
    found = dict(leaves(await part.resolved(arguments), ""))
    if found.keys() != set(own):
        raise BadRequest(_other_arguments(own, found))
    held: dict[int, tuple[Pointer, ...]] = {}
    for number, given in enumerate(program.inputs):
        if given.content is not None:
            held[number] = await holders(given, part.world)
            found[given.name] = held[number][0]
        elif given.name not in found:
            found.update(await _loaded(given.name, part))
    inputs = tuple(_fitting(given, found[given.name]) for given in program.inputs)
    check_sizes(program, inputs)
    constants = [given.name for given in program.inputs if given.content is not None]
    what = tuple(_argument(given.name, constants) for given in program.inputs)
    return Job(plan.called, program, inputs, what, plan.location, held=held)


async def _stored_model(model: RemoteModel, args: Sequence[Any], kwargs: Mapping[str, Any], part: Part) -> Job:
    spec = model.spec
    takes = [argument.name for argument in spec.signature.arguments if argument.inputs]
    if len(takes) == 1 and len(kwargs) == 1 and not args:
        kwargs = dict(zip(takes, kwargs.values(), strict=True))  # what its author called it is nobody's business
    given, named = await part.resolved(tuple(args)), await part.resolved(dict(kwargs))
    weights = model.weights
    found = {**weights, **spec.signature.bind(given, named)}
    inputs = tuple(_fitting(given, found[given.name]) for given in spec.program.inputs)
    check_sizes(spec.program, inputs)
    what = tuple("the model" if given.name in weights else given.name for given in spec.program.inputs)
    return Job(str(model.record.get("name") or "model"), spec.program, inputs, what, model.location)


async def _loaded(name: str, part: Part) -> dict[str, torch.Tensor]:
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


def _fitting(given: Input, value: Any) -> torch.Tensor:
    """The tensor for an input; a number becomes one. BadRequest where it cannot be."""
    if isinstance(value, torch.Tensor):
        tensor = value
    else:
        try:
            tensor = torch.as_tensor(value, dtype=DTYPE_OF[given.dtype] if given.dtype else None)
        except (TypeError, ValueError, RuntimeError):
            raise BadRequest(f"{given} cannot be {_kind(value)}: give a tensor, or a query") from None
    if given.dtype is not None and NAME_OF.get(tensor.dtype) != given.dtype:
        raise BadRequest(f"it takes {given}, and was given {_described(tensor)}: convert it with .to()")
    return tensor


def check_sizes(program: Program, inputs: Sequence[torch.Tensor]) -> None:
    """BadRequest where shapes are not those of the program's inputs: of one name is one size (PROGRAM.md, Inputs)."""
    sizes: dict[str, tuple[int, str]] = {}
    for given, value in zip(program.inputs, inputs, strict=True):
        if given.shape is None:
            continue
        if len(given.shape) != value.dim():
            raise BadRequest(f"it takes {given}, and was given {_described(value)}")
        for want, have in zip(given.shape, value.shape, strict=True):
            if isinstance(want, str):
                size, first = sizes.setdefault(want, (have, given.name))
                if size != have:
                    raise BadRequest(
                        f"{want} is one size in the plan, but {size} in {first} and {have} in {given.name}, "
                        f"{_described(value)}"
                    )
            elif want not in (None, have):
                raise BadRequest(f"it takes {given}, and was given {_described(value)}")


# --- arguments --------------------------------------------------------------------------------------------


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The tensors and numbers of an argument, by the paths that capture gives their inputs; those of modules too."""
    for inner, item in walk(value, path):
        if isinstance(item, nn.Module):
            named = [*item.named_parameters(remove_duplicate=False), *item.named_buffers(remove_duplicate=False)]
            for name, tensor in named:
                yield joined(inner, name), tensor
        else:
            yield inner, item


_TO_BE_FOUND: Final = (str, PerPeer, MultiPointer, RemoteModel, RemotePlan, Unsized)  # see Part.resolved


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


def _argument(name: str, constants: Collection[str]) -> str:
    """What people call the input of that name."""
    if name.startswith(LOADED):
        return f"grid.load({name.removeprefix(LOADED)!r})"
    return "a constant of the plan" if name in constants else name.partition(".")[0]


def _names(takes: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
    return [*takes[: len(args)], *(f"argument {at + 1}" for at in range(len(takes), len(args))), *kwargs]


def _other_arguments(own: Collection[str], found: Mapping[str, Any]) -> str:
    """That what a stored plan was given is not what it takes; names of parts only where an argument has others."""
    parts: dict[str, tuple[list[str], list[str]]] = {}
    for side, paths in enumerate((own, found)):
        for path in paths:
            parts.setdefault(path.partition(".")[0], ([], []))[side].append(path)
    takes = [
        f"{name} (of {len(mine)} tensors)" if len(mine) > 1 else mine[0] for name, (mine, _) in parts.items() if mine
    ]
    message = f"the plan takes {_listed(takes)}"
    missing = [name for name, (_, given) in parts.items() if not given]
    if missing:
        return f"{message}; missing: {_listed(missing)}"
    name, (mine, given) = next((name, both) for name, both in parts.items() if set(both[0]) != set(both[1]))
    few = [path for path in mine if path not in given][:3] + [path for path in given if path not in mine][:3]
    return f"{message}; {name} was given in other parts than it was built with: {_listed(few)}"


def _listed(names: Any) -> str:
    return ", ".join(names) or "nothing"


def _described(value: torch.Tensor) -> str:
    return f"{value.dtype} {list(value.shape)}".removeprefix("torch.")


def _kind(value: Any) -> str:
    return f"the text {value!r}" if isinstance(value, str) else type(value).__name__
