"""Runs a program: each node through the table's checks, its values freed after their last use.

`execute` is the one place where an operation runs, and may be replaced: the interpreter on secret shares brings its
own. With the default one, inputs may be tensors of any kind that implements ATen: plain, fake, or pointers.

A block (the program, or a body) that ran on inputs which look alike is not checked again node by node: dtypes, shapes
and strides of all its values follow from those of its inputs. What hangs on data, or on how much is left of a budget,
is looked at each time; and where a shape hangs on data, so is whether it is the one of before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch

from compute import numbers
from compute.bounds import Result
from compute.cost import ALLOWED
from compute.dtypes import DEFAULT, as_peers_have_it
from compute.estimate import Estimate, check_allowed, check_size, failed, guarded
from compute.flow import Flow
from compute.iterating import run_flow
from compute.known import Known, Look, Number, OfStep, Operation, operation
from compute.layout import check_dtypes, laid_out
from compute.lazy import resolved
from compute.looks import check_inputs, looks_of
from compute.prepared import Block, Prepared, Step, arguments, outputs, prepare, resolve
from compute.program import Program
from compute.pulse import Observe, Pulse, clock
from compute.report import Report
from compute.settled import Settled, settled
from compute.table import Entry, lookup
from compute.value_guards import VALUE_GUARDS, is_readable
from protocol import limits
from protocol.errors import BadRequest, GridError

Execute = Callable[[Entry, Sequence[Any], Mapping[str, Any]], Any]
"""Runs one operation. It may have methods besides: `again` (see there) runs one of which is known what it looks like,
and `is_free` (see there) says when that need not be asked where nothing hangs on values and nothing is written;
`unfilled()` is a context in which memory is not filled before operations get it, for those that leave none of it out;
`flow(flow, carried, body)` and `number(operation, args)` run in its own way what is no operation of the table, and
`stand_in(tensor)` gives what it has for a constant."""

Tell = Callable[[Settled, list[torch.Tensor | None]], None]
"""Told what is settled before the end of a run: with the results that are small in their places, None in others."""


def execute(entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Checks and runs one operation of the table.

    Raises:
        BadRequest: arguments that do not fit the schema, or that the kernel would not survive.
        TooLarge: results beyond MAX_RESULT.
        OperationFailed: torch refused; `fields["type"]` is the name of its exception.
    """
    bound, named, results = checked(entry, args, kwargs)
    value = call(entry, bound, named, results)
    check_dtypes(entry.name, value, results)
    return value


def checked(
    entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], Sequence[Result | None]]:
    """The arguments as the overload takes them, and what is known of its results.

    Raises what `execute` raises before the operation runs.
    """
    bound, named = entry.bind(args, kwargs)
    results: Sequence[Result | None] = ()
    if entry.category != "size":
        results = check_size(entry, bound, named).results
        guard = VALUE_GUARDS.get(entry.name)
        if guard is not None and is_readable((*bound, *named.values())):
            guarded(entry.name, guard, entry.named(bound, named))
    return bound, named, results


def again(entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any], estimate: Estimate, guard: Any) -> Any:
    """As `execute`, for arguments that look like those of a call that was checked: what that found out is `estimate`,
    and `guard` looks at values (None: nothing of them matters)."""
    check_allowed(entry.name, estimate)
    if guard is not None:
        guarded(entry.name, guard, entry.named(args, kwargs))
    return call(entry, args, kwargs, estimate.results)


def is_free(largest: int, seconds: float) -> bool:
    """Whether an operation that takes so many bytes and so long may run, as far as this process has room and time."""
    return largest + ALLOWED.held <= ALLOWED.memory and seconds <= ALLOWED.seconds


def call(entry: Entry, bound: Sequence[Any], named: Mapping[str, Any], results: Sequence[Result | None]) -> Any:
    """Runs the operation on arguments that were checked. What it gives lies in memory as `results` say."""
    try:
        value = entry.kernel(*bound, **named)
        return laid_out(value, results) if results else value
    except GridError:
        raise
    except Exception as error:
        raise failed(entry.name, error) from None


instead: ContextVar[Callable[[Program, Sequence[Any]], Any] | None] = ContextVar("instead", default=None)
"""What is done instead of running a program: while a function is captured, the programs that it calls become a part of
its own (compute/inlining.py)."""


def run(
    program: Program,
    inputs: Sequence[Any],
    execute: Execute = execute,
    observe: Observe | None = None,
    report: Report | None = None,
) -> Any:
    """The program's outputs for these inputs, which stand in the order of `program.inputs`.

    Args:
        observe: told how far it is, at most once in limits.LOOK seconds: (number of the program's node, its operation,
            iterations of it done, iterations in all or None). It may raise: that ends the run.
        report: is filled with what each node took.

    Raises:
        BadRequest: too few or too many inputs, or one that is not of the dtype or shape that the program names.
        TooLarge: it takes longer than one program may in this process.
        GridError: what a node raised, with the operation, and the node's number in `fields["node"]` (of a node in a
            body, with that body's number in `fields["body"]`).
    """
    elsewhere = instead.get()
    if elsewhere is not None:
        return elsewhere(program, inputs)
    main, values = _done(program, inputs, execute, observe, report)
    return outputs(main.outputs, values)


