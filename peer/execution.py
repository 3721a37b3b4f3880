"""Operations and programs: who may, on what, in which worker; then the worker does it.

Requests of one principal are submitted to its workers in the order in which they came (its *lane*); the lane is
free again as soon as they are submitted, and their results are awaited outside it.

There is one worker for each set of labels that the principal is not in itself (docs/decisions/0003). A temporary has
its home in the worker of just its labels. A worker with more labels gets a copy of it for as long as an operation
needs it, and nothing is ever exported from there as that temporary: what was computed from private data, in whatever
memory, leaves that process only under those labels.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from compute.dependent import may_tell_values
from compute.writes import written_positions
from peer import permissions, secrecy
from peer.buffers import Buffer, BufferPool
from peer.leases import LeaseKey
from peer.objects import Held, Objects, Published, Temporary, check_id, show_id
from peer.store.store import Store
from peer.worker.remote import Exported, Result, Worker
from peer.workers import WorkerPool
from protocol import limits
from protocol.errors import BadRequest, GridError, TooLarge, WorkerLost
from protocol.tensors import TensorHeader

Operation = list[Any]
"""[name, args, kwargs, outs], checked (SPEC.md, Values in operations)."""

Fault = dict[str, Any]
_NO_LABELS: Final[frozenset[str]] = frozenset()
Snapshot = tuple[TensorHeader, bytes | Buffer]
"""A value as it was at one moment: small ones as bytes, others as a buffer that the caller releases."""


class Execution:
    """Runs what principals ask. Gets its parts from the peer that wires it."""

    def __init__(self, objects: Objects, store: Store, buffers: BufferPool, workers: WorkerPool) -> None:
        self._objects = objects
        self._store = store
        self._buffers = buffers
        self._workers = workers
        self._lanes: dict[str, asyncio.Lock] = {}
        self._wrote: set[Worker] = set()  # workers in which something was changed in place
        self._alive: set[Worker] = set()
        self._programs = secrecy.KnownPrograms()

    def lane(self, asker: str) -> asyncio.Lock:
        """Held while a request of this principal is put in order behind the earlier ones."""
        return self._lanes.setdefault(asker, asyncio.Lock())

    # --- operations ---------------------------------------------------------------------------------------

    async def run(
        self,
        asker: str,
        lease: LeaseKey,
        operations: Sequence[Any],
        release: Sequence[bytes] = (),
        fetch: bytes | None = None,
    ) -> tuple[list[Fault | None], Snapshot | None]:
        """Run them in order, then take the value of the temporary `fetch`, then let go of `release`.

        The result has, for each operation, None or the fault that it ended with; and the value, if one was wanted.

        Raises:
            BadRequest, TooLarge: what came are not operations, or too many; then none of them ran.
        """
        check_count(operations)
        batch = _Batch([check_operation(operation) for operation in operations])
        async with self.lane(asker):
            for index in range(len(batch.operations)):
                try:
                    await self._place(asker, lease, batch, index)
                except GridError as error:
                    batch.faults[index] = self._not_placed(asker, lease, batch.operations[index], error)
            batch.submit()
            value = None if fetch is None else self.take(asker, await self._objects.find(asker, fetch))
            self.release_own(asker, release)
        for worker, indices, results in batch.submitted:
            for index, result in zip(indices, await results, strict=True):
                batch.faults[index] = self._settle(batch.operations[index][3], result, worker)
        return batch.faults, None if value is None else await value

    def run_at_once(
        self,
        asker: str,
        lease: LeaseKey,
        operations: Sequence[Any],
        release: Sequence[bytes],
        fetch: bytes,
        then: Callable[[list[Fault | None], Snapshot | GridError], None],
    ) -> bool:
        """`run` without a task, for what most requests are: new results, of what one worker has, and one of them
        is wanted. False where it is not so, or might fail before it runs; then nothing was done.

        Raises:
            BadRequest: what came are not operations; then none of them ran.
        """
        lane = self._lanes.get(asker)
        if (lane is not None and lane.locked()) or len(operations) > limits.MAX_BATCH:
            return False
        made: dict[bytes, None] = {}
        worker = self._worker_at_hand(asker, operations, made)
        if worker is None or fetch not in made:
            return False
        if any(id in made for id in release):
            return False
        try:
            self._objects.check_new(asker, made)
        except GridError:
            return False
        own = [id for id in release if (held := self._objects.temporary(id)) is not None and held.worker is worker]
        worker.run_for(_AtOnce(self, worker, operations, then), operations, fetch, own)
        for id in own:
            self._objects.remove(id)
        if len(own) < len(release):
            self.release_own(asker, release)
        self._register(asker, lease, made, _NO_LABELS, worker)
        return True

    def _worker_at_hand(self, asker: str, operations: Sequence[Any], made: dict[bytes, None]) -> Worker | None:
        """The worker without labels, if it has all inputs of these operations already; collects what they make."""
        worker = self._workers.find(asker, _NO_LABELS)
        if worker is None or not worker.is_ready:
            return None
        for operation in operations:
            name, args, kwargs, outs = check_operation(operation)
            if not outs or written_positions(name):
                return None
            for id in _references_of(args, kwargs):
                if id in made:
                    continue
                held = self._objects.at_hand(asker, id)
                if held is None or held.labels or not worker.holds(id):
                    return None
                if type(held) is Temporary and held.worker is not worker:
                    return None
            for out in outs:
                if out in made:
                    return None
                made[out] = None
        return worker

    async def _place(self, asker: str, lease: LeaseKey, batch: _Batch, index: int) -> None:
        """Choose the worker of one operation, bring all its inputs there, and register its outs."""
        name, args, kwargs, outs = batch.operations[index]
        inputs = await self._inputs(asker, references([args, kwargs]))
        labels = permissions.derived(inputs.values())
        written = _written(name, args, kwargs, inputs)
        worker = self._worker(asker, labels)
        # What the batch so far makes may be an input here: it has to be under way before it can be exported.
        batch.submit_unless_for(worker)
        if worker.key.labels and may_tell_values(name):
            await self._check_shape_is_public(name, args, inputs, batch)
        self._objects.check_new(asker, outs)
        await self._bring_all(asker, inputs.values(), worker, batch)
        for held in written:
            self._now_written(held, worker, labels, batch)
        self._register(asker, lease, outs, labels, worker)
        batch.append(index, worker)

    def _now_written(self, held: Temporary, worker: Worker, labels: frozenset[str], batch: _Batch) -> None:
        """An operation changes this temporary in place: from now on it is derived from the other inputs as well, and
        its home is where they are."""
        self._wrote.add(worker)
        held.labels |= labels
        if held.worker is worker:
            return
        if held.worker is not None:
            held.worker.drop([held.id])
        if held.buffer is not None:
            held.buffer.release()
            held.buffer = None
        held.worker = worker
        batch.lent.discard(held.id)

    async def _check_shape_is_public(
        self, name: str, args: list[Any], inputs: dict[bytes, Held], batch: _Batch
    ) -> None:
        """Denied where the shape of the result would tell private values."""
        indices = args[1] if secrecy.is_indexing(name) and len(args) > 1 and isinstance(args[1], list) else None
        if indices is None:
            raise secrecy.tells_values(name)
        batch.submit()
        for id in references(indices):
            if await self._dtype(inputs[id]) not in secrecy.PLAIN_INDICES:
                raise secrecy.tells_values(name)

    async def _dtype(self, held: Held) -> str:
        if isinstance(held, Published):
            return held.tensor.header.dtype
        return (await self.header(held)).dtype

    def _not_placed(self, asker: str, lease: LeaseKey, operation: Operation, error: GridError) -> Fault:
        """Its outs exist all the same, as failures: whoever uses them learns the reason."""
        name, args, _, outs = operation
        if error.operation is None:
            error.operation = name
        for position in written_positions(name):
            given = args[position] if position < len(args) else None
            changed = self._objects.temporary(given) if isinstance(given, bytes) else None
            if changed is not None and changed.owner == asker:
                changed.failure = error
        for id in outs:
            if self._objects.temporary(id) is None:
                self._objects.add(Temporary(id, asker, lease, frozenset(), time.time(), failure=error))
        return error.to_fault()

    def _register(
        self, asker: str, lease: LeaseKey, outs: Iterable[bytes], labels: frozenset[str], worker: Worker
    ) -> list[Temporary]:
        now = time.time()
        made = [Temporary(id, asker, lease, labels, now, worker=worker) for id in outs]
        for temporary in made:
            self._objects.add(temporary)
        return made

    def _settle(self, outs: Sequence[bytes], result: Result, worker: Worker) -> Fault | None:
        """Note what became of one operation: the headers of its results, or the fault."""
        made = [self._objects.temporary(id) for id in outs]  # None: released meanwhile
        if isinstance(result, GridError):
            result = secrecy.told(result, worker.key.labels)
            for temporary in made:
                if temporary is not None:
                    temporary.failure = result
            return result.to_fault()
        for temporary, header in zip(made, result, strict=False):
            if temporary is not None:
                temporary.header = header
        return None

    # --- programs -----------------------------------------------------------------------------------------

    async def execute(
        self,
        asker: str,
        lease: LeaseKey,
        program: str,
        code: bytes | None,
        inputs: Sequence[bytes],
        outs: Sequence[bytes],
    ) -> list[dict[str, Any]]:
        """Run a program on these inputs; the headers of its results. NotFound asks for the code."""
        async with self.lane(asker):
            known = await self._programs.known(program, code)
            held = await self._inputs(asker, inputs)
            labels = permissions.derived(held.values())
            worker = self._worker(asker, labels)
            if worker.key.labels:
                known.check_shapes_are_public()
            self._objects.check_new(asker, outs)
            batch = _Batch([])
            await self._bring_all(asker, held.values(), worker, batch)
            running = worker.run_program(bytes.fromhex(program), code, inputs, outs)
            worker.drop(batch.lent)
            if known.writes:
                self._wrote.add(worker)
            made = self._register(asker, lease, outs, labels, worker)
        try:
            headers = await running
        except GridError as error:
            self.release(temporary.id for temporary in made)
            raise secrecy.told(error, worker.key.labels) from None
        for temporary, header in zip(made, headers, strict=True):
            temporary.header = header
        return [header.to_wire() for header in headers]

    # --- inputs -------------------------------------------------------------------------------------------

    async def _inputs(self, asker: str, ids: Iterable[bytes]) -> dict[bytes, Held]:
        found: dict[bytes, Held] = {}
        for id in ids:
            if id not in found:
                found[id] = self._objects.at_hand(asker, id) or await self._objects.find(asker, id)
        return found

    async def _bring_all(self, asker: str, inputs: Iterable[Held], worker: Worker, batch: _Batch) -> None:
        for held in inputs:
            if isinstance(held, Published):
                if not worker.holds(held.id):
                    await self._bring_published(held, worker)
            elif held.worker is not worker and held.id not in batch.lent:
                await self._bring(asker, held, worker, batch)
        await worker.ready()

    async def _bring(self, asker: str, held: Temporary, worker: Worker, batch: _Batch) -> None:
        """Put a temporary into a worker that does not have it: for good where that has just its labels, else lent."""
        if held.target is not None:
            raise BadRequest(
                f"{show_id(held.id)} points to an object at {held.target.name}: operate on that one, "
                "or pull it here with remote_get()"
            )
        header, value = await self.snapshot(held)
        worker.provide(held.id, header, value if isinstance(value, bytes) else value.share(), 0, read_only=False)
        _let_go(value)
        if held.labels - {asker} == worker.key.labels:
            held.worker = worker
        else:
            batch.lent.add(held.id)

    async def _bring_published(self, held: Published, worker: Worker) -> None:
        tensor = held.tensor
        async with self._store.reading(held.stored) as source:
            # The worker maps the file; a deleted object's bytes live on in it until it lets go.
            offset = 0 if isinstance(source, bytes) else tensor.offset
            worker.provide(held.id, tensor.header, source, offset, read_only=True)

    # --- values -------------------------------------------------------------------------------------------

    def take(self, asker: str, held: Held) -> Awaitable[Snapshot]:
        """`snapshot` for somebody who asks for the value. Denied, BadRequest where it is not to be had."""
        permissions.check_take(asker, held, f"object {show_id(held.id)}")
        if not isinstance(held, Temporary) or held.target is not None:
            raise BadRequest(f"{show_id(held.id)} is no temporary tensor: fetch it in a request of its own")
        return self.snapshot(held)

    def snapshot(self, held: Temporary) -> Awaitable[Snapshot]:
        """The value as it is after everything asked so far; what is asked later does not change it.

        Put in order by the call itself; await it outside the lane. Raises what its operation failed with, or
        WorkerLost.
        """
        # A buffer is right unless something was written in place in its worker: to it, or through a view of it.
        is_changed = held.worker is not None and (held.buffer is None or held.worker in self._wrote)
        exporting = held.worker.export(held.id) if held.worker is not None and is_changed else None
        return self._snapshot(held, exporting)

    async def _snapshot(self, held: Temporary, exporting: asyncio.Future[Exported] | None) -> Snapshot:
        if held.failure is not None:
            raise held.failure.again()
        if exporting is None:
            if held.header is None or held.buffer is None:
                raise WorkerLost(f"{show_id(held.id)} is gone with the worker that held it: compute it again")
            return held.header, held.buffer.acquire()
        labels = held.labels
        try:
            exported = await exporting
        except GridError as error:
            raise secrecy.told(error, labels - {held.owner}) from None
        held.header = exported.header
        if exported.data is None:  # never changed since it came
            assert held.buffer is not None
            return exported.header, held.buffer.acquire()
        return exported.header, exported.data

    async def header(self, held: Temporary) -> TensorHeader:
        """Its dtype and shape; waits for the operation that makes it."""
        if held.header is None:
            header, value = await self.snapshot(held)
            _let_go(value)
            return header
        return held.header

    def release_own(self, asker: str, ids: Iterable[bytes]) -> None:
        """Let go of those that are temporaries of the asker: nobody's published object goes with its pointers."""
        held = ((id, self._objects.temporary(id)) for id in ids)
        self.release([id for id, temporary in held if temporary is not None and temporary.owner == asker])

    def release(self, ids: Iterable[bytes]) -> int:
        """Let temporaries go, in the worker too; how many there were."""
        dropped: dict[Worker, list[bytes]] = {}
        count = 0
        for id in ids:
            temporary = self._objects.remove(id)
            if temporary is not None:
                count += 1
                if temporary.worker is not None:
                    dropped.setdefault(temporary.worker, []).append(id)
        for worker, gone in dropped.items():
            worker.drop(gone)
        return count

    def forget(self, ids: Sequence[bytes]) -> None:
        """A published object was deleted: workers that map it let go; with the last one its space on disk is free."""
        for worker in self._alive:
            worker.drop(ids)

    # --- workers ------------------------------------------------------------------------------------------

    def _worker(self, asker: str, labels: frozenset[str]) -> Worker:
        """The worker for data with these labels. The asker's own label keeps nothing from the asker."""
        labels = labels - {asker}
        worker = self._workers.find(asker, labels)
        if worker is None:
            worker = self._workers.worker(asker, labels)
            started = worker
            self._alive.add(worker)
            worker.on_lost(lambda error: self._worker_lost(started, error))
        return worker

    def _worker_lost(self, worker: Worker, error: GridError) -> None:
        """A worker is gone: so is what was computed there; what came from outside is not."""
        for temporary in self._objects.in_worker(worker):
            temporary.worker = None
            # A buffer is right unless something was written in place there: to it, or through a view of it.
            if temporary.buffer is None or worker in self._wrote:
                temporary.failure = temporary.failure or error
        self._wrote.discard(worker)
        self._alive.discard(worker)


