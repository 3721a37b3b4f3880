"""The lean path: operations of which one worker has everything already, so that nothing has to be waited for.

It has no task of its own: `worker_at_hand` decides whether a request may go this way, `Hearing` takes the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from compute.writes import written_positions
from peer.batches import Fault, Results, Snapshot
from peer.objects import Objects, Temporary
from peer.operations import Operation, check_operation, flat_references
from peer.worker.remote import Exported, Result, Span, Worker
from peer.workers import WorkerPool
from protocol.errors import GridError

NO_LABELS: Final[frozenset[str]] = frozenset()
Then = Callable[[list[Fault | None], Snapshot | GridError], None]
"""Is told, once, the fault of each operation (or None), and the value that was wanted."""


def worker_at_hand(
    objects: Objects, workers: WorkerPool, asker: str, operations: Sequence[Any], made: dict[bytes, None]
) -> Worker | None:
    """The worker without labels, if it has all inputs of these operations already; collects what they make.

    BadRequest: what came are not operations.
    """
    worker = workers.find(asker, NO_LABELS)
    if worker is None or not worker.is_ready:
        return None
    for operation in operations:
        name, args, kwargs, outs = check_operation(operation)
        if not outs or written_positions(name):
            return None
        for id in flat_references(args, kwargs):
            if id in made:
                continue
            held = objects.at_hand(asker, id)
            if held is None or held.labels or not worker.holds(id):
                return None
            if type(held) is Temporary and held.worker is not worker:
                return None
        for out in outs:
            if out in made:
                return None
            made[out] = None
    return worker


class Hearing:
    """Hears from the worker (as its `Asker`) what became of the operations of one request."""

    __slots__ = ("_open", "_operations", "_results", "_then", "_worker", "made")

    def __init__(
        self,
        results: Results,
        worker: Worker,
        operations: Sequence[Operation],
        then: Then,
        open_value: Callable[[Exported, Callable[[Snapshot | GridError], None]], None],
    ) -> None:
        self._open = open_value  # what is no memory, but part of a file
        self._results = results
        self._worker = worker
        self._operations = operations
        self._then = then
        self.made: dict[bytes, Temporary] = {}  # what is registered for the outs, by id

    def done(self) -> bool:
        return False

    def exception(self) -> None:
        return None

    def set_exception(self, error: GridError) -> None:
        self._then([], error)

    def set_result(self, result: tuple[list[Result], Exported | GridError]) -> None:
        done, value = result
        settle = self._results.settle
        pairs = zip(self._operations, done, strict=True)
        made = self.made
        faults = [settle([made[out] for out in operation[3]], each, self._worker) for operation, each in pairs]
        if isinstance(value, GridError):
            self._then(faults, value)
        elif isinstance(value.data, Span):
            self._open(value, lambda opened: self._then(faults, opened))
        else:
            assert value.data is not None
            self._then(faults, (value.header, value.data))
