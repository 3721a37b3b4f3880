"""The lean path: operations of which one worker has everything already, so that nothing has to be waited for.

It has no task of its own: `at_hand` decides whether a request may go this way, `Hearing` takes the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from compute.writes import written_positions
from peer.batches import Fault, Results, Snapshot
from peer.objects import Objects, Temporary
from peer.operations import Operation, check_operation, flat_references
from peer.seeds import SEED
from peer.stretch import Use
from peer.worker.remote import Exported, Result, Span, Worker
from peer.workers import WorkerPool
from protocol.errors import GridError
from protocol.tensors import TensorHeader

NO_LABELS: Final[frozenset[str]] = frozenset()
Then = Callable[[list[Fault | None], Snapshot | GridError | None], None]
"""Is told, once, the fault of each operation (or None), and the value if one was wanted."""


@dataclass(frozen=True, slots=True)
class AtHand:
    """The worker that has everything; the ids of what the operations make; whether they change anything in place."""

    worker: Worker
    made: dict[bytes, None]
    is_writing: bool


def at_hand(
    objects: Objects, workers: WorkerPool, asker: str, operations: Sequence[Any], wanted: bytes | None
) -> AtHand | None:
    """The worker without labels, if it has all inputs of these operations already, and makes or made what is wanted.

    BadRequest: what came are not operations.
    """
    worker = workers.find(asker, NO_LABELS)
    if worker is None or not worker.is_ready:
        return None
    made: dict[bytes, None] = {}
    is_writing = False
    temporary, holds = objects.temporary, worker.holds
    for operation in operations:
        name, args, kwargs, outs = check_operation(operation)
        if name == SEED:
            return None  # it concerns every worker, those too that are not there yet
        for id in flat_references(args, kwargs):
            if id in made:
                continue
            held = temporary(id)
            # Nearly all are one's own results that are in this worker; `_is_there` is for the others.
            is_own = held is not None and held.worker is worker and held.owner == asker and not held.labels
            if not (is_own and holds(id)) and not _is_there(objects, asker, worker, id):
                return None
        positions = written_positions(name)
        if positions:
            if not _may_write(objects, positions, args):
                return None
            is_writing = True
        for out in outs:
            if out in made:
                return None
            made[out] = None
    if wanted is not None and wanted not in made:
        if not _is_there(objects, asker, worker, wanted) or not worker.has_made(wanted):
            return None
    return AtHand(worker, made, is_writing)


def use_at_hand(objects: Objects, workers: WorkerPool, asker: str, use: Use, wanted: bytes | None) -> AtHand | None:
    """`at_hand`, for a stretch: of its operations all is known but what they are given."""
    worker = workers.find(asker, NO_LABELS)
    if worker is None or not worker.is_ready:
        return None
    temporary, holds = objects.temporary, worker.holds
    for id in use.ids:
        held = temporary(id)
        is_own = held is not None and held.worker is worker and held.owner == asker and not held.labels
        if not (is_own and holds(id)) and not _is_there(objects, asker, worker, id):
            return None
    for slot in use.stretch.written:
        held = temporary(use.ids[slot])
        if held is not None and held.is_being_published:
            return None
    if wanted is not None and wanted not in use.outs:
        if not _is_there(objects, asker, worker, wanted) or not worker.has_made(wanted):
            return None
    return AtHand(worker, use.outs, use.stretch.is_writing)


def _is_there(objects: Objects, asker: str, worker: Worker, id: bytes) -> bool:
    held = objects.at_hand(asker, id)
    if held is None or held.labels or not worker.holds(id):
        return False
    return type(held) is not Temporary or held.worker is worker


def _may_write(objects: Objects, positions: Sequence[int], args: list[Any]) -> bool:
    """Whether nothing more is to be looked at before these arguments are changed (operations.written_by)."""
    if len(args) <= max(positions):
        return False
    for position in positions:
        given = args[position]
        held = objects.temporary(given) if type(given) is bytes else None
        if held is not None and held.is_being_published:
            return False
    return True


class Hearing:
    """Hears from the worker (as its `Asker`) what became of the operations of one request."""

    __slots__ = ("_asked", "_open", "_results", "_then", "_worker", "made")

    def __init__(
        self,
        results: Results,
        worker: Worker,
        asked: Sequence[Operation] | Use,
        then: Then,
        open_value: Callable[[Exported, Callable[[Snapshot | GridError], None]], None],
    ) -> None:
        self._open = open_value  # what is no memory, but part of a file
        self._results = results
        self._worker = worker
        self._asked = asked
        self._then = then
        self.made: dict[bytes, Temporary] = {}  # what is registered for the outs, by id

    def done(self) -> bool:
        return False

    def exception(self) -> None:
        return None

    def set_exception(self, error: GridError) -> None:
        self._then([], error)

    def _same(self, headers: tuple[TensorHeader, ...]) -> list[Fault | None]:
        """All gave what they gave before."""
        for temporary, header in zip(self.made.values(), headers, strict=True):
            temporary.header = header
        return []

    def _settled(self, done: list[Result]) -> list[Fault | None]:
        settle, find, worker = self._results.settle, self.made.__getitem__, self._worker
        operations = self._asked.operations if isinstance(self._asked, Use) else self._asked
        return [settle(map(find, operation[3]), each, worker) for operation, each in zip(operations, done, strict=True)]

    def set_result(self, result: tuple[list[Result] | tuple[TensorHeader, ...], Exported | GridError | None]) -> None:
        done, value = result
        faults = self._same(done) if isinstance(done, tuple) else self._settled(done)
        if value is None or isinstance(value, GridError):
            self._then(faults, value)
        elif isinstance(value.data, Span):
            self._open(value, lambda opened: self._then(faults, opened))
        else:
            assert value.data is not None
            self._then(faults, (value.header, value.data))