def _written(name: str, args: list[Any], kwargs: dict[str, Any], inputs: dict[bytes, Held]) -> list[Temporary]:
    """The temporaries that an operation changes in place.

    Raises:
        BadRequest: an argument that it may change is not given by position; so there is no second way to name one.
    """
    positions = written_positions(name)
    if positions and len(args) <= max(positions) and any(True for _ in references(kwargs)):
        raise BadRequest(f"{name}: give the tensors that it changes by position, not by name")
    given = [args[position] for position in positions if position < len(args)]
    changed = [inputs.get(value) for value in given if isinstance(value, bytes)]
    return [held for held in changed if isinstance(held, Temporary)]


def _let_go(value: bytes | Buffer) -> None:
    if isinstance(value, Buffer):
        value.release()


class _AtOnce:
    """Hears from the worker what became of the operations of one request."""

    __slots__ = ("_execution", "_operations", "_then", "_worker")

    def __init__(
        self,
        execution: Execution,
        worker: Worker,
        operations: Sequence[Operation],
        then: Callable[[list[Fault | None], Snapshot | GridError], None],
    ) -> None:
        self._execution = execution
        self._worker = worker
        self._operations = operations
        self._then = then

    def done(self) -> bool:
        return False

    def exception(self) -> None:
        return None

    def set_exception(self, error: GridError) -> None:
        self._then([], error)

    def set_result(self, result: tuple[list[Result], Exported | GridError]) -> None:
        results, value = result
        settle = self._execution._settle
        pairs = zip(self._operations, results, strict=True)
        faults = [settle(operation[3], each, self._worker) for operation, each in pairs]
        if isinstance(value, GridError):
            self._then(faults, value)
        else:
            assert value.data is not None
            self._then(faults, (value.header, value.data))


