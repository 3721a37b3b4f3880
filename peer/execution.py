"""Operations: who may, on what, in which worker; then the worker does it. Of programs: programs.py.

Requests of one principal are submitted to its workers in the order in which they came (its *lane*); the lane is
free again as soon as they are submitted, and their results are awaited outside it.

There is one worker for each set of labels that the principal is not in itself (docs/decisions/0003). A temporary has
its home in the worker of just its labels. A worker with more labels gets a copy of it for as long as an operation
needs it, and nothing is ever exported from there as that temporary: what was computed from private data, in whatever
memory, leaves that process only under those labels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final
from weakref import ref

from compute.dependent import may_tell_values
from peer import permissions, secrecy
from peer.asking import forget
from peer.at_once import NO_LABELS, Hearing, Tell, at_hand, use_at_hand
from peer.batches import Batch, Fault, Results, Snapshot
from peer.leases import LeaseKey
from peer.objects import Held, Objects, Published, Temporary, show_id
from peer.operations import Operation, check_count, check_operation, references, written_by
from peer.seeds import SEED, Seeds, check_seed
from peer.spans import Spans, StoredSpan, release
from peer.store.store import Store
from peer.stretch import Use
from peer.taking import Taking
from peer.worker.dedicated import Dedicated
from peer.worker.remote import BlockHashes, Worker
from peer.workers import WorkerPool
from protocol.errors import BadRequest, GridError
from protocol.ids import ID_BYTES
from protocol.tensors import TensorHeader

_APART: Final = BadRequest(
    "a view of this, or what it is a view of, was changed in place by others' private data, and lies with those from "
    "then on, apart from this: go on with what was changed, or change a copy, x.clone()"
)


class Execution:
    """Runs what principals ask. Gets its parts from the peer that wires it."""

    def __init__(self, objects: Objects, store: Store, workers: WorkerPool) -> None:
        self._objects = objects
        self._store = store
        self._workers = workers
        self.results = Results(objects)
        self._spans = Spans(store)
        self._lanes: dict[str, ref[asyncio.Lock]] = {}  # each as long as somebody is in it, or waits for it
        self.is_at_work: Callable[[str], bool] = self._lanes.__contains__
        """Whether a request of this principal is being put in order now: another has to come behind it."""
        self._alive: set[Worker] = set()
        self._seeds = Seeds()

    def lane(self, asker: str) -> asyncio.Lock:
        """Held while a request of this principal is put in order behind the earlier ones."""
        known = self._lanes.get(asker)
        lane = None if known is None else known()
        if lane is None:
            lane = asyncio.Lock()
            self._lanes[asker] = ref(lane, partial(self._left, asker))
        return lane

    def _left(self, asker: str, gone: ref[asyncio.Lock]) -> None:
        if self._lanes.get(asker) is gone:
            del self._lanes[asker]

    # --- operations ---------------------------------------------------------------------------------------

    async def run(
        self,
        asker: str,
        lease: LeaseKey,
        operations: Sequence[Any],
        release: Sequence[bytes] = (),
        fetch: bytes | None = None,
    ) -> tuple[list[Fault | None], Snapshot | GridError | None]:
        """Run them in order, then take the value of the temporary `fetch`, then let go of `release`.

        The result has, for each operation, None or the fault that it ended with; and, if a value was wanted, that, or
        why it is not to be had.

        Raises:
            BadRequest, TooLarge: what came are not operations, or too many; then none of them ran.
        """
        check_count(operations)
        batch = Batch([check_operation(operation) for operation in operations])
        async with self.lane(asker):
            release = self._release_unused(asker, release, batch.operations, fetch)
            for index in range(len(batch.operations)):
                try:
                    await self._place(asker, lease, batch, index)
                except GridError as error:
                    self.results.not_placed(asker, lease, batch, index, error)
            batch.submit()
            value: Taking | GridError | None = None
            try:
                value = None if fetch is None else self.take(asker, await self._objects.find(asker, fetch))
            except GridError as error:
                value = error
            self.release_own(asker, release)
        return await self._settled(batch, value)

    async def _settled(
        self, batch: Batch, value: Taking | GridError | None
    ) -> tuple[list[Fault | None], Snapshot | GridError | None]:
        """What came of a batch that was submitted, and of the value that was wanted with it."""
        try:
            for worker, indices, results in batch.submitted:
                for index, result in zip(indices, await results, strict=True):
                    batch.faults[index] = self.results.settle(batch.made[index], result, worker)
            if not isinstance(value, Taking):
                return batch.faults, value
            try:
                return batch.faults, await value
            except GridError as error:
                return batch.faults, error
        finally:
            if isinstance(value, Taking):
                value.close()  # a worker was lost, or the asker

    def run_at_once(
        self,
        asker: str,
        lease_of: Callable[[], LeaseKey],
        asked: Sequence[Any] | Use,
        release: Any,
        fetch: bytes | None,
        tell: Tell,
        answer: Callable[[Any], None],
    ) -> bool:
        """`run` without a task, for what most requests are: operations on what one worker has, and perhaps a value of
        what was made there. False where it is not so, or might fail before it runs; then nothing was done. What the
        worker needs goes out first, and the books are kept while it works. Once, later, `answer` is called with what
        `tell` makes of that which `run` gives.

        Raises:
            BadRequest, AlreadyExists, TooLarge: what `run` would say, too; then none of them ran.
        """
        workers, temporary = self._workers, self._objects.temporary
        worker = None if self.is_at_work(asker) else workers.find((asker, NO_LABELS))
        if worker is None or worker.channel.is_full or (workers.has_shares and workers.is_overdrawn(asker)):
            return False
        if isinstance(asked, Use):
            found = use_at_hand(self._objects, worker, asker, asked, fetch)
        else:
            found = at_hand(self._objects, worker, asker, asked, fetch)
        if found is None or (type(release) is not list and release != ()):
            return False
        made, is_writing = found
        own: list[bytes] = []  # temporaries in this worker, or to be
        for id in release:
            if type(id) is not bytes or len(id) != ID_BYTES:
                return False
            if id in made or ((held := temporary(id)) is not None and held.worker is worker):
                own.append(id)
        self._objects.check_new(asker, made)
        hearing = Hearing(self.results, worker, asked, fetch, self._spans, tell, answer)
        if isinstance(asked, Use):
            worker.run_again(hearing, asked, fetch, own)
        else:
            worker.run_for(hearing, asked, fetch, own, made)
        if is_writing:
            worker.writes += 1
        hearing.made = self.results.register(asker, lease_of(), made, NO_LABELS, worker, frozenset(own))
        for id in own:
            if id not in made:
                self._objects.remove(id)
        if len(own) < len(release):
            self.release_own(asker, release)
        return True

    async def _place(self, asker: str, lease: LeaseKey, batch: Batch, index: int) -> None:
        """Choose the worker of one operation, bring all its inputs there, and register its outs."""
        name, args, kwargs, outs = batch.operations[index]
        if name == SEED:
            self._seed(asker, batch, index, check_seed(args, kwargs, outs))
            return
        inputs = await self.inputs(asker, references([args, kwargs]))
        labels = permissions.derived(inputs.values())
        written = written_by(name, args, kwargs, inputs)
        worker = self.worker(asker, labels)
        # What the batch so far makes may be an input here: it has to be under way before it can be exported.
        batch.submit_unless_for(worker)
        if worker.key.labels and may_tell_values(name):
            await self._check_shape_is_public(name, args, inputs, batch)
        self._objects.check_new(asker, outs)
        await self.bring_all(asker, inputs.values(), worker, batch)
        for held in written:
            self._now_written(held, worker, labels, batch)
        batch.made[index] = self.results.register(asker, lease, outs, labels, worker)
        batch.append(index, worker)

    def _seed(self, asker: str, batch: Batch, index: int, seed: int) -> None:
        """All random numbers of this principal begin anew, in each of its workers."""
        batch.submit()
        self._seeds.set(asker, seed)
        for worker in [each for each in self._alive if each.key.principal == asker]:
            self._give_seed(worker)
        batch.made[index] = []

    def _give_seed(self, worker: Worker) -> None:
        seed = self._seeds.of_worker(worker.key.principal, worker.key.labels)
        if seed is not None:
            worker.run([[SEED, [seed], {}, []]]).add_done_callback(forget)

    def _now_written(self, held: Temporary, worker: Worker, labels: frozenset[str], batch: Batch) -> None:
        """An operation changes this temporary in place: from now on it is derived from the other inputs as well, and
        its home is where they are."""
        worker.writes += 1
        held.labels |= labels
        if held.worker is worker:
            return
        if held.worker is not None:
            held.worker.spoil([held.id], _APART)  # all that shares its memory there: that is not changed with it
            held.worker.drop([held.id])
        if held.buffer is not None:
            held.buffer.release()
            held.buffer = None
        held.worker = worker
        batch.lent.discard(held.id)

    async def _check_shape_is_public(self, name: str, args: list[Any], inputs: dict[bytes, Held], batch: Batch) -> None:
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

    # --- inputs -------------------------------------------------------------------------------------------

    async def inputs(self, asker: str, ids: Iterable[bytes]) -> dict[bytes, Held]:
        """What the asker may compute on, by id. NotFound."""
        found: dict[bytes, Held] = {}
        for id in ids:
            if id not in found:
                found[id] = self._objects.at_hand(asker, id) or await self._objects.find(asker, id)
        return found

    async def bring_all(self, asker: str, inputs: Iterable[Held], worker: Worker, batch: Batch) -> None:
        """Give a worker those that it does not have; what is only lent to it is noted in `batch.lent`."""
        for held in inputs:
            if isinstance(held, Published):
                if not worker.holds(held.id):
                    await self.bring_published(held, worker)
            elif held.worker is not worker and held.id not in batch.lent:
                await self._bring(asker, held, worker, batch)
        await worker.ready()

    async def _bring(self, asker: str, held: Temporary, worker: Worker, batch: Batch) -> None:
        """Put a temporary into a worker that does not have it: for good where that has just its labels, else lent."""
        if held.target is not None:
            raise BadRequest(
                f"{show_id(held.id)} points to an object at {held.target.name}: operate on that one, "
                "or pull it here with remote_get()"
            )
        header, value = await self.snapshot(held, in_memory=True)
        assert not isinstance(value, StoredSpan)
        try:
            worker.provide(held.id, header, value if isinstance(value, bytes) else value.share(), 0, read_only=False)
        finally:
            release(value)
        if held.labels - {asker} == worker.key.labels:
            held.worker = worker
        else:
            batch.lent.add(held.id)

    async def bring_published(self, held: Published, worker: Worker | Dedicated) -> None:
        """Give a process what is stored, by its file."""
        tensor, stored = held.tensor, held.stored
        async with self._store.reading(stored) as source:
            if isinstance(source, bytes):
                worker.provide(held.id, tensor.header, source, read_only=True)
                return
            # The worker maps the file; a deleted object's bytes live on in it until it lets go.
            hashes = BlockHashes(stored.start, stored.contents.nbytes, stored.blocks) if stored.blocks else None
            worker.provide(held.id, tensor.header, source, tensor.offset, read_only=True, hashes=hashes, origin=held)

    # --- values -------------------------------------------------------------------------------------------

    def take(self, asker: str, held: Held) -> Taking:
        """`snapshot` for somebody who asks for the value. Denied, BadRequest where it is not to be had."""
        permissions.check_take(asker, held, f"object {show_id(held.id)}")
        if not isinstance(held, Temporary) or held.target is not None:
            raise BadRequest(f"{show_id(held.id)} is no temporary tensor: fetch it in a request of its own")
        return self.snapshot(held)

    def snapshot(self, held: Temporary, *, in_memory: bool = False) -> Taking:
        """The value as it is after everything asked so far; what is asked later does not change it.

        Put in order by the call itself; to be awaited, outside the lane, or closed. Raises what its operation failed
        with, or WorkerLost. A large view of a published object is a span of that one's file, unless it is wanted
        `in_memory`.
        """
        # A buffer is right unless something was written in place in its worker: to it, or through a view of it.
        is_changed = held.worker is not None and (held.buffer is None or held.worker.writes > 0)
        exporting = None
        if held.worker is not None and is_changed:
            exporting = (held.worker, held.worker.export(held.id, in_memory=in_memory))
        return Taking(held, exporting, self._spans)

    def writes(self, held: Temporary) -> object:
        """Equal at two moments in its lane: nothing was written in place in between that could have changed it."""
        return None if held.worker is None else (held.worker, held.worker.writes)

    async def header(self, held: Temporary) -> TensorHeader:
        """Its dtype and shape; waits for the operation that makes it."""
        if held.header is None:
            header, value = await self.snapshot(held)
            release(value)
            return header
        return held.header

    def release_own(self, asker: str, ids: Iterable[bytes]) -> None:
        """Let go of those that are temporaries of the asker: nobody's published object goes with its pointers."""
        held = ((id, self._objects.temporary(id)) for id in ids)
        self.release([id for id, temporary in held if temporary is not None and temporary.owner == asker])

    def _release_unused(
        self, asker: str, ids: Sequence[bytes], operations: Sequence[Operation], fetch: bytes | None
    ) -> Sequence[bytes]:
        """Let go, at once, of those that these operations do not name: they may need the memory. Gives the others."""
        if not ids:
            return ids
        used = {id for _, args, kwargs, outs in operations for id in (*references([args, kwargs]), *outs)}
        self.release_own(asker, [id for id in ids if id not in used and id != fetch])
        return [id for id in ids if id in used or id == fetch]

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

    def worker(self, asker: str, labels: frozenset[str]) -> Worker:
        """The worker for data with these labels. The asker's own label keeps nothing from the asker."""
        labels = labels - {asker}
        self._workers.check_share(asker)
        worker = self._workers.find((asker, labels))
        if worker is None:
            worker = self._workers.worker(asker, labels)
            started = worker
            self._alive.add(worker)
            worker.on_lost(lambda error: self._worker_lost(started, error))
            self._give_seed(worker)
        return worker

    def _worker_lost(self, worker: Worker, error: GridError) -> None:
        """A worker is gone: so is what was computed there; what came from outside is not."""
        for temporary in self._objects.in_worker(worker):
            temporary.worker = None
            # A buffer is right unless something was written in place there: to it, or through a view of it.
            if temporary.buffer is None or worker.writes:
                temporary.failure = temporary.failure or error
        self._alive.discard(worker)
