"""Runs a program on shares: the same programs that run in the clear (compute/PROGRAM.md).

Steps whose inputs are there run side by side, so that their openings share rounds. Which ones those are depends on the
program alone, so that all parties open the same things in the same round, and take the same correlations for the same
purpose.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from compute import interpreter as clear
from compute import numbers
from compute.flow import Flow
from compute.looks import check_inputs
from compute.prepared import Block, Prepared, Step, Value, arguments, outputs, prepare, resolve
from compute.program import Program
from mpc import arithmetic
from mpc.operations import SECURE
from mpc.operations.choices import choose
from mpc.party import Party
from mpc.rounds import Opened, Opening, Protocol, merged, split, together
from mpc.secret import Secret, known, real, rescaled, settled
from mpc.table import OF_REALS
from protocol.errors import BadRequest, OperationNotAllowed


def run(party: Party, program: Program, inputs: Sequence[Any]) -> Protocol[Any]:
    """The program's outputs for these inputs: Secrets, and plain tensors that all parties know.

    Raises:
        OperationNotAllowed: an operation on a secret that has no secure form.
        BadRequest: something secret where a value has to be known: a size, an index, the end of a loop.
        GridError: what an operation raised, with the node's number in `fields["node"]`.
    """
    check_inputs("the program", program.inputs, inputs)
    prepared = prepare(program)
    values = yield from _Run(party, prepared).block(prepared.main, list(inputs))
    return outputs(prepared.main.outputs, values)


def fix(party: Party, secrets: Sequence[Secret]) -> Protocol[list[Secret]]:
    """The same secrets, ready to be factors of many products: what a model holds, for many batches. One round."""
    made = yield from together(*(arithmetic.fix(party, secret.share) for secret in secrets))
    return [replace(secret, fixed=fixed) for secret, fixed in zip(secrets, made, strict=True)]


class _Run:
    def __init__(self, party: Party, prepared: Prepared) -> None:
        self._party = party
        self._prepared = prepared
        self._constants = prepared.constants()

    def block(self, block: Block, given: list[Any]) -> Protocol[list[Any]]:
        """All values of a block, those that nothing needs any more freed."""
        values = [*given, *[None] * len(block.steps), *(self._constants[at] for at in block.constants)]
        order = _Order(block)
        running: dict[int, tuple[Protocol[Any], Opening]] = {}
        loops: list[Step] = []
        while order.is_unfinished:
            for step in order.ready():
                if step.flow is not None:
                    loops.append(step)  # alone: all its iterations are alike then (script.py)
                else:
                    self._advance(block, step, self._begin(step, values), None, running, values, order)
            if loops and not running:
                yield from self._alone(block, loops.pop(0), values, order)
            elif running:
                openings = [opening for _, opening in running.values()]
                answers = split(openings, (yield merged(openings)))
                for at, answer in zip(list(running), answers, strict=True):
                    protocol, _ = running.pop(at)
                    self._advance(block, block.steps[at], protocol, answer, running, values, order)
        return values

    def _advance(
        self,
        block: Block,
        step: Step,
        protocol: Protocol[Any],
        answer: Opened | None,
        running: dict[int, tuple[Protocol[Any], Opening]],
        values: list[Any],
        order: _Order,
    ) -> None:
        try:
            running[step.at] = protocol, (next(protocol) if answer is None else protocol.send(answer))
        except StopIteration as done:
            values[step.number] = done.value
            for number in order.done(step):
                values[number] = None
        except Exception as error:
            raise clear._at_node(error, block, step) from None

    def _alone(self, block: Block, step: Step, values: list[Any], order: _Order) -> Protocol[None]:
        """A loop or branch, while nothing else runs."""
        assert step.flow is not None
        try:
            values[step.number] = yield from self._flow(step.flow, values)
        except Exception as error:
            raise clear._at_node(error, block, step) from None
        for number in order.done(step):
            values[number] = None

    def _begin(self, step: Step, values: list[Any]) -> Protocol[Any]:
        """The protocol of one step. What is public altogether takes no round."""
        return self._operation(step, *arguments(step, values))

    def _operation(self, step: Step, args: list[Any], kwargs: Mapping[str, Any]) -> Protocol[Any]:
        if step.entry is None:
            return numbers.compute(step.operation, args)
        named = step.entry.named(args, kwargs)
        if not _has_secret(list(named.values())):
            return clear.execute(step.entry, args, kwargs)
        if step.entry.category == "size":
            return step.entry.overload(*(_shape_of(value) for value in args))
        form = SECURE.get(step.operation)
        if form is None:
            raise OperationNotAllowed(f"{step.operation} has no secure form", operation=step.operation)
        if step.operation in OF_REALS:
            named = {key: real(self._party, each) if isinstance(each, Secret) else each for key, each in named.items()}
        return (yield from form(self._party, step.operation, named))

    # --- loops and branches -----------------------------------------------------------------------------------

    def _flow(self, flow: Flow, values: list[Any]) -> Protocol[list[Any]]:
        value = resolve(flow.value, values)
        carried, sliced, operands = (
            [resolve(each, values) for each in group] for group in (flow.carried, flow.sliced, flow.operands)
        )
        match flow.name:
            case "flow.cond":
                return (yield from self._cond(flow, value, operands))
            case "flow.while":
                return (yield from self._while(flow, carried, operands))
            case "flow.repeat":
                return (yield from self._repeat(flow, value, carried, operands))
        return (yield from self._scan(flow, carried, sliced, operands))

    def _body(self, number: int, given: list[Any]) -> Protocol[list[Any]]:
        block = self._prepared.bodies[number]
        values = yield from self.block(block, given)
        return [resolve(template, values) for template in block.outputs]

    def _cond(self, flow: Flow, predicate: Any, operands: list[Any]) -> Protocol[list[Any]]:
        """With a secret predicate both branches run, and what comes out is chosen."""
        then, other = flow.bodies
        if not isinstance(predicate, Secret):
            return (yield from self._body(then if bool(predicate) else other, operands))
        one = yield from self._body(then, list(operands))
        two = yield from self._body(other, list(operands))
        return (yield from choose(self._party, predicate, one, two))

    def _while(self, flow: Flow, carried: list[Any], operands: list[Any]) -> Protocol[list[Any]]:
        test, step = flow.bodies
        for _ in range(flow.limit + 1):
            (goes_on,) = yield from self._body(test, [*carried, *operands])
            if isinstance(goes_on, Secret):
                raise BadRequest("how often a loop runs would tell what is secret: use grid.repeat with a fixed count")
            if not bool(goes_on):
                return carried
            carried = yield from self._body(step, [*carried, *operands])
        raise BadRequest(f"the loop goes on after {flow.limit} iterations")

    def _repeat(self, flow: Flow, count: Any, carried: list[Any], operands: list[Any]) -> Protocol[list[Any]]:
        state = yield from self._alike(carried)
        for at in self._party.iterations(count, lambda: list(map(_looks, state))):
            yield from self._party.between()
            made = yield from self._body(flow.bodies[0], [torch.tensor(at), *state, *operands])
            state[:] = yield from self._alike(made)
        yield from self._party.between()
        return state

    def _scan(self, flow: Flow, carried: list[Any], sliced: list[Any], operands: list[Any]) -> Protocol[list[Any]]:
        length = _shape_of(sliced[0]).shape[0]
        kept = len(carried)
        state = yield from self._alike(carried)
        columns: list[_Column] = []
        for done in self._party.iterations(length, lambda: list(map(_looks, state))):
            yield from self._party.between()
            at = length - 1 - done if flow.reverse else done
            slices = [
                value.of(value.share.select(0, at)) if isinstance(value, Secret) else value.select(0, at)
                for value in sliced
            ]
            given = yield from self._alike((yield from self._body(flow.bodies[0], [*state, *slices, *operands])))
            state[:] = given[:kept]
            columns = columns or [_Column(self._party, length) for _ in given[kept:]]
            for column, value in zip(columns, given[kept:], strict=True):
                column.put(at, value)
        yield from self._party.between()
        return [*state, *(column.whole() for column in columns)]

    def _alike(self, values: list[Any]) -> Protocol[list[Any]]:
        """What goes from one iteration to the next, or comes out: secrets all have the same form, so that all
        iterations do the same."""
        party = self._party
        return (yield from together(*(_plain(party, value) for value in values)))


def _plain(party: Party, value: Any) -> Protocol[Any]:
    """A secret real with the run's fractional bits, and nothing known besides. One round, or none."""
    if not isinstance(value, Secret):
        return value
    settled_one = yield from settled(party, value)
    made = rescaled(settled_one, party.precision) if value.is_real else settled_one
    return Secret(made.share, made.bits, made.dtype)


