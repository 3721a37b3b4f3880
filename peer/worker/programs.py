"""Programs in a worker: those that came, and their runs on its objects."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import torch

from compute import interpreter, values
from compute.forecast import check_program
from compute.program import Program
from compute.program_types import check_types
from compute.report import Report
from compute.settled import Settled, are_small
from peer.worker.execution import check_describable, executor
from peer.worker.faults import as_error
from peer.worker.objects import Objects
from peer.worker.stopping import never, reader
from protocol import limits
from protocol.errors import BadRequest, Cancelled, GridError, NotFound

Tell = Callable[[list[int]], None]
"""Is told how far a run is: node, nodes, iterations done, iterations in all."""
TellEarly = Callable[[Sequence[tuple[str, Sequence[int]]], list[bytes | None]], None]
"""Is told before the end what a run gives: dtype and shape of each result, and the values of those that are small."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One run as it was asked for.

    Attributes:
        seq: the number of the request.
        program_id: of what is to run; `data` are its canonical bytes, None for one that came before.
        inputs, outs: ids of what goes in and of what comes out.
        is_shown: whether small results are wanted themselves, too.
        is_reported: whether it is wanted what each node took.
    """

    seq: int
    program_id: bytes
    data: bytes | None
    inputs: list[bytes]
    outs: list[bytes]
    is_shown: bool
    is_reported: bool


class Programs:
    """Keeps programs by id, until they are to be forgotten; runs them."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._execute = executor(objects)
        self._known: dict[bytes, Program | GridError] = {}
        self._is_stopped: Callable[[int], bool] = never

    def watch_sign(self, fd: int) -> None:
        """The peer says in this memory which request is to end."""
        self._is_stopped = reader(fd)

    def forget(self, program_id: bytes) -> None:
        self._known.pop(program_id, None)

    def run(self, wanted: Wanted, tell: Tell, tell_early: TellEarly) -> tuple[list[torch.Tensor], bytes | None]:
        """Runs a program and keeps what it gives as `outs`; gives that, too, and the report if one is wanted. What went
        wrong is also kept there: for all who need it, where its asker was told early."""
        try:
            program = self._program(wanted)
            given = [self._objects.get(object_id) for object_id in wanted.inputs]
            check_program(program, given)
            watch = _Watch(len(program.nodes), wanted.seq, self._is_stopped, tell)
            watch.check()
            report = Report() if wanted.is_reported else None
            made = interpreter.results(program, given, self._execute, watch, report, self._early(wanted, tell_early))
            # In the plainest layout: who asked knows of the results what their headers say.
            tensors = [_as_tensor(value).contiguous() for value in made]
            self._keep(tensors, wanted.outs)
        except Exception as problem:
            error = as_error(problem, "program")
            for out in wanted.outs:
                self._objects.fail(out, error)
            raise error from None
        return tensors, None if report is None else _packed(report)

    def _early(self, wanted: Wanted, tell: TellEarly) -> interpreter.Tell | None:
        """For the interpreter; None where nothing is to be told before the end."""
        # What lies on stored files is looked at until the end (guards.py).
        if not wanted.is_shown or wanted.is_reported or self._objects.guards:
            return None

        def told(settled: Settled, small: Sequence[torch.Tensor | None]) -> None:
            if len(settled.looks) == len(wanted.outs):
                tell(settled.looks, [None if each is None else _bytes_of(each) for each in small])

        return told

    def small(self, tensors: Sequence[torch.Tensor]) -> list[bytes | None]:
        """The values of those that are small, and None of the others."""
        is_guarded = self._objects.guarded if self._objects.guards else lambda _: ()
        return [
            _bytes_of(tensor) if is_small and not is_guarded([tensor]) else None
            for tensor, is_small in zip(tensors, are_small(tensors), strict=True)
        ]

    def _program(self, wanted: Wanted) -> Program:
        if wanted.data is not None:
            try:
                self._known[wanted.program_id] = _checked(wanted.data)
            except Exception as problem:
                self._known[wanted.program_id] = as_error(problem, "program")
        program = self._known.get(wanted.program_id)
        if program is None:
            raise NotFound(f"no program {wanted.program_id.hex()} is here; send the program itself")
        if isinstance(program, GridError):
            raise program
        return program

    def _keep(self, tensors: list[torch.Tensor], outs: list[bytes]) -> None:
        if len(tensors) != len(outs):
            raise BadRequest(f"the program gives {len(tensors)} tensors, but {len(outs)} result ids came with it")
        for tensor in tensors:
            check_describable(tensor)
        for out, tensor in zip(outs, tensors, strict=True):
            self._objects.put(out, tensor)


def _bytes_of(tensor: torch.Tensor) -> bytes:
    return bytes(values.tensor_bytes(tensor.contiguous()))


def _as_tensor(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.resolve_conj().resolve_neg()
    if isinstance(value, bool | int):
        return torch.tensor(value)
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float64)
    what = "several values: name one by its item" if isinstance(value, list | tuple) else "no value"
    raise BadRequest(f"an output of the program is {what}")


def _checked(data: bytes) -> Program:
    program = Program.from_bytes(data)
    check_types(program)
    return program


class _Watch:
    """Looks, when a run looks up (compute/pulse.py), whether it is to end; says now and then how far it is."""

    def __init__(self, nodes: int, seq: int, is_stopped: Callable[[int], bool], tell: Tell) -> None:
        self._nodes = nodes
        self._seq = seq
        self._is_stopped = is_stopped
        self._tell = tell
        self._told = time.perf_counter()

    def check(self) -> None:
        """Cancelled where it is to end."""
        if self._is_stopped(self._seq):
            raise Cancelled("the run was ended before it was done")

    def __call__(self, node: int, operation: str, done: int, of: int | None) -> None:
        self.check()
        now = time.perf_counter()
        if now - self._told > limits.PROGRAM_PROGRESS:
            self._told = now
            self._tell([node, self._nodes, done, of or 0])


def _packed(report: Report) -> bytes:
    """What each node took, the program's own first: [body|nil, node, runs, seconds, bytes, peak]; SPEC.md, Reports."""
    rows = [[each.body, each.node, each.runs, each.seconds, each.nbytes, each.peak] for each in report.nodes]
    packed: bytes = msgpack.packb({"seconds": report.seconds, "peak": report.peak, "nodes": rows})
    return packed
