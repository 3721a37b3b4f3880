"""Operations on their way: in batches to workers, and what they make, from when they are placed until they are done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable
from typing import Any

from compute.writes import written_positions
from peer import secrecy
from peer.leases import LeaseKey
from peer.objects import Objects, Temporary
from peer.operations import Operation
from peer.spans import Value
from peer.worker.remote import Result, Worker
from protocol.errors import GridError
from protocol.tensors import TensorHeader

Fault = dict[str, Any]
Snapshot = tuple[TensorHeader, Value]
"""A value as it was at one moment: small ones as bytes; others are the caller's to release (peer/spans.py)."""


class Batch:
    """The operations of one request, on their way to workers: neighbours for the same worker go together."""

    def __init__(self, operations: list[Operation]) -> None:
        self.operations = operations
        self.faults: list[Fault | None] = [None] * len(operations)
        self.submitted: list[tuple[Worker, list[int], asyncio.Future[list[Result]]]] = []
        self.made: dict[int, list[Temporary]] = {}  # by operation: what was registered for its outs
        self.lent: set[bytes] = set()  # what the open operations need of temporaries that have their home elsewhere
        self._open: list[int] = []
        self._worker: Worker | None = None

    def append(self, index: int, worker: Worker) -> None:
        self._worker = worker
        self._open.append(index)

    def submit_unless_for(self, worker: Worker) -> None:
        if worker is not self._worker:
            self.submit()

    def submit(self) -> None:
        if self._worker is not None and self._open:
            future = self._worker.run([self.operations[index] for index in self._open])
            self.submitted.append((self._worker, self._open, future))
            self._open = []
            self._worker.drop(self.lent)
            self.lent.clear()


class Results:
    """The temporaries that operations make."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def register(
        self,
        asker: str,
        lease: LeaseKey,
        outs: Iterable[bytes],
        labels: frozenset[str],
        worker: Worker,
        unwanted: Collection[bytes] = (),
    ) -> list[Temporary]:
        """They are there from now on, though their values are not; but for those that nobody will ask for."""
        now = time.time()
        made: list[Temporary] = []
        for id in outs:
            made.append(temporary := Temporary(id, asker, lease, labels, now, None, None, worker))
            if id not in unwanted:
                self._objects.add(temporary)
        return made

    def not_placed(self, asker: str, lease: LeaseKey, batch: Batch, index: int, error: GridError) -> None:
        """An operation reaches no worker. Its outs exist all the same, as failures: whoever uses them learns the
        reason. What it was to change is spoiled, and so is all that shares memory with it, which its worker knows."""
        name, args, _, outs = batch.operations[index]
        if error.operation is None:
            error.operation = name
        for position in written_positions(name):
            given = args[position] if position < len(args) else None
            changed = self._objects.temporary(given) if isinstance(given, bytes) else None
            if changed is not None and changed.owner == asker:
                changed.failure = error
                if changed.worker is not None:
                    batch.submit()  # what comes before it has its turn before
                    changed.worker.spoil([changed.id], error)
        for id in outs:
            if self._objects.temporary(id) is None:
                self._objects.add(Temporary(id, asker, lease, frozenset(), time.time(), failure=error))
        batch.faults[index] = error.to_fault()

    def settle(self, made: Iterable[Temporary], result: Result, worker: Worker) -> Fault | None:
        """Note what became of one operation: the headers of its results, or the fault.

        `made` are the very temporaries that were registered for it: one of them may have been released meanwhile, and
        its id be another's by now.
        """
        if isinstance(result, GridError):
            result = secrecy.told(result, worker.key.labels)
            for temporary in made:
                temporary.failure = result
            return result.to_fault()
        for temporary, header in zip(made, result, strict=False):
            temporary.header = header
        return None
