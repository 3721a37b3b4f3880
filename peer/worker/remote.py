"""The peer's end of one worker: what is asked of it, what came back, and what is lost when it dies.

A worker is not trusted. Whatever it says is checked here, and one that breaks the rules of its channel is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from peer.worker import answers
from peer.worker.answers import Adopts, Exported, Far, Made, Result, Span, Usage
from peer.worker.ending import STOPPED
from peer.worker.giving import provided
from peer.worker.guards import BlockHashes
from peer.worker.holdings import Holdings
from peer.worker.line import Line, WorkerKey
from peer.worker.operation import result_ids
from peer.worker.pending import Asker, Pending, fail
from peer.worker.stopping import Stopping, StopSign
from peer.worker.taught import Taught
from protocol import limits
from protocol.errors import Cancelled, Corrupt, GridError, NotFound
from protocol.sizes import check_limit
from protocol.tensors import TensorHeader

if TYPE_CHECKING:  # it knows objects, and they this file
    from peer.stretch import Stretch, Use

__all__ = [
    "BlockHashes",
    "Exported",
    "Far",
    "Made",
    "Result",
    "Span",
    "Usage",
    "Worker",
    "WorkerKey",
    "WorkerStatistics",
]

T = TypeVar("T")
_STRETCHES: Final = limits.WORKER_STRETCHES


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    key: WorkerKey
    pid: int | None
    held: int
    pending: int
    unsent_bytes: int
    operations: int


class Worker(Line):
    """One worker process, from the peer's side. Made by a WorkerPool; lives in one event loop.

    Requests may be made at once, whether the process is there yet or not; it works at them in order, and answers in
    order but for values that need not wait (ahead.py). Futures fail with the error of their request, or with
    WorkerLost when the process dies; cancelling one gives up the answer, not the work. Await `ready()` between
    requests to keep the queue bounded.
    """

    def __init__(
        self,
        key: WorkerKey,
        channel: socket.socket,
        buffers: Adopts,
        gone: Callable[[Worker], None],
        holds: Callable[[Worker, int], None] = lambda worker, nbytes: None,
        seconds: float = limits.OPERATION_SECONDS,
    ) -> None:
        super().__init__(key, channel, gone, holds, seconds)
        self._buffers = buffers
        self._allowed: int | None = None
        self._held = Holdings()
        self.holds = self._held.holds
        self.knows = self._held.has_program
        self._taught: dict[Stretch, Taught] = {}  # the stretches that it has, in the order in which it was told
        self._lessons = 0
        self.writes = 0  # how often something here was changed in place; whoever asks for that counts it
        self._operations = 0

    # --- what it is asked ---------------------------------------------------------------------------------

    def provide(
        self,
        object_id: bytes,
        header: TensorHeader,
        data: int | bytes,
        offset: int = 0,
        read_only: bool = False,
        *,
        hashes: BlockHashes | None = None,
        origin: Any = None,
    ) -> None:
        """Gives it a value: a few bytes, or the descriptor of a file that holds the elements from `offset` on.

        The file is mapped, not copied; what the worker writes to it stays its own. The descriptor stays the
        caller's, who may close it at once. A read-only value refuses in-place operations (ReadOnly).

        Args:
            hashes: of a read-only file's blocks: whatever is read of it is checked against them (Corrupt).
            origin: what the caller knows a read-only file by. Large values that are parts of it are then not
                copied: their export is a Span with this origin.
        """
        is_known = isinstance(data, int) and origin is not None
        number = self._held.numbered(object_id, header.nbytes, origin) if is_known else None
        self._tell(*provided(object_id, header, data, offset, hashes, read_only=read_only, number=number))
        self._held.provided(object_id, header, again=read_only)

    def run(self, operations: Sequence[Sequence[Any]]) -> asyncio.Future[list[Result]]:
        """Runs operations [name, args, kwargs, outs] in order; gives one result for each.

        What an operation did wrong is its own result, and that of those that use what it should have made; the
        future itself fails only with the loss of the worker.

        Raises:
            TooLarge: more than limits.MAX_BATCH operations, or more bytes than a message may have.
            BadRequest: an argument that msgpack cannot hold.
        """
        count = len(operations)
        _check_count(count)
        future: asyncio.Future[list[Result]] = self._loop.create_future()
        pending = Pending(future, "operations", lambda fields, _: self._results(fields, count), operations)
        self._put(pending, "run", operations)
        for operation in operations:
            self._held.promised(result_ids(operation))
        self._operations += count
        return future

    def run_for(
        self,
        asker: Asker,
        operations: Sequence[Sequence[Any]],
        wanted: bytes | None,
        dropped: Sequence[bytes],
        made: Iterable[bytes],
    ) -> None:
        """`run`, then `export` of what it made now or before (`has_made`), if that is wanted, then `drop`: one message.

        `asker` gets the results, and the value or the error that it is not to be had for. `made` are the ids of the
        results of all operations, at most limits.MAX_BATCH.
        """
        count = len(operations)

        def parse(fields: list[Any], descriptors: list[int]) -> tuple[list[Result], Exported | GridError | None]:
            results = self._results(fields, count)
            if wanted is None:
                return results, None
            return results, answers.value(self._held.made, fields[1], descriptors, self._buffers)

        self._held.promised(made)
        known = list(filter(self.holds, dropped))
        self._put(Pending(asker, "operations", parse, operations), "run", operations, wanted, known)
        self._operations += count
        if known:
            self._held.forget(known)

    def run_again(self, asker: Asker, use: Use, wanted: bytes | None, dropped: Sequence[bytes]) -> None:
        """`run_for`, for a stretch. In place of the results `asker` gets a tuple, with a header for each object that
        is made, where all of them came out as they did before."""
        stretch = use.stretch
        taught = self._taught.get(stretch) or self._teach(stretch)

        def parse(
            fields: list[Any], descriptors: list[int]
        ) -> tuple[list[Result] | tuple[TensorHeader, ...], Exported | GridError | None]:
            # As `results` has it where all is as before, without a call.
            results = (fields[0] is None and taught.headers) or taught.results(fields, self._results)
            if wanted is None:
                return results, None
            return results, answers.value(self._held.made, fields[1], descriptors, self._buffers)

        self._held.promised(use.outs)
        known = list(filter(self.holds, dropped))
        pending = Pending(asker, "operations", parse, stretch.operations)
        self._put(pending, "again", taught.number, use.given, use.made, use.floats, wanted, known)
        self._operations += len(stretch.operations)
        if known:
            self._held.forget(known)

    def _teach(self, stretch: Stretch) -> Taught:
        """Tells it what the operations of this stretch are; what it was told longest ago goes for it."""
        self._lessons += 1
        taught = self._taught[stretch] = Taught(stretch, self._lessons)
        forgotten = self._taught.pop(next(iter(self._taught))).number if len(self._taught) > _STRETCHES else None
        self._tell(["stretch", taught.number, stretch.numbered(), forgotten])
        return taught

    def run_program(
        self,
        asker: Asker,
        program_id: bytes,
        program: bytes | None,
        inputs: Sequence[bytes],
        outs: Sequence[bytes],
        *,
        told: Callable[[Made], None] | None = None,
        is_reported: bool = False,
        dropped: Sequence[bytes] = (),
    ) -> int:
        """Runs a whole program on `inputs` (object ids); its results become `outs`, in order. `asker` is told what
        they are (Made), or what went wrong. The number of the request, for `stop` and `far`.

        Args:
            program_id: the content hash of the program.
            program: its canonical bytes; None is enough while `knows(program_id)`.
            told: small results are wanted themselves, too: gets what `asker` would be told at the end, where that is
                settled before. In this case `asker` hears None at the end, or what went wrong after all, which is then
                what became of the results, too.
            is_reported: it is wanted what each node took.
            dropped: ids to `drop` before it runs.
        """
        if self.knows(program_id):
            program = None
        elif program is None:
            raise NotFound("the worker does not know this program; send the program itself")
        if self._stopping is None:
            self._stopping = self._signed()
        pending = Pending(asker, "program", lambda fields, _: answers.made(fields, len(outs)), told=told)
        known = self._held.forget(dropped) if dropped else ()
        number = self._put(pending, "program", program_id, program, inputs, outs, told is not None, is_reported, known)
        forgotten = self._held.ran(program_id)
        if forgotten is not None:
            self._tell(["forget", forgotten])
        self._held.promised(outs)
        return number

    def _signed(self) -> Stopping:
        """Gives it the memory in which it will be told what is to end."""
        sign = StopSign()
        try:
            self._tell(["sign"], [sign.fd])
        finally:
            os.close(sign.fd)
        return Stopping(sign, self._first, lambda: self.pid is not None, lambda: self.lose(STOPPED))

    def stop(self, number: int) -> None:
        """Ends the program of this number: at its next step, or the process is killed where that takes longer than
        limits.STOP_WAIT. One whose turn has not come has failed at once, and will not run. One that is over: nothing.
        """
        if self._stopping is None or number not in self._pending:
            return
        self._stopping.stop(number)
        if number != self._first():
            asker = self._pending[number].give_up()
            fail(asker, Cancelled("the run was ended before it began"))

    def far(self, number: int) -> Far | None:
        """How far the program of this number is, where it said so. None of one that has not begun, or is over."""
        pending = self._pending.get(number)
        return None if pending is None else pending.far

    def export(self, object_id: bytes, *, in_memory: bool = False) -> asyncio.Future[Exported]:
        """The value, as soon as all that was asked before is done. Fails with the error that made it, if one did.

        With `in_memory` it is bytes or a Buffer, wherever else the peer has it; at most MAX_MEMORY_TENSOR.
        """
        given = self._held.given(object_id, in_memory)
        return self._ask(
            "export",
            lambda fields, fds: answers.exported(given, fields, fds, self._buffers),
            "export",
            object_id,
            in_memory,
        )

    def drop(self, ids: Iterable[bytes]) -> None:
        """Forgets values; unknown ids are ignored."""
        known = self._held.forget(ids)
        for start in range(0, len(known), limits.MAX_ARRAY):
            self._tell(["drop", known[start : start + limits.MAX_ARRAY]])

    def spoil(self, ids: Iterable[bytes], error: GridError) -> None:
        """Values that should have been changed in place, by operations that do not come here: whoever uses them, or
        what shares memory with them, gets this error."""
        self.writes += 1  # what was read of them before is not what they are
        self._tell(["spoil", list(ids), error.to_fault()])

    def usage(self) -> asyncio.Future[Usage]:
        return self._ask("usage", lambda fields, _: answers.usage(fields), "usage")

    def has_made(self, object_id: bytes) -> bool:
        """Whether it holds it as a result."""
        return self._held.has_made(object_id)

    async def ready(self) -> None:
        """Waits until the unsent requests are few (`channel.is_full`). Cancelling is safe."""
        await self.channel.drained()

    def allow(self, nbytes: int | None) -> None:
        """How much it may hold from now on. The budget in its settings holds until it is told."""
        # One that does not read is told nothing: what waited for it would have no bound but how often others change.
        if nbytes is not None and nbytes != self._allowed and not self.channel.is_full:
            self._allowed = nbytes
            self._tell(["allow", nbytes])

    @property
    def is_rationed(self) -> bool:
        """Whether it was told to hold less, or more, than its settings say."""
        return self._allowed is not None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is lost by ending it: it is asked nothing, and holds only what can be provided again."""
        return not self._pending and not self._held.has_results

    def _results(self, fields: list[Any], count: int) -> list[Result]:
        results = answers.results(fields, count)
        for result in results:
            if type(result) is Corrupt:
                self._distrust(result)
        return results

    def _over(self) -> None:
        self._held.clear()
        self._taught.clear()

    def _distrust(self, error: Corrupt) -> None:
        # The store may get a good copy: who asks for the object again is to find that one.
        with contextlib.suppress(TypeError, ValueError):
            id = bytes.fromhex(error.fields["object"]) if "object" in error.fields else b""
            self.drop([id] if self._held.can_again(id) else [])

    def statistics(self) -> WorkerStatistics:
        return WorkerStatistics(
            self.key, self.pid, len(self._held), len(self._pending), self.channel.unsent_bytes, self._operations
        )

    def __repr__(self) -> str:
        state = "lost" if self.is_lost else f"pid {self.pid}"
        return f"<Worker for {self.key.principal[:8]}, {state}, {len(self._held)} held, {len(self._pending)} pending>"


def _check_count(count: int) -> None:
    check_limit("MAX_BATCH", count, "{size} operations in one request, at most {allowed}: send them in several")
