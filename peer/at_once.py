"""The lean path: operations of which one worker has everything already, so that nothing has to be waited for.

It has no task of its own: `at_hand` decides whether a request may go this way, `Hearing` takes the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final

from compute.writes import written_positions
from peer.batches import Fault, Results, Snapshot
from peer.objects import Objects, Temporary
from peer.operations import Operation, check_operation, flat_references
from peer.seeds import SEED
from peer.spans import Spans
from peer.stretch import Use
from peer.worker.remote import Exported, Result, Span, Worker
from protocol import limits
from protocol.errors import GridError
from protocol.tensors import TensorHeader

NO_LABELS: Final[frozenset[str]] = frozenset()
Tell = Callable[[list[Fault | None], Snapshot | GridError | None], Any]
"""Makes an answer of the fault of each operation (or None), and of the value if one was wanted."""
AtHand = tuple[dict[bytes, None], bool]
"""The ids of what operations make that have all they need; whether they change anything in place."""


def at_hand(
    objects: Objects, worker: Worker, asker: str, operations: Sequence[Any], wanted: bytes | None
) -> AtHand | None:
    """What the operations do, if the worker (the one without labels) has all their inputs already, and makes or made
    what is wanted.

    BadRequest: what came are not operations.
    """
    if len(operations) > limits.MAX_BATCH:
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
    return made, is_writing


def use_at_hand(objects: Objects, worker: Worker, asker: str, use: Use, wanted: bytes | None) -> AtHand | None:
    """`at_hand`, for a stretch: of its operations all is known but what they are given."""
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
    return use.outs, use.stretch.is_writing


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
    """Hears from the worker (as its `Asker`) what became of the operations of one request; `answer` is called with what
    `tell` makes of it."""

    __slots__ = ("_answer", "_asked", "_results", "_spans", "_tell", "_wanted", "_worker", "made")

    def __init__(
        self,
        results: Results,
        worker: Worker,
        asked: Sequence[Operation] | Use,
        wanted: bytes | None,
        spans: Spans,
        tell: Tell,
        answer: Callable[[Any], None],
    ) -> None:
        self._results = results
        self._worker = worker
        self._asked = asked
        self._wanted = wanted
        self._spans = spans
        self._tell = tell
        self._answer = answer
        self.made: Sequence[Temporary] = ()  # what is registered for the outs, in their order

    done = bool  # False: nobody takes it back. As it is no function of Python, to ask it costs next to nothing

    def exception(self) -> None:
        return None

    def set_exception(self, error: GridError) -> None:
        self._answer(self._tell([], error))

    def _settled(self, done: list[Result]) -> list[Fault | None]:
        settle, made, worker = self._results.settle, iter(self.made), self._worker
        operations = self._asked.stretch.operations if isinstance(self._asked, Use) else self._asked
        pairs = zip(operations, done, strict=True)
        return [settle(list(islice(made, len(operation[3]))), each, worker) for operation, each in pairs]

    def set_result(self, result: tuple[list[Result] | tuple[TensorHeader, ...], Exported | GridError | None]) -> None:
        done, value = result
        faults: list[Fault | None] = []
        if isinstance(done, tuple):  # all gave what they gave before
            for temporary, header in zip(self.made, done, strict=True):
                temporary.header = header
        else:
            faults = self._settled(done)
        if value is None or isinstance(value, GridError):
            self._answer(self._tell(faults, value))
        elif isinstance(value.data, Span):  # no memory, but part of a file
            assert self._wanted is not None
            self._spans.open_soon(self._worker, self._wanted, value, partial(self._opened, faults))
        else:
            assert value.data is not None
            self._answer(self._tell(faults, (value.header, value.data)))

    def _opened(self, faults: list[Fault | None], value: Snapshot | GridError) -> None:
        self._answer(self._tell(faults, value))