class _Batch:
    """The operations of one request, on their way to workers: neighbours for the same worker go together."""

    def __init__(self, operations: list[Operation]) -> None:
        self.operations = operations
        self.faults: list[Fault | None] = [None] * len(operations)
        self.submitted: list[tuple[Worker, list[int], asyncio.Future[list[Result]]]] = []
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


def check_count(operations: Sequence[Any]) -> None:
    if len(operations) > limits.MAX_BATCH:
        raise TooLarge(f"{len(operations)} operations in one request", limit="MAX_BATCH", allowed=limits.MAX_BATCH)


def check_operation(value: object) -> Operation:
    """BadRequest unless it has the form of an operation. Its name and values are the worker's to check."""
    if not isinstance(value, list) or len(value) != 4:
        raise BadRequest("an operation is [name, args, kwargs, outs]")
    name, args, kwargs, outs = value
    if not isinstance(name, str) or not isinstance(args, list) or not isinstance(kwargs, dict):
        raise BadRequest("an operation is [text, list, map, list of ids]")
    if not isinstance(outs, list) or len(set(map(check_id, outs))) != len(outs):
        raise BadRequest("the outs of an operation are different object ids")
    return value


def _references_of(args: list[Any], kwargs: dict[str, Any]) -> list[bytes]:
    """`references`, without generators where the arguments are flat, as most are."""
    found: list[bytes] = []
    for value in args:
        kind = type(value)
        if kind is bytes:
            found.append(check_id(value))
        elif kind is list or kind is dict:
            found.extend(references(value))
    if kwargs:
        found.extend(references(kwargs))
    return found


def references(value: Any) -> Iterator[bytes]:
    """The object ids in a wire value, in order."""
    if isinstance(value, bytes):
        yield check_id(value)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)
    elif isinstance(value, dict) and "tensor" not in value:
        for item in value.values():
            yield from references(item)
