"""Steps as one program for the parties: written down, lowered, and what it gives assigned to who waits for it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from compute.dtypes import NAME_OF
from compute.program import Input, Node, Program
from compute.values import constant_tensor, tensor_bytes
from grid.secret.values import Held, Kept, Local, Pending, Public, Step, Value, replaced
from mpc.lowering import Lowered, lower
from protocol.errors import BadRequest

_LOWERED: Final[OrderedDict[Any, Lowered]] = OrderedDict()
_REMEMBERED: Final = 256  # lowered programs: those of a few training loops


@dataclass(frozen=True, slots=True)
class Part:
    """What is computed in one run.

    Attributes:
        lowered: the program; its outputs are a flat list.
        inputs: of its secret inputs the values, none of them pending.
        places: for each value that was asked for: which output it is, or what it is where that is public.
    """

    lowered: Lowered
    inputs: tuple[Value, ...]
    places: tuple[int | torch.Tensor, ...]


def part_of(steps: Sequence[Step], asked: Sequence[Value], precision: int) -> Part:
    """These steps, in their order, as a program that gives the values that are asked for.

    Raises:
        OperationNotAllowed, BadRequest: something in them has no secure form, after all.
    """
    program, inputs = _written(steps, asked)
    secret = [not isinstance(each.source, Public) for each in inputs]
    lowered = _lowered(program, inputs, secret, precision)
    places: list[int | torch.Tensor] = []
    outputs: list[Any] = []
    for reference in lowered.program.outputs:
        known = _known(lowered, reference, sum(secret))
        places.append(len(outputs) if known is None else known)
        if known is None:
            outputs.append(reference)
    if len(outputs) < len(lowered.program.outputs):
        made = lowered.program
        made = Program(made.inputs, made.nodes, outputs, made.constants, made.bodies)
        lowered = replace(lowered, program=made, looks=None)  # of each operation it was looked at
    chosen = tuple(each for each, is_secret in zip(inputs, secret, strict=True) if is_secret)
    return Part(lowered, chosen, tuple(places))


def _written(steps: Sequence[Step], asked: Sequence[Value]) -> tuple[Program, list[Value]]:
    """The program, and the values of its inputs."""
    made = {id(step): at for at, step in enumerate(steps)}
    inputs: dict[int, Value] = {}
    for value in (*(operand for step in steps for operand in step.operands), *asked):
        if not (isinstance(value.source, Pending) and id(value.source.step) in made):
            inputs.setdefault(id(value), value)
    number = {key: at for at, key in enumerate(inputs)}

    def reference(value: Value) -> dict[str, Any]:
        if id(value) in number:
            return {"node": number[id(value)]}
        source = value.source
        assert isinstance(source, Pending)
        node = {"node": len(inputs) + made[id(source.step)]}
        return node if source.item is None else {**node, "item": source.item}

    nodes = [
        Node(
            step.operation,
            replaced(step.args, reference),
            {key: replaced(each, reference) for key, each in step.kwargs.items()},
        )
        for step in steps
    ]
    given = [Input(f"x{at}", NAME_OF[each.dtype], each.shape) for at, each in enumerate(inputs.values())]
    return Program(tuple(given), tuple(nodes), [reference(value) for value in asked]), list(inputs.values())


def _lowered(program: Program, inputs: Sequence[Value], secret: Sequence[bool], precision: int) -> Lowered:
    """The program lowered, or as it was lowered before: with the same public values."""
    key = (program.id, tuple(secret), precision, *_digests(inputs))
    found = _LOWERED.get(key)
    if found is None:
        found = _LOWERED[key] = lower(program, [_stand_in(each) for each in inputs], secret, precision)
        while len(_LOWERED) > _REMEMBERED:
            _LOWERED.popitem(last=False)
    _LOWERED.move_to_end(key)
    return found


def _digests(inputs: Sequence[Value]) -> Iterator[bytes]:
    for each in inputs:
        if isinstance(each.source, Public):
            yield hashlib.sha256(tensor_bytes(each.source.tensor)).digest()


def _stand_in(value: Value) -> torch.Tensor:
    if isinstance(value.source, Public):
        return value.source.tensor
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


def _known(lowered: Lowered, reference: Any, secret: int) -> torch.Tensor | None:
    """What an output is that is public: lowering has computed it."""
    if "constant" in reference:
        return constant_tensor(lowered.program.constants[reference["constant"]])
    public = reference["node"] - secret
    return lowered.public[public] if 0 <= public < len(lowered.public) else None


def given(value: Value) -> Any:
    """What a run is given for a secret input: a tensor that is here, a pointer, or shares that are kept.

    Raises:
        BadRequest: the pointer's object was changed since it was to be shared.
    """
    source = value.source
    if isinstance(source, Held):
        if source.pointer._handle.shared_memory().writes != source.writes:
            raise BadRequest(
                f"{source.pointer!r} was changed in place after share() and before its first use: await share(), "
                "which shares it at once"
            )
        return source.pointer
    if isinstance(source, Local):
        return source.tensor
    assert isinstance(source, Kept)
    return source.shares
