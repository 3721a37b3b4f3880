"""A program made ready to run: arguments decoded once, operations looked up, and what may be freed after each step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch

from compute import flow
from compute.flow import FLOW, Flow
from compute.operations import NUMBERS
from compute.outputs import references
from compute.program import Body, Input, Node, Program
from compute.sharing import Sharing, sharing
from compute.table import Entry, lookup
from compute.values import constant_tensor, decode_argument, decode_output
from protocol.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Value:
    """Stands in a step's arguments for a value of the block, or for one item of it."""

    number: int
    item: int | None


@dataclass(frozen=True, slots=True)
class Step:
    """One node.

    Attributes:
        at: its number among the nodes of its block.
        number: that of the value which it gives.
        entry: None for arithmetic on numbers, and for loops and branches.
        flow: of these; its values are templates.
        args: with a Value where a value belongs, and lists of those.
        direct: (position, number) of the arguments that are a value; `nested`: (position, template) of those that have
            one in them. The others are as they stand in `args`.
        frees: values that nothing needs after this step.
        copies: what a loop or branch gives is to be copied, because it might share memory with what is written.
    """

    at: int
    number: int
    operation: str
    entry: Entry | None
    flow: Flow | None
    args: list[Any]
    kwargs: dict[str, Any]
    direct: tuple[tuple[int, int], ...]
    nested: tuple[tuple[int, Any], ...]
    frees: tuple[int, ...]
    copies: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A body, or the program itself.

    Attributes:
        body: its number; None for the program itself.
        constants: the numbers of the constants that it names: they stand behind the values of its nodes.
        copies: values that it writes and that are not its own: it works on copies of them.
        results: the values in `outputs`, in the order of outputs.references.
        known: what is known of runs on inputs that look alike (compute/known.py).
        reshapes: it changes the shape of a tensor in place: what it gives hangs on which inputs are one tensor, and so
            nothing is known of it by looks.
        reads_memory: it looks at the memory of complex numbers, and was written for inputs that are not conjugated
            lazily (compute/lazy.py).
        writes: inputs that it changes in place: the program itself does.
    """

    body: int | None
    inputs: tuple[Input, ...]
    steps: tuple[Step, ...]
    outputs: Any
    results: tuple[Value, ...]
    constants: tuple[int, ...]
    copies: tuple[int, ...]
    known: dict[tuple[Any, ...], Any]
    reshapes: bool
    reads_memory: bool
    writes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """`main` is the program itself. Constants that no run can change or give away are made once."""

    main: Block
    bodies: tuple[Block, ...]
    _constants: tuple[Mapping[str, Any], ...]
    _shared: tuple[torch.Tensor | None, ...]

    def constants(self) -> list[torch.Tensor]:
        """The constants for one run."""
        pairs = zip(self._constants, self._shared, strict=True)
        return [constant_tensor(constant) if tensor is None else tensor for constant, tensor in pairs]


_prepared: Final[WeakKeyDictionary[Program, Prepared]] = WeakKeyDictionary()


def prepare(program: Program) -> Prepared:
    """Done once for each program, and remembered for as long as that lives."""
    found = _prepared.get(program)
    if found is None:
        _prepared[program] = found = _prepare(program)
    return found


def _prepare(program: Program) -> Prepared:
    of_bodies = sharing(program)
    of_main = of_bodies.pop()
    bodies = tuple(_block(at, body, its) for at, (body, its) in enumerate(zip(program.bodies, of_bodies, strict=True)))
    main = _block(None, program, replace(of_main, written=frozenset()))  # it works on its inputs themselves
    main = replace(main, writes=tuple(sorted(at for at in of_main.written if 0 <= at < len(main.inputs))))
    fresh = of_main.written | of_main.given
    with torch.inference_mode(False):  # they outlive the mode
        shared = tuple(
            None if -1 - at in fresh else constant_tensor(constant) for at, constant in enumerate(program.constants)
        )
    return Prepared(main, bodies, program.constants, shared)


def _block(body: int | None, block: Body | Program, its: Sharing) -> Block:
    count = len(block.inputs)
    end = count + len(block.nodes)
    place: dict[int, int] = {}  # of a constant among the values: behind those of the nodes

    def refer(value: Mapping[str, Any]) -> Value:
        if "constant" in value:
            return Value(place.setdefault(value["constant"], end + len(place)), None)
        return Value(value["node"], value.get("item"))

    drafts = [_step(node, at, count + at, refer) for at, node in enumerate(block.nodes)]
    outputs = decode_output(block.outputs, refer)
    results = tuple(map(refer, references(block.outputs)))
    frees = _frees(drafts, set(used(outputs)), end)
    steps = tuple(replace(step, frees=tuple(frees.get(step.at, ())), copies=step.at in its.copied) for step in drafts)
    copies = tuple(sorted(number if number >= 0 else place[-1 - number] for number in its.written))
    reshapes = any(step.entry is not None and step.entry.reshapes for step in steps)
    reads_memory = any(step.operation in _OF_MEMORY for step in steps)
    return Block(body, block.inputs, steps, outputs, results, tuple(place), copies, {}, reshapes, reads_memory)


_OF_MEMORY: Final = frozenset({"aten.view_as_real.default", "aten.view.dtype"})


def _step(node: Node, at: int, number: int, refer: Any) -> Step:
    if node.operation in FLOW:
        read = flow.read(node.operation, node.args, node.kwargs)
        read = replace(
            read,
            value=decode_argument(read.value, refer),
            carried=tuple(decode_argument(value, refer) for value in read.carried),
            sliced=tuple(decode_argument(value, refer) for value in read.sliced),
            operands=tuple(decode_argument(value, refer) for value in read.operands),
        )
        return Step(at, number, node.operation, None, read, list(read.values), {}, (), (), ())
    args = [decode_argument(value, refer) for value in node.args]
    kwargs = {name: decode_argument(value, refer) for name, value in node.kwargs.items()}
    entry = None if node.operation in NUMBERS else lookup(node.operation)
    direct = tuple(
        (position, value.number) for position, value in enumerate(args) if type(value) is Value and value.item is None
    )
    is_direct = {position for position, _ in direct}
    nested = tuple(
        (position, value) for position, value in enumerate(args) if position not in is_direct and [*used(value)]
    )
    return Step(at, number, node.operation, entry, None, args, kwargs, direct, nested, ())


def _frees(steps: Sequence[Step], kept: set[int], end: int) -> dict[int, list[int]]:
    """For each step the values whose last use it is."""
    last: dict[int, int] = {}
    for step in steps:
        last[step.number] = step.at
        for number in used([*step.args, *step.kwargs.values()]):
            if number < end:
                last[number] = step.at
    frees: dict[int, list[int]] = {}
    for number, at in last.items():
        if number not in kept:
            frees.setdefault(at, []).append(number)
    return frees


def used(template: Any) -> Iterable[int]:
    """The numbers of the values that an argument names."""
    if type(template) is Value:
        yield template.number
    elif isinstance(template, list | tuple):
        for item in template:
            yield from used(item)
    elif isinstance(template, dict):
        yield from used(list(template.values()))


# --- arguments out of values -------------------------------------------------------------------------------


def resolve(template: Any, values: Sequence[Any]) -> Any:
    """The argument that a template stands for; BadRequest where a value has no such item."""
    kind = type(template)
    if kind is Value:
        value = values[template.number]
        if template.item is None:
            return value
        if not isinstance(value, list | tuple) or template.item >= len(value):
            raise BadRequest(f"value {template.number} has no item {template.item}")
        return value[template.item]
    if kind is list:
        return [resolve(item, values) for item in template]
    return template


def arguments(step: Step, values: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Those of one step."""
    args = step.args.copy()
    for position, number in step.direct:
        args[position] = values[number]
    for position, template in step.nested:
        args[position] = resolve(template, values)
    kwargs = step.kwargs
    if kwargs:
        kwargs = {name: resolve(value, values) for name, value in kwargs.items()}
    return args, kwargs


def outputs(template: Any, values: Sequence[Any]) -> Any:
    """What comes out, nested as the template is."""
    if isinstance(template, list):
        return [outputs(item, values) for item in template]
    if isinstance(template, tuple):
        return tuple(outputs(item, values) for item in template)
    if isinstance(template, dict):
        return {key: outputs(item, values) for key, item in template.items()}
    return resolve(template, values)