def results(
    program: Program,
    inputs: Sequence[Any],
    execute: Execute = execute,
    observe: Observe | None = None,
    report: Report | None = None,
    tell: Tell | None = None,
) -> list[Any]:
    """What `run` gives, without its structure: in the order of outputs.references.

    Args:
        tell: told, once, what is settled before the end, where something is (compute/settled.py).
    """
    main, values = _done(program, inputs, execute, observe, report, tell)
    return [resolve(value, values) for value in main.results]


def _done(
    program: Program,
    inputs: Sequence[Any],
    execute: Execute,
    observe: Observe | None,
    report: Report | None,
    tell: Tell | None = None,
) -> tuple[Block, list[Any]]:
    """The program itself, and its values."""
    if torch.get_default_dtype() is not DEFAULT:
        with as_peers_have_it():
            return _done(program, inputs, execute, observe, report, tell)
    prepared = prepare(program)
    if report is not None:
        report.given(inputs)
    return prepared.main, _Run(prepared, execute, Pulse(observe), report, tell).block(prepared.main, list(inputs))


# --- a run ------------------------------------------------------------------------------------------------


class _Run:
    """One run of a program."""

    def __init__(
        self, prepared: Prepared, execute: Execute, pulse: Pulse, report: Report | None, tell: Tell | None
    ) -> None:
        self._bodies = prepared.bodies
        self._execute = execute
        self._pulse = pulse
        self._report = report
        self._tell = tell
        self._number = getattr(execute, "number", numbers.compute)
        stand_in = getattr(execute, "stand_in", None)
        self._constants = prepared.constants() if stand_in is None else list(map(stand_in, prepared.constants()))
        is_watched = report is not None or torch._C._len_torch_dispatch_stack()
        self._again = None if is_watched else _again_of(execute)
        self._unfilled = getattr(execute, "unfilled", None)
        self._is_free = is_free if _again_of(execute) is again else getattr(execute, "is_free", _never)

    def block(self, block: Block, values: list[Any]) -> list[Any]:
        """The values of a block run on these inputs, without those that nothing needs; the list is used up."""
        count = len(values)
        values += [None] * len(block.steps)
        if block.constants:
            values += [self._constants[number] for number in block.constants]
        for number in block.copies:
            values[number] = self._copy(values[number])
        if block.reads_memory:
            values[:count] = resolved(values[:count], block.writes)
        key = None if self._again is None or block.reshapes else looks_of(values[:count])
        known = None if key is None else block.known.get(key)
        if known is not None:
            if known.is_whole and self._unfilled is not None:
                with self._unfilled():
                    self._run_known(block, values, known)
            else:
                self._run_known(block, values, known)
            return values
        check_inputs("the program" if block.body is None else f"body {block.body}", block.inputs, values[:count])
        found: list[Any] = []
        self._run(block, values, block.steps, found if key is not None else None)
        if key is not None:
            if len(block.known) >= limits.MAX_LOOKS:
                block.known.clear()
            known = Known.of(block, found)
            block.known[key] = replace(known, settled=settled(block, known, values))
        return values

    def _copy(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return self._execute(lookup("aten.clone.default"), [value], {})

    def _run(self, block: Block, values: list[Any], steps: Sequence[Step], known: list[Any] | None = None) -> None:
        """Runs these steps, each checked; what was found out is added to `known`."""
        for step in steps:
            try:
                found = self._step(block, step, values, known is not None)
            except Exception as error:
                raise _at_node(error, block, step) from None
            if known is not None:
                known.append(found)
            for number in step.frees:
                values[number] = None

    def _step(self, block: Block, step: Step, values: list[Any], is_learning: bool) -> Any:
        """Runs one step, and says what is known of it now."""
        self._look(block, step)
        if self._report is not None:
            self._report.begins(block.body, step.at, step.operation)
        found: Any = None
        if step.flow is not None:
            results = self._flow(block, step, step.flow, values)
            values[step.number] = list(map(self._copy, results)) if step.copies else results
        elif step.entry is None:
            values[step.number] = number = self._number(step.operation, arguments(step, values)[0])
            found = Number(number)
        else:
            args, kwargs = arguments(step, values)
            if is_learning and step.entry.category != "size":
                found = operation(step.entry, args, kwargs)
            # Straight into its place: a name for it here would keep it alive during the next step.
            values[step.number] = self._execute(step.entry, args, kwargs)
            if step.entry.category == "size":
                found = Number(values[step.number])
        if self._report is not None:
            self._report.ends(values[step.number])
        return found if found is not None or not is_learning else Look(looks_of(values[step.number]))

    def _run_known(self, block: Block, values: list[Any], known: Known) -> None:
        """Runs all steps, and tells what is settled before the last."""
        early, steps = known.settled, block.steps
        if early is None or self._tell is None:
            self._run_again(block, values, known, steps, known.steps)
        elif self._run_again(block, values, known, steps[: early.after], known.steps[: early.after]):
            results = zip(block.results, early.small, strict=True)
            self._tell(early, [resolve(value, values) if is_small else None for value, is_small in results])
            self._run_again(block, values, known, steps[early.after :], known.steps[early.after :])

    def _run_again(
        self, block: Block, values: list[Any], found: Known, steps: Sequence[Step], known_steps: Sequence[OfStep]
    ) -> bool:
        """Runs these steps, of each of which this is known; False where it did not hold, and so all that are left of
        the block have run."""
        again, pulse = self._again, self._pulse
        assert again is not None
        is_free = self._is_free(found.largest, found.seconds)
        for step, known in zip(steps, known_steps, strict=True):
            try:
                if clock() > pulse.due:
                    self._look(block, step)
                if isinstance(known, Operation):
                    args, kwargs = step.args.copy(), step.kwargs
                    for position, number in step.direct:
                        args[position] = values[number]
                    for position, template in step.nested:
                        args[position] = resolve(template, values)
                    if kwargs:
                        kwargs = {name: resolve(value, values) for name, value in kwargs.items()}
                    if is_free and known.stride is not None:
                        value = known.entry.kernel(*args, **kwargs)
                        is_as_known = value.stride() == known.stride
                        values[step.number] = value if is_as_known else laid_out(value, known.estimate.results)
                        del value  # or it would live on during the next step
                    else:
                        values[step.number] = again(known.entry, args, kwargs, known.estimate, known.guard)
                        if is_free and known.entry.writes:  # that may take memory
                            is_free = self._is_free(found.largest, found.seconds)
                elif isinstance(known, Number):
                    values[step.number] = known.value
                elif not self._looks_as_before(block, step, values, known):
                    self._run(block, values, block.steps[step.at + 1 :])
                    return False
                else:
                    is_free = self._is_free(found.largest, found.seconds)
            except Exception as error:
                raise _at_node(error, block, step) from None
            for number in step.frees:
                values[number] = None
        return True

    def _looks_as_before(self, block: Block, step: Step, values: list[Any], found: Look) -> bool:
        """Runs a step whose results hang on data, and says whether what is known of later steps holds this time."""
        self._step(block, step, values, False)
        holds = found.key is not None and looks_of(values[step.number]) == found.key
        if not holds:
            for number in step.frees:
                values[number] = None
        return holds

    def _look(self, block: Block, step: Step) -> None:
        pulse = self._pulse
        if clock() > pulse.due:
            if block.body is None:
                pulse.enter(step)
            pulse.look()

    # --- loops and branches -----------------------------------------------------------------------------------

    def _flow(self, block: Block, step: Step, flow: Flow, values: list[Any]) -> list[Any]:
        carried = [resolve(value, values) for value in flow.carried]
        ready = replace(
            flow,
            value=resolve(flow.value, values),
            carried=(),
            sliced=tuple([resolve(value, values) for value in flow.sliced]),
            operands=tuple([resolve(value, values) for value in flow.operands]),
        )
        for number in step.frees:
            values[number] = None  # the loop has what it needs of them, and lets go of it when that is done
        its_own = getattr(self._execute, "flow", None)
        if its_own is not None:
            return its_own(ready, carried, self._run_body)  # type: ignore[no-any-return]
        if block.body is None:
            self._pulse.enter(step)
            return run_flow(ready, carried, self._run_body, self._execute, self._pulse.iterates)
        return run_flow(ready, carried, self._run_body, self._execute, self._pulse.tick)

    def _run_body(self, number: int, given: list[Any]) -> list[Any]:
        block = self._bodies[number]
        _check_single(given, "takes")
        values = self.block(block, given)
        found = [resolve(template, values) for template in block.outputs]
        _check_single(found, "gives")
        return found


def _check_single(values: Sequence[Any], does: str) -> None:
    for at, value in enumerate(values):
        if isinstance(value, list | tuple):
            raise BadRequest(f"value {at} that a body {does} is a list: name one item of it")


def _again_of(found: Any) -> Callable[..., Any] | None:
    """How `found` runs operations of which is known what they look like; None where it has to see each by itself."""
    return again if found is execute else getattr(found, "again", None)


def _never(largest: int, seconds: float) -> bool:
    return False


def _at_node(error: Exception, block: Block, step: Step) -> GridError:
    found = error if isinstance(error, GridError) else failed(step.operation, error)
    if "node" not in found.fields:
        found.fields["node"] = step.at
        if block.body is not None:
            found.fields["body"] = block.body
    if found.operation is None:
        found.operation = step.operation
    return found
