"""What is to be run: a program, and for each of its inputs the tensor or pointer that it is given.

Stored plans and stored models are programs already; functions become some in calls.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import torch

from compute.capture import LOADED
from compute.dtypes import DTYPE_OF, NAME_OF
from compute.program import Input, Program
from grid.finishing import Finishing
from grid.parts import Part, leaves, loaded
from grid.plans import RemotePlan
from grid.pointer import Pointer
from grid.stored_constants import holders
from grid.stored_models import RemoteModel
from protocol.errors import BadRequest

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


async def stored_plan(plan: RemotePlan, args: Sequence[Any], kwargs: Mapping[str, Any], part: Part) -> Job:
    """The job of a stored plan that is loaded, with these arguments; queries among them are found.

    Raises:
        NotFound, Ambiguous; BadRequest: it takes something else.
    """
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
            found.update(await loaded(given.name, part))
    inputs = tuple(_fitting(given, found[given.name]) for given in program.inputs)
    check_sizes(program, inputs)
    constants = [given.name for given in program.inputs if given.content is not None]
    what = tuple(shown_input(given.name, constants) for given in program.inputs)
    return Job(plan.called, program, inputs, what, plan.location, held=held)


async def stored_model(model: RemoteModel, args: Sequence[Any], kwargs: Mapping[str, Any], part: Part) -> Job:
    """As `stored_plan`, of a stored model."""
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


def _fitting(given: Input, value: Any) -> torch.Tensor:
    """The tensor for an input; a number becomes one. BadRequest where it cannot be."""
    if isinstance(value, torch.Tensor):
        tensor = value
    else:
        try:
            tensor = torch.as_tensor(value, dtype=DTYPE_OF[given.dtype] if given.dtype else None)
        except (TypeError, ValueError, RuntimeError):
            raise BadRequest(f"{given} cannot be {shown_kind(value)}: give a tensor, or a query") from None
    if given.dtype is not None and NAME_OF.get(tensor.dtype) != given.dtype:
        raise BadRequest(f"it takes {given}, and was given {_described(tensor)}: convert it with .to()")
    return tensor


def check_sizes(program: Program, inputs: Sequence[torch.Tensor]) -> None:
    """BadRequest where shapes are not those of the program's inputs: of one name is one size (PROGRAM.md, Inputs)."""
    shapes = [value.shape for value in inputs]
    if _fitted.get(program) == shapes:
        return
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
    _fitted[program] = shapes


_fitted: Final[WeakKeyDictionary[Program, list[torch.Size]]] = WeakKeyDictionary()
"""Shapes that a program took the last time."""


def shown_input(name: str, constants: Collection[str]) -> str:
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


def shown_kind(value: Any) -> str:
    return f"the text {value!r}" if isinstance(value, str) else type(value).__name__
