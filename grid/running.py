"""A plan from its arguments to its result: find, capture, place, bring, run as one request."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compute.capture import LOADED, Captured, capture
from compute.dtypes import DTYPE_OF
from compute.program import Program
from grid.handle import Handle
from grid.ids import fresh_id
from grid.modules import RemoteModel
from grid.placement import Input, Placement, place
from grid.plans import Plan, RemotePlan
from grid.pointer import Pointer
from protocol.errors import BadRequest, CannotCapture, NotFound

if TYPE_CHECKING:
    from grid.client import Grid
    from grid.remote import RemotePeer

_AT_ONCE = 8  # inputs on their way at the same time


@dataclass(frozen=True, slots=True)
class _Job:
    """A program and, for each of its inputs, the tensor or pointer that it is given."""

    program: Program
    inputs: list[torch.Tensor]


class Runner:
    """Runs plans for one grid, and remembers which peer knows which program.

    A plan is captured each time: what its function closes over may have changed, and capturing takes milliseconds.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._known: set[tuple[str, str]] = set()  # (peer id, program id)

    async def run(self, plan: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """See Grid.run."""
        if isinstance(plan, RemotePlan):
            job = await self._stored(plan, args, kwargs)
        else:
            if not callable(plan):
                raise BadRequest(f"run takes a plan, a function or a stored plan first, not {type(plan).__name__}")
            made = plan if isinstance(plan, Plan) else Plan(plan)
            job = await self._capture(made, await self._resolve(made.bind(args, kwargs)))
        placement = place(_described(job), self._grid.id)
        home = self._grid[placement.peer]
        ids, brought = await self._bring(job, placement, home)
        try:
            return await self._execute(job.program, home, ids, brought)
        except NotFound:
            for given in job.inputs:
                if isinstance(given, Pointer):
                    await given._handle.recheck()
            raise

    # --- finding ------------------------------------------------------------------------------------------

    async def _resolve(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments with each query replaced by the one object that it finds."""
        values = await asyncio.gather(*(self._resolve_one(value) for value in arguments.values()))
        return dict(zip(arguments, values, strict=True))

    async def _resolve_one(self, value: Any) -> Any:
        if isinstance(value, str):
            value = (await self._grid.search(value)).one()
        if isinstance(value, RemoteModel):
            return (await value.load()).module
        if isinstance(value, Pointer):
            value._handle.check()
            return _end_of_chain(value)
        return value

    # --- capturing ----------------------------------------------------------------------------------------

    async def _capture(self, plan: Plan, arguments: dict[str, Any]) -> _Job:
        loads: dict[str, Any] = {}
        while True:
            try:
                captured = capture(plan.function, arguments, loads)
            except CannotCapture as error:
                query = error.fields.get("load")
                if query is None or query in loads:
                    raise
                loads[query] = await self._resolve_one(query)
            else:
                return _Job(captured.program, _inputs_of(captured, arguments, loads))

    async def _stored(self, plan: RemotePlan, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Job:
        program = (await plan.load()).program
        names = [given.name for given in program.inputs]
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        if len(args) > len(names) or set(arguments) != set(names):
            raise BadRequest(f"the plan takes {', '.join(names)}; given were {', '.join(arguments) or 'none'}")
        resolved = await self._resolve(arguments)
        return _Job(program, [torch.as_tensor(resolved[name]) for name in names])

    # --- bringing together --------------------------------------------------------------------------------

    async def _bring(self, job: _Job, placement: Placement, home: RemotePeer) -> tuple[list[bytes], list[Pointer]]:
        """The ids of all inputs at `home`, and what was brought there (temporaries, to be kept until the end)."""
        limit = asyncio.Semaphore(_AT_ONCE)

        async def bring(tensor: torch.Tensor) -> Pointer:
            async with limit:
                if isinstance(tensor, Pointer):
                    return await tensor._copy_to(home)
                return await home.send(tensor.detach())

        brought = dict(
            zip(
                placement.brought,
                await asyncio.gather(*(bring(job.inputs[index]) for index in placement.brought)),
                strict=True,
            )
        )
        pointers = [brought.get(index, tensor) for index, tensor in enumerate(job.inputs)]
        return [pointer._handle.id for pointer in pointers if isinstance(pointer, Pointer)], list(brought.values())

    # --- running ------------------------------------------------------------------------------------------

    async def _execute(self, program: Program, home: RemotePeer, ids: list[bytes], brought: list[Pointer]) -> Any:
        outs = [fresh_id() for _ in _references(program.outputs)]
        args = {"program": program.id, "inputs": ids, "outs": outs}
        code = b"" if (home.id, program.id) in self._known else program.to_bytes()
        try:
            answer = await home.request("execute", args, code)
        except NotFound:
            if code:
                raise
            answer = await home.request("execute", args, program.to_bytes())  # its worker is a new one
        self._known.add((home.id, program.id))
        brought.clear()
        made = iter(
            Pointer.of(Handle(home, out, owns=True), DTYPE_OF[header["dtype"]], header["shape"])
            for out, header in zip(outs, answer["results"], strict=True)
        )
        return _rebuilt(program.outputs, made)


def _end_of_chain(pointer: Pointer) -> Pointer:
    """Where the data of a chain are."""
    while pointer._handle.target is not None:
        pointer = pointer._handle.target
    return pointer


def _leaves(value: Any, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of an argument, by the path that capture gives their inputs."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, nn.Module):
        for name, tensor in [
            *value.named_parameters(remove_duplicate=False),
            *value.named_buffers(remove_duplicate=False),
        ]:
            yield f"{path}.{name}", tensor
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            yield from _leaves(item, f"{path}.{at}")


def _inputs_of(captured: Captured, arguments: Mapping[str, Any], loads: Mapping[str, Any]) -> list[torch.Tensor]:
    found = dict(_leaves(arguments, ""))
    for query, value in loads.items():
        found.update(_leaves(value, LOADED + query))
    found.update(captured.constants)
    return [found[path] for path in captured.inputs]


def _described(job: _Job) -> list[Input]:
    described = []
    for given, tensor in zip(job.program.inputs, job.inputs, strict=True):
        nbytes = tensor.numel() * tensor.element_size()
        if isinstance(tensor, Pointer):
            handle = tensor._handle
            described.append(Input(given.name, handle.home.id, nbytes, handle.labels, handle.home.name))
        else:
            described.append(Input(given.name, None, nbytes))
    return described


def _references(template: Any) -> Iterator[Mapping[str, Any]]:
    """The values that come out of a program, in order (PROGRAM.md, Outputs)."""
    if isinstance(template, list):
        for item in template:
            yield from _references(item)
    elif isinstance(template, Mapping):
        if "node" in template or "constant" in template:
            yield template
        elif "tuple" in template:
            yield from _references(template["tuple"])
        elif "map" in template:
            # In canonical bytes, which is what the peer has, the entries of a map are sorted.
            yield from _references([item for _, item in sorted(template["map"].items())])


def _rebuilt(template: Any, made: Iterator[Pointer]) -> Any:
    """The function's own result structure, with pointers in it."""
    if isinstance(template, list):
        return [_rebuilt(item, made) for item in template]
    if isinstance(template, Mapping):
        if "tuple" in template:
            return tuple(_rebuilt(item, made) for item in template["tuple"])
        if "map" in template:
            rebuilt = {key: _rebuilt(item, made) for key, item in sorted(template["map"].items())}
            return {key: rebuilt[key] for key in template["map"]}
        return next(made)
    return template
