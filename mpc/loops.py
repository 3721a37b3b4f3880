"""Loops that stay loops: their body is lowered once, and run in each iteration.

What is public in an iteration (its index, its slice of public data, a mask that it draws, the count of steps that an
optimiser keeps) is computed beforehand for all of them (varying.py), and gone through in slices, as secret data are.
What is carried is a secret from the first iteration on where it is one after any. What is carried in a larger form, too
(moments.py), is carried along in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.utils._python_dispatch import _disable_current_modes

from compute import interpreter as clear
from compute import iterating
from compute.dtypes import NAME_OF
from compute.flow import Flow
from compute.prepared import Block, Step, arguments, resolve
from compute.program import Input, Node
from compute.sharing import shared_by
from mpc.assembly import body_of
from mpc.interpreter import _numbers
from mpc.varying import Differs, Varying

if TYPE_CHECKING:
    from mpc.lowering import _Lowering

CARRIED, SLICED, OPERAND = range(3)
Make = Callable[[Any, Any], Any]
"""A form of a value, by what lowers and the value."""


class Inside:
    """The body of one loop while it is lowered: what it is given, and what it will give.

    Attributes:
        varying: what is public and differs.
        given: for each kind the values outside of what the body is given, in order.
    """

    def __init__(self, outside: _Lowering, varying: Varying) -> None:
        self.outside = outside
        self.varying = varying
        self.given: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
        self.inputs: tuple[list[Input], list[Input], list[Input]] = ([], [], [])
        self.larger: list[tuple[int, Any, Make]] = []  # of what is carried: which, what for, and how it is made so
        self._slices: dict[tuple[int, int], dict[str, Any]] = {}

    def stand_in(self, kind: int, value: Any, like: torch.Tensor | None = None) -> tuple[torch.Tensor, dict[str, Any]]:
        """What stands for a secret in the body, and its reference. `value`: what it is outside."""
        zeros = torch.zeros_like(value if like is None else like)
        place = len(self.given[kind])
        self.given[kind].append(value)
        name = ("carried", "slice", "operand")[kind]
        self.inputs[kind].append(Input(f"{name}.{place}", NAME_OF[zeros.dtype], tuple(zeros.shape)))
        return zeros, {"given": (kind, place)}

    def slice_of(self, tensor: torch.Tensor, values: Sequence[torch.Tensor]) -> dict[str, Any]:
        """The reference of what differs and all know: a slice of all of them."""
        key = id(tensor), tensor._version
        if key not in self._slices:
            with _disable_current_modes():
                _, self._slices[key] = self.stand_in(SLICED, torch.stack(list(values)), tensor)
        return self._slices[key]

    def carried_as(
        self, place: int, purpose: Any, make: Make, like: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """What is carried in another form, too: it is made of what was before the loop, and of what is carried on."""
        self.larger.append((place, purpose, make))
        return self.stand_in(CARRIED, make(self.outside, self.given[CARRIED][place]), like)


def looped(outside: _Lowering, flow: Flow, values: list[Any]) -> list[Any]:
    """What a loop gives that stays one.

    Raises:
        Differs: it has to be written out.
    """
    value = resolve(flow.value, values)
    carried, sliced, operands = (
        [resolve(each, values) for each in group] for group in (flow.carried, flow.sliced, flow.operands)
    )
    count = iterating.count(value) if flow.name == "flow.repeat" else iterating.length(sliced)
    if not all(isinstance(each, torch.Tensor) for each in (*carried, *sliced)):
        raise Differs("a number is carried from iteration to iteration")
    public = [each for each in (*carried, *sliced, *operands) if not outside.is_secret(each)]
    if outside.varies(public):
        raise Differs("a loop in a loop goes by what differs in the outer one")
    return _Loop(outside, flow, count, carried, sliced, operands).made()


class _Loop:
    def __init__(
        self, outside: _Lowering, flow: Flow, count: int, carried: list[Any], sliced: list[Any], operands: list[Any]
    ) -> None:
        self._outside, self._flow, self._count = outside, flow, count
        self._carried, self._sliced, self._operands = carried, sliced, operands
        self._block: Block = outside.block_of(flow.bodies[0])
        self._secret = [outside.is_secret(each) for each in carried]
        self._order = range(count - 1, -1, -1) if flow.reverse else range(count)

    def made(self) -> list[Any]:
        """Lowers the body of one iteration until it is known what of the carried is secret, and then of all."""
        kept = len(self._carried)
        before = self._outside.mark()
        for count in (1, self._count):
            while True:
                history = self._history(count) if count > 1 else [[each] for each in self._carried]
                inside = Inside(self._outside, Varying(count))
                body = self._outside.within(inside)
                made = body.body(self._flow.bodies[0], self._given(inside, body, history, count))
                secret = [was or body.is_secret(each) for was, each in zip(self._secret, made[:kept], strict=True)]
                if count == self._count and secret == self._secret:
                    return self._written(inside, body, made, history)
                self._values, self._body = body.last_values, body
                self._outside.back_to(before)
                if secret == self._secret:
                    break
                self._secret = secret
        raise AssertionError("the last count returns")

    def _given(self, inside: Inside, body: _Lowering, history: list[list[Any]], count: int) -> list[Any]:
        """What the body is given."""
        given: list[Any] = []
        if self._flow.name == "flow.repeat":
            given.append(inside.varying.note([torch.tensor(at) for at in range(count)]))
        for value, values, is_secret in zip(self._carried, history, self._secret, strict=True):
            given.append(body.given(*inside.stand_in(CARRIED, value)) if is_secret else inside.varying.note(values))
        for value in self._sliced:
            if self._outside.is_secret(value):
                given.append(body.given(*inside.stand_in(SLICED, value, value[0])))
            else:
                given.append(inside.varying.note([value[at].clone() for at in self._order[:count]]))
        for value in self._operands:
            given.append(body.given(*inside.stand_in(OPERAND, value)) if self._outside.is_secret(value) else value)
        return given

    # --- what is carried and public ------------------------------------------------------------------------------

    def _history(self, count: int) -> list[list[Any]]:
        """What all know of the carried, before each iteration: of the steps of the body that it hangs on."""
        block, wanted = self._block, [at for at, is_secret in enumerate(self._secret) if not is_secret]
        state, seen = list(self._carried), [[each] for each in self._carried]
        if not wanted:
            return seen
        steps = self._steps_for([block.outputs[at] for at in wanted])
        for at in range(count - 1):
            values = self._first_values(state, at)
            for step in steps:
                assert step.entry is not None  # as _steps_for saw to
                args, kwargs = arguments(step, values)
                values[step.number] = clear.execute(step.entry, args, kwargs)
            for place in wanted:
                state[place] = resolve(block.outputs[place], values)
                seen[place].append(state[place])
        return seen

    def _first_values(self, state: list[Any], at: int) -> list[Any]:
        """The values of the body before its steps, of an iteration. What hangs on a secret's shape has one."""
        values = list(self._values)
        index = [torch.tensor(at)] if self._flow.name == "flow.repeat" else []
        slices = [each[self._order[at]] for each in self._sliced]
        for number, value in enumerate([*index, *state, *slices, *self._operands]):
            values[number] = value.clone() if number in self._block.copies else value
        return values

    def _steps_for(self, templates: list[Any]) -> list[Step]:
        """Those that values hang on, and those that write to them, be it through a view."""
        needed, steps = set(_numbers(templates)), []
        memory = _Memory(self._block)
        places = set(map(memory.of, needed))
        for step in reversed(self._block.steps):
            given = list(_numbers([*step.args, *step.kwargs.values(), *(step.flow.values if step.flow else ())]))
            if step.number not in needed and places.isdisjoint(map(memory.of, _written(step))):
                continue
            if step.entry is None or torch.Tag.nondeterministic_seeded in step.entry.overload.tags:
                if step.entry is None and step.flow is None:
                    raise Differs("numbers that are computed in a loop")
                raise Differs("what all know is carried through a loop in the loop, or drawn")
            steps.append(step)
            needed.update(given)
            places.update(map(memory.of, given))
        return steps[::-1]

    # --- the node ------------------------------------------------------------------------------------------------

    def _written(self, inside: Inside, body: _Lowering, made: list[Any], history: list[list[Any]]) -> list[Any]:
        """Writes the loop down; what it gives."""
        kept, outside = len(self._carried), self._outside
        carried = [made[at] for at in range(kept) if self._secret[at]]
        for place, _, make in _each(inside.larger):  # making these may take more of them
            carried.append(make(body, carried[place]))
        rows = [value for value in made[kept:] if body.is_secret(value)]
        number, operands = self._add_body(inside, body, [*carried, *rows])
        references = [[outside.refer(each) for each in group] for group in inside.given]
        start: list[Any] = [{"body": number}]
        if inside.given[SLICED]:
            args = [*start, references[CARRIED], references[SLICED], [*references[OPERAND], *operands]]
            node = Node("flow.scan", args, {"reverse": True} if self._flow.reverse else {})
        else:
            node = Node(
                "flow.repeat", [*start, self._count, references[CARRIED], [*references[OPERAND], *operands]], {}
            )
        shapes = [torch.zeros_like(each) for each in carried]
        shapes += [torch.zeros((self._count, *each.shape), dtype=each.dtype) for each in rows]
        out = iter(outside.gives(node, shapes))
        ends = [next(out) for _ in carried]
        for at, (place, purpose, _) in enumerate(inside.larger, sum(self._secret)):
            outside.remember(ends[place], purpose, ends[at])
        of_secrets = iter(ends)
        results = [
            next(of_secrets) if is_secret else inside.varying.of(each)[-1]
            for each, is_secret in zip(made[:kept], self._secret, strict=True)
        ]
        for value in made[kept:]:
            results.append(next(out) if body.is_secret(value) else self._stacked(inside.varying.of(value)))
        return results

    def _stacked(self, values: list[torch.Tensor]) -> torch.Tensor:
        whole = torch.stack(values if len(values) > 1 else values * self._count)
        return whole.flip(0) if self._flow.reverse else whole

    def _add_body(self, inside: Inside, body: _Lowering, made: list[Any]) -> tuple[int, list[Any]]:
        """The number of the body, and the references outside of what all know and it is given besides."""
        outputs = [body.refer(each) for each in made]
        public = body.public
        operands = [self._outside.refer(each) for each in public]
        if self._flow.reverse:
            inside.given[SLICED][:] = [
                each if self._outside.is_secret(each) else each.flip(0) for each in inside.given[SLICED]
            ]
        first = [] if inside.given[SLICED] else [Input("i", "int64", ())]
        inputs = [*first, *inside.inputs[CARRIED], *inside.inputs[SLICED], *inside.inputs[OPERAND]]
        starts = {CARRIED: len(first)}
        starts[SLICED] = starts[CARRIED] + len(inside.inputs[CARRIED])
        starts[OPERAND] = starts[SLICED] + len(inside.inputs[SLICED])
        return self._outside.add_body(body_of(inputs, public, body.nodes, outputs, starts)), operands


class _Memory:
    """Which values of a block may share memory."""

    def __init__(self, block: Block) -> None:
        self._same: dict[int, int] = {}
        for step in block.steps:
            if step.entry is not None:
                for number in _at(step, shared_by(step.entry)):
                    self._same[self.of(step.number)] = self.of(number)

    def of(self, number: int) -> int:
        """The same number for those that may."""
        while self._same.get(number, number) != number:
            number = self._same[number]
        return number


def _written(step: Step) -> list[int]:
    """The values that a step writes in place."""
    return [] if step.entry is None else _at(step, step.entry.written(step.args, step.kwargs))


def _at(step: Step, positions: Iterable[int]) -> list[int]:
    """The values in these arguments of an operation."""
    assert step.entry is not None
    given = list(step.entry.named(step.args, step.kwargs).values())
    return list(_numbers([given[position] for position in positions]))


def _each(items: list[tuple[int, Any, Make]]) -> Iterator[tuple[int, Any, Make]]:
    """All of a list that may grow meanwhile."""
    at = 0
    while at < len(items):
        yield items[at]
        at += 1


ROOM: Final = 2_000
"""A loop whose iterations are fewer nodes than this together is written out: they may share rounds."""
