"""What somebody asked to be run: a plan of any kind, and its arguments as they were given.

A plan is a function (captured for what its arguments are), a stored plan or a stored model (programs already), or a
module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import nn

from compute.capture import LOADED, Captured
from compute.given import Given
from compute.remembered import Captures
from compute.tracing import unique
from grid import flow, optimizers
from grid.finishing import Finishing
from grid.given import as_query, joined, plain_texts, queries, walk
from grid.jails import Jail, JailJob
from grid.jobs import Job, shown_input, shown_kind, stored_model, stored_plan
from grid.modules import RemoteModule
from grid.parts import Part
from grid.plans import Plan, RemotePlan, load
from grid.remote import RemotePeer
from grid.stored_models import RemoteModel
from protocol.errors import BadRequest, RequestError


class Call:
    """What somebody asked to be run.

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
            raise BadRequest(f"run takes a plan, a function, a module or a stored plan first, not {shown_kind(plan)}")
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
            return await stored_plan(await plan.load(), self._args, self._kwargs, part)
        if isinstance(plan, RemoteModel):
            return await stored_model(await plan.load(), self._args, self._kwargs, part)
        raise BadRequest(f"{self._query!r} finds a {plan.record['kind']}, which cannot be run: add kind:plan to it")

    # --- functions ----------------------------------------------------------------------------------------

    async def _of_function(self, plan: Plan, part: Part) -> Job:
        arguments, captured = await self._capture_all(plan, part)
        inputs = tuple(captured.given[path] for path in captured.inputs)
        what = tuple(shown_input(path, captured.constants) for path in captured.inputs)
        return Job(plan.name, captured.program, inputs, what, finish=Finishing(captured, arguments))

    async def _capture_all(self, plan: Plan, part: Part, dynamic: bool | None = False) -> tuple[Any, Captured]:
        """The arguments as the function gets them, and the captured function. `dynamic`: see compute.capture."""
        called, arguments = self._with_module(plan, await part.resolved(self._bound))
        function = None if isinstance(self._plan, nn.Module) else plan.function
        loads: dict[str, Any] = {}
        while True:
            try:
                return arguments, self._capture(function, called, arguments, loads, dynamic)
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
        self,
        function: Callable[..., Any] | None,
        called: Callable[..., Any],
        arguments: Any,
        loads: Mapping[str, Any],
        dynamic: bool | None,
    ) -> Captured:
        """As `capture`, which is asked once for all parts whose arguments look the same."""
        key = tuple(
            (path, item.dtype, item.shape) if isinstance(item, torch.Tensor) else (path, id(item))
            for path, item in walk((arguments, loads))
        )
        found = self._captured_before.get(key)
        if found is None:
            captured = _CAPTURES.capture(function, called, arguments, loads, dynamic)
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


def _read_as(value: Any) -> Any:
    """What an object in the code of a plan, or of a module, is for whoever remembers captures."""
    if isinstance(value, Plan):
        return value.function
    return value.id if isinstance(value, RemotePeer) else value


_CAPTURES: Final = Captures(
    (flow.cond, flow.map, flow.repeat, flow.scan, flow.while_loop, load, RemoteModule, optimizers.note), _read_as
)