class _Column:
    """What one value is in all iterations, stacked."""

    def __init__(self, party: Party, length: int) -> None:
        self._party, self._length = party, length
        self._like: Any = None
        self._rows: Any = None

    def put(self, at: int, value: Any) -> None:
        """In an iteration. What all know in one may be a secret in another."""
        if self._rows is None:
            row = _shape_of(value)
            self._like, self._rows = value, row.new_zeros((self._length, *row.shape))
        if isinstance(value, Secret) and not isinstance(self._like, Secret):
            self._rows = self._shared(self._rows, value).share
            self._like = value
        elif isinstance(self._like, Secret) and not isinstance(value, Secret):
            value = self._shared(value, self._like)
        self._rows[at] = _shape_of(value)

    def _shared(self, value: torch.Tensor, like: Secret) -> Secret:
        return known(self._party, value, like.bits, like)

    def whole(self) -> Any:
        return self._like.of(self._rows) if isinstance(self._like, Secret) else self._rows


def _looks(value: Any) -> Any:
    """What decides how much it takes to work on a value."""
    if isinstance(value, Secret):
        return value.shape, value.bits, value.dtype, value.fixed is None
    return (value.shape, value.dtype) if isinstance(value, torch.Tensor) else value


class _Order:
    """Which steps of a block may begin, and which values nothing needs any more. Depends on the program alone."""

    def __init__(self, block: Block) -> None:
        self._steps = block.steps
        self._left = len(block.steps)
        first, kept = len(block.inputs), set(_numbers(block.outputs))
        made = range(first, first + self._left)
        self._needs = [
            set(_numbers([*step.args, *step.kwargs.values(), *(step.flow.values if step.flow else ())]))
            for step in block.steps
        ]
        self._waits = [{number for number in needs if number in made} for needs in self._needs]
        self._users: dict[int, list[int]] = {}
        self._uses: dict[int, int] = dict.fromkeys(kept, 1)  # one that never ends
        for at, needs in enumerate(self._needs):
            for number in needs:
                self._users.setdefault(number, []).append(at)
                self._uses[number] = self._uses.get(number, 0) + 1
        self._ready = [at for at, waits in enumerate(self._waits) if not waits]

    @property
    def is_unfinished(self) -> bool:
        return self._left > 0

    def ready(self) -> Iterator[Step]:
        """Those that may begin now, first in the program first; also what becomes ready meanwhile."""
        while self._ready:
            yield self._steps[heapq.heappop(self._ready)]

    def done(self, step: Step) -> list[int]:
        """Notes that a step has ended; gives the values that nothing needs any more."""
        self._left -= 1
        for at in self._users.get(step.number, ()):
            self._waits[at].discard(step.number)
            if not self._waits[at]:
                heapq.heappush(self._ready, at)
        freed = []
        for number in self._needs[step.at]:
            self._uses[number] -= 1
            if not self._uses[number]:
                freed.append(number)
        return freed


def _numbers(template: Any) -> Iterator[int]:
    """The values that a template has in it."""
    if type(template) is Value:
        yield template.number
    elif isinstance(template, list | tuple):
        for item in template:
            yield from _numbers(item)
    elif isinstance(template, dict):
        yield from _numbers(list(template.values()))


def _has_secret(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_has_secret, value))
    return isinstance(value, Secret)


def _shape_of(value: Any) -> Any:
    """What has the shape of a value, secret or not; everything else as it is."""
    return value.share if isinstance(value, Secret) else value
